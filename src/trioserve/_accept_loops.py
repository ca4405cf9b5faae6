"""Accept loops: one of Trio's per listener, so that listeners can come and go.

This module starts and stops accepting. The host decides what is done with a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import trio

from ._acceptor import Acceptor, Host
from ._certificates import Certificates
from ._connection import Connection
from ._handshake import Layer, certificates_in, layers_in_order
from ._layers import Layers
from ._listeners import Listener, accept_source
from ._socket_acceptor import SocketAcceptor
from ._stream_acceptor import StreamAcceptor
from ._tls_options import TlsOptions


class AcceptLoops:
    """The accept loops of one server.

    Attributes:
      acceptors: one for each listener, in the order in which they were added.
      scope: around all loops; its cancellation, or its deadline, ends accepting.
    """

    def __init__(
        self, host: Host, listeners: Iterable[trio.abc.Listener[Any]], layers: Layers
    ) -> None:
        self.scope = trio.CancelScope()
        self.acceptors: list[Acceptor] = []
        self._host = host
        self._layers = layers
        self._nursery: trio.Nursery | None = None
        self._loops: dict[Acceptor, _Loop] = {}
        self._dead: dict[Acceptor, OSError] = {}
        self._drained_before = 0
        try:
            for listener in listeners:
                self.acceptors.append(self._acceptor_for(listener, layers))
            if not self.acceptors:
                raise ValueError("listeners must not be empty")
        except BaseException:
            self.dispose()
            raise

    def _acceptor_for(
        self, listener: trio.abc.Listener[Any], layers: Layers
    ) -> Acceptor:
        if layers.accept_proxy and isinstance(listener, trio.SSLListener):
            raise ValueError(
                "a listener with TLS can't have layers with accept_proxy: a PROXY"
                " header comes before TLS"
            )
        in_order = layers_in_order(layers, self._host.admission, self._certificates_of)
        if isinstance(listener, Listener):
            return SocketAcceptor(listener, self._host, in_order)
        return StreamAcceptor(listener, self._host, in_order)

    def _certificates_of(self, options: TlsOptions) -> Certificates:
        """Those of another listener with the same options, or new ones."""
        shared = (each for each in self.certificates if each.options == options)
        return next(shared, None) or Certificates(options)

    @property
    def certificates(self) -> Sequence[Certificates]:
        """The certificates of all listeners, each once."""
        found = (c for a in self.acceptors for c in certificates_in(a.layers))
        return list(dict.fromkeys(found))

    @property
    def backlog_drained(self) -> int:
        """Connections found in the kernel's queues when accepting ended."""
        here = sum(acceptor.backlog_drained for acceptor in self.acceptors)
        return self._drained_before + here

    @property
    def fatal_error(self) -> OSError | None:
        """The last error, if all listeners are dead; else None."""
        errors = list(self._dead.values())
        return errors[-1] if errors and len(errors) == len(self.acceptors) else None

    def died(self, acceptor: Acceptor, error: OSError) -> None:
        """Note that an acceptor will never accept again."""
        self._dead[acceptor] = error

    def reconsider(self) -> None:
        """Called when the limits have changed."""
        for acceptor in self.acceptors:
            acceptor.reconsider()

    def dispose(self) -> None:
        """Free the acceptors' own descriptors; the listeners stay open."""
        for acceptor in self.acceptors:
            acceptor.dispose()

    async def run(self, started: Callable[[], None]) -> None:
        """Accept from all listeners until the scope is cancelled, then close them."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    # Cancelled here, it would leave some listeners open.
                    with trio.CancelScope(shield=True):
                        for acceptor in self.acceptors:
                            loop = self._loops[acceptor] = _Loop()
                            await nursery.start(
                                self._run, acceptor, loop, name=_name_of(acceptor)
                            )
                    self._nursery = nursery
                    started()
                    await trio.sleep_forever()
        finally:
            self._nursery = None

    def add(self, listener: trio.abc.Listener[Any], layers: Layers | None) -> None:
        """Start accepting from another listener.

        Args:
          layers: None for the layers of the server.

        Raises:
          OSError: its socket is closed.
          RuntimeError: the server does not accept, or not yet.
          ValueError: the server has this listener already, or it can't have these
            layers.
        """
        nursery = self._nursery
        if (
            nursery is None
            or nursery.cancel_scope.cancel_called
            or self.scope.cancel_called
        ):
            raise RuntimeError("this server does not accept connections")
        source = accept_source(listener)
        if any(accept_source(a.listener) is source for a in self.acceptors):
            raise ValueError("the server has this listener already")
        layers = self._layers if layers is None else layers
        acceptor = self._acceptor_for(listener, layers)
        loop = self._loops[acceptor] = _Loop()
        self.acceptors.append(acceptor)
        nursery.start_soon(self._run, acceptor, loop, name=_name_of(acceptor))

    async def close(self, listener: trio.abc.Listener[Any]) -> None:
        """Stop accepting from this listener, and close it.

        Raises:
          ValueError: the server does not have this listener.
        """
        for acceptor, loop in list(self._loops.items()):
            if acceptor.listener is listener:
                acceptor.is_closing = True
                loop.scope.cancel(reason="the listener is closed")
                await loop.over.wait()
                return
        raise ValueError("the server does not have this listener")

    async def _run(
        self,
        acceptor: Acceptor,
        loop: _Loop,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            with loop.scope:
                starter = _ConnectionNursery(self._host, acceptor.layers)
                # Trio calls handler_nursery.start_soon(its own task, connection, ...)
                # per connection; this one starts the connection's task instead. The
                # documentation of trio.serve_listeners allows it: "The nursery used to
                # start handlers, or any object with a start_soon method".
                await trio.serve_listeners(
                    _unused,
                    [acceptor],
                    handler_nursery=starter,  # type: ignore[arg-type]
                    task_status=task_status,
                )
        finally:
            if acceptor.is_closing:
                self.acceptors.remove(acceptor)
                self._dead.pop(acceptor, None)
                self._drained_before += acceptor.backlog_drained
                self._host.acceptor_closed()
            del self._loops[acceptor]
            loop.over.set()


def _name_of(acceptor: Acceptor) -> str:
    return f"trioserve acceptor {acceptor.address}"


class _Loop:
    """The scope of one accept loop, and an event for its end."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()


class _ConnectionNursery:
    """The ``handler_nursery`` of Trio's accept loop: starts the connection's task."""

    def __init__(self, host: Host, layers: tuple[Layer, ...]) -> None:
        self._host = host
        self._layers = layers

    def start_soon(
        self,
        _task: object,
        connection: Connection,
        _handler: object,
        *,
        name: object = None,
    ) -> None:
        self._host.start(connection, self._layers)


async def _unused(_stream: object) -> None:
    raise AssertionError("_ConnectionNursery starts something else")  # pragma: no cover

"""Accept loops: one of Trio's for each listener, so that a listener can come and go.

It starts and stops accepting. What becomes of a connection is its host's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from ._acceptor import Acceptor, Host
from ._connection import Connection
from ._listeners import Listener
from ._socket_acceptor import SocketAcceptor
from ._stream_acceptor import StreamAcceptor


class AcceptLoops:
    """The accept loops of one server.

    Attributes:
      acceptors: one for each listener, in the order in which they were added.
      scope: around all loops; cancelled, or at its deadline, no more is accepted.
    """

    def __init__(self, host: Host, listeners: Iterable[trio.abc.Listener[Any]]) -> None:
        self.scope = trio.CancelScope()
        self.acceptors: list[Acceptor] = []
        self._host = host
        self._nursery: trio.Nursery | None = None
        self._loops: dict[Acceptor, _Loop] = {}
        self._dead: dict[Acceptor, OSError] = {}
        self._drained_before = 0
        try:
            for listener in listeners:
                self.acceptors.append(self._acceptor_for(listener))
            if not self.acceptors:
                raise ValueError("listeners must not be empty")
        except BaseException:
            self.dispose()
            raise

    def _acceptor_for(self, listener: trio.abc.Listener[Any]) -> Acceptor:
        if isinstance(listener, Listener):
            return SocketAcceptor(listener, self._host)
        return StreamAcceptor(listener, self._host)

    @property
    def backlog_drained(self) -> int:
        """Connections found in the kernel's queues when accepting ended."""
        here = sum(acceptor.backlog_drained for acceptor in self.acceptors)
        return self._drained_before + here

    @property
    def fatal_error(self) -> OSError | None:
        """The last error, if no listener can accept any more."""
        errors = list(self._dead.values())
        return errors[-1] if errors and len(errors) == len(self.acceptors) else None

    def died(self, acceptor: Acceptor, error: OSError) -> None:
        """This one will never accept again."""
        self._dead[acceptor] = error

    def reconsider(self) -> None:
        """The limits have changed."""
        for acceptor in self.acceptors:
            acceptor.reconsider()

    def dispose(self) -> None:
        """Let go of everything that isn't the listeners', without waiting."""
        for acceptor in self.acceptors:
            acceptor.dispose()

    async def run(self) -> None:
        """Accept from all listeners until the scope is cancelled; then close them."""
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                for acceptor in self.acceptors:
                    self._start(acceptor)
                await trio.sleep_forever()

    def add(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept from one listener more.

        Raises:
          OSError: its socket was closed.
          RuntimeError: no more is accepted, or not yet.
          ValueError: it is one of the server's already.
        """
        if self._nursery is None or self.scope.cancel_called:
            raise RuntimeError("this server does not accept connections")
        if any(acceptor.listener is listener for acceptor in self.acceptors):
            raise ValueError("listener is one of this server's already")
        acceptor = self._acceptor_for(listener)
        self.acceptors.append(acceptor)
        self._start(acceptor)

    async def close(self, listener: trio.abc.Listener[Any]) -> None:
        """Stop accepting from this listener, and close it.

        Raises:
          ValueError: it is none of the server's.
        """
        for acceptor, loop in list(self._loops.items()):
            if acceptor.listener is listener:
                acceptor.is_closing = True
                loop.scope.cancel(reason="the listener is closed")
                await loop.over.wait()
                return
        raise ValueError("listener is none of this server's")

    def _start(self, acceptor: Acceptor) -> None:
        assert self._nursery is not None
        loop = self._loops[acceptor] = _Loop()
        name = f"trioserve acceptor {acceptor.address}"
        self._nursery.start_soon(self._run, acceptor, loop, name=name)

    async def _run(self, acceptor: Acceptor, loop: _Loop) -> None:
        try:
            with loop.scope:
                # Trio calls handler_nursery.start_soon(its own task, connection, ...)
                # for each; ours starts the connection's task instead. "The nursery
                # used to start handlers, or any object with a start_soon method", says
                # the documentation of trio.serve_listeners.
                await trio.serve_listeners(
                    _unused,
                    [acceptor],
                    handler_nursery=_Starter(self._host),  # type: ignore[arg-type]
                )
        finally:
            if acceptor.is_closing:
                self.acceptors.remove(acceptor)
                self._dead.pop(acceptor, None)
                self._drained_before += acceptor.backlog_drained
            del self._loops[acceptor]
            loop.over.set()


class _Loop:
    """One accept loop: the scope around it, and whether it is over."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()


class _Starter:
    """What Trio's accept loop takes for a nursery: starts connections' own tasks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start_soon(
        self,
        _task: object,
        connection: Connection,
        _handler: object,
        *,
        name: object = None,
    ) -> None:
        self._host.start(connection)


async def _unused(_stream: object) -> None:
    raise AssertionError("_Starter starts something else")  # pragma: no cover

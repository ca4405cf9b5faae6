"""Connection: the Trio stream that a handler gets.

It is a view of the connection's lifecycle and transport. It has no state of its own and
decides nothing.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

import trio

from ._address import Address, address_in
from ._arguments import check_count, check_type
from ._describe import escape
from ._idle import Idle
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._proxy_facts import facts_declared
from ._reason import Phase, Reason
from ._report import ProxyFacts, TlsFacts
from ._transport import CHUNK, FAILURES

_T = TypeVar("_T")

_MAX_NOTES: Final = 32

#: The same as for a refusal: it is sent without waiting for the client.
_MAX_GOODBYE: Final = 4096

_current: contextvars.ContextVar[Connection] = contextvars.ContextVar(
    "trioserve_connection"
)


def current_connection() -> Connection:
    """Return the connection whose handler is running.

    Tasks that the handler has started get the same one.

    Raises:
      LookupError: called outside of a handler.
    """
    return _current.get()


def set_current_connection(connection: Connection) -> None:
    """Set it for this task, and for the tasks that it starts."""
    _current.set(connection)


def call_with_connection(
    connection: Connection, function: Callable[[Connection], _T]
) -> _T:
    """``function(connection)``, for which it is the current connection."""
    token = _current.set(connection)
    try:
        return function(connection)
    finally:
        _current.reset(token)


def lifecycle_of(connection: Connection) -> Lifecycle:
    """The server's side of a connection."""
    return connection._lifecycle


def adopt_transport(connection: Connection) -> None:
    """Use the transport that its lifecycle has now, after a layer has replaced it."""
    connection._transport = connection._lifecycle.transport


class Connection(trio.abc.HalfCloseableStream):
    """One accepted connection, as its handler uses it: a Trio stream.

    It has the methods of :class:`trio.SocketStream`. Timers run while it waits, bytes
    are counted, and each connection leaves one report. The server closes it when the
    handler returns or raises; the handler may close it earlier. Several tasks may use
    it, one receiving and one sending at a time.
    """

    __slots__ = ("__weakref__", "_lifecycle", "_transport")

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._transport = lifecycle.transport

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self._lifecycle.peer}: {self.phase}>"

    # -- its state

    @property
    def id(self) -> int:
        """Its number: the server counts its connections from 1."""
        return self._lifecycle.id

    @property
    def peer(self) -> Address | None:
        """The client's address; ``str()`` of it is the text that people write.

        Behind a load balancer, the client that its PROXY header has declared. Most
        clients of a Unix socket have no name, so their ``path`` is ``""``. None if
        there is no socket below.
        """
        return address_in(self._lifecycle.peer)

    @property
    def direct_peer(self) -> Address | None:
        """The load balancer's address, if a PROXY header declares another peer.

        None without such a header.
        """
        direct = self._lifecycle.direct
        return None if direct is None else address_in(direct[0])

    @property
    def declared(self) -> ProxyFacts | None:
        """What its PROXY header says besides addresses, such as the client's TLS.

        None without a header, or if it has only addresses.
        """
        return facts_declared(self._lifecycle.header)

    @property
    def local(self) -> Address | None:
        """The address that the client has connected to; None as for :attr:`peer`."""
        return address_in(self._lifecycle.local)

    @property
    def server_name(self) -> str | None:
        """The name that the client asks for by TLS (SNI), in lower case.

        :func:`by_server_name` reads it; None before that, and without a name.
        """
        return self._lifecycle.server_name

    @property
    def listener(self) -> Address | None:
        """The address of its listener; None as for :attr:`peer`.

        It differs from :attr:`local` if the listener is for all interfaces.
        """
        return address_in(self._lifecycle.listener)

    @property
    def tls(self) -> TlsFacts | None:
        """What its TLS handshake has agreed on; None without TLS."""
        return self._transport.tls_facts()

    @property
    def draining(self) -> trio.Event:
        """Set when the server drains, so that the handler can end early."""
        return self._lifecycle.draining

    @property
    def timeouts(self) -> Timeouts:
        """Its timeouts; at first those of the server.

        They may be replaced at any time, such as by longer ones after a login:
        ``conn.timeouts = dataclasses.replace(conn.timeouts, idle=3600)``. The new
        value applies to a timer that runs already. A relay keeps the timeouts that it
        was started with.
        """
        return self._lifecycle.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts")
        self._lifecycle.timeouts = timeouts
        if not self._transport.closed:
            self._lifecycle.watch()

    @property
    def goodbye(self) -> bytes:
        """Bytes that are sent before the FIN, if a timer or a drain ends it.

        For example ``b"421 closing\\r\\n"``; default ``b""``, at most 4,096 bytes. The
        timers are ``idle`` and ``first_byte``. If a drain ends :meth:`idle`, they are
        sent after the handler has returned. They are not sent to a client that is
        reset, or after a timer has ended a relay.
        """
        return self._lifecycle.goodbye

    @goodbye.setter
    def goodbye(self, goodbye: bytes) -> None:
        check_type("goodbye", goodbye, bytes, "bytes")
        if len(goodbye) > _MAX_GOODBYE:
            raise ValueError(f"goodbye must be {_MAX_GOODBYE} bytes or fewer")
        self._lifecycle.goodbye = goodbye

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return trio.current_time() - self._lifecycle.accepted_at

    @property
    def phase(self) -> Phase:
        """Its phase, as in the report."""
        return self._lifecycle.phase

    @property
    def target(self) -> str | None:
        """The target that :func:`proxy` relays to or is dialing; None without one."""
        dialer = self._lifecycle.dialer
        return str(dialer.target) if dialer is not None else None

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the client so far."""
        return self._transport.received

    @property
    def bytes_sent(self) -> int:
        """Bytes that the client's socket has taken so far."""
        return self._transport.sent

    @property
    def notes(self) -> Mapping[str, object]:
        """The fields that :meth:`note` has added so far."""
        return self._lifecycle.notes or {}

    @property
    def socket(self) -> trio.socket.SocketType:
        """The connection's socket, for its options and addresses.

        Bytes that you send or receive through it are not counted.

        Raises:
          AttributeError: there is no socket under this connection.
        """
        sock = self._transport.trio_socket()
        if sock is None:
            raise AttributeError("there is no socket under this connection")
        return sock

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set a socket option, as :meth:`trio.SocketStream.setsockopt` does.

        Over a stream that is not a socket, this calls the method of that stream.

        Raises:
          TypeError: an argument has the wrong type.
          AttributeError: there is no socket, and no such method, under this connection.
        """
        check_type("level", level, int, "an int")
        check_type("option", option, int, "an int")
        kinds = (int, bytes, bytearray, memoryview)
        check_type("value", value, kinds, "an int or bytes")
        self._has_options.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Get a socket option, as :meth:`trio.SocketStream.getsockopt` does.

        Streams without a socket, and errors, as for :meth:`setsockopt`.
        """
        check_type("level", level, int, "an int")
        check_type("option", option, int, "an int")
        check_count("buffersize", buffersize, least=0)
        sizes = (buffersize,) if buffersize else ()
        value: int | bytes = self._has_options.getsockopt(level, option, *sizes)
        return value

    @property
    def _has_options(self) -> Any:
        """The socket, or another object that has socket options."""
        options = self._transport.options()
        if options is None:
            raise AttributeError("there is no socket under this connection")
        return options

    def note(self, **fields: object) -> None:
        """Add fields to the report; a later value replaces an earlier one.

        Raises:
          ValueError: more than 32 fields.
        """
        notes = {**self.notes, **fields}
        if len(notes) > _MAX_NOTES:
            raise ValueError(f"more than {_MAX_NOTES} notes on one connection")
        self._lifecycle.notes = notes

    # receive_some() and send_all() are not async functions, and return the transport's
    # coroutine: one more coroutine would cost each message some percent. (Pyright
    # infers a narrower type for async functions, hence the comments for it.)

    def receive_some(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_bytes: int | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """Receive 1 to ``max_bytes`` bytes (default 64 KiB), or ``b""`` at EOF.

        If it is cancelled, no byte is lost. It is a checkpoint, except right after
        :meth:`send_all`, which was one: bytes that have arrived meanwhile are then
        returned at once.

        Raises:
          ValueError, TypeError: ``max_bytes`` is not a positive int.
          trio.BrokenResourceError: the client has reset the connection, and all bytes
            before the reset were received; or this machine can't receive. The
            ``__cause__`` says why.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: the connection was closed, also by a timer or a
            drain.
        """
        if max_bytes is None:
            max_bytes = CHUNK
        else:
            check_count("max_bytes", max_bytes, least=1)
        return self._transport.receive(max_bytes)

    def __anext__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> Coroutine[Any, Any, bytes]:
        return self._transport.receive(CHUNK, StopAsyncIteration)

    def send_all(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, data: bytes | bytearray | memoryview
    ) -> Coroutine[Any, Any, None]:
        """Send all of ``data``.

        It is always a checkpoint. If it is cancelled or fails, a part may have been
        sent; :attr:`bytes_sent` says how much.

        Raises:
          TypeError, ValueError: ``data`` is not bytes-like, or not contiguous.
          trio.BrokenResourceError: the connection is broken; the ``__cause__`` says
            why.
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: the connection was closed, or :meth:`send_eof` was
            called.
        """
        if type(data) is not bytes:
            _check_bytes(data)
        return self._transport.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until :meth:`send_all` might not have to wait.

        Raises the errors of :meth:`send_all`.
        """
        try:
            await self._transport.wait_writable()
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def send_eof(self) -> None:
        """Send EOF; receiving goes on, bounded by ``Timeouts.half_closed``.

        Raises:
          TypeError: the stream below can't be half-closed.
          trio.BrokenResourceError: the system can't send it. If the client is gone,
            this does not raise; a receive will.
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: the connection was closed.
        """
        try:
            await self._transport.send_eof()
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def aclose(self) -> None:
        """Close gracefully, so that the client gets all that was sent.

        If the client's EOF was not received yet, this sends EOF and discards what the
        client still sends, at most 64 KiB and for at most ``Timeouts.linger`` seconds.
        A task that is receiving or sending meanwhile gets ``ClosedResourceError``. If
        this is cancelled, it closes at once by RST.
        """
        await self._lifecycle.close_gracefully()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._lifecycle.close_now()
        await self.aclose()

    def abort(self, reason: str | None = None) -> None:
        """Close at once with RST. A task that waits gets ``ClosedResourceError``.

        Args:
          reason: a text for the ``error`` of the report; the report's ``reason`` is
            ``aborted``.

        Raises:
          TypeError: ``reason`` is not a str.
        """
        if reason is not None:
            check_type("reason", reason, str, "a str or None")
        if not self._transport.closed:
            error = escape(reason) if reason else None
            self._lifecycle.close_as(Reason.ABORTED, error=error)
            self._transport.abort()

    def idle(self, held: object = b"") -> Idle:
        """Mark a wait for the client's next message; a drain may cancel it.

        A drain cancels the block only if no byte has arrived since it was entered.
        After the first byte it does not, so the block may read a whole message. A block
        that is entered during a drain, with nothing to read, is cancelled at once.
        Over a stream that is not a socket, a byte counts when it is received::

            data = b""
            with conn.idle(held=buffer):
                data = await conn.receive_some()
            if not data:
                return
            buffer += data

        In ``with conn.idle() as idle``, ``idle.cancelled_caught`` says afterwards
        whether a drain has cancelled the block, as in a :class:`trio.CancelScope`.

        Args:
          held: the part of a message that was received before, such as a buffer; only
            its truth value matters. If it is true when the block is entered, a drain
            does not cancel the block: the client still expects an answer, and
            :meth:`Server.drain` waits for it.

        Raises:
          RuntimeError: the connection is in another ``idle()`` block.
        """
        return self._lifecycle.idle(held)


def _check_bytes(data: object) -> None:
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"data must be bytes, not {data!r}") from None
    if not view.c_contiguous:
        raise ValueError("data must be contiguous, not a view with gaps")

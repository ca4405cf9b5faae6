"""Connections: what a handler gets.

A Trio stream with a few things more, written on the connection's lifecycle. It has no
state of its own and decides nothing.
"""

from __future__ import annotations

import contextvars
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Final

import trio

from ._address import Address, address_in
from ._arguments import check_count, check_type
from ._describe import escape
from ._idle import Idle
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._reason import Phase, Reason
from ._transport import CHUNK, FAILURES

_MOST_NOTES: Final = 32

#: As of a refusal: it has to go at once, without waiting for the client.
_MOST_GOODBYE: Final = 4096

_current: contextvars.ContextVar[Connection] = contextvars.ContextVar(
    "trioserve_connection"
)


def current_connection() -> Connection:
    """The connection whose handler, or a task started by it, is running.

    Raises:
      LookupError: outside of a handler.
    """
    return _current.get()


def set_current_connection(connection: Connection) -> None:
    """From now on this task, and those that it starts, serve this one."""
    _current.set(connection)


def lifecycle_of(connection: Connection) -> Lifecycle:
    """What the server does with it."""
    return connection._lifecycle


class Connection(trio.abc.HalfCloseableStream):
    """One accepted peer: a Trio stream that knows its own story.

    It does what :class:`trio.SocketStream` does, and more: timers run while it
    waits, bytes are counted, and however it ends there is one report. The
    server closes it when the handler returns or raises; a handler may close it
    before. Several tasks may use it, one receiving and one sending at a time.
    """

    __slots__ = ("__weakref__", "_lifecycle", "_transport")

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._transport = lifecycle.transport

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self._lifecycle.peer}: {self.phase}>"

    # -- what it is

    @property
    def id(self) -> int:
        """Counts the connections of one server, from 1."""
        return self._lifecycle.id

    @property
    def peer(self) -> Address | None:
        """The client's address; ``str()`` of it is as a person writes it.

        Most clients of a Unix socket have no name, so their ``path`` is ``""``. None
        for a stream that is not a socket's.
        """
        return address_in(self._lifecycle.peer)

    @property
    def local(self) -> Address | None:
        """The address that the client has connected to; None as of :attr:`peer`."""
        return address_in(self._lifecycle.local)

    @property
    def listener(self) -> Address | None:
        """The address of the listener that it came through; None as of :attr:`peer`.

        With a listener for all interfaces it is not :attr:`local`.
        """
        return address_in(self._lifecycle.listener)

    @property
    def draining(self) -> trio.Event:
        """An event: the server wants to stop."""
        return self._lifecycle.draining

    @property
    def timeouts(self) -> Timeouts:
        """How long it waits for what; at first as the server does.

        May be replaced at any time, such as by longer ones after a login:
        ``conn.timeouts = dataclasses.replace(conn.timeouts, idle=3600)``. A timer that
        runs is measured by the new value. A relay keeps those that it was made with.
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
        """Bytes that are sent before the FIN of a timer or a drain.

        Such as ``b"421 closing\\r\\n"``; ``b""`` at first, and 4,096 bytes at most. The
        timers are ``idle`` and ``first_byte``. After a drain that has ended
        :meth:`idle`, they are sent when the handler has returned. A client that is
        reset gets none, nor does one whose relay has ended by a timer.
        """
        return self._lifecycle.goodbye

    @goodbye.setter
    def goodbye(self, goodbye: bytes) -> None:
        check_type("goodbye", goodbye, bytes, "bytes")
        if len(goodbye) > _MOST_GOODBYE:
            raise ValueError(f"goodbye must be {_MOST_GOODBYE} bytes or fewer")
        self._lifecycle.goodbye = goodbye

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return trio.current_time() - self._lifecycle.accepted_at

    @property
    def phase(self) -> Phase:
        """Where in its life it is."""
        return self._lifecycle.phase

    @property
    def target(self) -> str | None:
        """Where :func:`proxy` relays it to, or dials now; None without one."""
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
        """What was noted so far."""
        return self._lifecycle.notes or {}

    @property
    def socket(self) -> trio.socket.SocketType:
        """The connection's socket, for its options and names.

        Bytes that go through it are in no report.

        Raises:
          AttributeError: there is no socket under this connection.
        """
        sock = self._transport.trio_socket()
        if sock is None:
            raise AttributeError("there is no socket under this connection")
        return sock

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the socket, as :meth:`trio.SocketStream.setsockopt`.

        Over another stream that has options, of that one.

        Raises:
          AttributeError: there is neither under this connection.
        """
        check_type("level", level, int, "an int")
        check_type("option", option, int, "an int")
        kinds = (int, bytes, bytearray, memoryview)
        check_type("value", value, kinds, "an int or bytes")
        self._has_options.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Get an option, as :meth:`trio.SocketStream.getsockopt`; see
        :meth:`setsockopt`.
        """
        check_type("level", level, int, "an int")
        check_type("option", option, int, "an int")
        check_count("buffersize", buffersize, least=0)
        sizes = (buffersize,) if buffersize else ()
        value: int | bytes = self._has_options.getsockopt(level, option, *sizes)
        return value

    @property
    def _has_options(self) -> Any:
        """The socket, or a stream that has options as a socket has them."""
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
        if len(notes) > _MOST_NOTES:
            raise ValueError(f"more than {_MOST_NOTES} notes on one connection")
        self._lifecycle.notes = notes

    # Receiving and sending are not async themselves: a coroutine in between would
    # cost each message some percent. (They return what async functions do; Pyright
    # infers a narrower type for those.)

    def receive_some(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_bytes: int | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """Receive 1 to ``max_bytes`` bytes (default 64 KiB), or ``b""`` at EOF.

        Cancelled, it has taken nothing. It lets other tasks run, except right
        after :meth:`send_all`, which has just done so: if bytes have come
        meanwhile, it returns them at once.

        Raises:
          ValueError, TypeError: ``max_bytes`` is not a positive int.
          trio.BrokenResourceError: the client reset the connection; what it had
            sent before was received before. Or this machine would not receive; its
            ``__cause__`` says why.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: it was closed, aborted or cut.
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

        It always lets other tasks run. Cancelled or failed it may have sent a
        part; :attr:`bytes_sent` says how much.

        Raises:
          TypeError, ValueError: ``data`` is no bytes, or not all in one place.
          trio.BrokenResourceError, trio.BusyResourceError,
          trio.ClosedResourceError: as :meth:`receive_some`; the last also after
            :meth:`send_eof`.
        """
        if type(data) is not bytes:
            _check_bytes(data)
        return self._transport.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until :meth:`send_all` might not have to wait."""
        try:
            await self._transport.wait_writable()
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def send_eof(self) -> None:
        """Send EOF; receiving goes on, bounded by ``Timeouts.half_closed``.

        Raises:
          TypeError: the stream below can't be closed by half.
          trio.BrokenResourceError: the system would not send it. A client that is
            gone is no error here; who receives finds out.
        """
        try:
            await self._transport.send_eof()
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def aclose(self) -> None:
        """Close politely: nothing that was sent is lost.

        Unless the client's EOF was received, it sends EOF and throws away what
        the client still sends, at most 64 KiB and ``Timeouts.linger`` seconds.
        A task that is receiving or sending meanwhile gets
        ``ClosedResourceError``. Cancelled, it closes at once by RST.
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
          reason: why, in a word or a line of the handler's own; it is the ``error`` of
            the report, whose ``reason`` is ``aborted``.
        """
        if reason is not None:
            check_type("reason", reason, str, "a str or None")
        if not self._transport.closed:
            error = escape(reason) if reason else None
            self._lifecycle.close_as(Reason.ABORTED, error=error)
            self._transport.abort()

    def idle(self, held: object = b"") -> Idle:
        """Mark a wait for the client's next message, which a drain may end.

        When the server drains, the block is cancelled only if no byte has
        arrived since it was entered; from the first byte on it is not touched,
        so it may wrap the reading of a whole message. Entered while draining
        with nothing to read, it is cancelled at once. Over a stream that is
        not a socket, bytes count when they are received::

            data = b""
            with conn.idle(held=buffer):
                data = await conn.receive_some()
            if not data:
                return
            buffer += data

        The block's value says afterwards whether the drain has ended it: with ``as
        idle``, that is ``idle.cancelled_caught``, as of a :class:`trio.CancelScope`.

        Args:
          held: what was received of a message that is not answered yet, such as
            a buffer; anything that is true or false. If it is true when the block
            is entered, a drain does not end it: the client waits for the rest to
            be answered, and :meth:`Server.drain` for the client.

        Raises:
          RuntimeError: it is entered already.
        """
        return self._lifecycle.idle(held)


def _check_bytes(data: object) -> None:
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"data must be bytes, not {data!r}") from None
    if not view.c_contiguous:
        raise ValueError("data must be all in one place, not a view with gaps")

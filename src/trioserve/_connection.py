"""Connections: what a handler gets, from accept to last close.

A connection owns its transport, its timers, its reason and how it is closed.
It does not know who accepted it, what a slot is, or who reads its report.

How it closes, in one place:

==============================================  ================================
what happened                                   close
==============================================  ================================
the handler returned, EOF had been received     close
the handler returned before that                EOF, discard for a while, close
the handler raised                              RST
cancelled, cut, stalled, too old, half-closed   RST, marked before it is cancelled
idle, or idle while draining                    FIN
==============================================  ================================
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import ssl
import time
from collections.abc import Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

import trio

from ._admission import Slot
from ._arguments import check_count, check_type
from ._errors import behind, is_a, is_ours, leaves, selves_in
from ._options import Timeouts
from ._report import (
    Attempt,
    Conclusion,
    ConnectionReport,
    Draft,
    Phase,
    Reason,
    Side,
    describe,
)
from ._timers import Alarm, Timers, next_look
from ._transport import CHUNK, FAILURES, Transport

#: What a stream raises when it can't be used any more.
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: What a lingering close throws away before it gives up on the client's EOF.
_LINGER_BYTES: Final = 65536

#: Timers of a relay that end it by FIN because nothing was heard for long.
_SILENT: Final = (Reason.IDLE, Reason.FIRST_BYTE)

#: A connection that has not sent its first byte is not idle in its first second.
_YOUNG: Final = 1.0

_MOST_NOTES: Final = 32

_current: contextvars.ContextVar[Connection] = contextvars.ContextVar(
    "trioserve_connection"
)


def current_connection() -> Connection:
    """The connection whose handler, or a task started by it, is running.

    Raises:
      LookupError: outside of a handler.
    """
    return _current.get()


class Relayed(Protocol):
    """A relay that a connection takes part in, as far as its report needs it."""

    @property
    def target_transport(self) -> Transport | None: ...
    def discarded(self) -> tuple[int, int]:
        """Bytes not passed on: of the client's, and of the target's."""
        ...

    def server_drains(self) -> None:
        """The server began to drain."""
        ...


class Running(Protocol):
    """A relay that a handler leaves to the server to run."""

    def enter(self) -> None: ...
    def move(self) -> Coroutine[Any, Any, Any]: ...
    async def part(self) -> None: ...
    def leave(self) -> None: ...


class Dials(Protocol):
    """What connects to a target for a connection."""

    @property
    def target(self) -> object: ...
    @property
    def attempts(self) -> Sequence[Attempt]: ...


class AppliesFaults(Protocol):
    """What applies faults to a connection, and says which were applied."""

    @property
    def applied(self) -> Sequence[str]: ...


class Connection(trio.abc.HalfCloseableStream):
    """One accepted peer: a Trio stream that knows its own story.

    It does what :class:`trio.SocketStream` does, and more: timers run while it
    waits, bytes are counted, and however it ends there is one report. The
    server closes it when the handler returns or raises; a handler may close it
    before. Several tasks may use it, one receiving and one sending at a time.

    Attributes:
      id: counts the connections of one server, from 1.
      peer, local, listener: addresses, as a person writes them.
      draining: an event: the server wants to stop.
    """

    __slots__ = (
        "__weakref__", "_accepted_at", "_active_faults", "_alarm", "_connected_at",
        "_dialing",
        "_drained", "_ending", "_eof_first", "_exception", "_holds_some", "_host",
        "_idle_scope", "_is_quiet", "_left", "_lingers", "_notes", "_phase",
        "_queued",
        "_received_before_idle", "_relay", "_relay_ended", "_result", "_says_goodbye",
        "_scope", "_slot", "_task", "_timeouts", "_timers", "_transport", "_upstream",
        "_upstream_discarded", "_wall_clock", "draining", "id", "listener", "local",
        "peer",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        *,
        slot: Slot | None,
        id: int,
        peer: str,
        host: str | None,
        local: str,
        listener: str,
        timeouts: Timeouts,
        timers: Timers,
        draining: trio.Event,
    ) -> None:
        self.id = id
        self.peer = peer
        self.local = local
        self.listener = listener
        self.draining = draining
        self._transport = transport
        self._slot = slot
        self._timeouts = timeouts
        self._timers = timers
        self._wall_clock = time.time()
        self._accepted_at = transport.moved_at  # it was made just now
        self._queued: float | None = None
        self._connected_at: float | None = None
        self._dialing: Dials | None = None
        self._active_faults: AppliesFaults | None = None
        self._host = host
        self._phase = Phase.QUEUE
        self._scope = trio.CancelScope()
        self._idle_scope: trio.CancelScope | None = None
        self._received_before_idle = 0
        self._holds_some = False
        self._relay: Relayed | None = None
        self._left: Running | None = None
        self._upstream: Transport | None = None
        self._upstream_discarded = 0
        self._ending: Conclusion | None = None
        self._exception: BaseException | None = None
        self._drained = False
        self._says_goodbye = False
        self._eof_first = False
        self._lingers = False
        self._relay_ended: Conclusion | None = None
        self._result: object = None
        self._notes: dict[str, object] | None = None
        self._task: trio.lowlevel.Task | None = None
        self._alarm: Alarm | None = None
        self._is_quiet = False
        transport.on_wait = self._waits

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self.peer}: {self._phase}>"

    # -- what a handler uses

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return trio.current_time() - self._accepted_at

    @property
    def phase(self) -> Phase:
        """Where in its life it is."""
        return self._phase

    @property
    def target(self) -> str | None:
        """Where :func:`proxy` relays it to, or dials now; None without one."""
        return str(self._dialing.target) if self._dialing is not None else None

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
        return self._notes or {}

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
        self._notes = notes

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
        if trio.current_effective_deadline() == -math.inf:
            self._hang_up()
        if self._transport.closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._linger()
        except BaseException:
            self._hang_up()
            raise
        self._transport.close()
        await self._transport.wait_closed()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._hang_up()
        await self.aclose()

    def abort(self) -> None:
        """Close at once with RST. Whoever waits gets ``ClosedResourceError``."""
        if not self._transport.closed:
            self._conclude(Reason.ABORTED)
            self._transport.abort()

    @contextlib.contextmanager
    def idle(self, held: object = b"") -> Generator[None, None, None]:
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

        Args:
          held: what was received of a message that is not answered yet, such as
            a buffer; anything that is true or false. If it is true when the block
            is entered, a drain does not end it: the client waits for the rest to
            be answered, and :meth:`Server.drain` for the client.

        Raises:
          RuntimeError: it is entered already.
        """
        if self._idle_scope is not None:
            raise RuntimeError("conn.idle() is entered already")
        self._holds_some = bool(held)
        self._received_before_idle = self._transport.received
        with trio.CancelScope() as self._idle_scope:
            self._end_idle()
            try:
                yield
            finally:
                self._idle_scope = None

    # -- what the server, the relay and the timers use

    def _hold(self, slot: Slot) -> None:
        """It waited for a slot in our hands, and got one."""
        self._slot = slot
        self._queued = trio.current_time() - self._accepted_at

    def _conclude(
        self,
        reason: Reason,
        *,
        side: Side | None = None,
        bound: float | None = None,
        error: str | None = None,
        exception: BaseException | None = None,
    ) -> None:
        """Say why it ends. The first reason stays."""
        if self._ending is None:
            self._ending = Conclusion(reason, side, bound, error)
        if self._exception is None:
            self._exception = exception

    def _stop(
        self,
        reason: Reason,
        *,
        bound: float | None = None,
        error: str | None = None,
        goodbye: bool = False,
    ) -> None:
        """End it from outside, by RST or, with ``goodbye``, by FIN.

        Concluded first, so that it can't end for another reason; then
        cancelled, so that handlers see a cancel; then closed, so that a
        shielded wait ends too.
        """
        side: Side | None = "client" if reason.outcome == "timeout" else None
        if self._lingers and not self._transport.unsent():
            # All that was sent has arrived; it only waited for the client to close.
            self._ended(None, cancelled=False)
            goodbye = self._transport.closes_at_once
        self._conclude(reason, side=side, bound=bound, error=error)
        self._says_goodbye = goodbye
        self._scope.cancel(reason=str(reason))
        self._hang_up()

    def _hang_up(self) -> None:
        """Close at once: by RST, or by FIN if it ends because it was idle."""
        if self._says_goodbye and not self._transport.unsent():
            self._close_by_fin()
        else:
            self._transport.abort()

    def _close_by_fin(self) -> None:
        # Closed with bytes that nobody has read, it would be reset.
        self._transport.discard_readable(_LINGER_BYTES)
        self._transport.close()

    def _let_go(self) -> None:
        """Leave no cycle, which would keep it until garbage is collected.

        The frames in an exception's traceback have the connection.
        """
        self._task = self._transport.on_wait = self._exception = self._result = None

    @property
    def _discarded(self) -> int:
        """Bytes received that went neither to the handler nor to the target."""
        passed_over = self._relay.discarded()[0] if self._relay is not None else 0
        return self._transport.discarded + passed_over

    def _run(self, relay: Running) -> Coroutine[Any, Any, Any]:
        """Begin a relay that the handler has left to us, and wait for it.

        To be awaited at once. :meth:`_finish` does what comes after.
        """
        # Not async itself, nor is the handler there any more: two coroutines less
        # for each connection that waits.
        self._left = relay
        relay.enter()
        return relay.move()

    async def _finish(self) -> None:
        """The handler returned."""
        if self._left is not None:
            await self._left.part()
            self._relay_left_is_over()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._close_if_over()
        if self._transport.closed:
            return
        self._enter_closing()
        if self._relay_ended is not None and self._relay_ended.reason in _SILENT:
            # Whoever has been silent for so long is not waited for any longer.
            self._close_by_fin()
            await self._transport.wait_closed()
        else:
            await self.aclose()

    def _close_if_over(self) -> None:
        """Close at once if there is nothing to come: the peer's EOF was received."""
        transport = self._transport
        if transport.eof and not transport.closed and transport.closes_at_once:
            self._enter_closing()
            self._eof_first = True
            transport.close()

    def _enter_closing(self) -> None:
        if self._relay_ended is None or self._relay_ended.reason.outcome == "ok":
            self._phase = Phase.CLOSING

    async def _linger(self) -> None:
        transport = self._transport
        self._lingers = True
        self._eof_first = transport.eof
        await trio.lowlevel.checkpoint_if_cancelled()
        if transport.eof or transport.error is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        if not transport.can_half_close:
            return
        # Another task that still uses it is told by the closing, as with Trio's; and
        # somebody may have taken the socket away.
        with contextlib.suppress(*FAILURES):
            await transport.send_eof()
            await transport.discard(_LINGER_BYTES, self._timeouts.linger)

    def _is_idle(self) -> bool:
        """Whether it is in :meth:`idle`, and has received nothing there, nor EOF."""
        transport = self._transport
        return (
            self._idle_scope is not None
            and transport.received == self._received_before_idle
            and not transport.eof
        )

    def _end_idle(self) -> None:
        """Cancel the idle scope if the server drains and nothing has arrived."""
        if self._holds_some or not (self._is_idle() and self.draining.is_set()):
            return
        if self._transport.readable():
            return
        grown = self._accepted_at + _YOUNG
        if not self._transport.received and trio.current_time() < grown:
            self._timers.watch(self, grown)
            return
        self._drained = True
        assert self._idle_scope is not None
        self._idle_scope.cancel(reason="draining")

    def _server_drains(self) -> None:
        """The server began to drain."""
        self._end_idle()
        if self._relay is not None:
            self._relay.server_drains()

    def _due(self) -> tuple[float, Reason]:
        """When the earliest timer runs out, and which it is."""
        timeouts, transport = self._timeouts, self._transport
        due = (self._accepted_at + timeouts.lifetime, Reason.LIFETIME)
        if self._relay is not None or self._lingers:
            return due  # a relay, and lingering, have timers of their own
        if transport.receiving_since < math.inf:
            # What the peer acknowledges has moved, too.
            since = max(
                transport.receiving_since, transport.moved_at, transport.acked_at
            )
            if transport.sent_eof:
                since = max(since, transport.sent_eof_at)
                due = min(due, (since + timeouts.half_closed, Reason.HALF_CLOSED))
            else:
                due = min(due, (since + timeouts.idle, Reason.IDLE))
            if self._awaits_first_byte():
                first_byte = self._accepted_at + timeouts.first_byte
                due = min(due, (first_byte, Reason.FIRST_BYTE))
        if transport.sending_since < math.inf:
            taken = max(transport.sending_since, transport.acked_at)
            due = min(due, (taken + timeouts.write_stall, Reason.WRITE_STALL))
        return due

    def _awaits_first_byte(self) -> bool:
        """Whether no byte has moved, in either direction."""
        return not (self._transport.received or self._transport.sent)

    def _watch(self) -> None:
        self._timers.watch(self, self._due()[0])

    def _waits(self) -> None:
        """The transport begins to wait: a timer starts."""
        transport = self._transport
        sends = transport.sending_since < math.inf
        starts_idle_timer_only = (
            transport.received and not transport.sent_eof and not sends
        )
        due = transport.receiving_since + self._timeouts.idle
        # The alarm of an earlier wait is early enough, and looks again then.
        if (
            not starts_idle_timer_only
            or self._is_quiet
            or self._alarm is None
            or due < self._alarm[0]
        ):
            self._is_quiet = False
            now = trio.current_time()
            if sends:  # from now on it is known what the peer takes
                transport.observe_acks(now)
            if (due := self._due()[0]) < math.inf:
                self._timers.watch(self, min(due, next_look(now)))

    def expire(self, now: float) -> None:
        """A timer may have run out; called by the server's timers."""
        holds = self._relay is None and self._transport.observe_acks(now)
        due, reason = self._due()
        if due <= now:
            if not self._can_move(reason):
                self._stop(
                    reason,
                    bound=getattr(self._timeouts, reason),
                    goodbye=reason in (Reason.IDLE, Reason.FIRST_BYTE),
                )
                return
            self._timers.watch(self, next_look(now))
        elif due < math.inf:
            # As long as the kernel holds bytes, we look whether they become fewer.
            self._is_quiet = not holds
            self._timers.watch(self, min(due, next_look(now)) if holds else due)
        self._end_idle()

    def _can_move(self, reason: Reason) -> bool:
        """Whether a byte that a timer has waited for can move at this moment."""
        match reason:
            case Reason.LIFETIME:
                return False
            case Reason.WRITE_STALL:
                return self._transport.writable()
            case _:
                return self._transport.readable()

    def _relay_began(self, relay: Relayed) -> None:
        self._relay = relay
        self._upstream = relay.target_transport
        self._transport.on_wait = None  # a relay has timers of its own

    def _relay_left_is_over(self) -> None:
        relay, self._left = self._left, None
        if relay is not None:
            relay.leave()

    def _relay_over(self, ending: Conclusion | None) -> None:
        """Take over how a relay ended; a handler that raises has the last word."""
        assert self._relay is not None
        discarded, upstream_discarded = self._relay.discarded()
        self._relay = None
        self._transport.discarded += discarded
        self._transport.on_wait = self._waits
        self._upstream_discarded += upstream_discarded
        if ending is not None:
            self._relay_ended = ending

    def _ended(self, error: BaseException | None, *, cancelled: bool) -> None:
        """The handler is over, with what it raised; say why if nobody has."""
        self._relay_left_is_over()
        transport = self._transport
        comes_of_it = error is None or self._comes_of_its_streams(error)
        if self._ending is not None and comes_of_it:
            return
        if error is None and self._drained:
            self._conclude(Reason.DRAINED)
        elif self._relay_ended is not None and comes_of_it:
            self._ending = self._relay_ended
        elif transport.error is not None and comes_of_it:
            self._conclude(self._broken_by, exception=transport.error)
        elif error is not None and self._began_with_client(error):
            self._conclude(self._broken_by, exception=error)
        elif cancelled:
            self._conclude(Reason.CANCELLED)
        elif error is not None:
            self._conclude(Reason.HANDLER_ERROR, exception=error)
        elif self._eof_first:
            self._conclude(Reason.CLIENT_CLOSED)
        else:
            self._conclude(Reason.SERVER_CLOSED)

    @property
    def _broken_by(self) -> Reason:
        """Whose doing it is that the transport is broken: the client's, or ours."""
        return (
            Reason.RESOURCE if is_ours(self._transport.error) else Reason.CLIENT_RESET
        )

    def _comes_of_its_streams(self, error: BaseException) -> bool:
        """Whether it is what a broken stream raises, and one of its own has.

        Others that were closed with it may have raised beside that one.
        """
        raised = list(leaves(error))
        return all(is_a(each, _BROKEN) for each in raised) and any(
            is_a(each, _BROKEN) and self._was_raised_by_its_streams(each)
            for leaf in raised
            for each in behind(leaf)
        )

    def _was_raised_by_its_streams(self, error: BaseException) -> bool:
        """Whether this stream, TLS over it, or the other side of its relay has."""
        sides = [each for each in (self._transport, self._upstream) if each is not None]
        return any(
            _is_tls_over(self, each) or any(side.wraps(each) for side in sides)
            for each in selves_in(error)
        )

    def _began_with_client(self, error: BaseException) -> bool:
        """Whether all that was raised comes of what the client did.

        The transport's own error, or one of TLS over this stream, is behind it.
        """
        return all(
            any(
                each is self._transport.error or _is_of_tls_over(self, each)
                for each in behind(leaf)
            )
            for leaf in leaves(error)
        )

    def _report(self, open_at_close: int) -> ConnectionReport:
        """The record. Everything must be closed and concluded by now."""
        assert self._ending is not None
        reason, side, bound, error = self._ending
        transport = self._transport
        first_byte, connected_at = transport.first_byte_at, self._connected_at
        upstream, upstream_discarded = self._upstream, self._upstream_discarded
        if self._relay is not None:
            upstream_discarded += self._relay.discarded()[1]
        return Draft(
            id=self.id,
            listener=self.listener,
            peer=self.peer,
            local=self.local,
            target=self.target,
            attempts=self._dialing.attempts if self._dialing is not None else (),
            accepted_at=self._wall_clock,
            queued=self._queued,
            connect=None if connected_at is None else connected_at - self._accepted_at,
            first_byte=None if first_byte is None else first_byte - self._accepted_at,
            duration=trio.current_time() - self._accepted_at,
            bytes_received=transport.received,
            bytes_sent=transport.sent,
            bytes_discarded=self._discarded,
            unacknowledged=transport.unacknowledged,
            upstream_bytes_received=upstream.received if upstream else None,
            upstream_bytes_sent=upstream.sent if upstream else None,
            upstream_bytes_discarded=upstream_discarded if upstream else None,
            upstream_unacknowledged=upstream.unacknowledged if upstream else None,
            reason=reason,
            phase=self._phase,
            side=side,
            bound=bound,
            error=error if self._exception is None else describe(self._exception),
            exception=self._exception,
            faults=tuple(self._active_faults.applied) if self._active_faults else (),
            draining=self.draining.is_set(),
            open_at_close=open_at_close,
            result=self._result,
            notes=dict(self.notes),
        ).finished()


def _check_bytes(data: object) -> None:
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"data must be bytes, not {data!r}") from None
    if not view.c_contiguous:
        raise ValueError("data must be all in one place, not a view with gaps")


def _is_of_tls_over(stream: Connection, error: BaseException) -> bool:
    """Whether a ``trio.SSLStream`` over ``stream`` has failed with ``error``."""
    return is_a(error, ssl.SSLError) and any(
        _is_tls_over(stream, each) for each in selves_in(error)
    )


def _is_tls_over(stream: Connection, thing: Any) -> bool:
    return is_a(thing, trio.SSLStream) and thing.transport_stream is stream

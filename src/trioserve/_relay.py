"""Relay: bytes both ways between two streams, until both are done.

Two pumps over two transports. Between sockets the engine runs them; between
other streams each is run by a task. A relay knows nothing of addresses,
servers or reports; it leaves a result, and a ledger that is true at any moment.

What it does is decided by these rules, whoever moves the bytes:

1. EOF ends its own direction only. The other goes on, bounded by inactivity.
2. A reset ends both: what was received before it is delivered first, then the
   other side is reset too.
3. A pump holds what one read has brought, and reads again when it is gone.
4. Whatever ends it early, what a pump still holds is counted as discarded.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import trio

from ._arguments import check_method, check_seconds, check_type
from ._connection import Connection
from ._engine import SUPPORTED as HAS_ENGINE
from ._engine import Direction, Engine, Pair
from ._errors import is_closed, is_ours
from ._options import Timeouts
from ._pump import Pump
from ._report import Conclusion, Flow, Outcome, Reason, RelayResult, Side, describe
from ._socket_transport import SocketTransport
from ._stream_transport import StreamTransport
from ._timers import Alarm, Timers, next_look
from ._transport import PollableTransport, Transport

#: How long a reset waits for the bytes before it to be acknowledged.
FLUSH: Final = 1.0

#: What the other side calls it.
_MIRRORED: Final = {
    Reason.CLIENT_CLOSED: Reason.SERVER_CLOSED,
    Reason.SERVER_CLOSED: Reason.CLIENT_CLOSED,
    Reason.CLIENT_RESET: Reason.SERVER_RESET,
    Reason.SERVER_RESET: Reason.CLIENT_RESET,
}

_CLIENT_CLOSED: Final = Conclusion(Reason.CLIENT_CLOSED)
_SERVER_CLOSED: Final = Conclusion(Reason.SERVER_CLOSED)

#: Nothing can be said to it any more.
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: Timers that end a relay by FIN, if no byte is held.
_BY_FIN: Final = (Reason.IDLE, Reason.FIRST_BYTE, Reason.DRAINED)


class Relay(abc.ABC):
    """A relay that runs: its pumps, its timers, and why it ended.

    :meth:`run` is all of it. Who has thousands of them that wait does what it
    does, and saves its coroutine.

    Args:
      pumps: from ``a`` to ``b`` and, unless they are the same, back.
      closes: ``b`` is closed when it is over, and ``a`` by whoever says so.
    """

    __slots__ = (
        "_a", "_alarm", "_b", "_began", "_client", "_closes", "_drain_idle",
        "_drains_since", "_ending", "_failure", "_first", "_half_since", "_has_parted",
        "_lost", "_pumps", "_server", "_timeouts", "_timers", "quiet",
    )  # fmt: skip

    def __init__(
        self,
        pumps: Sequence[Pump],
        began: float,
        closes: bool,
        client: Connection | None,
        server: Connection | None,
        timeouts: Timeouts,
        drain_idle: float,
        timers: Timers,
    ) -> None:
        self._a = pumps[0].source
        self._b = pumps[0].sink
        self._pumps = pumps
        self._client = client
        self._server = server
        self._timeouts = timeouts
        self._drain_idle = drain_idle
        self._timers = timers
        self._alarm: Alarm | None = None
        self._closes = closes
        self._has_parted = False
        self._drains_since = math.inf
        self._began = began
        self._lost: Transport | None = None
        self._first: Transport | None = None
        self._half_since = math.inf
        self._ending: Conclusion | None = None
        self._failure: BaseException | None = None
        self.quiet = False

    # -- for the report of a connection

    @property
    def target_transport(self) -> Transport | None:
        return self._b if self._b is not self._a else None

    def discarded(self) -> tuple[int, int]:
        return self._pumps[0].discarded, sum(p.discarded for p in self._pumps[1:])

    def server_drains(self) -> None:
        self._drains_since = trio.current_time()
        self._watch_from(self._drains_since)

    # -- the relay

    async def run(self) -> RelayResult:
        """Relay until both directions are done, or something ends both."""
        self.enter()
        try:
            await self.move()
            await self.part()
        finally:
            self.leave()
        return self._result()

    def enter(self) -> None:
        """From now on the timers run, and the connections know of it."""
        client, server = self._client, self._server
        for connection in (client, server):
            if connection is not None and connection._relay is not None:
                raise trio.BusyResourceError("another task is relaying")
        if client is not None:
            client._relay_began(self)
        if server is not None:
            server._relay_began(_Mirror(self, self._a))
        owner = client or server
        if owner is not None and owner.draining.is_set():
            self._drains_since = self._began
        self._watch_from(self._began)

    def leave(self) -> None:
        """To be called at the end, whatever was raised."""
        ending: Conclusion | None = None
        if self._has_parted:
            ending = self._how_it_ended()
        elif self._holds():
            # Ended in the middle of something, it must look like that.
            self._abort()
        self._stop()
        self._timers.forget(self)
        if self._closes and ending is not None:
            self._b.close()
        elif self._closes:
            self._b.abort()
        if self._client is not None:
            self._client._relay_over(ending)
        if self._server is not None:
            self._server._relay_over(_mirrored(ending) if ending is not None else None)

    @abc.abstractmethod
    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until all pumps are done, or it was stopped."""

    async def part(self) -> None:
        """Leave both sides as the way it ended asks for."""
        if self._lost is not None:
            await self._lose(self._lost)
        if self._failure is not None:
            raise self._failure
        if self._ending is not None:
            await self._part(self._ending.reason)
        self._has_parted = True

    async def _part(self, reason: Reason) -> None:
        """Leave both sides by FIN, or by RST, for ``reason``."""
        if reason in _BY_FIN and not self._holds():
            await self._say_eof()
        else:
            self._abort()
            await self._a.wait_closed()
            await self._b.wait_closed()

    async def _say_eof(self) -> None:
        for transport in (self._a, self._b):
            if transport.can_half_close:
                with contextlib.suppress(*_GONE):
                    await transport.send_eof()
            else:
                transport.close()
                await transport.wait_closed()

    @abc.abstractmethod
    def _stop(self) -> None:
        """Move no more bytes. Twice is once."""

    def _ended(self, pump: Pump) -> None:
        """EOF was received, and all before it is delivered."""
        pump.done, pump.reading = True, False
        if self._first is None:
            self._first = pump.source
            self._half_since = trio.current_time()

    def _fail(self, error: BaseException) -> None:
        """End both directions, and raise this."""
        self._failure = error
        self._stop()

    def _will_tell(self, transport: Transport) -> bool:
        """Whether a pump will find out how ``transport``, which is broken, ended."""
        reads = any(p.source is transport and p.reading for p in self._pumps)
        return reads and transport.end_is_receivable()

    def _lost_by(self, transport: Transport) -> Reason:
        """``transport`` is broken: say so, before what happens meanwhile can."""
        at_client = transport is self._a
        reason = Reason.CLIENT_RESET if at_client else Reason.SERVER_RESET
        if is_ours(transport.error):
            reason = Reason.RESOURCE
        self._conclude(reason, error=transport.error)
        return reason

    async def _lose(self, transport: Transport) -> None:
        """``transport`` is broken: the other is reset, after the bytes before it."""
        reason = self._lost_by(transport)
        other = self._b if transport is self._a else self._a
        if other is not transport:
            await other.wait_acknowledged(FLUSH)
        self._end(reason)

    def _end(
        self,
        reason: Reason,
        *,
        side: Side | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End both directions."""
        self._conclude(reason, side=side, error=error)
        self._stop()

    def _conclude(
        self,
        reason: Reason,
        *,
        side: Side | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Say why it ends; the first reason stays."""
        if self._ending is None:
            said = describe(error) if error is not None else None
            self._ending = Conclusion(reason, side, self._bound(reason), said)

    def _abort(self) -> None:
        self._a.abort()
        self._b.abort()

    def _holds(self) -> bool:
        """Whether a pump has received what it has not delivered."""
        return any(pump.discarded for pump in self._pumps)

    def _how_it_ended(self) -> Conclusion:
        if self._ending is not None:
            return self._ending
        return _CLIENT_CLOSED if self._first is self._a else _SERVER_CLOSED

    def _result(self) -> RelayResult:
        reason, side, bound, error = self._how_it_ended()
        nothing = Flow(received=0, delivered=0, discarded=0)
        return RelayResult(
            reason=reason,
            a_to_b=self._pumps[0].flow(),
            b_to_a=self._pumps[1].flow() if len(self._pumps) == 2 else nothing,
            side=side,
            bound=bound,
            error=error,
        )

    # -- timers

    def _bound(self, reason: Reason) -> float | None:
        """The value of the timer that ends it, if it is one that does."""
        if reason is Reason.DRAINED:
            return self._drain_idle
        if reason.outcome is Outcome.TIMEOUT:
            seconds: float = getattr(self._timeouts, reason)
            return seconds
        return None

    def _due(self) -> tuple[float, Reason, Side | None]:
        """When the earliest timer runs out, which it is, and who is waited for."""
        timeouts, a, b = self._timeouts, self._a, self._b
        # What a peer acknowledges has moved, too.
        moved = max(self._began, a.moved_at, b.moved_at, a.acked_at, b.acked_at)
        side: Side | None
        if self._first is None:
            # A peer that takes nothing is silent, too.
            side = "target" if b.sending_since < a.sending_since else "client"
            due, reason = moved + timeouts.idle, Reason.IDLE
        else:
            side = next((self._waits_for(p) for p in self._pumps if not p.done), None)
            due = max(moved, self._half_since) + timeouts.half_closed
            reason = Reason.HALF_CLOSED
        first_byte = self._accepted_at() + timeouts.first_byte
        if first_byte < due and self._awaits_first_byte():
            due, reason, side = first_byte, Reason.FIRST_BYTE, "client"
        for transport in (a, b):
            taken = max(transport.sending_since, transport.acked_at)
            stalled = taken + timeouts.write_stall
            if stalled < due and transport.sending_since < math.inf:
                due, reason, side = (
                    stalled,
                    Reason.WRITE_STALL,
                    self._side_of(transport),
                )
        drained = max(moved, self._drains_since) + self._drain_idle
        if drained < due and not self._holds():
            due, reason, side = drained, Reason.DRAINED, None
        return due, reason, side

    def _awaits_first_byte(self) -> bool:
        """Whether no byte has come from either side."""
        a, b = self._a, self._b
        # The pump counts what was read by somebody else, too.
        return not (a.received or b.received or self._pumps[0].received or a.eof)

    def _accepted_at(self) -> float:
        return self._client._accepted_at if self._client else self._began

    def _waits_for(self, pump: Pump) -> Side:
        """The side that a pump waits for: to take bytes, or to send some."""
        is_blocked = pump.sink.sending_since < math.inf
        return self._side_of(pump.sink if is_blocked else pump.source)

    def _side_of(self, transport: Transport) -> Side:
        return "client" if transport is self._a else "target"

    def _watch(self) -> None:
        self._watch_from(trio.current_time())

    def _watch_from(self, now: float) -> None:
        """Look soon, and at the latest when the earliest timer runs out."""
        self.quiet = False
        if (due := self._due()[0]) < math.inf:
            self._timers.watch(self, min(due, next_look(now)))

    def stirs(self, now: float) -> None:
        """A byte has moved after it was quiet: what becomes of it is looked at."""
        self.quiet = False
        self._timers.watch(self, next_look(now))

    def expire(self, now: float) -> None:
        if self._ending is not None:
            return  # it is ending
        holds = self._a.observe_acks(now)
        holds = self._b.observe_acks(now) or holds
        due, reason, side = self._due()
        if due <= now:
            if self._can_move(reason, side):
                self._timers.watch(self, next_look(now))
            else:
                self._look_for_a_reset()
                self._end(reason, side=side)
        elif due < math.inf:
            # While the kernel holds bytes, a look now and then finds out whether they
            # become fewer. Else there is nothing to see before the next byte moves.
            self.quiet = not holds
            self._timers.watch(self, min(due, next_look(now)) if holds else due)

    def _look_for_a_reset(self) -> None:
        """Conclude that a side was reset that was not read, for its sink is full."""
        for pump in self._pumps:
            # With both EOFs exchanged, the kernel has given up its side, too.
            source = pump.source
            waits = pump.sink.sending_since < math.inf
            if waits and not source.sent_eof and source.is_reset():
                self._lost_by(source)

    def _can_move(self, reason: Reason, side: Side | None) -> bool:
        """Whether a byte that a timer has waited for can move at this moment.

        The timer may be late, as when the process was stopped, and what moves the
        bytes has not had its turn yet.
        """
        if reason is Reason.WRITE_STALL:
            return (self._a if side == "client" else self._b).writable()
        return any(pump.can_move() for pump in self._pumps if not pump.done)


class TaskPump(Pump):
    """A pump that is run by a task of its own, over streams of any kind.

    Attributes:
      receiving: whether it is the source that it uses now, and not the sink.
    """

    __slots__ = ("receiving",)

    def __init__(self, source: Transport, sink: Transport, already: int = 0) -> None:
        super().__init__(source, sink, already)
        self.receiving = False


class TaskRelay(Relay):
    """A relay over streams of any kind: a task for each pump."""

    __slots__ = ("_closed_whole", "_first_bytes", "_scope", "_tasks")

    def __init__(self, a: Transport, b: Transport, first: bytes, *options: Any) -> None:
        self._tasks = [TaskPump(a, b, len(first))]
        if a is not b:
            self._tasks.append(TaskPump(b, a))
        super().__init__(self._tasks, *options)
        self._first_bytes = first
        self._closed_whole: Transport | None = None
        self._scope = trio.CancelScope()

    async def move(self) -> None:
        self._a.on_wait = self._b.on_wait = self._watch
        with self._scope:
            async with trio.open_nursery() as nursery:
                for pump in self._tasks:
                    nursery.start_soon(self._run_pump, pump)

    def _stop(self) -> None:
        self._scope.cancel(reason="the relay is over")
        self._a.on_wait = self._b.on_wait = None

    async def _run_pump(self, pump: TaskPump) -> None:
        source, sink = pump.source, pump.sink
        try:
            if pump is self._tasks[0] and self._first_bytes:
                await sink.send(self._first_bytes)
            while data := await self._receive(pump):
                await sink.send(data)
            self._ended(pump)
            await self._pass_eof(sink)
        except trio.BrokenResourceError:
            lost = source if pump.receiving else sink
            # What the sink had sent before it broke is still to be read: its
            # own pump does that, and then comes here too.
            if lost is sink and sink is not source and self._will_tell(sink):
                return
            await self._lose(lost)
        except trio.ClosedResourceError as error:
            self._end(Reason.ABORTED, error=error)
        except trio.BusyResourceError as error:
            self._fail(error)
        finally:
            pump.reading = False

    async def _receive(self, pump: TaskPump) -> bytes:
        pump.receiving = True
        try:
            data = await pump.source.receive()
        except trio.ClosedResourceError:
            # The other pump has closed it: it couldn't be closed by half.
            if pump.source is not self._closed_whole:
                raise
            data = b""
        pump.receiving = False
        if self.quiet:
            self.stirs(trio.current_time())
        return data

    async def _pass_eof(self, sink: Transport) -> None:
        if sink.can_half_close:
            await sink.send_eof()
        else:
            self._closed_whole = sink
            sink.close()
            await sink.wait_closed()
        if sink.error is not None and not self._will_tell(sink):
            await self._lose(sink)
        self._watch()


class EngineRelay(Relay, Pair):
    """A relay between two sockets: the engine runs its pumps, a task waits."""

    __slots__ = Pair.SLOTS

    _pumps: Sequence[Direction]

    def __init__(
        self,
        a: PollableTransport,
        b: PollableTransport,
        first: bytes,
        *options: Any,
    ) -> None:
        there = Direction(a, b, first)
        directions = (there,) if a is b else (there, Direction(b, a))
        there.back, directions[-1].back = directions[-1], there
        Relay.__init__(self, directions, *options)
        Pair.__init__(self)

    def move(self) -> Coroutine[Any, Any, Any]:
        try:
            self.begin(Engine.of_this_run(), self._pumps)
        except OSError as error:
            self.failed(error)
        return self.wait()

    def _stop(self) -> None:
        self.stop()

    # -- what the engine tells

    def ended(self, direction: Direction) -> None:
        self._ended(direction)
        sink, over = direction.sink, direction.back.done
        if not (over and self._closes):  # closing sends EOF, too
            try:
                sink.send_eof_now()
            except trio.ClosedResourceError:
                self.on_closed()
                return
        if sink.error is not None and not self._will_tell(sink):
            self.broke(sink)
        elif over:
            self.stop()
        else:
            self._watch_from(self._half_since)

    def broke(self, transport: PollableTransport) -> None:
        if self._lost is None:
            self._lost = transport
            self._lost_by(transport)
            self.wake()

    def on_closed(self) -> None:
        self._end(
            Reason.ABORTED, error=trio.ClosedResourceError("this side was closed")
        )

    def failed(self, error: BaseException) -> None:
        if is_closed(error):
            self.on_closed()
        elif isinstance(error, OSError):
            self._end(Reason.RESOURCE, error=error)
        else:
            self._fail(error)

    def waits(self, direction: Direction, now: float) -> None:
        # Bulk is blocked thousands of times a second, and to look each time would cost
        # an eighth more. An alarm that is there is for a look within a second, which
        # finds what is due.
        if self._alarm is None or self.quiet or self._has_a_short_timer():
            if direction.blocked:
                direction.sink.observe_acks(
                    now
                )  # from now on it is known what it takes
            self._watch_from(now)

    def _has_a_short_timer(self) -> bool:
        timeouts = self._timeouts
        return (
            timeouts.write_stall <= 1
            or timeouts.idle <= 1
            or timeouts.half_closed <= 1
            or self._drain_idle <= 1
        )


class _Mirror:
    """A relay as its other side sees it."""

    def __init__(self, relay: Relay, target: Transport) -> None:
        self._relay = relay
        self.target_transport: Transport | None = target

    def discarded(self) -> tuple[int, int]:
        forth, back = self._relay.discarded()
        return back, forth

    def server_drains(self) -> None:
        self._relay.server_drains()


def _mirrored(ending: Conclusion) -> Conclusion:
    side: Side | None = None
    if ending.side is not None:
        side = "target" if ending.side == "client" else "client"
    reason = _MIRRORED.get(ending.reason, ending.reason)
    return ending._replace(reason=reason, side=side)


def _transport_of(stream: trio.abc.Stream) -> Transport:
    if isinstance(stream, Connection):
        stream._transport.check_open()
        return stream._transport
    if isinstance(stream, trio.SocketStream):
        return SocketTransport.share(stream)
    return StreamTransport(stream)


async def relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    *,
    first: bytes = b"",
    timeouts: Timeouts | None = None,
    drain_idle: float | None = None,
) -> RelayResult:
    """Pass bytes from ``a`` to ``b`` and back until both directions have ended.

    EOF on one side is passed on as EOF, and the other direction goes on. A
    side that can't send EOF, such as TLS, is flushed and then closed. A reset
    of one side resets the other, after the bytes that were received before it.
    With ``b`` being ``a``, it is an echo.

    Args:
      a: the client's side: a :class:`Connection` or any Trio stream.
      b: the target's side.
      first: bytes that were received from ``a`` before, such as a header that
        says where to go; they are passed on before any other, and count as
        received.
      timeouts: ``idle``, ``half_closed``, ``write_stall`` and ``first_byte``;
        default: those of the connection's server, or ``Timeouts()``.
      drain_idle: seconds without a byte, while the connection's server drains,
        after which both sides get EOF; default ``Timeouts.drain_idle``.

    Returns:
      how it ended, whatever the peers did and this machine lacked. Neither side is
      closed if it ended well; both are reset after a reset, a stall, an error of
      this machine or with bytes undelivered, and get EOF after *idle*.

    Raises:
      TypeError, ValueError: naming the argument that can't be.
      trio.BusyResourceError: somebody else uses one of the streams.
      trio.ClosedResourceError: one of them was closed before.

    Cancelled, it resets both if a byte was received and not delivered, and
    otherwise leaves them as they are.
    """
    for name, stream in (("a", a), ("b", b)):
        check_method(name, stream, "receive_some", "send_all", "aclose")
    check_type("first", first, bytes, "bytes")
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    if drain_idle is not None:
        check_seconds("drain_idle", drain_idle)
    connections = [s for s in (a, b) if isinstance(s, Connection)]
    transport_a = _transport_of(a)
    try:
        transport_b = transport_a if b is a else _transport_of(b)
    except BaseException:
        if a not in connections:
            transport_a.release()
        raise
    try:
        for transport in (transport_a, transport_b):
            await transport.check_no_receiver()
        running = make_relay(
            transport_a,
            transport_b,
            a if isinstance(a, Connection) else None,
            b if isinstance(b, Connection) and b is not a else None,
            first=first,
            timeouts=timeouts,
            drain_idle=drain_idle,
        )
        if connections:
            return await running.run()
        return await _run_with_timers(running)
    finally:
        if a not in connections:
            transport_a.release()
        if b not in connections:
            transport_b.release()


def make_relay(
    a: Transport,
    b: Transport,
    client: Connection | None,
    server: Connection | None = None,
    *,
    first: bytes = b"",
    closes: bool = False,
    timeouts: Timeouts | None = None,
    drain_idle: float | None = None,
) -> Relay:
    """:func:`relay` without streams; ``client`` and ``server`` get to know of it.

    With ``closes`` it closes ``b`` when it is over, and the caller closes ``a``:
    that saves a system call.
    """
    owner = client or server
    if timeouts is None:
        timeouts = owner._timeouts if owner else Timeouts()
    if drain_idle is None:
        drain_idle = timeouts.drain_idle
    timers = owner._timers if owner else Timers()
    # What is closed with the relay was made for it, just now.
    began = b.moved_at if closes else trio.current_time()
    options = (began, closes, client, server, timeouts, drain_idle, timers)
    if HAS_ENGINE and (one := a.pollable()) and (other := b.pollable()):
        return EngineRelay(one, other, first, *options)
    return TaskRelay(a, b, first, *options)


async def _run_with_timers(running: Relay) -> RelayResult:
    """Run it where no server runs timers; what it raises comes out as it is."""
    ended: RelayResult | Exception
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running._timers.run)
        try:
            ended = await running.run()
        except Exception as error:
            ended = error
        nursery.cancel_scope.cancel(reason="the relay is over")
    if isinstance(ended, Exception):
        raise ended
    return ended

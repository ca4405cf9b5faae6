"""Relay rules: when a relay between two streams ends, and how it leaves both.

What moves the bytes is the engine or tasks. A relay knows nothing of addresses, servers
or reports; it leaves a result, and a ledger that is true at any moment. The rules, for
either way:

1. EOF ends its own direction only. The other goes on, bounded by inactivity.
2. A reset ends both: what was received before it is delivered first, then the other
   side is reset, too.
3. A pump holds what one read has brought, and reads again when that is delivered.
4. Whatever ends it early, what a pump still holds is counted as discarded.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple

import trio

from ._describe import describe
from ._errors import is_ours
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._pump import Pump
from ._reason import Outcome, Reason, Side
from ._results import CloseReason, Flow, RelayResult
from ._timers import TimerEntry, Timers, next_look
from ._transport import Transport

#: Seconds that a reset waits for the bytes before it to be acknowledged.
FLUSH: Final = 1.0

#: What the other side calls it.
_MIRRORED: Final = {
    Reason.CLIENT_CLOSED: Reason.SERVER_CLOSED,
    Reason.SERVER_CLOSED: Reason.CLIENT_CLOSED,
    Reason.CLIENT_RESET: Reason.SERVER_RESET,
    Reason.SERVER_RESET: Reason.CLIENT_RESET,
}

_CLIENT_CLOSED: Final = CloseReason(Reason.CLIENT_CLOSED)
_SERVER_CLOSED: Final = CloseReason(Reason.SERVER_CLOSED)

#: What a stream raises to which nothing can be sent any more.
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: Timers that end a relay by FIN, if no byte is held.
_BY_FIN: Final = (Reason.IDLE, Reason.FIRST_BYTE, Reason.DRAINED)


class RelayOptions(NamedTuple):
    """What a relay is told, beside its streams.

    Attributes:
      timeouts: ``idle``, ``half_closed``, ``write_stall`` and ``first_byte`` of them.
      drain_idle: seconds without a byte, while the server drains, until it ends.
      timers: what wakes it.
      began: when it began, on Trio's clock.
      closes_b: ``b`` is closed when it is over, and ``a`` by the caller: that saves a
        system call.
      client, server: the connections that ``a`` and ``b`` are, if they are any.
    """

    timeouts: Timeouts
    drain_idle: float
    timers: Timers
    began: float
    closes_b: bool = False
    client: Lifecycle | None = None
    server: Lifecycle | None = None


class RelayRules(abc.ABC):
    """A relay: its pumps, its timers, and why it ended.

    :meth:`run` is all of it. The server calls the four steps of :meth:`run` itself,
    which saves a coroutine for each connection.

    Args:
      pumps: from ``a`` to ``b`` and, unless they are the same, back.

    Attributes:
      a, b: the two sides.
      close_reason: why it ends, from the moment that this is known, unless both
        directions have come to their end.
      half_closed_at: when the first EOF was passed on.
      quiet: whether it is to be told when the next byte moves.
    """

    __slots__ = (
        "_drains_since", "_failure", "_first", "_has_finished",
        "_is_attached", "_lost", "a", "b", "close_reason", "half_closed_at", "options",
        "pumps", "quiet", "timer_entry",
    )  # fmt: skip

    def __init__(self, pumps: Sequence[Pump], options: RelayOptions) -> None:
        self.a = pumps[0].source
        self.b = pumps[0].sink
        self.pumps = pumps
        self.options = options
        self.timer_entry: TimerEntry | None = None
        self._is_attached = False
        self._has_finished = False
        self._drains_since = math.inf
        self._lost: Transport | None = None
        self._first: Transport | None = None
        self.half_closed_at = math.inf
        self.close_reason: CloseReason | None = None
        self._failure: BaseException | None = None
        self.quiet = False

    # -- for the report of a connection

    @property
    def target_transport(self) -> Transport | None:
        return self.b if self.b is not self.a else None

    def discarded(self) -> tuple[int, int]:
        return self.pumps[0].discarded, sum(p.discarded for p in self.pumps[1:])

    def server_drains(self) -> None:
        self._drains_since = trio.current_time()
        self.watch_from(self._drains_since)

    # -- the relay

    async def run(self) -> RelayResult:
        """Relay until both directions are done, or something ends both."""
        try:
            self.attach()
            await self.move()
            await self.finish()
        finally:
            self.detach()
        return self._result()

    def attach(self) -> None:
        """Begin: the timers run, and the connections know of it.

        Raises:
          trio.BusyResourceError: a connection is a side of another relay.
        """
        client, server = self.options.client, self.options.server
        for connection in (client, server):
            if connection is not None and connection.relay is not None:
                raise trio.BusyResourceError("another task is relaying")
        self._is_attached = True
        if client is not None:
            client.relay_began(self)
        if server is not None:
            server.relay_began(_OtherSide(self))
        owner = client or server
        if owner is not None and owner.draining.is_set():
            self._drains_since = self.options.began
        self.watch_from(self.options.began)

    def detach(self) -> None:
        """To be called at the end, whatever was raised, and if it has never begun."""
        closed: CloseReason | None = None
        if self._has_finished:
            closed = self._how_it_ended()
        elif self._is_attached and self._holds():
            # Ended in the middle of something, it must look like that.
            self._abort()
        self.stop_moving()
        options = self.options
        options.timers.forget(self)
        if options.closes_b and closed is not None:
            self.b.close()
        elif options.closes_b:
            self.b.abort()
        if not self._is_attached:
            return
        if options.client is not None:
            options.client.relay_over(closed)
        if options.server is not None:
            options.server.relay_over(_mirrored(closed) if closed is not None else None)

    @abc.abstractmethod
    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until all pumps are done, or it was stopped."""

    async def finish(self) -> None:
        """Leave both sides as the way it ended asks for."""
        if self._lost is not None:
            await self.lose(self._lost)
        if self._failure is not None:
            raise self._failure
        if self.close_reason is not None:
            await self.close_sides(self.close_reason.reason)
        self._has_finished = True

    async def close_sides(self, reason: Reason) -> None:
        """Leave both sides by FIN, or by RST, for ``reason``."""
        if reason in _BY_FIN and not self._holds():
            await self.send_eof_to_both()
        else:
            self._abort()
            await self.a.wait_closed()
            await self.b.wait_closed()

    async def send_eof_to_both(self) -> None:
        """Send EOF to both sides; one that can't be half-closed is closed."""
        for transport in (self.a, self.b):
            if transport.can_half_close:
                with contextlib.suppress(*_GONE):
                    await transport.send_eof()
            else:
                transport.close()
                await transport.wait_closed()

    @abc.abstractmethod
    def stop_moving(self) -> None:
        """Move no more bytes. It is idempotent."""

    def direction_done(self, pump: Pump) -> None:
        """EOF was received, and all before it is delivered."""
        pump.done, pump.reading = True, False
        if self._first is None:
            self._first = pump.source
            self.half_closed_at = trio.current_time()

    def fail(self, error: BaseException) -> None:
        """End both directions, and raise this."""
        self._failure = error
        self.stop_moving()

    def will_tell(self, transport: Transport) -> bool:
        """Whether a pump will find out how ``transport``, which is broken, ended."""
        reads = any(p.source is transport and p.reading for p in self.pumps)
        return reads and transport.end_is_receivable()

    def is_lost(self, transport: Transport) -> bool:
        """``transport`` is broken, for :meth:`finish`; False if one is already."""
        if self._lost is not None:
            return False
        self._lost = transport
        self._lost_by(transport)
        return True

    def _lost_by(self, transport: Transport) -> Reason:
        # Kept at once, before what happens meanwhile can be the reason.
        at_client = transport is self.a
        reason = Reason.CLIENT_RESET if at_client else Reason.SERVER_RESET
        if is_ours(transport.error):
            reason = Reason.RESOURCE
        self.close_as(reason, error=transport.error)
        return reason

    async def lose(self, transport: Transport) -> None:
        """``transport`` is broken: the other is reset, after the bytes before it."""
        reason = self._lost_by(transport)
        other = self.b if transport is self.a else self.a
        if other is not transport:
            await other.wait_acknowledged(FLUSH)
        self.end(reason)

    def end(
        self,
        reason: Reason,
        *,
        waited_for: Side | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End both directions."""
        self.close_as(reason, waited_for=waited_for, error=error)
        self.stop_moving()

    def close_as(
        self,
        reason: Reason,
        *,
        waited_for: Side | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Keep why it ends; the first reason stays."""
        if self.close_reason is None:
            said = describe(error) if error is not None else None
            self.close_reason = CloseReason(
                reason, waited_for, self._limit_of(reason), said
            )

    def _abort(self) -> None:
        self.a.abort()
        self.b.abort()

    def _holds(self) -> bool:
        """Whether a pump has received what it has not delivered."""
        return any(pump.discarded for pump in self.pumps)

    def _how_it_ended(self) -> CloseReason:
        if self.close_reason is not None:
            return self.close_reason
        return _CLIENT_CLOSED if self._first is self.a else _SERVER_CLOSED

    def _result(self) -> RelayResult:
        reason, waited_for, limit, error = self._how_it_ended()
        nothing = Flow(received=0, delivered=0, discarded=0)
        return RelayResult(
            reason=reason,
            a_to_b=self.pumps[0].flow(),
            b_to_a=self.pumps[1].flow() if len(self.pumps) == 2 else nothing,
            waited_for=waited_for,
            limit=limit,
            error=error,
        )

    # -- timers

    def _limit_of(self, reason: Reason) -> float | None:
        """The value of the timer that ends it, if it is one that does."""
        if reason is Reason.DRAINED:
            return self.options.drain_idle
        if reason.outcome is Outcome.TIMEOUT:
            seconds: float = getattr(self.options.timeouts, reason)
            return seconds
        return None

    def _due(self) -> tuple[float, Reason, Side | None]:
        """When the earliest timer runs out, which it is, and the side waited for."""
        timeouts, a, b = self.options.timeouts, self.a, self.b
        # A byte that a peer acknowledges counts as one that moves.
        began = self.options.began
        moved = max(began, a.moved_at, b.moved_at, a.acked_at, b.acked_at)
        waited_for: Side | None
        if self._first is None:
            # A side that stops reading counts as silent.
            waited_for = "target" if b.sending_since < a.sending_since else "client"
            due, reason = moved + timeouts.idle, Reason.IDLE
        else:
            waited_for = next(
                (self._waits_for(p) for p in self.pumps if not p.done), None
            )
            due = max(moved, self.half_closed_at) + timeouts.half_closed
            reason = Reason.HALF_CLOSED
        first_byte = self.started_at() + timeouts.first_byte
        if first_byte < due and self._awaits_first_byte():
            due, reason, waited_for = first_byte, Reason.FIRST_BYTE, "client"
        for transport in (a, b):
            taken = max(transport.sending_since, transport.acked_at)
            stalled = taken + timeouts.write_stall
            if stalled < due and transport.sending_since < math.inf:
                due, reason = stalled, Reason.WRITE_STALL
                waited_for = self._side_of(transport)
        drained = max(moved, self._drains_since) + self.options.drain_idle
        if drained < due and not self._holds():
            due, reason, waited_for = drained, Reason.DRAINED, None
        return due, reason, waited_for

    def _awaits_first_byte(self) -> bool:
        """Whether no byte has come from either side."""
        a, b = self.a, self.b
        # The pump counts what was read from the stream before, too.
        return not (a.received or b.received or self.pumps[0].received or a.eof)

    def started_at(self) -> float:
        """When the connection was accepted; of other streams, when it began."""
        client = self.options.client
        return client.accepted_at if client is not None else self.options.began

    def _waits_for(self, pump: Pump) -> Side:
        """The side that a pump waits for: to take bytes, or to send some."""
        is_blocked = pump.sink.sending_since < math.inf
        return self._side_of(pump.sink if is_blocked else pump.source)

    def _side_of(self, transport: Transport) -> Side:
        return "client" if transport is self.a else "target"

    def watch(self) -> None:
        """Look soon, and at the latest when the earliest timer runs out."""
        self.watch_from(trio.current_time())

    def watch_from(self, now: float) -> None:
        """:meth:`watch`, with the time that it is."""
        self.quiet = False
        if (due := self._due()[0]) < math.inf:
            self.options.timers.watch(self, min(due, next_look(now)))

    def on_activity(self, now: float) -> None:
        """A byte moves after it was quiet."""
        self.quiet = False
        self.options.timers.watch(self, next_look(now))

    def on_timer(self, now: float) -> None:
        if self.close_reason is not None:
            return  # it is ending
        timers = self.options.timers
        holds = self.a.observe_acks(now)
        holds = self.b.observe_acks(now) or holds
        due, reason, waited_for = self._due()
        if due <= now:
            if self._can_move(reason, waited_for):
                timers.watch(self, next_look(now))
            else:
                self._look_for_a_reset()
                self.end(reason, waited_for=waited_for)
        elif due < math.inf:
            # While the kernel holds bytes, a look now and then finds out whether they
            # become fewer. Else there is nothing to see before the next byte moves.
            self.quiet = not holds
            timers.watch(self, min(due, next_look(now)) if holds else due)

    def _look_for_a_reset(self) -> None:
        """Find a side that was reset and is not read, because its sink is full."""
        for pump in self.pumps:
            # With both EOFs exchanged, the kernel has given up its side, too.
            source = pump.source
            waits = pump.sink.sending_since < math.inf
            if waits and not source.sent_eof and source.is_reset():
                self._lost_by(source)

    def _can_move(self, reason: Reason, waited_for: Side | None) -> bool:
        """Whether a byte that a timer has waited for can move at this moment.

        The timer may be late, as when the process was stopped, and what moves the
        bytes has not had its turn yet.
        """
        if reason is Reason.WRITE_STALL:
            return (self.a if waited_for == "client" else self.b).writable()
        return any(pump.can_move() for pump in self.pumps if not pump.done)


class _OtherSide:
    """A relay as the connection sees it that is its ``b``."""

    def __init__(self, relay: RelayRules) -> None:
        self._relay = relay

    @property
    def target_transport(self) -> Transport | None:
        return self._relay.a

    def discarded(self) -> tuple[int, int]:
        forth, back = self._relay.discarded()
        return back, forth

    def server_drains(self) -> None:
        self._relay.server_drains()


def _mirrored(closed: CloseReason) -> CloseReason:
    waited_for: Side | None = None
    if closed.waited_for is not None:
        waited_for = "target" if closed.waited_for == "client" else "client"
    reason = _MIRRORED.get(closed.reason, closed.reason)
    return CloseReason(reason, waited_for, closed.limit, closed.error)

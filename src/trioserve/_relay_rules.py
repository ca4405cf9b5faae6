"""Relay rules: when a relay between two streams ends, and how it closes them.

The engine or tasks move the bytes. This module does not know addresses, servers or
reports; a relay has a result, and byte counts that are exact at any moment. The rules,
whether by the engine or by tasks:

1. EOF ends its own direction only. The other goes on, bounded by inactivity.
2. A reset ends both: bytes received before it are delivered, then the other side is
   reset.
3. A pump holds the bytes of one read, and reads again when they are delivered.
4. If the relay ends early, the bytes that a pump holds are counted as discarded.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import trio

from ._attachments import RelayOwner
from ._describe import describe
from ._errors import is_ours
from ._pump import Pump, hold_bytes
from ._reason import Reason, Side
from ._relay_deadlines import (
    limit_of,
    next_relay_deadline,
    relay_can_move_now,
    unread_resets,
)
from ._relay_mirror import MirroredRelay, mirrored
from ._relay_options import RelayOptions
from ._results import CloseReason, Flow, RelayResult
from ._timers import next_look
from ._transport import Transport

#: Seconds that a reset waits for the bytes before it to be acknowledged.
FLUSH: Final = 1.0

_CLIENT_CLOSED: Final = CloseReason(Reason.CLIENT_CLOSED)
_SERVER_CLOSED: Final = CloseReason(Reason.SERVER_CLOSED)

#: The errors of a stream that can no longer send.
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: Timers that end a relay by FIN, if no byte is held.
_BY_FIN: Final = (Reason.IDLE, Reason.FIRST_BYTE, Reason.DRAINED)


class RelayRules(abc.ABC):
    """A relay: its pumps, its timers, and why it ended.

    :meth:`run` does all of it in a task. The server calls the steps itself, and needs
    no task for a relay that can :meth:`begin` without one.

    Args:
      pumps: from ``a`` to ``b`` and, unless they are the same, back.

    Attributes:
      a, b: the two sides.
      close_reason: why it ends, as soon as that is known; None if both directions end
        by EOF.
      half_closed_at: when the first EOF was passed on.
      quiet: whether :meth:`on_activity` is to be called when the next byte moves.
    """

    __slots__ = (
        "_drains_since", "_failure", "_first", "_has_finished", "_is_attached",
        "_later", "_lost", "a", "b", "close_reason", "half_closed_at", "options",
        "pumps", "quiet", "timer_due",
    )  # fmt: skip

    def __init__(self, pumps: Sequence[Pump], options: RelayOptions) -> None:
        self.a = pumps[0].source
        self.b = pumps[0].sink
        self.pumps = pumps
        self.options = options
        self.timer_due = math.inf
        self._later = options.later
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
        pumps = self.pumps
        return pumps[0].discarded, pumps[1].discarded if len(pumps) == 2 else 0

    def server_drains(self) -> None:
        self._drains_since = trio.current_time()
        self.watch_from(self._drains_since)

    # -- the relay

    async def run(self) -> RelayResult:
        """Relay until both directions have ended, or both are ended early."""
        try:
            self.attach()
            await self.move()
            if not self.finish_now():
                await self.finish()
        finally:
            self.detach()
        return _result(self.pumps, self._how_it_ended())

    async def prepare(self) -> None:
        """Return: a transport can be relayed, or :meth:`begin` finds out."""
        return

    def attach(self) -> None:
        """Start the timers, and register the relay at its connections.

        Raises:
          trio.BusyResourceError: a connection is a side of another relay.
        """
        client, server = self.options.client, self.options.server
        for connection in (client, server):
            if connection is not None and connection.relay is not None:
                raise trio.BusyResourceError("another task is relaying this stream")
        self._is_attached = True
        if client is not None:
            client.relay_began(self)
        if server is not None:
            server.relay_began(MirroredRelay(self, self.a))
        owner = client or server
        if owner is not None and owner.draining.is_set():
            self._drains_since = self.options.began
        self.watch_soon(self.options.began)

    def detach(self) -> None:
        """Clean up; called last, after any error, and if it was never attached."""
        closed: CloseReason | None = None
        if self._has_finished:
            closed = self._how_it_ended()
        elif self._is_attached and hold_bytes(self.pumps):
            # Bytes are missing, so the peers must not see a regular end.
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
            options.server.relay_over(mirrored(closed) if closed is not None else None)

    def begin(self, owner: RelayOwner) -> bool:
        """Begin without a task, and call ``owner`` at the end. Here it needs one."""
        return False

    @abc.abstractmethod
    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until all pumps are done, or until :meth:`stop_moving`."""

    def finish_now(self) -> bool:
        """Leave both sides open, or close them by FIN or RST, by how it ended.

        Returns:
          False if something of that has to wait; then :meth:`finish` does the rest.
        """
        if self._failure is not None or not self._lose_now():
            return False
        if self.close_reason is not None and not self.close_sides_now():
            return False
        self._has_finished = True
        return True

    async def finish(self) -> None:
        """Do the rest, after :meth:`finish_now` has returned False."""
        if self._lost is not None:
            await self.lose(self._lost)
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback refers to this frame: a cycle
        await self.close_sides()
        self._has_finished = True

    def close_sides_now(self) -> bool:
        """Do all of :meth:`close_sides`; False if something of it has to wait."""
        if self._ends_by_fin() or not (self.a.closes_at_once and self.b.closes_at_once):
            return False
        self._abort()
        return True

    async def close_sides(self) -> None:
        """Send EOF to both sides, or reset them, as the reason asks for."""
        if self._ends_by_fin():
            await send_eof_to_both(self.a, self.b)
        else:
            self._abort()
            await self.a.wait_closed()
            await self.b.wait_closed()

    def _ends_by_fin(self) -> bool:
        assert self.close_reason is not None
        return self.close_reason.reason in _BY_FIN and not hold_bytes(self.pumps)

    @abc.abstractmethod
    def stop_moving(self) -> None:
        """Stop moving bytes. Idempotent."""

    def direction_done(self, pump: Pump) -> None:
        """Note that a pump has received EOF and delivered all before it."""
        pump.done, pump.reading = True, False
        if self._first is None:
            self._first = pump.source
            self.half_closed_at = trio.current_time()

    def fail(self, error: BaseException) -> None:
        """End both directions; :meth:`finish` raises ``error``."""
        self._failure = error
        self.stop_moving()

    def mark_lost(self, transport: Transport) -> bool:
        """Note that a side is broken: :meth:`finish` calls :meth:`lose` for it.

        Returns:
          False if a side is marked already.
        """
        if self._lost is not None:
            return False
        self._lost = transport
        self._keep_loss(transport)
        return True

    def _keep_loss(self, transport: Transport) -> None:
        """Keep that a side is broken, so that a later event can't become the reason."""
        at_client = transport is self.a
        reason = Reason.CLIENT_RESET if at_client else Reason.SERVER_RESET
        if is_ours(transport.error):
            reason = Reason.RESOURCE
        self.close_as(reason, error=transport.error)

    def _lose_now(self) -> bool:
        """Do all of :meth:`lose`, if a side is lost; False if that has to wait."""
        lost = self._lost
        if lost is not None:
            other = self._other(lost)
            if other.error is None and other.unsent():
                return False
            self.stop_moving()
        return True

    async def lose(self, transport: Transport) -> None:
        """End the relay, because ``transport`` is broken.

        The bytes before are delivered to the other side before it is reset.
        """
        self._keep_loss(transport)
        await self._other(transport).wait_acknowledged(FLUSH)
        self.stop_moving()

    def _other(self, transport: Transport) -> Transport:
        return self.b if transport is self.a else self.a

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
        """Keep why it ends. The first reason wins."""
        if self.close_reason is None:
            said = describe(error) if error is not None else None
            limit = limit_of(reason, self.options)
            self.close_reason = CloseReason(reason, waited_for, limit, said)

    def _abort(self) -> None:
        self.a.abort()
        self.b.abort()

    def _how_it_ended(self) -> CloseReason:
        if self.close_reason is not None:
            return self.close_reason
        return _CLIENT_CLOSED if self._first is self.a else _SERVER_CLOSED

    # -- timers

    def _next_deadline(self) -> tuple[float, Reason, Side | None]:
        return next_relay_deadline(
            self.pumps, self.options, self.half_closed_at, self._drains_since
        )

    def watch(self) -> None:
        """Set the timer to the earliest deadline, but to a second at most."""
        self.watch_from(trio.current_time())

    def watch_soon(self, now: float) -> None:
        """Set the timer, because a deadline may be earlier now.

        A timer that is set fires within a second, and then finds what is due. So the
        deadlines are computed only if one can be so near: that takes 5 us, and a bulk
        flow blocks thousands of times a second.
        """
        if self.has_short_timer():
            self.watch_from(now)
        elif self.timer_due == math.inf or self.quiet:
            self.on_activity(now)

    def has_short_timer(self) -> bool:
        """Whether a timer is as short as the time between two regular checks."""
        timeouts = self.options.timeouts
        return (
            timeouts.write_stall <= 1
            or timeouts.idle <= 1
            or timeouts.half_closed <= 1
            or timeouts.first_byte <= 1
            or self.options.drain_idle <= 1
        )

    def watch_from(self, now: float) -> None:
        """:meth:`watch`, with the current time."""
        self.quiet = False
        if (due := self._next_deadline()[0]) < math.inf:
            self.options.timers.watch(self, min(due, next_look(now)))

    def on_activity(self, now: float) -> None:
        """Called when a byte moves while :attr:`quiet` is set: set the timer."""
        self.quiet = False
        self.options.timers.watch(self, next_look(now))

    def on_timer(self, now: float) -> None:
        if self.close_reason is not None:
            return  # it is ending
        if self._later:
            self.b.apply(self._later)
            self._later = ()
        timers = self.options.timers
        holds = self.a.observe_acks(now)
        holds = self.b.observe_acks(now) or holds
        due, reason, waited_for = self._next_deadline()
        if due <= now:
            if self.a.closed or self.b.closed:  # by other code: no event tells of it
                error = trio.ClosedResourceError("this stream was closed")
                self.end(Reason.ABORTED, error=error)
            elif relay_can_move_now(self.pumps, reason, waited_for):
                timers.watch(self, next_look(now))
            else:
                for transport in unread_resets(self.pumps):
                    self._keep_loss(transport)
                self.end(reason, waited_for=waited_for)
        elif due < math.inf:
            # While the kernel holds bytes, check regularly whether the peer takes
            # some. Otherwise nothing changes before the next byte moves.
            self.quiet = not holds
            timers.watch(self, min(due, next_look(now)) if holds else due)


async def send_eof_to_both(a: Transport, b: Transport) -> None:
    """Send EOF to both sides; one that can't be half-closed is closed.

    Over TLS it may have to wait, and then has :data:`FLUSH` seconds.
    """
    for transport in (a, b):
        if transport.can_half_close:
            with contextlib.suppress(*_GONE), trio.move_on_after(FLUSH):
                await transport.send_eof()
        else:
            transport.close()
            await transport.wait_closed()


def _result(pumps: Sequence[Pump], closed: CloseReason) -> RelayResult:
    reason, waited_for, limit, error = closed
    nothing = Flow(received=0, delivered=0, discarded=0)
    return RelayResult(
        reason=reason,
        a_to_b=pumps[0].flow(),
        b_to_a=pumps[1].flow() if len(pumps) == 2 else nothing,
        waited_for=waited_for,
        limit=limit,
        error=error,
    )

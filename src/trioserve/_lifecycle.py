"""Lifecycle: what the server does with a connection, from accept to its report.

Phases, timers, closing and its reason. This module does not know how a connection is
accepted, what a handler sees of it, or where its report goes.

How a connection closes, in one place:

==============================================  ================================
what happened                                   close
==============================================  ================================
the handler returned, EOF had been received     close
the handler returned before EOF                 EOF, discard for a while, close
the handler raised                              RST
cancelled, cut, stalled, too old, half-closed   RST, with the reason kept first
idle, or idle while draining                    FIN
==============================================  ================================

A handler that has handed over a relay counts as returned when the relay has ended; the
relay closes the other side.
"""

from __future__ import annotations

import contextlib
import math
from typing import Final

import trio

from ._attachments import HandedOver, RelaySide
from ._blame import caused_by_client, comes_from_streams
from ._closing import close_by_fin, linger
from ._deadlines import can_move_now, next_deadline
from ._errors import is_ours
from ._idle import Idle
from ._lifecycle_state import LifecycleState, RelayHost
from ._reason import Phase, Reason, Side
from ._results import CloseReason
from ._timers import next_look
from ._transport import FAILURES

#: Timers that end a relay by FIN: no byte has come for a long time.
_BY_FIN: Final = (Reason.IDLE, Reason.FIRST_BYTE)

#: Seconds. A drain does not take a connection for idle that is younger and has sent no
#: byte: its first request may be on the way.
_MIN_IDLE_AGE: Final = 1.0


class Lifecycle(LifecycleState):
    """One accepted connection, as its server sees it."""

    __slots__ = ()

    # -- for the server and the handler

    def stop(
        self,
        reason: Reason,
        *,
        limit: float | None = None,
        error: str | None = None,
        by_fin: bool = False,
    ) -> None:
        """End it from outside, by RST or by FIN.

        The reason is kept first, so that a consequence of the close can't become the
        reason; then the handler is cancelled; then the transport is closed, which also
        ends a shielded wait.
        """
        waited_for: Side | None = "client" if reason.outcome == "timeout" else None
        if self._lingers and not self.transport.unsent():
            # All bytes are acknowledged; it only waited for the client to close.
            self.handler_over(None, None, cancelled=False)
            by_fin = self.transport.closes_at_once
        self.close_as(reason, waited_for=waited_for, limit=limit, error=error)
        self._sends_fin = by_fin
        self.stopped = reason  # for a task that it may need at the end
        if self.scope is not None:
            self.scope.cancel(reason=str(reason))
        self.close_now()

    def close_now(self) -> None:
        """Close without waiting: by RST, or by FIN if it ends because it was idle."""
        if self._sends_fin and not self.transport.unsent():
            close_by_fin(self.transport, self.goodbye)
        else:
            self.transport.abort()

    async def close_gracefully(self) -> None:
        """Close so that the peer gets all that was sent; see ``Connection.aclose``."""
        if trio.current_effective_deadline() == -math.inf:
            self.close_now()
        if self.transport.closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            self._lingers = True
            self._eof_first = self.transport.eof
            await linger(self.transport, self.timeouts.linger)
        except BaseException:
            self.close_now()
            raise
        self.transport.close()
        await self.transport.wait_closed()

    # -- the end of its handler

    def take_back(self, relay: HandedOver) -> None:
        """Undo :meth:`hand_over`: the caller runs the relay.

        Raises:
          RuntimeError: it runs already.
        """
        if self.handed_over is not relay or self._is_moving:
            raise RuntimeError("a relay can be awaited once, by its handler")
        self.handed_over = None

    def attach_relay(self) -> None:
        """Attach the relay that was handed over; from now on the server runs it."""
        assert self.handed_over is not None
        self._is_moving = True
        self.handed_over.attach()

    def leave_to_engine(self, host: RelayHost) -> bool:
        """Let the relay that is attached move without a task; False if it needs one.

        Args:
          host: told when the relay is over.
        """
        assert self.handed_over is not None
        self.relay_host = host
        if not self.handed_over.begin(self):
            return False
        self.task = self.scope = None
        return True

    def on_relay_over(self) -> None:
        assert self.relay_host is not None
        self.relay_host.relay_over(self.id)

    def finish_now(self) -> bool:
        """Close after a relay without a task, by the table at the top.

        Returns:
          False if something of that has to wait; then :meth:`finish` does the rest.
        """
        assert self.handed_over is not None
        if not self.handed_over.finish_now():
            return False
        self._detach()
        return self._close_at_once()

    async def finish(self) -> None:
        """Close after the handler has returned, by the table at the top."""
        if self.handed_over is not None:
            if not self.handed_over.finish_now():
                await self.handed_over.finish()
            self._detach()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._close_at_once():
            return
        transport = self.transport
        if self._drained and self.goodbye:
            with contextlib.suppress(*FAILURES):
                await transport.send(self.goodbye)
        if self._ends_by_fin():
            close_by_fin(transport)
            await transport.wait_closed()
        else:
            await self.close_gracefully()

    def _close_at_once(self) -> bool:
        """Close, if that does not have to wait."""
        transport, relay_closed = self.transport, self._relay_closed
        if transport.closed:
            return True
        if relay_closed is None or relay_closed.reason.outcome == "ok":
            self.phase = Phase.CLOSING
        if not transport.closes_at_once or (self._drained and self.goodbye):
            return False
        if transport.eof:
            self._eof_first = True
            transport.close()
        elif self._ends_by_fin():
            close_by_fin(transport)
        return transport.closed

    def _ends_by_fin(self) -> bool:
        # The client has been silent for the whole timeout: don't linger.
        closed = self._relay_closed
        return closed is not None and closed.reason in _BY_FIN

    def handler_over(
        self, error: BaseException | None, stream: object, *, cancelled: bool
    ) -> None:
        """Find out why the connection ends, now that the handler has ended.

        Args:
          error: the handler's exception, if any.
          stream: the connection that the handler was given.
          cancelled: whether the server's own scopes were cancelled.
        """
        self._detach()
        transport = self.transport
        of_streams = error is None or comes_from_streams(
            error, stream, transport, self.upstream
        )
        if self.close_reason is not None and of_streams:
            return
        if error is None and self._drained:
            self.close_as(Reason.DRAINED)
        elif self._relay_closed is not None and of_streams:
            self.close_reason = self._relay_closed
        elif transport.error is not None and of_streams:
            self.close_as(self._broken(), exception=transport.error)
        elif error is not None and caused_by_client(error, stream, transport):
            self.close_as(self._broken(), exception=error)
        elif cancelled:
            self.close_as(Reason.CANCELLED)
        elif error is not None:
            self.close_as(Reason.HANDLER_ERROR, exception=error)
        elif self._eof_first:
            self.close_as(Reason.CLIENT_CLOSED)
        else:
            self.close_as(Reason.SERVER_CLOSED)

    def _broken(self) -> Reason:
        is_shortage = is_ours(self.transport.error)
        return Reason.RESOURCE if is_shortage else Reason.CLIENT_RESET

    def _detach(self) -> None:
        relay, self.handed_over = self.handed_over, None
        if relay is not None:
            relay.detach()

    # -- drains

    def idle(self, held: object) -> Idle:
        """See ``Connection.idle``."""
        return Idle(self.transport, bool(held), self._begin_idle, self._forget_idle)

    def _begin_idle(self, idle: Idle) -> None:
        if self._idle is not None:
            raise RuntimeError("conn.idle() is entered already")
        self._idle = idle
        self._end_idle()

    def _forget_idle(self) -> None:
        self._idle = None

    def server_drains(self) -> None:
        """Called when the server's drain begins."""
        self._end_idle()
        if self.relay is not None:
            self.relay.server_drains()

    def _end_idle(self) -> None:
        """Cancel the idle scope if the server drains and nothing has arrived."""
        idle = self._idle
        if idle is None or not self.draining.is_set() or not idle.may_end():
            return
        old_enough_at = self.accepted_at + _MIN_IDLE_AGE
        if not self.transport.received and trio.current_time() < old_enough_at:
            self.timers.watch(self, old_enough_at)
            return
        self._drained = True
        idle.cancel()

    # -- timers

    def watch(self) -> None:
        """Start the timers, or set them by new timeouts."""
        self.timers.watch(self, self._due()[0])

    def _due(self) -> tuple[float, Reason]:
        # A relay, a handshake at the engine and a lingering close have timers of their
        # own.
        has_own = self.relay or self.handshake or self._lingers
        due = next_deadline(
            self.timeouts, self.transport, self.accepted_at, only_total=bool(has_own)
        )
        if self.handshake is None:
            return due
        return min(due, (self.handshake_ends_at, Reason.HANDSHAKE))

    def _on_wait(self) -> None:
        """Start a timer: the transport begins to wait."""
        transport = self.transport
        sends = transport.sending_since < math.inf
        starts_idle_timer_only = (
            transport.received and not transport.sent_eof and not sends
        )
        due = transport.receiving_since + self.timeouts.idle
        # The entry of an earlier wait fires before ``due`` and then sets the next one.
        if not starts_idle_timer_only or self._is_quiet or due < self.timer_due:
            self._is_quiet = False
            now = trio.current_time()
            if sends:  # measure the peer's progress from here
                transport.observe_acks(now)
            if (due := self._due()[0]) < math.inf:
                self.timers.watch(self, min(due, next_look(now)))

    def on_timer(self, now: float) -> None:
        """Called by the server's timers: a deadline may have passed."""
        # A relay observes its own sides. During a handshake, no timer counts from the
        # last byte, so what the peer has acknowledged does not matter.
        has_own = self.relay is not None or self.handshake is not None
        holds = not has_own and self.transport.observe_acks(now)
        due, reason = self._due()
        if due <= now:
            if reason is Reason.HANDSHAKE:
                assert self.handshake is not None
                self.handshake.time_is_over()
                return
            if not can_move_now(self.transport, reason):
                limit = getattr(self.timeouts, reason)
                self.stop(reason, limit=limit, by_fin=reason in _BY_FIN)
                return
            self.timers.watch(self, next_look(now))
        elif due < math.inf:
            # While the kernel holds bytes, check regularly whether the peer takes some.
            self._is_quiet = not holds
            self.timers.watch(self, min(due, next_look(now)) if holds else due)
        self._end_idle()

    # -- relays

    def relay_began(self, relay: RelaySide) -> None:
        self.relay = relay
        self.upstream = relay.target_transport
        self.transport.on_wait = None  # a relay has timers of its own

    def relay_over(self, closed: CloseReason | None) -> None:
        """Take over the result of a relay; an exception of the handler goes first."""
        assert self.relay is not None
        discarded, upstream_discarded = self.relay.discarded()
        self.relay = None
        self.transport.discarded += discarded
        self.transport.on_wait = self._on_wait
        self._upstream_discarded += upstream_discarded
        if closed is not None:
            self._relay_closed = closed

"""Serving: the tasks of a server, its cancel scopes, and the order of a drain.

Each listener has an acceptor and one of Trio's accept loops; each connection has a
task; a memory channel carries one report per connection to a collector. Three kinds of
cancel scope stop a server: those of the accept loops, those of ``conn.idle()``, and one
per connection. This module does not know what a handler does with its bytes.

Two rules:

1. A connection is *finalized* once, in one synchronous step: closed, recorded, its
   token released, its report sent. A cancellation can't leave this half done.
2. The collector runs outside all scopes that a drain cancels. It ends after the last
   report, or is cancelled ``Timeouts.cleanup`` seconds later.
"""

from __future__ import annotations

import collections
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import trio

from ._accept_loops import AcceptLoops
from ._acceptor import Acceptor
from ._admission import Admission, Token
from ._collector import Collector, Reports
from ._connection import Connection, lifecycle_of
from ._describe import describe, escape
from ._dispatch import Dispatcher
from ._drain import Drain
from ._engine import engine_acquired
from ._errors import inner_group
from ._handlers import Companion, Handlers, Spawns
from ._handshake import Layer, pass_layers
from ._handshakes import Handshakes
from ._layers import Layers
from ._ledger import Ledger
from ._lifecycle import Lifecycle
from ._options import Limits, Timeouts
from ._reason import Outcome, Reason
from ._record import report_of
from ._refusals import Refusals
from ._results import DrainSummary, Statistics
from ._timers import Timers
from ._transport import Transport

logger = logging.getLogger("trioserve")

#: How many connections the log names that still run after cleanup. The summary names
#: all of them.
_MAX_NAMED: Final = 10

#: Reasons of layers after which the client gets FIN: a reset might overtake an alert.
_BY_FIN: Final = (Reason.CLIENT_CLOSED, Reason.TLS_FAILED)


class Serving:
    """A running server, and the host of its acceptors.

    Attributes:
      draining: set when handlers should end.
      loops: the accept loops.
    """

    def __init__(
        self,
        listeners: Iterable[trio.abc.Listener[Any]],
        limits: Limits,
        timeouts: Timeouts,
        layers: Layers,
        report_buffer: float,
        handler_nursery: Spawns | None,
    ) -> None:
        self.timeouts = timeouts
        self.draining = trio.Event()
        self.admission = Admission(limits)
        self.accept_errors: collections.Counter[str] = collections.Counter()
        self.ledger = Ledger()
        self.reports = Reports(report_buffer)
        self.drain = Drain()
        self._serving = trio.CancelScope()
        self._handlers = Handlers(handler_nursery, self._serving)
        self._refusals = Refusals(self._handlers.start_ours, self._finalize)
        self._dispatcher = Dispatcher(
            self._handlers, self.ledger, self._serving, self._passes, self._finalize
        )
        self._timers = Timers()
        self._handshakes = Handshakes(limits.max_handshakes)
        self._fd_may_be_free = trio.lowlevel.ParkingLot()
        self._accept_over = False
        self._drain_scope = trio.CancelScope()
        self._timers_scope = trio.CancelScope(shield=True)
        self._beside = trio.CancelScope()
        self._all_closed = trio.Event()
        self._was_cancelled = False
        self._is_gone = False
        self._ends_program: BaseException | None = None
        self.loops = AcceptLoops(self, listeners, layers)

    # -- for the public server

    def set_limits(self, limits: Limits) -> None:
        self.admission.limits = limits
        self._handshakes.most = limits.max_handshakes
        self.loops.reconsider()

    def statistics(self) -> Statistics:
        ledger, reports, tokens = self.ledger, self.reports, self.admission.tokens
        received, sent, discarded = ledger.bytes()
        return Statistics(
            accepted=ledger.accepted,
            open=len(ledger.open),
            closed=ledger.closed,
            refused=ledger.refused,
            collected=reports.collected,
            buffered=reports.buffered,
            lost=reports.lost,
            bytes_received=received,
            bytes_sent=sent,
            bytes_discarded=discarded,
            tokens_used=tokens.used,
            limit=tokens.total,
            accept_errors=dict(self.accept_errors),
        )

    def start_draining(self, within: float | None, reason: str) -> None:
        now, drain, again = trio.current_time(), self.drain, self.drain.reason
        if again is None:
            drain.begin(reason, now, len(self.ledger.open))
            lame_duck = self.timeouts.lame_duck
            within = (self.timeouts.drain if within is None else within) + lame_duck
            if lame_duck:
                self.loops.scope.deadline = now + lame_duck
            else:
                self.loops.scope.cancel(reason=reason)
        if within is not None:
            if drain.bring_forward(now + within) and again is not None:
                drain.cut_short = reason
            accepting = self.loops.scope
            accepting.deadline = min(accepting.deadline, drain.deadline)
            self._drain_scope.deadline = drain.deadline

    # -- the host of its acceptors

    def admit(
        self,
        transport: Transport,
        *,
        listener: str,
        peer: str,
        peer_key: str | None,
        local: str,
        token: Token | None,
    ) -> Connection:
        self.admission.count(peer_key)
        connection = Connection(
            Lifecycle(
                transport,
                token=token,
                id=self.ledger.next_number(),
                peer=peer,
                peer_key=peer_key,
                local=local,
                listener=listener,
                timeouts=self.timeouts,
                timers=self._timers,
                draining=self.draining,
                handshakes=self._handshakes,
            )
        )
        self.ledger.add(connection)
        return connection

    def start(self, connection: Connection, layers: tuple[Layer, ...]) -> None:
        self._dispatcher.start(connection, layers)

    def refuse(self, connection: Connection, reason: Reason) -> None:
        life = lifecycle_of(connection)
        self._count_refused(life, reason)
        if self._refusals.refuse(life, self.admission.limits.refusal):
            self._finalize(life.id)

    def _count_refused(self, life: Lifecycle, reason: Reason) -> None:
        life.close_as(reason, limit=self.admission.limit_of(reason))
        self._uncount(life)
        self.ledger.refused += 1

    async def wait_for_fd(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._fd_may_be_free.park()

    def acceptor_died(self, acceptor: Acceptor, error: OSError) -> None:
        logger.error("stopped accepting on %s: %s", acceptor.address, error)
        self.loops.died(acceptor, error)
        self.acceptor_closed()

    def acceptor_closed(self) -> None:
        if self.loops.fatal_error is not None and self.drain.reason is None:
            self.start_draining(None, "no listener is left")

    def serves_backlog(self, acceptor: Acceptor) -> bool:
        return self.drain.reason is not None or acceptor.is_closing

    # -- one connection

    async def _passes(self, life: Lifecycle, layers: tuple[Layer, ...]) -> bool:
        """Run the layers; False if they refused the connection or took too long."""
        try:
            refusal = await pass_layers(life, layers)
        except trio.ClosedResourceError as error:
            # Other code has closed it. No handler has begun, so it is not its error.
            life.close_as(Reason.ABORTED, error=describe(error))
            return False
        if refusal is None:
            return True
        if refusal.outcome is Outcome.REFUSED:
            self._count_refused(life, refusal)
            message = self.admission.limits.refusal
            await self._refusals.refuse_in_task(life, message)
        else:
            limit = life.timeouts.handshake if refusal is Reason.HANDSHAKE else None
            life.stop(refusal, limit=limit, by_fin=refusal in _BY_FIN)
        return False

    @trio.lowlevel.enable_ki_protection  # an interrupt must not come in the middle
    def _finalize(self, number: int) -> None:
        """Close, record, release the token and report, in one step. Idempotent."""
        connection = self.ledger.open.pop(number, None)
        if connection is None:
            return
        life = lifecycle_of(connection)
        life.close_now()
        self._timers.forget(life)
        self._uncount(life)
        report = report_of(life, len(self.ledger.open))
        life.release()
        self.ledger.close(report)
        self.drain.outcomes[report.outcome] += 1
        if life.token is not None:
            life.token.release()
        self.reports.put(report)
        if self._fd_may_be_free:
            self._fd_may_be_free.unpark_all()
        self._finish_if_over()

    def _uncount(self, life: Lifecycle) -> None:
        """Take it out of the count of its peer's connections. Idempotent."""
        key, life.peer_key = life.peer_key, None
        self.admission.uncount(key)

    # -- all of it

    async def run(
        self,
        handler: Callable[[Any], Awaitable[object]],
        collector: Collector,
        on_start: Callable[[Connection], object] | None,
        started: Callable[[], None],
    ) -> DrainSummary:
        """Serve until drained or cancelled; see ``serve``."""
        self._dispatcher.use(handler, on_start)
        try:
            with engine_acquired():
                async with trio.open_nursery() as helpers:
                    try:
                        with self._serving:
                            self._start_helpers(helpers, collector)
                            if isinstance(handler, Companion):
                                name = "trioserve beside the handler"
                                helpers.start_soon(self._accompany, handler, name=name)
                            hold = self._handlers.hold
                            helpers.start_soon(hold, name="trioserve connections")
                            # Cancelled here, it would leave the listeners open.
                            with trio.CancelScope(shield=True):
                                await self._handlers.wait_open()
                            await self._accept(started)
                            await self._drain_connections()
                            if stands := await self.reports.wait_over():
                                self.drain.stuck += (f"the collector in {stands}",)
                            self._sum_up()
                            await self.reports.over.wait()
                        if self._serving.cancelled_caught:
                            self._cancelled(cut=not self._handlers.is_lent)
                    except BaseException:
                        self._cancelled(cut=not self._handlers.is_lent)
                        raise
                    finally:
                        self._beside.cancel(reason="serving has ended")
                        if self._handlers.is_lent:
                            # Connections there may outlive this server.
                            self._handlers.stop_starting()
        except BaseExceptionGroup as group:
            # Errors come in one group, as from Trio's serve_listeners, although
            # there are two nested nurseries here.
            if (inner := inner_group(group)) is None:
                raise
            raise inner from None
        finally:
            self._is_gone = True
            self.loops.dispose()
            self._sum_up()
        if self._ends_program is not None:
            raise self._ends_program
        if self._was_cancelled:
            raise RuntimeError("a task of the server's own has cancelled the server")
        if (error := self.loops.fatal_error) is not None:
            raise error
        assert self.drain.summary is not None
        return self.drain.summary

    def _start_helpers(self, nursery: trio.Nursery, collector: Collector) -> None:
        """Start the tasks that connections need: the collector and the timers."""
        collect, timers = "trioserve collector", "trioserve timers"
        if not self._handlers.is_lent:
            nursery.start_soon(self.reports.collect, collector, name=collect)
            nursery.start_soon(self._time, name=timers)
            return
        # In the caller's nursery connections may outlive serve(), and nothing else may
        # be started there. So the collector and the timers are system tasks.
        spawn = trio.lowlevel.spawn_system_task
        context = contextvars.copy_context()
        spawn(self._collect_apart, collector, name=collect, context=context)
        spawn(self._time, name=timers)

    async def _accompany(self, handler: Companion) -> None:
        with self._beside:
            await handler.run_beside()

    async def _collect_apart(self, collector: Collector) -> None:
        """Run the collector as a system task; run() raises what ends the program."""
        try:
            await self.reports.collect(collector)
        except BaseException as error:  # noqa: ASYNC103 - raised by run()
            if self._is_gone:
                raise
            self._ends_program = error
            self._serving.cancel(reason="the collector ends the program")

    async def _accept(self, started: Callable[[], None]) -> None:
        """Accept until a drain begins or serving is cancelled."""
        try:
            await self.loops.run(started)
        finally:
            self._accept_over = True
            self._finish_if_over()

    async def _drain_connections(self) -> None:
        """Set ``draining``, wait, reset at the deadline, finalize what is left."""
        self.draining.set()
        for life in self._lifecycles():
            life.server_drains()
        with trio.CancelScope(deadline=self.drain.deadline) as self._drain_scope:
            await self._all_closed.wait()
        limit, error = self.drain.limit()
        for life in self._lifecycles():
            life.stop(Reason.CUT, limit=limit, error=error and escape(error))
        with trio.move_on_after(self.timeouts.cleanup):
            await self._all_closed.wait()
        stuck = self._lifecycles()
        self.drain.stuck = tuple(life.stands_at() for life in stuck)
        for stands in self.drain.stuck[:_MAX_NAMED]:
            logger.error("still running after cleanup: %s", stands)
        if (others := len(stuck) - _MAX_NAMED) > 0:
            logger.error("still running after cleanup: %d others", others)
        for life in stuck:
            self._finalize(life.id)

    def _lifecycles(self) -> list[Lifecycle]:
        return [lifecycle_of(each) for each in self.ledger.open.values()]

    def _cancelled(self, *, cut: bool) -> None:
        """Serving was cancelled: stop at once."""
        self._was_cancelled = True
        if self.drain.reason is None:
            open_now = len(self.ledger.open) + self.drain.outcomes[Outcome.CUT]
            self.drain.begin("cancelled", trio.current_time(), open_now)
        if cut:
            self.draining.set()
            for life in self._lifecycles():
                life.stop(Reason.CANCELLED)
        self._accept_over = True
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        """Let the collector and the timers end after the last report."""
        if self._accept_over and not self.ledger.open:
            self._all_closed.set()
            self._handlers.stop_starting()
            self._timers_scope.cancel(reason="the server has ended")
            self.reports.end(self.timeouts.cleanup)

    def _sum_up(self) -> None:
        self.drain.sum_up(
            trio.current_time(),
            backlog_drained=self.loops.backlog_drained,
            reports_lost=self.reports.lost,
        )

    async def _time(self) -> None:
        with self._timers_scope:
            await self._timers.run()

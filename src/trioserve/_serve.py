"""Serving: who does the work, how did it go, when does it stop.

A nursery runs Trio's own accept loop over gates, and a task for each
connection; a memory channel carries one report for each to a collector; three
kinds of cancel scope stop it: the accepting one, the idle ones that handlers
open, and each connection's own. What a handler does with its bytes is not
known here.

Two rules hold it together:

1. A connection is *settled* in one synchronous step, and once: closed,
   recorded, its slot released, its report sent. Whatever is cancelled,
   wherever, there is no point at which half of it is done.
2. The collector lives outside of every scope that stopping cancels. It ends
   when there are no more reports, or ``Timeouts.cleanup`` seconds later.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast, overload

import trio

from ._address import TcpAddress
from ._admission import Slot, Slots
from ._arguments import (
    check_callable,
    check_count,
    check_handler,
    check_method,
    check_seconds,
    check_type,
)
from ._collector import Collector, Reports, log_reports
from ._connection import Connection, Running, _current
from ._engine import engine_held
from ._errors import PROGRAM_ENDS, is_a, only, without
from ._gates import Gate, gate_for
from ._listeners import open_listeners
from ._options import Limits, Timeouts
from ._report import (
    DrainSummary,
    Outcome,
    Phase,
    Reason,
    Statistics,
    escape,
)
from ._tasks import whereabouts
from ._timers import Timers
from ._transport import Transport

logger = logging.getLogger("trioserve")

Handler: TypeAlias = (
    Callable[[Connection], Awaitable[object]]
    | Callable[[trio.SocketStream], Awaitable[object]]
)
#: Refused clients that may be told something at the same time; each costs a
#: task and a descriptor until it has read it.
_MOST_TOLD: Final = 64

#: Connections that are still running after cleanup and are named in the log; the
#: summary names all of them.
_MOST_NAMED: Final = 10


class _TaskStatus(Protocol):
    """What ``nursery.start`` passes. Ours, because trio-typing's stubs lack Trio's."""

    def started(self, value: Server, /) -> None: ...


class _Spawns(Protocol):
    """What is needed of a nursery."""

    def start_soon(
        self,
        async_fn: Callable[..., Awaitable[object]],
        *args: Any,
        name: object = None,
    ) -> None: ...


class Server(Sequence[Gate]):
    """A server that runs: look at it, limit it, drain it.

    It is also the sequence of its listeners, each with ``.socket``, as
    :func:`trio.serve_tcp` would return them. All methods must be called from
    the Trio thread.

    Attributes:
      timeouts: as given.
      draining: an event: it wants to stop.
    """

    def __init__(
        self,
        listeners: Iterable[trio.abc.Listener[Any]],
        limits: Limits,
        timeouts: Timeouts,
        report_buffer: float,
    ) -> None:
        self.timeouts = timeouts
        self.draining = trio.Event()
        self._slots = Slots(limits.max_connections)
        self._accept_errors: collections.Counter[str] = collections.Counter()
        self._limits = limits
        self._timers = Timers()
        self._nursery: _Spawns | None = None
        self._lent: _Spawns | None = None
        self._handler: Callable[[Any], Awaitable[object]] | None = None
        self._begin: Callable[[Connection], Awaitable[Running | None]] | None = None
        # Connections.
        self._ids = itertools.count(1)
        self._open: dict[int, Connection] = {}
        self._of_peer: collections.Counter[str] = collections.Counter()
        self._accepted = 0
        self._refused = 0
        self._told = 0
        self._bytes = [0, 0, 0]
        self._wait_for_room = trio.lowlevel.ParkingLot()
        self._closed = 0
        self._reports = Reports(report_buffer)
        # Stopping.
        self._accepting = trio.CancelScope()
        self._accept_over = False
        self._patience = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._timing = trio.CancelScope(shield=True)
        self._all_closed = trio.Event()
        self._holds = trio.Event()
        self._starts_no_more = trio.Event()
        self._was_cancelled = False
        self._is_gone = False
        self._ends_program: BaseException | None = None
        self._over = trio.Event()
        self._drain_reason: str | None = None
        self._drain_began = math.inf
        self._deadline = math.inf
        self._cut_short: str | None = None
        self._open_at_start = 0
        self._ends: collections.Counter[Outcome] = collections.Counter()
        self._ends_before: collections.Counter[Outcome] = collections.Counter()
        self._stuck: tuple[str, ...] = ()
        self._summary: DrainSummary | None = None
        self._dead: list[OSError] = []
        self._gates: list[Gate] = []
        try:
            for listener in listeners:
                self._gates.append(gate_for(listener, self))
            if not self._gates:
                raise ValueError("listeners must not be empty")
        except BaseException:
            for gate in self._gates:
                gate.dispose()
            raise

    # -- what everybody uses

    def __len__(self) -> int:
        return len(self._gates)

    @overload
    def __getitem__(self, index: int) -> Gate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Gate]: ...
    def __getitem__(self, index: int | slice) -> Gate | list[Gate]:
        return self._gates[index]

    def __iter__(self) -> Iterator[Gate]:
        return iter(self._gates)

    def __repr__(self) -> str:
        return (
            f"<Server on {', '.join(self.addresses)}:"
            f" {len(self._open)} open, {self._closed} closed>"
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the real ports."""
        return tuple(gate.address for gate in self._gates)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are open, oldest first."""
        return tuple(self._open.values())

    @property
    def limits(self) -> Limits:
        """May be replaced at any time; lowering them ends nothing that is open."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        check_type("limits", limits, Limits, "a Limits")
        self._limits = limits
        self._slots.total = limits.max_connections
        for gate in self._gates:
            gate.reconsider()

    def statistics(self) -> Statistics:
        """The counters now."""
        received, sent, discarded = self._bytes
        for connection in self._open.values():
            received += connection.bytes_received
            sent += connection.bytes_sent
            discarded += connection._discarded
        return Statistics(
            accepted=self._accepted,
            open=len(self._open),
            closed=self._closed,
            refused=self._refused,
            collected=self._reports.collected,
            buffered=self._reports.buffered,
            lost=self._reports.lost,
            bytes_received=received,
            bytes_sent=sent,
            bytes_discarded=discarded,
            slots_used=self._slots.used,
            slots=self._slots.total,
            accept_errors=dict(self._accept_errors),
        )

    def start_draining(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> None:
        """Begin to stop: accept no more, tell handlers, cut what is left later.

        Called again it can only bring the deadline forward.

        Args:
          within: seconds until what is still open is reset; default
            ``Timeouts.drain``, or what was asked for before. The first time,
            ``Timeouts.lame_duck`` is added.
          reason: for the summary; the first one stays. A later one that brings
            the deadline forward is in the reports of those that are cut.
        """
        if within is not None:
            check_seconds("within", within)
        check_type("reason", reason, str, "a str")
        now, again = trio.current_time(), self._drain_reason is not None
        if not again:
            self._drain_reason = reason
            self._drain_began = now
            self._open_at_start = len(self._open)
            self._ends_before = self._ends.copy()
            if within is None:
                within = self.timeouts.drain
            within += self.timeouts.lame_duck
            if self.timeouts.lame_duck:
                self._accepting.deadline = now + self.timeouts.lame_duck
            else:
                self._accepting.cancel(reason=reason)
        if within is not None:
            if again and now + within < self._deadline:
                self._cut_short = reason
            self._deadline = min(self._deadline, now + within)
            self._accepting.deadline = min(self._accepting.deadline, self._deadline)
            self._patience.deadline = self._deadline

    async def drain(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> DrainSummary:
        """Begin to stop, as :meth:`start_draining`, and wait for the end.

        It returns when everything is closed and reported; with a task that
        does not end, ``Timeouts.cleanup`` seconds after the deadline, with that
        task in the summary; a collector has as long again. Cancelling the wait
        does not undo it. A handler must not wait for itself: use
        :meth:`start_draining`.
        """
        self.start_draining(within, reason=reason)
        await self._over.wait()
        assert self._summary is not None
        return self._summary

    # -- the door: what the gates use

    def _has_enough(self, host: str | None) -> bool:
        most = self._limits.max_per_peer
        return (
            most is not None and host is not None and self._of_peer.get(host, 0) >= most
        )

    def _admit(
        self,
        transport: Transport,
        gate: Gate,
        *,
        peer: str,
        host: str | None,
        local: str,
        slot: Slot | None,
    ) -> Connection:
        self._accepted += 1
        if host is not None:
            self._of_peer[host] += 1
        connection = Connection(
            transport,
            slot=slot,
            id=next(self._ids),
            peer=peer,
            host=host,
            local=local,
            listener=gate.address,
            timeouts=self.timeouts,
            timers=self._timers,
            draining=self.draining,
        )
        self._open[connection.id] = connection
        return connection

    def _start(self, connection: Connection) -> None:
        where = self._nursery if self._lent is None else self._lent
        assert where is not None
        name = f"conn-{connection.id} {connection.peer}"
        try:
            where.start_soon(self._run, connection, name=name)
        except BaseException:
            # A nursery that we were lent is closed.
            connection._conclude(Reason.CANCELLED)
            self._settle(connection)
            raise

    def _refuse(self, connection: Connection, reason: Reason) -> None:
        connection._conclude(reason, bound=self._bound_of(reason))
        self._uncount(connection)
        self._refused += 1
        transport, message = connection._transport, self._limits.refusal
        if message is None:
            transport.abort()
        elif transport.send_refusal(message):
            transport.discard_readable(65536)
            # Closed with bytes unread or yet to come, a RST would overtake the
            # message: then somebody has to wait until the client has read it.
            may_wait = reason is not Reason.NO_FDS and self._told < _MOST_TOLD
            if message and may_wait and not transport.eof:
                assert self._nursery is not None
                self._told += 1
                name = f"conn-{connection.id} {connection.peer} refused"
                self._nursery.start_soon(self._tell, connection, name=name)
                return
        transport.close()
        self._settle(connection)

    def _bound_of(self, reason: Reason) -> int | None:
        if reason is Reason.LIMIT:
            return self._limits.max_connections
        return self._limits.max_per_peer if reason is Reason.PEER_LIMIT else None

    def _uncount(self, connection: Connection) -> None:
        """It is not one of its peer's any more. Twice is once."""
        host, connection._host = connection._host, None
        if host is not None:
            self._of_peer[host] -= 1
            if not self._of_peer[host]:
                del self._of_peer[host]

    async def _tell(self, connection: Connection) -> None:
        """Wait until a refused client has read why."""
        connection._scope.shield = True
        try:
            with connection._scope:
                await connection._transport.discard(65536, self.timeouts.linger)
            connection._transport.close()
        finally:
            self._told -= 1
            self._settle(connection)

    async def _room(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._wait_for_room.park()

    def _gate_died(self, gate: Gate, error: OSError) -> None:
        self._dead.append(error)
        logger.error("%s is over: %s", gate.address, error)
        if len(self._dead) == len(self._gates):
            self.start_draining(reason="no listener is left")

    def _serves_last(self) -> bool:
        return self._drain_reason is not None

    # -- one connection

    async def _run(self, connection: Connection) -> None:
        """A connection's task, from its first step to the last."""
        assert self._handler is not None
        # In a nursery of ours nothing is cancelled from outside: a handler may cancel
        # the one that it runs in, and that is everybody's. See _hold().
        connection._scope.shield = self._lent is None
        connection._task = trio.lowlevel.current_task()
        connection._phase = Phase.DATA
        _current.set(connection)
        raised: BaseException | None = None
        rest: BaseException | None = None
        try:
            connection._watch()
            with connection._scope:
                try:
                    if self._begin is None:
                        connection._result = await _awaitable(
                            self._handler, self._handler(connection)
                        )
                    elif (relay := await self._begin(connection)) is not None:
                        await connection._run(relay)
                    await connection._finish()
                except BaseException as error:  # noqa: ASYNC103 - isolation
                    raised = error
                    # Trio asks what it gets for its class and its parts, and some
                    # errors answer anything. It gets what it has to know.
                    kinds: tuple[type[BaseException], ...] = (
                        *PROGRAM_ENDS,
                        trio.Cancelled,
                    )
                    if is_a(error, kinds):
                        raise
                    if (rest := only(error, kinds)) is not None:
                        raise rest from None  # noqa: ASYNC104 - what it has to know
            if raised is not None and connection._scope.cancelled_caught:
                raised = without(raised, trio.Cancelled)
            cancelled = raised is not None and self._is_cancelled_from_outside()
            connection._ended(raised, cancelled=cancelled)
        except BaseException as passed:  # noqa: ASYNC103 - isolation
            # A Cancelled that no scope above us asked for is a handler's mistake,
            # and would cancel a whole nursery without a word.
            cancelled = self._is_cancelled_from_outside()
            connection._ended(raised, cancelled=cancelled)
            if self._lent is None and only(passed, PROGRAM_ENDS) is not None:
                self._serving.cancel(reason="a handler ends the program")
            kinds = (*PROGRAM_ENDS, trio.Cancelled) if cancelled else PROGRAM_ENDS
            if is_a(passed, kinds):
                raise
            if (rest := only(passed, kinds)) is not None:
                raise rest from None  # noqa: ASYNC104 - without what is isolated
        finally:
            raised = rest = None  # their tracebacks have this frame: a cycle
            self._settle(connection)
            await connection._transport.wait_closed()  # noqa: ASYNC102 - shielded

    @trio.lowlevel.enable_ki_protection  # so that an interrupt comes before or after
    def _settle(self, connection: Connection) -> None:
        """Close, record, release, report; in one step, and once."""
        if self._open.pop(connection.id, None) is None:
            return
        connection._hang_up()
        self._timers.forget(connection)
        self._uncount(connection)
        report = connection._report(len(self._open))
        connection._let_go()
        self._closed += 1
        self._bytes[0] += report.bytes_received
        self._bytes[1] += report.bytes_sent
        self._bytes[2] += report.bytes_discarded
        self._ends[report.outcome] += 1
        if connection._slot is not None:
            connection._slot.release()
        self._reports.put(report)
        if self._wait_for_room:
            self._wait_for_room.unpark_all()
        self._finish_if_over()

    # -- the whole

    async def _serve(
        self,
        handler: Handler,
        collector: Collector,
        handler_nursery: _Spawns | None,
        task_status: _TaskStatus,
    ) -> DrainSummary:
        self._handler = handler
        self._lent = handler_nursery
        # A proxy leaves its relays to us; not one in something that only passes on
        # its attributes, and is to be called itself.
        if hasattr(type(handler), "_begin_relay"):
            self._begin = getattr(handler, "_begin_relay")  # noqa: B009 - not all have
        try:
            with engine_held():
                async with trio.open_nursery() as helpers:
                    try:
                        with self._serving:
                            self._start_helpers(helpers, collector)
                            helpers.start_soon(self._hold, name="trioserve connections")
                            # Cancelled here, nobody would close the listeners.
                            with trio.CancelScope(shield=True):
                                await self._holds.wait()
                            task_status.started(self)
                            await self._accept()
                            await self._wait_out()
                            if stands := await self._reports.wait_over():
                                self._stuck += (f"the collector in {stands}",)
                            self._sum_up()
                            await self._reports.over.wait()
                        if self._serving.cancelled_caught:
                            self._cancelled(cut=self._lent is None)
                    except BaseException:
                        self._cancelled(cut=self._lent is None)
                        raise
                    finally:
                        self._starts_no_more.set()
        finally:
            self._is_gone = True
            for gate in self._gates:
                gate.dispose()
            self._sum_up()
        if self._ends_program is not None:
            raise self._ends_program
        if self._was_cancelled:
            raise RuntimeError("a task of the server's own has cancelled the server")
        if self._dead and len(self._dead) == len(self._gates):
            raise self._dead[-1]
        assert self._summary is not None
        return self._summary

    def _start_helpers(self, nursery: trio.Nursery, collector: Collector) -> None:
        """Start what connections need: someone who takes reports, and timers."""
        collect, timers = "trioserve collector", "trioserve timers"
        if self._lent is None:
            nursery.start_soon(self._reports.collect, collector, name=collect)
            nursery.start_soon(self._time, name=timers)
            return
        # In a nursery that isn't ours connections may outlive us, and it shall hold
        # nothing but connections: what they need is in no nursery of anybody's.
        spawn = trio.lowlevel.spawn_system_task
        context = contextvars.copy_context()
        spawn(self._collect_apart, collector, name=collect, context=context)
        spawn(self._time, name=timers)

    async def _collect_apart(self, collector: Collector) -> None:
        """The collector in a task without a parent; what ends the program ends us."""
        try:
            await self._reports.collect(collector)
        except BaseException as error:  # noqa: ASYNC103 - raised by serve()
            if self._is_gone:
                raise
            self._ends_program = error
            self._serving.cancel(reason="the collector ends the program")

    async def _hold(self) -> None:
        """Hold the nursery that our tasks run in, as long as more may be started.

        A handler can cancel the nursery of its own task. Serving does not happen in
        this one, and what runs in it is shielded, so that ends nobody.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._holds.set()
            try:
                await self._starts_no_more.wait()
            except trio.Cancelled as cancelled:
                scope = nursery.cancel_scope
                if scope.cancel_called and not self._serving.cancel_called:
                    logger.error(
                        "%s has cancelled the nursery that handlers run in; that ends"
                        " no connection, and serving goes on until it is drained, as"
                        " by server.start_draining()",
                        escape(cancelled.source_task or "a task"),
                    )
                with trio.CancelScope(shield=True):
                    await self._starts_no_more.wait()
                raise
            # A handler may have started a task in it that has no end.
            nursery.cancel_scope.cancel(reason="the server is over")

    async def _accept(self) -> None:
        """Accept until told to drain, or cancelled."""
        try:
            with self._accepting:
                # Trio calls nursery.start_soon(its own task, connection, ...)
                # for each; ours starts the connection's task instead.
                await trio.serve_listeners(
                    _unused,
                    self._gates,
                    handler_nursery=_Starter(self),  # type: ignore[arg-type]
                )
        finally:
            self._accept_over = True
            self._finish_if_over()

    async def _wait_out(self) -> None:
        """Tell, wait, cut, and settle what is left."""
        self.draining.set()
        for connection in self.connections:
            connection._server_drains()
        with trio.CancelScope(deadline=self._deadline) as self._patience:
            await self._all_closed.wait()
        bound: float | None = self._deadline - self._drain_began
        error: str | None = None
        if self._cut_short is not None:
            bound, error = None, escape(f"cut short: {self._cut_short}")
        for connection in self.connections:
            connection._stop(Reason.CUT, bound=bound, error=error)
        with trio.move_on_after(self.timeouts.cleanup):
            await self._all_closed.wait()
        stuck = self.connections
        self._stuck = tuple(_stands_at(connection) for connection in stuck)
        for stands in self._stuck[:_MOST_NAMED]:
            logger.error("still running after cleanup: %s", stands)
        if (others := len(stuck) - _MOST_NAMED) > 0:
            logger.error("still running after cleanup: %d others", others)
        for connection in stuck:
            self._settle(connection)

    def _cancelled(self, *, cut: bool) -> None:
        """Serving was cancelled: stop now."""
        self._was_cancelled = True
        if self._drain_reason is None:
            self._drain_reason = "cancelled"
            self._drain_began = trio.current_time()
            self._open_at_start = len(self._open) + self._ends[Outcome.CUT]
            self._ends_before = self._ends.copy()
        if cut:
            self.draining.set()
            for connection in self.connections:
                connection._stop(Reason.CANCELLED)
        self._accept_over = True
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        """After the last report: let collector and timers end."""
        if self._accept_over and not self._open:
            self._all_closed.set()
            self._timing.cancel(reason="the server is over")
            self._reports.end(self.timeouts.cleanup)

    def _sum_up(self) -> None:
        if self._summary is not None:
            return
        # Nothing is cut before the end begins, though a cancelled connection
        # may be settled before we know that it has.
        ends = self._ends - self._ends_before
        cut, refused = self._ends[Outcome.CUT], ends[Outcome.REFUSED]
        self._summary = DrainSummary(
            reason=self._drain_reason or "cancelled",
            seconds=trio.current_time() - self._drain_began,
            open_at_start=self._open_at_start,
            swept=sum(gate.swept for gate in self._gates),
            finished=ends.total() - ends[Outcome.CUT] - refused,
            refused=refused,
            cut=cut,
            stuck=self._stuck,
            reports_lost=self._reports.lost,
        )
        self._over.set()

    # -- the helpers

    async def _time(self) -> None:
        with self._timing:
            await self._timers.run()

    def _is_cancelled_from_outside(self) -> bool:
        """Whether a nursery that we were lent is cancelled, asked by a task in it."""
        lent = self._lent is not None
        return lent and trio.current_effective_deadline() == -math.inf


class _Starter:
    """What Trio's accept loop takes for a nursery: starts connections' own tasks."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def start_soon(
        self, _task: object, connection: Connection, _handler: object
    ) -> None:
        self._server._start(connection)


async def _unused(_stream: object) -> None:
    raise AssertionError("_Starter starts something else")  # pragma: no cover


def _awaitable(handler: object, returned: object) -> Awaitable[object]:
    """What a handler has returned, to be awaited.

    Raises:
      TypeError: it is not async.
    """
    if not isinstance(returned, Awaitable):
        name = getattr(handler, "__qualname__", None) or repr(handler)
        raise TypeError(
            f"the handler {name} must be an async function: it returned {returned!r},"
            " which can't be awaited"
        )
    return returned


def _stands_at(connection: Connection) -> str:
    """Which connection, and the lines on which its tasks stand."""
    where = "; ".join(whereabouts(connection._task)) or "nothing that runs"
    return f"conn-{connection.id} {connection.peer} in {where}"


def _check(
    *,
    handler: object,
    limits: object,
    timeouts: object,
    collector: object,
    report_buffer: object,
    handler_nursery: object,
    task_status: object,
) -> None:
    """See that these are what they may be, before anything is opened or begun."""
    check_handler(handler)
    if limits is not None:
        check_type("limits", limits, Limits, "a Limits or None")
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    check_callable("collector", collector, "an async function of one argument")
    if report_buffer != math.inf:
        check_count("report_buffer", report_buffer, least=0, what="an int or math.inf")
    if handler_nursery is not None:
        check_method("handler_nursery", handler_nursery, "start_soon")
    check_method("task_status", task_status, "started")


def _checked_listeners(listeners: object) -> list[trio.abc.Listener[Any]]:
    check_type("listeners", listeners, Iterable, "a list of listeners")
    found = list(cast("Iterable[trio.abc.Listener[Any]]", listeners))
    for each in found:
        check_type("listeners", each, trio.abc.Listener, "listeners, each of them")
    if len(set(map(id, found))) < len(found):
        raise ValueError("listeners must not have one of them twice")
    return found


async def serve(
    handler: Handler,
    listeners: Iterable[trio.abc.Listener[Any]],
    *,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    handler_nursery: _Spawns | None = None,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve connections from ``listeners`` until drained or cancelled.

    A task runs ``handler(stream)`` for each. What a handler raises ends its
    connection, by RST, and is that connection's report; only
    ``KeyboardInterrupt`` and ``SystemExit`` end the server. Start it with
    ``server = await nursery.start(serve, ...)``.

    Args:
      handler: an async callable; gets a :class:`Connection`, which does all
        that a :class:`trio.SocketStream` does. What it returns is the report's
        ``result``.
      listeners: of any kind; they are closed at the end.
      limits: how many at once; default ``Limits()``.
      timeouts: how long to wait for what; default ``Timeouts()``.
      collector: an async callable; gets the receiving end of a channel of
        :class:`ConnectionReport`, which ends after the last. If it raises, that
        is logged, later reports count as lost, and serving goes on.
      report_buffer: reports that may wait for the collector; more are lost,
        and counted.
      handler_nursery: where connections are started, instead of a nursery of
        our own; nothing else is in it. It is never cancelled and gets no deadline
        by us: when serving is cancelled, it ends at once, and the connections go
        on, with their timers; each is reported when it ends.
      task_status: gets the :class:`Server`.

    Returns:
      how the drain went, after :meth:`Server.drain`.

    Raises:
      TypeError, ValueError: naming the argument that can't be; there is no listener.
      OSError: no listener can accept any more; after draining.
      RuntimeError: something that runs in it has cancelled a nursery of its own.
      trio.Cancelled: cancelled from outside; all connections were reset, and
        all reports sent.
    """
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        task_status=task_status,
    )
    server = Server(
        _checked_listeners(listeners),
        Limits() if limits is None else limits,
        Timeouts() if timeouts is None else timeouts,
        report_buffer,
    )
    return await server._serve(handler, collector, handler_nursery, task_status)


async def serve_tcp(
    handler: Handler,
    port: int,
    *,
    host: str | None = None,
    backlog: int | None = None,
    handler_nursery: _Spawns | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve TCP on ``port``: :func:`trio.serve_tcp`, and more, under its name.

    Args:
      handler: as for :func:`serve`.
      port: 0 to 65535; 0 picks a free one, the same for IPv4 and IPv6.
      host: a name or an address; default: all interfaces, as Trio does.
      backlog: as for :func:`open_listeners`.

    The rest, what it returns and what it raises is as for :func:`serve`; and
    ``OSError`` if it can't listen there.
    """
    if host is not None:
        check_type("host", host, str, "a str or None")
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        task_status=task_status,
    )
    listeners = await open_listeners(TcpAddress(host or "", port), backlog=backlog)
    return await serve(
        handler,
        listeners,
        limits=limits,
        timeouts=timeouts,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        task_status=task_status,
    )

"""The state of a run: its peers and handlers, and what has happened so far."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import trio

from trioserve import ConnectionReport

from ._case import Case, Law
from ._handler_run import HandlerRun
from ._player import Player
from ._result import Received, Violation
from ._timeline import Row, Timeline
from .runs import Watchdog


class RunState:
    """The state of a run.

    Attributes:
      case: the case that is played.
      watchdog: of the run.
      scope: all tasks of the run are in it.
      round: the current round, counted from 0.
      players: those of the current round that have connected.
      handlers: all handler runs, by the number of their connection.
      reports: of the server.
      received: what each peer received, by round.
      unserved: connections that ended before the server accepted them.
      violations: the broken laws.
      timeline: what has happened, as rows.
      begun: scheduler steps until all TLS handshakes of the first round were over.
      cancels_handlers: whether handlers are cancelled, also those that begin now.
      code: the tasks that run a client or a server of the test, and which one.
      misuse: an error of such code, which ends the run; or None.
      is_told: whether the timeline is complete: a handler raised what it must not.
    """

    def __init__(self, case: Case, watchdog: Watchdog) -> None:
        self.case = case
        self.watchdog = watchdog
        self.scope = trio.CancelScope()
        self.round = 0
        self.players: list[Player] = []
        self.handlers: dict[int, HandlerRun] = {}
        self.reports: list[ConnectionReport] = []
        self.received: list[list[Received]] = []
        self.unserved = 0
        self.violations: list[Violation] = []
        self.timeline = Timeline()
        self.begun = 0
        self.cancels_handlers = False
        self.code: dict[trio.lowlevel.Task, str] = {}
        self.misuse: ValueError | None = None
        self.is_told = False
        self._ended = trio.Event()

    @property
    def is_disturbed(self) -> bool:
        """Whether the case's faults and disturbance apply to the current round."""
        return self.round < self.case.disturbed

    @property
    def may_mismatch(self) -> bool:
        """Whether peers may receive something else than they expect in this round."""
        return self.is_disturbed and not self.case.is_undisturbed

    @property
    def is_stopped(self) -> bool:
        """Whether the run was stopped before its end."""
        return self.scope.cancel_called

    def stop(self) -> None:
        """Stop the run: a law is broken, and the rest can't be played."""
        self.scope.cancel(reason="the run is stopped")

    def note_end(self, *, is_served: bool) -> None:
        """Note that a connection has ended: it has a report, or was never accepted."""
        self.unserved += not is_served
        self._ended.set()
        self._ended = trio.Event()

    def note_begin(self, who: str) -> None:
        """Note that the TLS handshake of a peer is over."""
        self.record(who, "has shaken hands")
        if not self.round:
            self.begun = self.watchdog.steps

    @contextlib.contextmanager
    def running_code(self, who: str) -> Generator[None]:
        """Note for the block that this task runs a client or a server of the test."""
        task = trio.lowlevel.current_task()
        self.code[task] = who
        try:
            yield
        finally:
            del self.code[task]

    def code_of(
        self, task: trio.lowlevel.Task
    ) -> tuple[trio.lowlevel.Task, str] | None:
        """The task that runs such code, if it is this one or has started it; and whose
        code that is.
        """
        above: trio.lowlevel.Task | None = task
        while above is not None and above not in self.code:
            nursery = above.parent_nursery
            above = None if nursery is None else nursery.parent_task
        return None if above is None else (above, self.code[above])

    async def all_ended(self, connections: int) -> None:
        """Wait until this many connections of the run have ended."""
        while len(self.reports) + self.unserved < connections:
            await self._ended.wait()

    def violated(
        self,
        law: Law,
        how: str,
        cause: BaseException | None = None,
        *,
        in_round: int | None = None,
    ) -> None:
        """Note a broken law, and which handlers had raised an error before that.

        Args:
          in_round: the round in which it was broken; by default the current one.
        """
        raised = (
            f"{who} ended with {handler.raised!r}"
            for who, handler in self._named_handlers()
            if handler.raised is not None and handler.raised is not cause
        )
        how = "; ".join([how, *raised])
        number = self.round if in_round is None else in_round
        self.violations.append(Violation(law, how, cause, number))

    def _named_handlers(self) -> list[tuple[str, HandlerRun]]:
        return [(f"handler {n}", handler) for n, handler in self.handlers.items()]

    def who_runs(self) -> str:
        """The handler that the current task belongs to, such as ``"handler 1"``."""
        numbers = {handler.task: n for n, handler in self.handlers.items()}
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task not in numbers:
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return "a task" if task is None else f"handler {numbers[task]}"

    def ends_law(self) -> Law:
        """The law to name when a handler does not end."""
        is_drained = self.case.disturbance == "drain" and self.is_disturbed
        return "drain" if is_drained else "ends"

    def record(self, who: str, what: str, where: str = "") -> None:
        """Add a row to the timeline, up to the first sign of a broken law."""
        if not (self.is_stopped or self.violations or self.is_told):
            now, steps = trio.current_time(), self.watchdog.steps
            self.timeline.rows.append(Row(now, steps, who, what, where))

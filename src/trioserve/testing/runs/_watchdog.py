"""A watchdog: counts the steps of a run and notices when it makes no progress.

It knows which tasks are the handlers', and decides nothing: it calls back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio
import trio.testing

#: Steps without time passing or a byte moving, after which tasks count as endless.
_MOST_AT_ONCE: Final = 20_000

#: Steps without a byte moving, whatever time passes: this finds tasks that poll.
_MOST_IN_ALL: Final = 60_000

#: Steps that cancelled tasks have before the run is abandoned.
_LAST_STEPS: Final = 3_000

#: Tasks that run in the last so many of these steps are those that are endless.
_LOOK: Final = 100

#: In a hurry, the numbers above are divided by this.
_HURRY: Final = 5


class Watchdog(trio.abc.Instrument):
    """Counts steps, and calls back after one of them or when there is no progress.

    Args:
      clock: the clock of the run. It jumps when all tasks wait, except while a
        thread works for one of them.
      on_endless: called once when tasks keep running and no byte moves; it should
        cancel everything.
      on_hopeless: called when that did not help: tasks still run, or all tasks wait
        and no deadline will wake one.
      hurries: whether a fifth of the steps is enough.

    Attributes:
      steps: scheduler steps of all tasks between :meth:`begin` and :meth:`end`.
      passes: passes of the scheduler since the run began.
      on_step: called with the task after each step; None calls nothing.
      family: the handlers' tasks that are alive, and the tasks that they have
        started in any nursery.
      busy: while ``on_endless`` is called: the tasks that keep running.
    """

    def __init__(
        self,
        clock: trio.testing.MockClock,
        on_endless: Callable[[], object],
        on_hopeless: Callable[[], object],
        *,
        hurries: bool = False,
    ) -> None:
        share = _HURRY if hurries else 1
        self._most_at_once = _MOST_AT_ONCE // share
        self._most_in_all = _MOST_IN_ALL // share
        self._last_steps = _LAST_STEPS // share
        self.steps = 0
        self.passes = 0
        # In the order in which they started: messages name the first.
        self.family: dict[trio.lowlevel.Task, None] = {}
        self.busy: dict[trio.lowlevel.Task, None] = {}
        self._on_endless = on_endless
        self._on_hopeless = on_hopeless
        self.on_step: Callable[[trio.lowlevel.Task], object] | None = None
        self._clock = clock
        self._is_counting = False
        self._at = -1
        self._disturb: Callable[[], object] | None = None
        self._idle_at_once = self._idle_in_all = 0
        self._now = -math.inf
        self._is_disturbing = False
        self._is_endless = False
        self._has_stepped = False
        self._thread_works = False

    def begin(self, at: int | None, disturb: Callable[[], object]) -> None:
        """Start counting. If ``at`` is not None, call ``disturb`` after that step."""
        self._is_counting = True
        self._at, self._disturb = -1 if at is None else self.steps + at, disturb
        if at == 0:
            self._do_disturb()

    def end(self) -> None:
        """Stop counting."""
        self._is_counting = False

    def note_progress(self) -> None:
        """Note that a byte has moved, or that a connection has begun or ended."""
        self._idle_at_once = self._idle_in_all = 0
        self.busy.clear()

    # -- what Trio calls

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if self._is_disturbing:
            return  # the test has started it, not the handler
        try:
            parent = trio.lowlevel.current_task()
        except RuntimeError:
            return
        if parent in self.family:
            self.family[task] = None
            self._idle_at_once = 0

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.family.pop(task, None)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._stop_clock_for_threads()
        self._has_stepped = True
        self._idle_at_once += 1
        self._idle_in_all += 1
        if (
            self._idle_at_once >= self._most_at_once - _LOOK
            or self._idle_in_all >= self._most_in_all - _LOOK
        ):
            self._look(task)
        if self.on_step is not None:
            self.on_step(task)
        if self._is_counting:
            self.steps += 1
            if self.steps == self._at:
                self._do_disturb()

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1
        now = trio.current_time()
        if now != self._now:
            self._now, self._idle_at_once = now, 0
        if self._has_stepped:
            self._has_stepped = False
            return
        run = trio.lowlevel.current_statistics()
        # The run's own deadline counts, too, until something is cancelled.
        waits = not run.tasks_runnable and run.seconds_to_next_deadline == math.inf
        if waits and not self._thread_works:
            self._on_hopeless()

    def _stop_clock_for_threads(self) -> None:
        # While a thread works for a task, only real time may pass.
        works = trio.testing.active_thread_count() > 0
        if works != self._thread_works:
            self._thread_works = works
            self._clock.autojump_threshold = math.inf if works else 0

    def _do_disturb(self) -> None:
        assert self._disturb is not None
        self._is_disturbing = True
        self._disturb()
        self._is_disturbing = False

    def _look(self, task: trio.lowlevel.Task) -> None:
        """Note which tasks run, until there were too many steps."""
        self.busy[task] = None
        if (
            self._idle_at_once >= self._most_at_once
            or self._idle_in_all >= self._most_in_all
        ):
            self._find_endless()
            self.busy.clear()

    def _find_endless(self) -> None:
        if self._is_endless:
            self._on_hopeless()
            return
        self._is_endless = True
        self._idle_at_once = self._most_at_once - self._last_steps
        self._idle_in_all = self._most_in_all - self._last_steps
        self._on_endless()

"""Watching a run: its steps, who belongs to the handler, and whether it goes on.

Nothing here judges; whoever watches is called when something is to be said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio
import trio.testing

#: Steps at one moment without a byte moving, after which something spins.
_MOST_AT_ONCE: Final = 20_000

#: The same, whatever the time: something polls for ever.
_MOST_IN_ALL: Final = 60_000

#: Steps that whoever was cancelled has until it is given up.
_LAST_STEPS: Final = 3_000


class Watch(trio.abc.Instrument):
    """Counts steps, and acts after one of them.

    Args:
      clock: jumps when everything waits, unless for a thread.
      on_spin: called once when it goes on and on, and nothing comes of it; it
        should cancel everything.
      on_undead: called when that did not help: it still goes on, or it waits and
        nothing will ever happen.

    Attributes:
      steps: of all tasks, since :meth:`begin`.
      family: the handlers' tasks that are alive, with those that they started.
    """

    def __init__(
        self,
        clock: trio.testing.MockClock,
        on_spin: Callable[[], object],
        on_undead: Callable[[], object],
    ) -> None:
        self.steps = 0
        self.family: set[trio.lowlevel.Task] = set()
        self._on_spin = on_spin
        self._on_undead = on_undead
        self._clock = clock
        self._counts = False
        self._at = -1
        self._act: Callable[[], object] | None = None
        self._idle_at_once = self._idle_in_all = 0
        self._now = -math.inf
        self._acts = False
        self._spins = False
        self._a_thread_works = False

    def begin(self, at: int | None, act: Callable[[], object]) -> None:
        """Count from now on, and act after step ``at``, if there is one."""
        self._counts = True
        self._at, self._act = -1 if at is None else at, act
        if self._at == 0:
            self._do_act()

    def end(self) -> None:
        """Count no more."""
        self._counts = False

    def moved(self) -> None:
        """A byte moved, or something ended: the run goes on."""
        self._idle_at_once = self._idle_in_all = 0

    # -- what Trio calls

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if self._acts:
            return  # what is done to a handler is not its doing
        try:
            parent = trio.lowlevel.current_task()
        except RuntimeError:
            return
        if parent in self.family:
            self.family.add(task)
            self._idle_at_once = 0

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.family.discard(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._heed_threads()
        self._idle_at_once += 1
        self._idle_in_all += 1
        if self._idle_at_once >= _MOST_AT_ONCE or self._idle_in_all >= _MOST_IN_ALL:
            self._spin()
        if self._counts:
            self.steps += 1
            if self.steps == self._at:
                self._do_act()

    def before_io_wait(self, timeout: float) -> None:
        now = trio.current_time()
        if now != self._now:
            self._now, self._idle_at_once = now, 0
        run = trio.lowlevel.current_statistics()
        # Until everything was cancelled there is a deadline: the end of the run.
        waits = not run.tasks_runnable and run.seconds_to_next_deadline == math.inf
        if waits and not self._a_thread_works:
            self._on_undead()

    def _heed_threads(self) -> None:
        # While a thread works for somebody, no time passes but what really does.
        works = trio.testing.active_thread_count() > 0
        if works != self._a_thread_works:
            self._a_thread_works = works
            self._clock.autojump_threshold = math.inf if works else 0

    def _do_act(self) -> None:
        assert self._act is not None
        self._acts = True
        self._act()
        self._acts = False

    def _spin(self) -> None:
        if self._spins:
            self._on_undead()
            return
        self._spins = True
        self._idle_at_once = _MOST_AT_ONCE - _LAST_STEPS
        self._idle_in_all = _MOST_IN_ALL - _LAST_STEPS
        self._on_spin()

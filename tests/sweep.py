"""Sweeps: run a scenario again and again, and stop it one step later each time.

A cancel can take effect only between two steps, so stopping after each step in turn
is exhaustive for that scenario and schedule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio
import trio.abc

from support import run

#: A scenario calls this with a function that stops it; counting begins then.
Begin: TypeAlias = Callable[[Callable[[], object]], None]


class _StopAt(trio.abc.Instrument):
    def __init__(self, step: int) -> None:
        self.left = step
        self.stop: Callable[[], object] | None = None

    def begin(self, stop: Callable[[], object]) -> None:
        self.stop = stop
        trio.lowlevel.add_instrument(self)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                assert self.stop is not None
                self.stop()


def sweep(scenario: Callable[[Begin], Awaitable[Any]], *, most: int = 2000) -> int:
    """Run ``scenario(begin)``, stopped after each step in turn; return the steps.

    The scenario calls ``begin(stop)`` where counting starts, and checks what
    must hold at its end.
    """
    for step in range(1, most):
        instrument = _StopAt(step)
        run(scenario, instrument.begin)
        if instrument.left:
            return step - 1
    raise AssertionError(f"more than {most} steps")

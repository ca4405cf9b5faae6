"""Invariants: what a user says that must hold always, or in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ._case import Setting
from ._state import RunState
from .runs import line_of_error, line_of_task

#: Seconds until what must hold in the end is looked at again, at first and at most.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 10.0


class Invariants:
    """The invariants of a run. Each is told once.

    Args:
      state: the state of the run.
      setting: has the functions.
    """

    def __init__(self, state: RunState, setting: Setting) -> None:
        self._state = state
        self._always = dict(setting.always)
        self._eventually = setting.eventually
        self._patience = setting.patience
        if self._always:
            state.watchdog.on_step = self._check_always

    def _check_always(self, task: trio.lowlevel.Task) -> None:
        for name, function in tuple(self._always.items()):
            holds, why, error = _ask(function)
            if not holds:
                del self._always[name]
                how = f"{name!r} does not hold{why}{self._after(task)}"
                self._state.violated("always", how, error)

    def _after(self, task: trio.lowlevel.Task) -> str:
        """Whose step it was, if a handler made it."""
        for number, handler in self._state.handlers.items():
            if handler.task is task:
                return f", after a step of handler {number}, now at {handler.line}"
        if task in self._state.watchdog.family:
            return f", after a step of {task.name}, now at {line_of_task(task)}"
        return ""

    async def wait_until_all_hold(self) -> None:
        """Wait until what must hold in the end does, and note what does not."""
        for name, function in self._eventually.items():
            pause, end = _FIRST_PAUSE, trio.current_time() + self._patience
            while not (found := _ask(function))[0] and trio.current_time() < end:
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            holds, why, error = found
            if not holds:
                within = f"{self._patience:g} seconds after all handlers have ended"
                how = f"{name!r} does not hold within {within}{why}"
                self._state.violated("eventually", how, error)


def _ask(function: Callable[[], object]) -> tuple[bool, str, BaseException | None]:
    """Whether it holds; and if not, why. One without an answer asserts it."""
    try:
        answer = function()
    except Exception as error:
        return False, f": it raised {error!r}, at {line_of_error(error)}", error
    if answer is None or isinstance(answer, bool):
        return answer is not False, "", None
    return False, f": it returned {answer!r}, and must return True or False", None

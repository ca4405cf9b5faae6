"""Liveness: finds handlers that do not end, and names the lines where they wait."""

from __future__ import annotations

import functools
from collections.abc import Callable

import trio

from ._case import Law
from ._state import RunState
from .runs import line_of_task


class Bounds:
    """What has to happen within some time of a round.

    Args:
      state: the state of the run.
      nursery: of the round; when it is cancelled, nothing more is due.
    """

    def __init__(self, state: RunState, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call ``call`` after this many seconds, unless the round ends before that."""

        async def wait() -> None:
            await trio.sleep(seconds)
            call()

        self._nursery.start_soon(wait)

    def require_ended(self, within: float, since: str, *, late: float = 0) -> None:
        """Require that all handlers end within ``late + within`` seconds from now."""
        when = f"{within:g} seconds {since}"
        self.after(late + within, functools.partial(_require_ended, self._state, when))


def _require_ended(state: RunState, when: str) -> None:
    """Require that all handlers have ended. If one still runs, stop the run.

    Args:
      when: the bound that has passed, such as "30 seconds after it was cancelled".
    """
    for handler in state.handlers.values():
        if not handler.is_over:
            how = f"it still runs {when}, at {handler.line}"
            state.violated(state.ends_law(), how)
            state.stop()
            break


def found_deadlock(state: RunState) -> None:
    """Record that all tasks wait and nothing will wake them. Stop the run."""
    law = state.ends_law()
    asked = any(p.waits_for_an_answer for p in state.players if not p.is_over)
    blocked = any(h.traffic.is_blocked for h in state.handlers.values())
    if law == "ends" and asked and not blocked:
        law = "answer"
    _stuck(state, law, "deadlock: all tasks wait, and nothing will wake them:")


def found_endless_loop(state: RunState) -> None:
    """Record that tasks keep running and no byte moves. Stop the run.

    If only code that plays a peer runs, that is no mistake of a handler, unless it is
    the handler that has ended too early.
    """
    how = "endless loop: it keeps running, and no byte moves:"
    busy, family = state.watchdog.busy, state.watchdog.family
    code = state.code_that_runs
    if code is None or any(task in family for task in busy):
        _stuck(state, state.ends_law(), how)
    elif not state.may_mismatch:
        _stuck(state, "answer", how)
    else:
        state.misuse = ValueError(
            f"{code}, never ends, although its connection is disturbed: at EOF, and"
            " after an error, the code that plays a peer has to return or to raise"
        )
        state.stop()


def _stuck(state: RunState, law: Law, how: str) -> None:
    tasks = [handler.task for handler in state.handlers.values()]
    where = [
        f"  handler {number} is at {handler.line}"
        for number, handler in state.handlers.items()
        if not handler.is_over
    ]
    where += [
        f"  task {task.name} is at {line_of_task(task)}"
        for task in state.watchdog.family
        if task not in tasks
    ]
    where += [f"  {player}" for player in state.players if not player.is_over]
    state.violated(law, "\n".join([how, *where]))
    state.stop()

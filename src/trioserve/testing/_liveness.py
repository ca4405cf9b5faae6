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

    If only a client or a server runs that is code of the test, the handler has made no
    mistake, unless it is asked for an answer by a client that polls.
    """
    watchdog = state.watchdog
    code = next((c for task in watchdog.busy if (c := state.code_of(task))), None)
    if code is None or any(task in watchdog.family for task in watchdog.busy):
        how = "endless loop: it keeps running, and no byte moves:"
        _stuck(state, state.ends_law(), how)
        return
    task, who = code
    if not state.may_mismatch and _asks(state, who):
        _stuck(state, "answer", "endless loop: it gets no answer, and no byte moves:")
        return
    state.misuse = ValueError(
        f"{who} never ends, at {line_of_task(task)}: at EOF, and after an error, a"
        " client or a server that is code has to return or to raise"
    )
    state.stop()


def _asks(state: RunState, who: str) -> bool:
    """Whether this is a client whose connection is not over, nor its handler."""
    is_open = any(p.name == who and p.tail == "open" for p in state.players)
    return is_open and any(not each.is_over for each in state.handlers.values())


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

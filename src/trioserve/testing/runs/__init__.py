"""Trio runs that plain code steps through, observes and abandons.

The map, from the bottom up; a module imports only from rows above its own here:

    _coroutine   _schedule   _watchdog
    _guest
    _lines
    _driver   _hang

RULE: nothing here knows a network, a server or a law.
"""

from ._coroutine import ObservedCoroutine
from ._driver import Driver, StuckError, task_lines
from ._guest import GuestRun
from ._hang import HangAlarm, HangError
from ._lines import (
    innermost_line,
    line_of_caller,
    line_of_error,
    line_of_task,
    with_own_traceback,
)
from ._schedule import WAYS, Preemption, preemptions_of, seed_of
from ._watchdog import Watchdog

__all__ = [
    "WAYS",
    "Driver",
    "GuestRun",
    "HangAlarm",
    "HangError",
    "ObservedCoroutine",
    "Preemption",
    "StuckError",
    "Watchdog",
    "innermost_line",
    "line_of_caller",
    "line_of_error",
    "line_of_task",
    "preemptions_of",
    "seed_of",
    "task_lines",
    "with_own_traceback",
]

"""Lines: where in the user's own code something happens, for messages.

A line is the user's own if it belongs neither to Trio nor to trioserve nor to the
standard library. Trio's guest mode calls tasks through the package ``outcome``.
"""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import outcome
import trio

import trioserve

from ._coroutine import ObservedCoroutine
from ._guest import GuestRun

E = TypeVar("E", bound=BaseException)

#: Folders whose lines are not the user's own.
_FOREIGN: Final = tuple(
    f"{Path(module.__file__ or '').parent}/"
    for module in (trio, trioserve, outcome, types)
)

#: Frames outside of these functions belong to the test, not to the handler.
_BOTTOM: Final = (ObservedCoroutine.__await__.__code__, GuestRun.tick.__code__)


def innermost_line(stack: Iterable[tuple[types.FrameType, int]]) -> str:
    """The innermost line of the user's own code, or else the outermost line.

    Args:
      stack: frames and their lines, the outermost first.
    """
    frames = list(stack)
    own = [(frame, line) for frame, line in frames if _is_users(frame)]
    return _text(*(own[-1:] or frames[:1])[0]) if frames else "its end"


def line_of_task(task: trio.lowlevel.Task) -> str:
    """The line at which a task waits."""
    return innermost_line(task.iter_await_frames())


def line_of_error(error: BaseException) -> str:
    """The line at which an error was raised."""
    return innermost_line(traceback.walk_tb(error.__traceback__))


def line_of_caller() -> str:
    """The innermost line of the user's own code in this call, or ""."""
    return line_of_frame(sys._getframe(1))


def line_of_frame(innermost: types.FrameType) -> str:
    """The innermost line of the user's own code at or around this frame, or ""."""
    frame: types.FrameType | None = innermost
    while frame is not None and frame.f_code not in _BOTTOM:
        if _is_users(frame):
            return _text(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def with_own_traceback(error: E) -> E:
    """The error; what its traceback has before the user's own code is left out."""
    traceback_ = error.__traceback__
    while traceback_ is not None and not _is_users(traceback_.tb_frame):
        traceback_ = traceback_.tb_next
    return error if traceback_ is None else error.with_traceback(traceback_)


def _is_users(frame: types.FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_FOREIGN)


def _text(frame: types.FrameType, line: int) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{line} in {code.co_qualname}"

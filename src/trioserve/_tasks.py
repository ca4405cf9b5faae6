"""Tasks: on which line each one stands. It knows Trio's tasks and nothing else."""

from __future__ import annotations

import contextlib
import types
from typing import Final

import trio

_TRIO: Final = trio.__file__.rpartition("/")[0] + "/"


def whereabouts(task: trio.lowlevel.Task | None) -> list[str]:
    """Where ``task``, or the tasks that it waits for, stand; the innermost lines.

    Trio's own lines are passed over if there are others.
    """
    lines: list[str] = []
    tasks = [task] if task is not None else []
    while tasks:
        task = tasks.pop()
        children = [t for nursery in task.child_nurseries for t in nursery.child_tasks]
        if children:
            tasks += children
            continue
        frames: list[tuple[types.FrameType, int]] = []
        with contextlib.suppress(Exception):  # what it awaits may be of any class
            frames.extend(task.iter_await_frames())
        own = [f for f in frames if not f[0].f_code.co_filename.startswith(_TRIO)]
        # A task that is Trio's alone is known by what it was started with.
        for frame, line in own[-1:] or frames[:1]:
            code = frame.f_code
            lines.append(f"{code.co_qualname} at {code.co_filename}:{line}")
    return lines

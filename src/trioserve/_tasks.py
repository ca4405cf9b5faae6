"""Tasks: the line of code on which a Trio task waits."""

from __future__ import annotations

import contextlib
import types
from typing import Final

import trio

_TRIO: Final = trio.__file__.rpartition("/")[0] + "/"


def whereabouts(task: trio.lowlevel.Task | None) -> list[str]:
    """The innermost line of ``task``, or those of the child tasks that it waits for.

    Lines inside Trio are skipped if there are others.
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
        with contextlib.suppress(Exception):  # it may await an object of any class
            frames.extend(task.iter_await_frames())
        own = [f for f in frames if not f[0].f_code.co_filename.startswith(_TRIO)]
        # If all lines are Trio's, the outermost one has the function it started with.
        for frame, line in own[-1:] or frames[:1]:
            code = frame.f_code
            lines.append(f"{code.co_qualname} at {code.co_filename}:{line}")
    return lines

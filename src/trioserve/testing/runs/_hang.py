"""Hangs: code that runs on and on without awaiting, so that no other task runs."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from ._lines import line_of_frame

#: CPU seconds without a pass of the scheduler, after which the code is interrupted.
_MOST_CPU: Final = 5.0

#: Seconds of real time without a pass, after which the line is told.
_MOST_REAL: Final = 10.0

#: In a hurry, the code is interrupted after this many CPU seconds.
_HURRY: Final = 1.0


class HangError(Exception):
    """Raised in the code that hangs. The message names its line."""


class HangAlarm:
    """Within the block, code of this thread that does not await is noticed.

    Code that computes is interrupted. Code that waits for the kernel can't be: only
    its line is told.

    Args:
      progress: a number that grows with each pass of the scheduler.
      on_hang: called in another thread with what the code does, in words.
      hurries: whether it is noticed sooner.
    """

    def __init__(
        self,
        progress: Callable[[], int],
        on_hang: Callable[[str], object],
        *,
        hurries: bool = False,
    ) -> None:
        self._progress = progress
        self._on_hang = on_hang
        self._most_cpu = _HURRY if hurries else _MOST_CPU
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        told, before, began, used = False, self._progress(), *self._now()
        while not self._over.wait(_HURRY / 4):
            now, (real, cpu) = self._progress(), self._now()
            if now != before:
                before, began, used = now, real, cpu
            elif cpu - used >= self._most_cpu:
                how = f"it computes for {cpu - used:.0f} seconds without awaiting"
                self._on_hang(how := f"{how}, at {self._line()}")
                _raise_in(self._thread, how)
                return
            elif real - began >= _MOST_REAL and not told:
                told = True
                how = f"it waits for {real - began:.0f} seconds outside of Trio"
                self._on_hang(f"{how}, at {self._line()}")

    def _now(self) -> tuple[float, float]:
        """Real seconds, and CPU seconds of the thread."""
        return time.monotonic(), time.clock_gettime(self._clock)

    def _line(self) -> str:
        return line_of_frame(sys._current_frames()[self._thread])


def _raise_in(thread: int, how: str) -> None:
    """Raise an error in another thread. Python takes a class, and makes the error."""
    raised = type("HangError", (HangError,), {"__str__": lambda self: how})
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(raised)
    )

"""Hangs: code that runs on and on without awaiting, so that no other task runs."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Final, Self

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
    """Within the block, its thread watches runs, one at a time.

    Args:
      hurries: whether code that does not await is noticed sooner.
    """

    def __init__(self, *, hurries: bool = False) -> None:
        self._most_cpu = _HURRY if hurries else _MOST_CPU
        self._watched: _Watched | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._watcher.join()

    @contextlib.contextmanager
    def watching(
        self, progress: Callable[[], int], on_hang: Callable[[str], object]
    ) -> Generator[None]:
        """Within the block, notice code of this thread that does not await.

        Code that computes is interrupted. Code that waits for the kernel can't be:
        only its line is told.

        Args:
          progress: a number that grows with each pass of the scheduler.
          on_hang: called in another thread with what the code does, in words.
        """
        self._watched = _Watched(progress, on_hang, self._most_cpu)
        try:
            yield
        finally:
            self._watched = None

    def _watch(self) -> None:
        while not self._over.wait(_HURRY / 4):
            if (watched := self._watched) is not None:
                with contextlib.suppress(OSError, KeyError):  # its thread has ended
                    watched.look()


class _Watched:
    """A run that is watched, in the thread that creates this object."""

    def __init__(
        self,
        progress: Callable[[], int],
        on_hang: Callable[[str], object],
        most_cpu: float,
    ) -> None:
        self._progress = progress
        self._on_hang = on_hang
        self._most_cpu = most_cpu
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._how = ""
        self._seen = -1
        self._began = self._used = 0.0
        self._told = False

    def look(self) -> None:
        """Look whether a pass of the scheduler was made since the last look."""
        now, real = self._progress(), time.monotonic()
        cpu = time.clock_gettime(self._clock)
        if now != self._seen:
            self._seen, self._began, self._used = now, real, cpu
        elif self._told:
            pass
        elif cpu - self._used >= self._most_cpu:
            self._tell(f"it computes for {self._most_cpu:g} seconds without awaiting")
            _raise_in(self._thread, self._how)
        elif real - self._began >= _MOST_REAL:
            self._tell(f"it waits for {_MOST_REAL:g} seconds outside of Trio")

    def _tell(self, what: str) -> None:
        line = line_of_frame(sys._current_frames()[self._thread])
        self._how = f"{what}, at {line}"
        self._told = True
        self._on_hang(self._how)


def _raise_in(thread: int, how: str) -> None:
    """Raise an error in another thread. Python takes a class, and makes the error."""

    def text(_: HangError) -> str:
        return how

    raised = type("HangError", (HangError,), {"__str__": text})
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(raised)
    )

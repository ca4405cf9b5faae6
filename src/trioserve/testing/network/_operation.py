"""An operation of a stream: one task at a time performs it, and may have to wait.

Trio's rules for streams are here: which calls are checkpoints, which error a second
task gets, and when a wait ends. It knows no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Operation:
    """An operation, such as receiving, that only one task may be in.

    Args:
      doing: words for the error of a second task.
      due: called before each wait; returns the latest time to try again.
      on_wait: called when a wait begins.
      on_cancelled: called when a task leaves because it was cancelled, with the
        reason.
    """

    def __init__(
        self,
        doing: str,
        due: Callable[[], float] = lambda: math.inf,
        on_wait: Callable[[], None] = lambda: None,
        on_cancelled: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._doing = doing
        self._due = due
        self._on_wait = on_wait
        self._on_cancelled = on_cancelled
        self._is_taken = False
        self._waits_until = -math.inf
        self._change = trio.Event()

    def __enter__(self) -> None:
        if self._is_taken:
            raise trio.BusyResourceError(f"another task is {self._doing}")
        self._is_taken = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_taken = False
        if isinstance(exc, trio.Cancelled):
            self._on_cancelled(exc.reason)

    async def until(self, attempt: Callable[[*Args], T | None], *args: *Args) -> T:
        """Call ``attempt(*args)`` until its result is not None; return the result.

        Its checkpoints are those of a Trio socket: it can be cancelled before the
        first attempt and while it waits.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waits = False
        try:
            while (result := attempt(*args)) is None:
                waits = True
                self._on_wait()
                await self._wait()
            return result
        finally:
            if not waits:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait(self) -> None:
        self._change = trio.Event()
        self._waits_until = self._due()
        try:
            if self._waits_until == math.inf:
                await self._change.wait()
            else:
                with trio.move_on_at(self._waits_until):
                    await self._change.wait()
        finally:
            self._waits_until = -math.inf

    def wake(self) -> None:
        """Let the waiting task try again, because something has changed."""
        self._change.set()

    def wake_before(self, when: float) -> None:
        """Wake the waiting task if it would wait beyond ``when``."""
        if when < self._waits_until:
            self.wake()

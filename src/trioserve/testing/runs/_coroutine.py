"""A coroutine that is awaited by hand, to see which cancellations reach it."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

import trio


class ObservedCoroutine:
    """Awaits a coroutine and records what is raised into it.

    Attributes:
      cancel_reasons: the reason of each ``Cancelled`` that was delivered, in order.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.cancel_reasons: list[str | None] = []
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        while True:
            try:
                trap = self._coroutine.send(value)
            except StopIteration as returned:
                return returned.value
            # Trio sends an outcome; a function further inside raises its error.
            value = yield trap
            error = getattr(value, "error", None)
            if isinstance(error, trio.Cancelled):
                self.cancel_reasons.append(error.reason)

    def stack(self) -> list[tuple[types.FrameType, int]]:
        """Its frames and their current lines, the outermost first."""
        frames = (
            getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            for awaited in self._chain()
        )
        return [(frame, frame.f_lineno) for frame in frames if frame is not None]

    def _chain(self) -> Iterator[Any]:
        """The coroutine, what it awaits, what that awaits, and so on."""
        awaited: Any = self._coroutine
        while awaited is not None:
            yield awaited
            awaited = getattr(awaited, "cr_await", None) or getattr(
                awaited, "gi_yieldfrom", None
            )

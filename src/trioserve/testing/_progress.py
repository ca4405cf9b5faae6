"""Progress: how far a long check is, on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

#: Seconds until it is shown, and between two updates.
_AFTER: Final = 2.0
_EVERY: Final = 0.5


class Progress:
    """Within the block, shows one line on stderr if that is a terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + _AFTER
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._width:
            self._write("")

    def show(self, runs: int, kind: str) -> None:
        """Show how many runs were made, and what the next one varies."""
        now = time.monotonic()
        if self._is_shown and now >= self._next:
            self._next = now + _EVERY
            self._write(f"trioserve.testing: {runs} runs, {kind}")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line:<{self._width}}" + ("" if line else "\r"))
        sys.stderr.flush()
        self._width = len(line)


_told = set[str]()


def tell_once(how: str, case: str) -> None:
    """Say on the terminal that a handler hangs: the test can't fail before it ends."""
    if how not in _told:
        _told.add(how)
        sys.stderr.write(f"trioserve.testing: a handler hangs: {how}\nin {case}\n")
        sys.stderr.flush()

"""The bottom of a terminal: a view that is repainted in place, below the lines.

Lines in, text with a few control sequences out. Nothing here knows what is
shown, or writes to the terminal itself.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence

_SGR = re.compile(r"(\x1b\[[\d;]*m)")
_RESET = "\x1b[0m"
#: The size to assume for a terminal that does not report one.
_USUAL_SIZE = (80, 24)


def open_screen(fd: int, write: Callable[[str], bool]) -> Screen | None:
    """A screen on ``fd``, if that is a terminal with a cursor that can be moved."""
    if not os.isatty(fd) or os.environ.get("TERM") == "dumb":
        return None

    def size() -> tuple[int, int] | None:
        if not _is_foreground(fd):
            return None
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:  # the terminal is gone
            return _USUAL_SIZE
        # A terminal that was never told its size reports 0.
        return columns or _USUAL_SIZE[0], rows or _USUAL_SIZE[1]

    return Screen(write, size)


class Screen:
    """A view at the bottom of a terminal, and lines that scroll above it.

    It does not hide the cursor, which stays in the line below the view, and does
    not use the alternate screen, so that the terminal is usable however the program
    ends. All methods may be called in any thread.

    Args:
      write: takes a text and writes it with a newline after it, at once or later
        but in order; returns whether it will. Must not block.
      size: returns the columns and rows of the terminal, 1 or more; or None while
        another job has the terminal, and lines are written without the view.
    """

    def __init__(
        self, write: Callable[[str], bool], size: Callable[[], tuple[int, int] | None]
    ) -> None:
        self._write = write
        self._size = size
        # Held while writing: _painted has to match the last text that was written.
        self._lock = threading.Lock()
        self._view: tuple[str, ...] = ()
        self._painted: tuple[str, ...] = ()

    def line(self, text: str) -> None:
        """Write a line above the view."""
        with self._lock:
            self._paint(text)

    def show(self, lines: Sequence[str]) -> None:
        """Replace the view."""
        with self._lock:
            self._view = tuple(lines)
            self._paint()

    def close(self) -> None:
        """Leave the view where it is; later lines are written below it."""
        with self._lock:
            self._view = self._painted = ()

    def _paint(self, *above: str) -> None:
        view: tuple[str, ...] = ()
        erase = ""
        if (size := self._size()) is None:
            # The other job has moved the cursor.
            self._painted = ()
        else:
            columns, rows = size
            view = _fitted(self._view, columns, rows)
            erase = _erase(_height(self._painted, columns))
        lines = above + view
        # Each text first erases what the last one painted: if one was dropped, the
        # next one repairs the view.
        if (lines or erase) and self._write(erase + "\n".join(lines)):
            self._painted = view if lines else ("",)


def _is_foreground(fd: int) -> bool:
    # Whether this job is in the foreground; if not, the shell writes there too.
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # it is not the controlling terminal
        return True


def _erase(height: int) -> str:
    # The first line is erased on its own: tmux takes erasing from the top left
    # corner to the end for clearing the screen, and saves the lines in its history.
    return f"\x1b[{height}F\x1b[K\x1b[E\x1b[J\x1b[F" if height else ""


# Both are cached: the same view is painted below every line that is logged.


@functools.lru_cache(maxsize=1)
def _fitted(view: tuple[str, ...], columns: int, rows: int) -> tuple[str, ...]:
    # The last row is for the cursor. The last column stays free, because some
    # terminals wrap a line that fills it.
    return tuple(_cut(line, columns - 1) for line in view[: rows - 1])


@functools.lru_cache(maxsize=1)
def _height(painted: tuple[str, ...], columns: int) -> int:
    # A terminal that was made narrower has wrapped the lines.
    return sum(max(1, -(-_width(line) // columns)) for line in painted)


def _cut(line: str, columns: int) -> str:
    """As much of ``line`` as fits; colours take no column, and are reset."""
    return "".join(_pieces(line, columns))


def _pieces(line: str, columns: int) -> Iterator[str]:
    coloured = False
    for piece in _SGR.split(line):
        if piece.startswith("\x1b"):
            coloured = piece != _RESET
            yield piece
            continue
        for character in piece:
            columns -= _cells(character)
            if columns >= 0:
                yield character
    if coloured:
        yield _RESET


def _width(line: str) -> int:
    return sum(_cells(character) for character in _SGR.sub("", line))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1

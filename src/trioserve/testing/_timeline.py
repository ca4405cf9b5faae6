"""Timelines: what happened in a run, in an order and words for people."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import trio

import trioserve

from ._driven import Driven

#: Lines of code from here are nobody's own.
_OURS: Final = tuple(
    str(Path(module.__file__ or "").parent) for module in (trio, trioserve)
)
_BOTTOM: Final = (Driven.__await__.__code__, trio.run.__code__)
_STANDARD: Final = str(Path(types.__file__).parent)

_MOST_ROWS: Final = 40
_MOST_BYTES: Final = 40


class Row(NamedTuple):
    """One thing that happened: when (in seconds and steps), to whom, where."""

    seconds: float
    step: int
    who: str
    what: str
    where: str

    def __str__(self) -> str:
        row = f"{self.seconds:9.3f} {self.step:5}  {self.who:10}  {self.what}"
        return f"{row:<70}  {self.where}".rstrip()


class Timeline:
    """Rows in the order in which they happened."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __str__(self) -> str:
        rows = list[str]()
        for _, same in itertools.groupby(self.rows, lambda row: row[2:]):
            first, *more = same
            rows.append(str(first))
            if more:
                rows.append(f"{'':15}  … {len(more)} times more")
        if len(rows) > _MOST_ROWS:
            head, tail = rows[: _MOST_ROWS // 4], rows[-_MOST_ROWS * 3 // 4 :]
            left_out = len(rows) - len(head) - len(tail)
            rows = [*head, f"{'':15}  … {left_out} rows more", *tail]
        return "\n".join(["  seconds  step  who         what", *rows])


def shown(data: bytes) -> str:
    """Bytes for a person, and how many there are."""
    count = f"{len(data)} byte{'s' if len(data) != 1 else ''}"
    if len(data) > _MOST_BYTES:
        return f"{count}: {data[:_MOST_BYTES]!r}…"
    return f"{count}: {data!r}"


def caller() -> str:
    """The line of the user's own code that we are called from, if there is one."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _BOTTOM:
        if _is_users(frame):
            return _place(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def standing(stack: Iterable[tuple[types.FrameType, int]]) -> str:
    """Where a stack (outermost frame first) stands: its innermost line that is
    the user's own, or else its first.
    """
    frames = list(stack)
    own = [(frame, line) for frame, line in frames if _is_users(frame)]
    return _place(*(own[-1:] or frames[:1])[0]) if frames else "its end"


def _is_users(frame: types.FrameType) -> bool:
    return not frame.f_code.co_filename.startswith((*_OURS, _STANDARD))


def _place(frame: types.FrameType, line: int) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{line} in {code.co_qualname}"

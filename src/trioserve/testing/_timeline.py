"""Timelines: what happened in a run, in order and in words."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

_MOST_ROWS: Final = 16
_MOST_BYTES: Final = 40


class Row(NamedTuple):
    """One thing that happened.

    Attributes:
      seconds, step: when, in virtual time and in scheduler steps.
      who: ``"peer 1"``, ``"handler 1"`` or ``"test"``.
      what: what it did, in words.
      where: the line of the handler that did it, or "".
    """

    seconds: float
    step: int
    who: str
    what: str
    where: str

    def __str__(self) -> str:
        row = f"{self.seconds:9.3f} {self.step:5}  {self.who:10}  {self.what}"
        return f"{row:<70}  {self.where}".rstrip()


class Timeline:
    """Rows in the order in which they happened. ``str()`` makes a table of them.

    The table shows repeated rows once, with their number. If it would be long, it
    shows the first and the last rows only.
    """

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


def shown(data: bytes, *, encrypted: bool = False) -> str:
    """The number of bytes, and the bytes; of many, only the first.

    Args:
      encrypted: whether the bytes say nothing; then they are left out.
    """
    plural = "s" if len(data) != 1 else ""
    if encrypted:
        return f"{len(data)} encrypted byte{plural}"
    count = f"{len(data)} byte{plural}"
    if len(data) > _MOST_BYTES:
        return f"{count}: {data[:_MOST_BYTES]!r}…"
    return f"{count}: {data!r}"

"""Timelines: what happened in a run, in order and in words."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

_FIRST_ROWS: Final = 4
_LAST_ROWS: Final = 12

#: The fewest of the last rows that a table shows, however short it is to be.
_FEWEST_LAST_ROWS: Final = 6

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


class Passed(NamedTuple):
    """What a run that passed did where this one differs from it.

    Attributes:
      at: the index of the first row that differs.
      row: the row of the run that passed there; None if it was over.
      how: how its case differs, such as ``"with seed=1"``.
    """

    at: int
    row: Row | None
    how: str

    def __str__(self) -> str:
        did = "it was over" if self.row is None else f"{self.row.who} {self.row.what}"
        where = self.row.where if self.row else ""
        line = f"{'':15}  … a run that passed, {self.how}: {did}"
        return f"{line:<70}  {where}".rstrip()


class Timeline:
    """Rows in the order in which they happened. ``str()`` makes a table of them.

    The table shows repeated rows once, with their number. If it would be long, it
    shows the first and the last rows only, and where it differs from a run that passed.

    Attributes:
      rows: what has happened.
      passed: where a run that passed differs, or None.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.passed: Passed | None = None

    def __str__(self) -> str:
        return self.table()

    def table(self, shorter: int = 0) -> str:
        """The table.

        Args:
          shorter: how many of the last rows to leave out, if it is long. Six of them
            are shown in any case.
        """
        lines, told = list[str](), None
        rows = enumerate(self.rows)
        for _, same in itertools.groupby(rows, lambda each: each[1][2:]):
            (at, first), *more = same
            lines.append(str(first))
            if more:
                lines.append(f"{'':15}  … {len(more)} times more")
            if self.passed is not None and at <= self.passed.at <= at + len(more):
                told = len(lines)
                lines.append(str(self.passed))
        if self.passed is not None and told is None:
            lines.append(str(self.passed))
        most = max(_FEWEST_LAST_ROWS, _LAST_ROWS - max(0, shorter))
        table = _without_the_middle(lines, told, most)
        return "\n".join(["  seconds  step  who         what", *table])


def _without_the_middle(lines: list[str], told: int | None, most: int) -> list[str]:
    """The first lines, at most these last ones, and those that end with ``told``."""
    last = len(lines) - most
    shown = {*range(_FIRST_ROWS), *range(last, len(lines))}
    if told is not None and not {told - 1, told} <= shown:
        shown -= {*range(last, last + 3)}
        shown |= {told - 1, told}
    table, begin = list[str](), 0
    for at in sorted(at for at in shown if at >= 0):
        if at - begin > 1:
            table.append(f"{'':15}  … {at - begin} rows more")
        else:
            table += lines[begin:at]
        table += lines[at : at + 1]
        begin = at + 1
    return table


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

"""Sums for many names in bounded memory.

Names and numbers in, the largest sums out. Nothing here knows what is added up.
"""

from __future__ import annotations

import heapq
from typing import Any


class BoundedSums:
    """Sums for each of many names, of which a bounded number is kept.

    At twice ``remembered`` names, the half with the smallest first sums is
    forgotten. If a forgotten name comes again, its sums start from 0, and are
    lower bounds.

    Attributes:
      exact: false once a name was forgotten.
    """

    def __init__(self, remembered: int = 10_000) -> None:
        self.exact = True
        self._remembered = remembered
        self._sums: dict[str, list[int]] = {}

    def add(self, name: str, *numbers: int) -> None:
        """Add to the sums of a name; every call has the same number of numbers."""
        sums = self._sums.get(name)
        if sums is not None:
            for index, number in enumerate(numbers):
                sums[index] += number
            return
        if len(self._sums) == 2 * self._remembered:
            self.exact = False
            self._sums = {most: sums for most, *sums in self.most(self._remembered)}
        self._sums[name] = list(numbers)

    def most(self, count: int) -> list[tuple[Any, ...]]:
        """The names with the largest first sums, each followed by its sums."""
        most = heapq.nsmallest(count, self._sums.items(), key=_by_first_sum)
        return [(name, *sums) for name, sums in most]


def _by_first_sum(item: tuple[str, list[int]]) -> tuple[int, str]:
    return -item[1][0], item[0]

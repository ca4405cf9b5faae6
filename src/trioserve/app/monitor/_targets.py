"""Targets: which of them answer, as far as the tries to connect to them tell.

Tries in, what has changed out. Nothing is dialed here, and nothing here says
it to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trioserve import Address, Attempt


class Change(NamedTuple):
    """An address that failed for the first time, or answers again."""

    address: str
    error: str | None


class Targets:
    """What is known of each address that was dialed."""

    def __init__(self) -> None:
        self._down: set[str] = set()

    def note(self, target: Address, attempt: Attempt) -> Iterator[Change]:
        """What changes by one more try to connect to ``target``."""
        if attempt.failed:
            yield from self._note(attempt.address, attempt.error)
        elif attempt.error is None:
            yield from self._note(attempt.address, None)
            # A name has a try of its own only if it can't be looked up.
            yield from self._note(str(target), None)

    def _note(self, address: str, error: str | None) -> Iterator[Change]:
        if (address in self._down) is not (error is not None):
            self._down ^= {address}
            yield Change(address, error)

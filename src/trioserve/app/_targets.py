"""Targets: which of them answer, as far as the connections' reports tell.

Reports in, what has changed out. Nothing is dialed here, and nothing here says
it to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trioserve import ConnectionReport


class Change(NamedTuple):
    """An address that failed for the first time, or answers again."""

    address: str
    error: str | None


class Targets:
    """What is known of each address that was dialed."""

    def __init__(self) -> None:
        self._down: set[str] = set()

    def add(self, report: ConnectionReport) -> Iterator[Change]:
        """What changes by one more report."""
        for attempt in report.attempts:
            if attempt.failed or attempt.error is None:
                yield from self._note(attempt.address, attempt.error)
        # A name has an attempt of its own only if it can't be looked up.
        if report.connect is not None and report.target in self._down:
            yield from self._note(report.target, None)

    def _note(self, address: str, error: str | None) -> Iterator[Change]:
        if (address in self._down) is not (error is not None):
            self._down ^= {address}
            yield Change(address, error)

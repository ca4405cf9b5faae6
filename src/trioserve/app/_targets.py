"""Targets: which of them answer, as far as the connections' reports tell.

Reports in, what has changed out. Nothing is dialed here, and nothing here says
it to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trioserve import ConnectionReport, Outcome

#: Of an address that lost a race, and of a dialing that was given up.
_NO_FAILURE = frozenset({"another address was faster"})
_GIVEN_UP = frozenset({Outcome.PEER_ERROR, Outcome.CUT})


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
        attempts = report.attempts
        if report.connect is None and report.outcome in _GIVEN_UP:
            attempts = attempts[:-1]  # nobody knows whether the last would have failed
        for attempt in attempts:
            if attempt.error in _NO_FAILURE:
                continue
            if (attempt.address in self._down) is not (attempt.error is not None):
                self._down ^= {attempt.address}
                yield Change(attempt.address, attempt.error)

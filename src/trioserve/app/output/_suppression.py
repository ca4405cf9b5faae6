"""Suppression: of many equal events, a few are logged and the others are counted.

Events in, a decision and counts out. Nothing here logs, or reads a clock: if the
caller takes the counts once a second, each kind has one such line a second.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from trioserve import ConnectionReport, Outcome

from ._log import Level, level_of

Choice = Literal["all", "active", "failed", "none"]

#: Outcomes of a connection that its client ended. Without a byte in either
#: direction, it was a health check or a scanner.
_ENDED_BY_CLIENT = (Outcome.OK, Outcome.PEER_ERROR)

#: How many events of one kind are logged before the others are counted.
FEW = 5

CHOICES: tuple[Choice, ...] = get_args(Choice)


def is_wanted(choice: Choice, report: ConnectionReport) -> bool:
    """Whether a connection is logged.

    Args:
      choice: ``"all"``; ``"active"``, all but those that the client ended without
        a byte in either direction; ``"failed"``, those of the active ones that did
        not end well; ``"none"``.
    """
    if choice == "all" or choice == "none":
        return choice == "all"
    if report.outcome in _ENDED_BY_CLIENT and not (
        report.bytes_received or report.bytes_sent
    ):
        return False
    return choice == "active" or report.outcome is not Outcome.OK


class Kind(NamedTuple):
    """What equal events have in common.

    Args:
      event, level: the name and level of each of them.
      words: a description for people.
      fields: the same for machines.
    """

    event: str
    level: Level
    words: str
    fields: tuple[tuple[str, object], ...]


def connection_kind(report: ConnectionReport) -> Kind:
    """Connections are equal if outcome, reason, target and the type of error are."""
    route = f" > {report.target}" if report.target else ""
    error = (report.error or "").partition(":")[0]
    return Kind(
        "connection",
        level_of(report),
        f"{report.outcome}/{report.reason}{route}" + (f" ({error})" if error else ""),
        (
            ("outcome", report.outcome),
            ("reason", report.reason),
            ("target", report.target),
            ("error", error or None),
        ),
    )


class Suppressor:
    """Lets the first few events of each kind pass, and counts the others."""

    def __init__(self) -> None:
        self._seen = collections.Counter[Kind]()

    def passes(self, kind: Kind) -> bool:
        """Count an event; return whether to log it."""
        self._seen[kind] += 1
        return self._seen[kind] <= FEW

    def take(self) -> Iterator[tuple[Kind, int]]:
        """For each kind, how many events were not logged; then count from 0 again."""
        seen, self._seen = self._seen, collections.Counter()
        for kind, count in seen.items():
            if count > FEW:
                yield kind, count - FEW

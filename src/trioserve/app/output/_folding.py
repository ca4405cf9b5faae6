"""Many events, few lines: equal ones are counted, not said again and again.

Events in, which of them are said out, and how many others there were. Nothing
here knows how an event is said, and nothing here looks at a clock: whoever asks
for the counts once a second has one line a second of each kind.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from trioserve import ConnectionReport, Outcome

from ._log import Level, level_of

Choice = Literal["all", "active", "failed", "none"]

#: Of a connection that its client ended: a port that was only looked at.
_CLIENTS_END = (Outcome.OK, Outcome.PEER_ERROR)

#: Of one kind, how many are said before the others are counted.
FEW = 5

CHOICES: tuple[Choice, ...] = get_args(Choice)


def is_wanted(choice: Choice, report: ConnectionReport) -> bool:
    """Whether a connection is logged.

    Args:
      choice: ``"all"``; ``"active"``, without those whose client came and left
        without a byte in either direction; ``"failed"``, of these the ones that
        did not end well; ``"none"``.
    """
    if choice == "all" or choice == "none":
        return choice == "all"
    if report.outcome in _CLIENTS_END and not (
        report.bytes_received or report.bytes_sent
    ):
        return False
    return choice == "active" or report.outcome is not Outcome.OK


class Kind(NamedTuple):
    """What equal events have in common.

    Args:
      event, level: of each of them.
      words: what they are, to people.
      fields: the same to machines.
    """

    event: str
    level: Level
    words: str
    fields: tuple[tuple[str, object], ...]


def connection_kind(report: ConnectionReport) -> Kind:
    """Of connections: the same end, the same target, the same type of error."""
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


class Folding:
    """Lets the first few of each kind pass, and counts the others."""

    def __init__(self) -> None:
        self._seen = collections.Counter[Kind]()

    def passes(self, kind: Kind) -> bool:
        """Whether one more of this kind is to be said."""
        self._seen[kind] += 1
        return self._seen[kind] <= FEW

    def take(self) -> Iterator[tuple[Kind, int]]:
        """How many more there were of each kind, and begin anew."""
        seen, self._seen = self._seen, collections.Counter()
        for kind, count in seen.items():
            if count > FEW:
                yield kind, count - FEW

"""The sum of many reports: how many ended how, how long it took, who and where.

Records in, sums out, and these as JSON for machines or tables for people.
Nothing here knows where the records come from.
"""

from __future__ import annotations

import collections
import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from trioserve.app._values import format_bytes, format_duration, printable
from trioserve.app.output._log import as_json

from ._records import Record, moment

SCHEMA: Final = "trioserve.reports/1"

_PHASES: Final = ("queued", "connect", "first_byte", "duration")
_PERCENTS: Final = (50, 90, 99)
_SUMS: Final = ("received", "sent", "discarded", "unacknowledged")
_SIDES: Final = {
    "client": ("bytes_received", "bytes_sent", "bytes_discarded", "unacknowledged"),
    "target": (
        "upstream_bytes_received",
        "upstream_bytes_sent",
        "upstream_bytes_discarded",
        "upstream_unacknowledged",
    ),
}
_MOST_SLOW: Final = 5
_MOST_NAMES: Final = 10


class Summary:
    """The sum of records, which are read one at a time.

    What is kept of them: 8 bytes for each phase that each has reached, and of
    peers and targets 20,000 each.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._connections = 0
        self._since: float | None = None
        self._until: float | None = None
        self._outcomes = collections.Counter[str]()
        self._reasons = collections.Counter[tuple[str, str]]()
        self._seconds = {phase: array("d") for phase in _PHASES}
        self._bytes = {side: [0] * len(_SUMS) for side in _SIDES}
        self._slowest: list[tuple[float, int, Record]] = []
        self._peers = Tally()
        self._targets = Tally()
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        self._connections += 1
        self._outcomes[record.outcome] += 1
        self._reasons[record.reason, record.outcome] += 1
        self._add_times(record)
        for side, fields in _SIDES.items():
            sums = self._bytes[side]
            for index, field in enumerate(fields):
                sums[index] += getattr(record, field) or 0
        if record.host is not None:
            moved = (record.bytes_received or 0) + (record.bytes_sent or 0)
            self._peers.add(record.host, 1, moved, int(not record.ended_well))
        for attempt in record.attempts:
            self._targets.add(attempt.address, 1, int(attempt.failed))

    def _add_times(self, record: Record) -> None:
        for phase, seconds in self._seconds.items():
            if (reached := getattr(record, phase)) is not None:
                seconds.append(reached)
        if (began := record.accepted_at) is not None:
            over = round(began + (record.duration or 0), 6)
            self._since = began if self._since is None else min(self._since, began)
            self._until = over if self._until is None else max(self._until, over)
        if record.duration is not None:
            entry = (record.duration, -self._connections, record)
            heapq.heappush(self._slowest, entry)
            if len(self._slowest) > _MOST_SLOW:
                heapq.heappop(self._slowest)

    def as_dict(self) -> dict[str, Any]:
        """The sums as values that JSON can write, in a stable order.

        What there is most of comes first. New keys may come; as long as the
        schema has this number, none goes or changes its meaning:

        - ``connections``; ``since`` and ``until``, the first accept and the last
          close, in seconds since the epoch, or null;
        - ``outcomes`` and ``reasons``: of each ``connections`` and ``share``, of 1;
        - ``seconds``: since accept, of each phase the :func:`percentiles`;
        - ``bytes``: of ``client`` and ``target``, as in a report;
        - ``slowest``, at most 5; ``peers`` and ``targets``, at most 10 each;
        - ``exact``: false if there were so many peers or targets that their
          numbers are only the least that they can be.
        """
        return {
            "schema": SCHEMA,
            "connections": self._connections,
            "since": self._since,
            "until": self._until,
            "outcomes": {
                outcome: self._part(count) for outcome, count in _most(self._outcomes)
            },
            "reasons": {
                reason: {"outcome": outcome, **self._part(count)}
                for (reason, outcome), count in _most(self._reasons)
            },
            "seconds": {
                phase: percentiles(values) for phase, values in self._seconds.items()
            },
            "bytes": {
                side: dict(zip(_SUMS, sums, strict=True))
                for side, sums in self._bytes.items()
            },
            "slowest": [
                {
                    name: getattr(record, name)
                    for name in ("id", "peer", "duration", "reason")
                }
                for _, _, record in sorted(self._slowest, reverse=True)
            ],
            "peers": [
                dict(zip(("host", "connections", "bytes", "not_ok"), row, strict=True))
                for row in self._peers.most(_MOST_NAMES)
            ],
            "targets": [
                dict(zip(("address", "attempts", "failed"), row, strict=True))
                for row in self._targets.most(_MOST_NAMES)
            ],
            "exact": self._peers.exact and self._targets.exact,
        }

    def _part(self, count: int) -> dict[str, Any]:
        return {"connections": count, "share": round(count / self._connections, 6)}


class Tally:
    """Sums for each of many names, of which it remembers a bounded number.

    At twice ``remembered`` names, the half with the smallest first sums is
    forgotten. A name that comes again begins anew, so that its sums are then
    the least that they can be.

    Attributes:
      exact: whether nothing was forgotten.
    """

    def __init__(self, remembered: int = 10_000) -> None:
        self.exact = True
        self._remembered = remembered
        self._sums: dict[str, list[int]] = {}

    def add(self, name: str, *numbers: int) -> None:
        """Add to the sums of a name; it is always the same number of numbers."""
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
        """The names with the largest first sums, each with its sums behind it."""
        most = heapq.nsmallest(count, self._sums.items(), key=_by_first_sum)
        return [(name, *sums) for name, sums in most]


def percentiles(values: Iterable[float]) -> dict[str, Any]:
    """How many values there are, and their p50, p90, p99 and max, or null.

    By nearest rank: the smallest value such that so many percent of all are not
    larger. So each is the value of a connection that there was.
    """
    ranked = sorted(values)
    count = len(ranked)
    found: dict[str, Any] = {"count": count}
    for percent in _PERCENTS:
        rank = -(-percent * count // 100)
        found[f"p{percent}"] = ranked[rank - 1] if ranked else None
    return found | {"max": ranked[-1] if ranked else None}


def summary_json(summary: Summary) -> str:
    """`Summary.as_dict` in one line."""
    return as_json(summary.as_dict())


def summary_text(summary: Summary) -> Iterator[str]:
    """Tables for people, line by line."""
    sums = summary.as_dict()
    yield _headline(sums)
    for heading, rows in _tables(sums):
        if rows:
            yield ""
            yield from _aligned(heading, rows)
    if not sums["exact"]:
        yield ""
        yield "So many peers or targets: their numbers are the least that they can be."


def _headline(sums: Mapping[str, Any]) -> str:
    text = f"connections: {sums['connections']}"
    if sums["since"] is not None:
        text += f", from {moment(sums['since'])} to {moment(sums['until'])}"
    return text


def _tables(sums: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    for kind in ("outcome", "reason"):
        yield (
            f"{kind} connections share",
            [
                [name, str(part["connections"]), f"{part['share']:.1%}"]
                for name, part in sums[f"{kind}s"].items()
            ],
        )
    yield (
        "since_accept connections p50 p90 p99 max",
        [
            [phase, str(count), *map(format_duration, seconds)]
            for phase, each in sums["seconds"].items()
            for count, *seconds in [each.values()]
            if count
        ],
    )
    yield (
        "side received sent discarded unacknowledged",
        [
            [side, *map(format_bytes, each.values())]
            for side, each in sums["bytes"].items()
            if any(each.values())
        ],
    )
    yield (
        "slowest duration reason id",
        [
            [
                each["peer"] or "?",
                format_duration(each["duration"]),
                each["reason"],
                str(each["id"]),
            ]
            for each in sums["slowest"]
        ],
    )
    yield (
        "peer connections bytes not_ok",
        [
            [
                each["host"],
                str(each["connections"]),
                format_bytes(each["bytes"]),
                str(each["not_ok"]),
            ]
            for each in sums["peers"]
        ],
    )
    yield (
        "target attempts failed",
        [
            [each["address"], str(each["attempts"]), str(each["failed"])]
            for each in sums["targets"]
        ],
    )


def _aligned(heading: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    # The first column to the left, the others to the right.
    headings = [word.replace("_", " ") for word in heading.split()]
    cells = [headings, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        yield "  ".join(
            [
                first.ljust(widths[0]),
                *(
                    cell.rjust(width)
                    for cell, width in zip(others, widths[1:], strict=True)
                ),
            ]
        )


def _most(counter: collections.Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _by_first_sum(item: tuple[str, list[int]]) -> tuple[int, str]:
    return -item[1][0], item[0]

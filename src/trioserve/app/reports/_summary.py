"""Sums over many reports: outcomes, times, bytes, peers and targets.

Records in, sums out. Nothing here knows where the records come from, or how the
sums are shown.
"""

from __future__ import annotations

import collections
import heapq
from array import array
from collections.abc import Iterable
from typing import Any, Final

from ._bounded_sums import BoundedSums
from ._records import Record

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
    """The sums over records, which are read one at a time.

    It keeps 8 bytes for each phase that a connection has reached, and at most
    20,000 peers and 20,000 targets.
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
        self._peers = BoundedSums()
        self._targets = BoundedSums()
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

        The most frequent comes first. A later version may add keys; while the
        schema has this number, no key is removed or changes its meaning:

        - ``connections``; ``since`` and ``until``, the first accept and the last
          close, in seconds since the epoch, or null;
        - ``outcomes`` and ``reasons``: for each, its ``connections``, and their
          ``share`` from 0 to 1;
        - ``seconds``: for each phase, the :func:`percentiles` of the time since
          accept;
        - ``bytes``: for ``client`` and ``target``, the sums of a report's fields;
        - ``slowest``, at most 5; ``peers`` and ``targets``, at most 10 each;
        - ``exact``: false if there were so many peers or targets that their
          numbers are only lower bounds.
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


def percentiles(values: Iterable[float]) -> dict[str, Any]:
    """The count of the values, and their p50, p90, p99 and max, or None.

    By nearest rank: p90 is the smallest value that 90 % of the values do not
    exceed. So each percentile is the value of a real connection.
    """
    ranked = sorted(values)
    count = len(ranked)
    found: dict[str, Any] = {"count": count}
    for percent in _PERCENTS:
        rank = -(-percent * count // 100)
        found[f"p{percent}"] = ranked[rank - 1] if ranked else None
    return found | {"max": ranked[-1] if ranked else None}


def _most(counter: collections.Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))

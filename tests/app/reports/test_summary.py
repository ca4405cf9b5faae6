from __future__ import annotations

import json
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.sample_reports import make_report
from trioserve import Attempt, Reason, Upstream
from trioserve.app.reports._records import Record, parse_record
from trioserve.app.reports._summary import Summary, percentiles
from trioserve.app.reports._tables import summary_json, summary_text


def _record(**changes: Any) -> Record:
    return parse_record(json.dumps(make_report(**changes).as_dict()).encode())


_REFUSED = Attempt(address="10.0.0.2:80", seconds=0.1, error="ConnectionRefusedError")
_SLOWER = Attempt(address="[::2]:80", seconds=0.1, error="another address was faster")
_FASTER = Attempt(address="10.0.0.3:80", seconds=0.1)

_SOME = [
    _record(
        id=1,
        duration=2.5,
        queued=0.5,
        connect=1.0,
        first_byte=1.5,
        attempts=[_REFUSED, _SLOWER, _FASTER],
        bytes_received=1000,
        bytes_sent=2000,
        bytes_discarded=300,
        upstream=Upstream(bytes_received=2040, bytes_sent=700, bytes_discarded=40),
    ),
    _record(
        id=2,
        accepted_at=1_759_999_999.0,
        duration=0.004,
        reason=Reason.CONNECT_REFUSED,
        attempts=[_REFUSED],
    ),
    _record(
        id=3,
        peer="[::1]:50000",
        reason=Reason.CUT,
        bytes_received=5,
        unacknowledged=9,
        upstream=Upstream(
            bytes_received=0, bytes_sent=0, bytes_discarded=0, unacknowledged=8
        ),
    ),
    _record(id=4, peer="[::1]:50001"),
]


def test_machines_get_the_sums() -> None:
    assert json.loads(summary_json(Summary(_SOME))) == {
        "schema": "trioserve.reports/1",
        "connections": 4,
        "since": 1_759_999_999.0,
        "until": 1_760_000_002.75,
        "outcomes": {
            "ok": {"connections": 2, "share": 0.5},
            "cut": {"connections": 1, "share": 0.25},
            "target_error": {"connections": 1, "share": 0.25},
        },
        "reasons": {
            "client_closed": {"outcome": "ok", "connections": 2, "share": 0.5},
            "connect_refused": {
                "outcome": "target_error",
                "connections": 1,
                "share": 0.25,
            },
            "cut": {"outcome": "cut", "connections": 1, "share": 0.25},
        },
        "seconds": {
            "queued": {"count": 1, "p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5},
            "connect": {"count": 1, "p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0},
            "first_byte": {"count": 1, "p50": 1.5, "p90": 1.5, "p99": 1.5, "max": 1.5},
            "duration": {"count": 4, "p50": 0.25, "p90": 2.5, "p99": 2.5, "max": 2.5},
        },
        "bytes": {
            "client": {
                "received": 1005,
                "sent": 2000,
                "discarded": 300,
                "unacknowledged": 9,
            },
            "target": {
                "received": 2040,
                "sent": 700,
                "discarded": 40,
                "unacknowledged": 8,
            },
        },
        "slowest": [
            {
                "id": 1,
                "peer": "10.0.0.9:4242",
                "duration": 2.5,
                "reason": "client_closed",
            },
            {"id": 3, "peer": "[::1]:50000", "duration": 0.25, "reason": "cut"},
            {
                "id": 4,
                "peer": "[::1]:50001",
                "duration": 0.25,
                "reason": "client_closed",
            },
            {
                "id": 2,
                "peer": "10.0.0.9:4242",
                "duration": 0.004,
                "reason": "connect_refused",
            },
        ],
        "peers": [
            {"host": "10.0.0.9", "connections": 2, "bytes": 3000, "not_ok": 1},
            {"host": "::1", "connections": 2, "bytes": 5, "not_ok": 1},
        ],
        "targets": [
            {"address": "10.0.0.2:80", "attempts": 2, "failed": 2},
            {"address": "10.0.0.3:80", "attempts": 1, "failed": 0},
            {"address": "[::2]:80", "attempts": 1, "failed": 0},
        ],
        "exact": True,
    }


def test_people_get_tables() -> None:
    assert (
        "\n".join(summary_text(Summary(_SOME)))
        == """\
connections: 4, from 2025-10-09 08:53:19 UTC to 2025-10-09 08:53:22 UTC

outcome       connections  share
ok                      2  50.0%
cut                     1  25.0%
target_error            1  25.0%

reason           connections  share
client_closed              2  50.0%
connect_refused            1  25.0%
cut                        1  25.0%

since accept  connections    p50    p90    p99    max
queued                  1  500ms  500ms  500ms  500ms
connect                 1     1s     1s     1s     1s
first_byte              1   1.5s   1.5s   1.5s   1.5s
duration                4  250ms   2.5s   2.5s   2.5s

side    received    sent  discarded  unacknowledged
client    1.0 kB  2.0 kB      300 B             9 B
target    2.0 kB   700 B       40 B             8 B

slowest        duration           reason  id
10.0.0.9:4242      2.5s    client_closed   1
[::1]:50000       250ms              cut   3
[::1]:50001       250ms    client_closed   4
10.0.0.9:4242     4.0ms  connect_refused   2

peer      connections   bytes  not ok
10.0.0.9            2  3.0 kB       1
::1                 2     5 B       1

target       attempts  failed
10.0.0.2:80         2       2
10.0.0.3:80         1       0
[::2]:80            1       0"""
    )


def test_an_empty_summary_has_no_tables() -> None:
    assert list(summary_text(Summary([]))) == ["connections: 0"]
    sums = Summary([]).as_dict()
    assert sums["since"] is sums["until"] is None
    assert sums["seconds"]["duration"] == {
        "count": 0,
        "p50": None,
        "p90": None,
        "p99": None,
        "max": None,
    }


def test_every_summary_has_the_same_keys() -> None:
    assert Summary([]).as_dict().keys() == Summary(_SOME).as_dict().keys()


def test_fields_that_an_older_version_did_not_write_are_left_out() -> None:
    bare = parse_record(b'{"id": 3, "reason": "idle"}')
    nameless = parse_record(b'{"id": 4, "reason": "idle", "duration": 1}')
    assert list(summary_text(Summary([bare, nameless])))[-2:] == [
        "slowest  duration  reason  id",
        "?              1s    idle   4",
    ]


def test_control_characters_are_escaped() -> None:
    evil = "\x1b]0;x\x07\u202e\n"
    record = _record(peer=evil, attempts=[Attempt(address=evil, seconds=0)])
    record = record._replace(reason=evil, outcome=evil)
    summary = Summary([record])
    assert all(line.isprintable() for line in summary_text(summary))
    assert summary_json(summary).isprintable()


def test_the_slowest_are_those_that_took_longest() -> None:
    records = [_record(duration=number * 7 % 10) for number in range(10)]
    slowest = Summary(records).as_dict()["slowest"]
    assert [each["duration"] for each in slowest] == [9, 8, 7, 6, 5]


@given(
    st.lists(st.floats(min_value=0, max_value=1e6) | st.sampled_from([1.0, 2.0])),
    st.sampled_from([50, 90, 99]),
)
def test_a_percentile_is_by_nearest_rank(values: list[float], percent: int) -> None:
    """The smallest value that this many percent of the values do not exceed."""
    found = percentiles(values)
    assert found["count"] == len(values)
    assert found["max"] == max(values, default=None)
    enough = [
        value
        for value in values
        if sum(other <= value for other in values) * 100 >= percent * len(values)
    ]
    assert found[f"p{percent}"] == min(enough, default=None)


def test_a_percentile_of_100_values_is_the_one_of_that_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentiles(values) == {
        "count": 100,
        "p50": 50.0,
        "p90": 90.0,
        "p99": 99.0,
        "max": 100.0,
    }


def test_records_are_not_kept() -> None:
    """20,000 of them are more than 5 MB, their times are 160 kB."""
    record = _record(bytes_received=5)
    tracemalloc.start()
    try:
        Summary(record._replace(peer=f"host:{port}") for port in range(20_000))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


def test_the_summary_tells_if_peers_were_forgotten() -> None:
    record = _record()
    peers = (record._replace(peer=f"{number}:1") for number in range(20_001))
    assert list(summary_text(Summary(peers)))[-1] == (
        "Too many peers or targets to count all: their numbers are lower bounds."
    )

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from typing import Any

import pytest

from trioserve import Reason, Statistics
from trioserve.app.monitor._sampler import Snapshot
from trioserve.app.output._live import (
    view_fields,
    view_line,
    view_lines,
)


def _statistics(**changes: Any) -> Statistics:
    counters: dict[str, Any] = dict.fromkeys(
        (field.name for field in dataclasses.fields(Statistics)), 0
    )
    counters.update({"limit": 4, "accept_errors": {}})
    counters.update(changes)
    return Statistics(**counters)


def _snapshot(**changes: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "elapsed": 90.2,
        "now": _statistics(
            open=3,
            tokens_used=3,
            accepted=1234,
            closed=1231,
            refused=5,
            bytes_received=3_000_000,
            bytes_sent=12,
        ),
        "before": _statistics(accepted=1200, closed=1229, bytes_received=1_000_000),
        "seconds": 2.0,
        "waiting": 0,
        "reports_lost": 0,
        "drain_left": None,
    }
    return Snapshot(**(fields | changes))


REASONS = Counter([Reason.CUT, Reason.LIMIT, *2 * [Reason.CLIENT_CLOSED]])
NONE = Counter[Reason]()


def test_a_terminal_gets_all_lines() -> None:
    assert list(view_lines(_snapshot(), REASONS)) == [
        "  up      1m30s",
        "  open    [###########....] 3 open, 3 of 4 tokens",
        "  rate         17/s accepted       1/s closed     1.0 MB/s in       6 B/s out",
        "  total       1,234 accepted         5 refused      3.0 MB in        12 B out",
        "  reasons client_closed 2  cut 1  limit 1",
    ]


def test_numbers_stay_in_their_columns() -> None:
    now = _statistics(
        open=10_000,
        tokens_used=10_000,
        limit=10_000,
        accepted=9_999_999,
        refused=9_999_999,
        bytes_received=999_900_000_000,
        bytes_sent=999_900_000_000,
    )
    before = dataclasses.replace(now, accepted=0, bytes_received=0)
    snapshot = _snapshot(now=now, before=before, seconds=1.0, waiting=4096)
    busy, idle = (list(view_lines(m, NONE)) for m in (snapshot, _snapshot()))
    for line in busy:
        assert len(line) < 80
    for row in (2, 3):
        ends = [
            [m.end() for m in re.finditer("ed|in|out", r[row])] for r in (busy, idle)
        ]
        assert ends[0] == ends[1]


def test_errors_and_losses_are_shown() -> None:
    now = _statistics(accept_errors={"EMFILE": 1000}, limit=0)
    snapshot = _snapshot(now=now, before=now, waiting=37, reports_lost=3)
    lines = list(view_lines(snapshot, NONE))
    assert lines[1] == "  open    [###############] 0 open, 0 of 0 tokens, 37 waiting"
    assert lines[4] == "  errors  3 reports lost, EMFILE 1,000 times"
    assert lines[5] == "  reasons none yet"
    line = view_line(snapshot)
    assert ": 0 open of 0, 37 waiting, " in line
    assert line.endswith(", 0 refused, 3 reports lost, EMFILE 1,000 times")


@pytest.mark.parametrize(
    ("left", "open", "said"),
    [
        (None, 1, ""),
        (21.4, 1, ", draining, open connections are cut in 22s at most"),
        (math.inf, 1, ", draining"),
        (21.4, 0, ", draining"),
    ],
)
def test_a_drain_shows_how_long_it_may_take(
    left: float | None, open: int, said: str
) -> None:
    snapshot = _snapshot(now=_statistics(open=open), drain_left=left)
    first, *_ = view_lines(snapshot, NONE)
    assert first == f"  up      1m30s{said}"


def test_reasons_have_the_colours_of_their_outcomes() -> None:
    *_, ends = view_lines(_snapshot(), REASONS, colour=True)
    codes = dict(re.findall(r"\x1b\[(\d+)m(\w+)\x1b\[0m", ends))
    assert codes == {"32": "client_closed", "31": "cut", "33": "limit"}


def test_a_log_gets_one_line() -> None:
    assert view_line(_snapshot(drain_left=3.0)) == (
        "up 1m30s, draining: 3 open of 4, 17/s accepted, 1.0 MB/s in, 6 B/s out,"
        " 1234 accepted, 5 refused"
    )


def test_machines_get_fields() -> None:
    fields = view_fields(_snapshot(seconds=0.0), REASONS)
    assert fields["reasons"] == {"client_closed": 2, "cut": 1, "limit": 1}
    assert fields["accepted_per_second"] == 0
    assert (fields["open"], fields["limit"], fields["elapsed"]) == (3, 4, 90.2)
    assert (fields["draining"], fields["drain_left"]) == (False, None)


@pytest.mark.parametrize(("left", "written"), [(3.00004, 3.0), (math.inf, None)])
def test_fields_are_values_that_json_has(left: float, written: float | None) -> None:
    fields = view_fields(_snapshot(drain_left=left, waiting=None), REASONS)
    assert (fields["draining"], fields["drain_left"]) == (True, written)
    assert fields["waiting"] is None
    json.dumps(fields, allow_nan=False)

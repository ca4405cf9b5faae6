from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from typing import Any

import pytest
import trio
import trio.testing

from app.sample_reports import make_report
from support import receive_exactly, serving
from trioserve import Limits, Reason, Statistics, Timeouts, echo
from trioserve.app.output import _live
from trioserve.app.output._live import (
    Moment,
    Tally,
    Watch,
    view_fields,
    view_line,
    view_lines,
)


def _statistics(**changes: Any) -> Statistics:
    counters: dict[str, Any] = dict.fromkeys(
        (field.name for field in dataclasses.fields(Statistics)), 0
    )
    counters.update({"slots": 4, "accept_errors": {}})
    counters.update(changes)
    return Statistics(**counters)


def _moment(**changes: Any) -> Moment:
    fields: dict[str, Any] = {
        "elapsed": 90.2,
        "now": _statistics(
            open=3,
            slots_used=3,
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
    return Moment(**(fields | changes))


def _tally() -> Tally:
    tally = Tally()
    for reason in (Reason.CUT, Reason.LIMIT, *2 * [Reason.CLIENT_CLOSED]):
        tally.add(make_report(reason=reason))
    return tally


def test_a_terminal_sees_all_of_it() -> None:
    assert list(view_lines(_moment(), _tally())) == [
        "  up      1m30s",
        "  open    [############....] 3 open, 3 of 4 slots",
        "  rate         17/s accepted       1/s closed     1.0 MB/s in       6 B/s out",
        "  total       1,234 accepted         5 refused      3.0 MB in        12 B out",
        "  ends    client_closed 2  cut 1  limit 1",
    ]


def test_numbers_end_where_they_did_before() -> None:
    now = _statistics(
        open=10_000,
        slots_used=10_000,
        slots=10_000,
        accepted=9_999_999,
        refused=9_999_999,
        bytes_received=999_900_000_000,
        bytes_sent=999_900_000_000,
    )
    before = dataclasses.replace(now, accepted=0, bytes_received=0)
    moment = _moment(now=now, before=before, seconds=1.0, waiting=4096)
    busy, idle = (list(view_lines(m, Tally())) for m in (moment, _moment()))
    for line in busy:
        assert len(line) < 80
    for row in (2, 3):
        ends = [
            [m.end() for m in re.finditer("ed|in|out", r[row])] for r in (busy, idle)
        ]
        assert ends[0] == ends[1]


def test_it_says_what_nobody_hopes_to_see() -> None:
    now = _statistics(accept_errors={"EMFILE": 1000}, slots=0)
    moment = _moment(now=now, before=now, waiting=37, reports_lost=3)
    lines = list(view_lines(moment, Tally()))
    assert lines[1] == "  open    [################] 0 open, 0 of 0 slots, 37 waiting"
    assert lines[4] == "  but     3 reports lost, EMFILE 1,000 times"
    assert lines[5] == "  ends    none yet"
    line = view_line(moment)
    assert ": 0 open of 0, 37 waiting, " in line
    assert line.endswith(", 0 refused, 3 reports lost, EMFILE 1,000 times")


@pytest.mark.parametrize(
    ("left", "open", "said"),
    [
        (None, 1, ""),
        (21.4, 1, ", draining, what is open is cut in 22s at most"),
        (math.inf, 1, ", draining"),
        (21.4, 0, ", draining"),
    ],
)
def test_it_says_how_long_a_drain_may_take(
    left: float | None, open: int, said: str
) -> None:
    moment = _moment(now=_statistics(open=open), drain_left=left)
    first, *_ = view_lines(moment, Tally())
    assert first == f"  up      1m30s{said}"


def test_colours_say_how_they_ended() -> None:
    *_, ends = view_lines(_moment(), _tally(), colour=True)
    codes = dict(re.findall(r"\x1b\[(\d+)m(\w+)\x1b\[0m", ends))
    assert codes == {"32": "client_closed", "31": "cut", "33": "limit"}


def test_a_pipe_gets_a_line() -> None:
    assert view_line(_moment(drain_left=3.0)) == (
        "up 1m30s, draining: 3 open of 4, 17/s accepted, 1.0 MB/s in, 6 B/s out,"
        " 1234 accepted, 5 refused"
    )


def test_machines_get_fields() -> None:
    fields = view_fields(_moment(seconds=0.0), _tally())
    assert fields["ends"] == {"client_closed": 2, "cut": 1, "limit": 1}
    assert fields["accepted_per_second"] == 0
    assert (fields["open"], fields["slots"], fields["elapsed"]) == (3, 4, 90.2)
    assert (fields["draining"], fields["drain_left"]) == (False, None)


@pytest.mark.parametrize(("left", "written"), [(3.00004, 3.0), (math.inf, None)])
def test_machines_get_what_json_has(left: float, written: float | None) -> None:
    fields = view_fields(_moment(drain_left=left, waiting=None), _tally())
    assert (fields["draining"], fields["drain_left"]) == (True, written)
    assert fields["waiting"] is None
    json.dumps(fields, allow_nan=False)


async def test_it_looks_again_and_again(autojump_clock: trio.testing.MockClock) -> None:
    moments: list[Moment] = []
    async with serving(echo, limits=Limits(max_connections=7)) as running:
        async with trio.open_nursery() as nursery:
            watch = Watch(running.server)
            nursery.start_soon(watch.run, moments.append)
            await trio.sleep(1.2)
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await trio.sleep(1.5)
            nursery.cancel_scope.cancel()
        client.socket.close()
    assert [moment.elapsed for moment in moments] == [0, 0.5, 1, 1.5, 2, 2.5]
    # What is a second ago or more is compared with.
    assert [moment.seconds for moment in moments] == [0, 0.5, 1, 1, 1, 1]
    rates = [moment.rate("accepted") for moment in moments]
    assert rates == [0, 0, 0, 1, 1, 0]
    assert moments[3].rate("bytes_received") == 5
    assert moments[-1].now.open == 1
    assert moments[-1].waiting == 0


async def test_a_look_behind_another_has_the_same_rates(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(echo) as running:
        watch = Watch(running.server)
        await trio.sleep(1)
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        assert [watch.look().rate("bytes_sent") for _ in range(3)] == [5, 5, 5]
        client.socket.close()


async def test_a_drain_counts_down(autojump_clock: trio.testing.MockClock) -> None:
    def left() -> float | None:
        return watch.look().drain_left

    async with serving(echo, timeouts=Timeouts(drain=25)) as running:
        watch = Watch(running.server)
        assert left() is None
        running.server.start_draining()
        await running.server.draining.wait()
        assert left() == 25
        await trio.sleep(10)
        assert left() == 15
        await trio.sleep(30)
        assert left() == 0


async def test_it_looks_less_often_when_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    ticks = iter(range(1000))

    def thread_time() -> float:
        return next(ticks) * 0.02

    moments = collections.deque[Moment](maxlen=100)
    async with serving(echo) as running:
        monkeypatch.setattr(_live, "thread_time", thread_time)
        with trio.move_on_after(9):
            await Watch(running.server).run(moments.append)
    assert [round(moment.elapsed, 6) for moment in moments] == [0, 2, 4, 6, 8]

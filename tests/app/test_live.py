from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import pytest
import trio
import trio.testing

from app.reports import make_report
from support import receive_exactly, serving
from trioserve import Limits, Reason, Statistics, echo
from trioserve.app import _live
from trioserve.app._live import (
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
        "draining": False,
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
        "  open    3 (3 of 4 slots)  [##################......]",
        "  rate    17/s accepted  1/s closed  1.0 MB/s in  6 B/s out",
        "  total   1,234 accepted  5 refused  3.0 MB in  12 B out",
        "  ends    client_closed 2  cut 1  limit 1",
    ]


def test_it_says_what_nobody_hopes_to_see() -> None:
    now = _statistics(lost=3, accept_errors={"EMFILE": 1000}, slots=0)
    moment = _moment(now=now, before=now, draining=True)
    lines = list(view_lines(moment, Tally()))
    assert lines[0] == "  up      1m30s, draining"
    assert lines[1].endswith("  [########################]")
    assert lines[3].endswith("  3 reports lost  EMFILE 1,000")
    assert lines[4] == "  ends    none yet"


def test_colours_say_how_they_ended() -> None:
    *_, ends = view_lines(_moment(), _tally(), colour=True)
    codes = dict(re.findall(r"\x1b\[(\d+)m(\w+)\x1b\[0m", ends))
    assert codes == {"32": "client_closed", "31": "cut", "33": "limit"}


def test_a_pipe_gets_a_line() -> None:
    assert view_line(_moment(draining=True)) == (
        "up 1m30s, draining: 3 open of 4, 17/s accepted, 1.0 MB/s in, 6 B/s out,"
        " 1234 accepted, 5 refused"
    )


def test_machines_get_fields() -> None:
    fields = view_fields(_moment(seconds=0.0), _tally())
    assert fields["ends"] == {"client_closed": 2, "cut": 1, "limit": 1}
    assert fields["accepted_per_second"] == 0
    assert (fields["open"], fields["slots"], fields["elapsed"]) == (3, 4, 90.2)


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
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        moments.append(watch.look())
        client.socket.close()
    assert [moment.elapsed for moment in moments] == [0, 0.5, 1, 1.5, 2, 2.2]
    rates = [moment.rate("accepted") for moment in moments]
    assert rates == [0, 0, 0, 2, 0, 0]
    assert moments[3].rate("bytes_received") == 10
    assert moments[-1].now.open == 1
    assert not moments[-1].draining


async def test_it_looks_less_often_when_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    ticks = iter(range(1000))

    def perf_counter() -> float:
        return next(ticks) * 0.02

    moments = collections.deque[Moment](maxlen=100)
    async with serving(echo) as running:
        monkeypatch.setattr(_live, "perf_counter", perf_counter)
        with trio.move_on_after(9):
            await Watch(running.server).run(moments.append)
    assert [round(moment.elapsed, 6) for moment in moments] == [0, 2, 4, 6, 8]

"""Collectors that keep up with reports, and the log if one does not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from app.sample_reports import make_report
from support import Running, receive_all, serving
from trioserve import ConnectionReport, Limits, Reason, echo, log_reports
from trioserve._collector import _BURST, Collector, Reports
from trioserve.app.output._log import Log
from trioserve.app.output._output import Output
from trioserve.app.output._writer import LineWriter

#: More reports than the default channel holds.
_MANY = 40_000


@pytest.fixture
def output() -> Iterator[Output]:
    """The command's collector, with a log that drops everything."""
    writer = LineWriter(-1)
    yield Output(Log(lambda line: None, "json"), writer)
    writer.close(10)


@pytest.fixture(params=["log_reports", "command"])
def collector(request: pytest.FixtureRequest) -> Collector:
    """Each collector of trioserve."""
    if request.param == "log_reports":
        return log_reports
    output: Output = request.getfixturevalue("output")
    return output.collect


async def test_our_collectors_keep_up_with_a_hundred_per_pass(
    collector: Collector,
) -> None:
    """Law 3: if a hundred connections end in each pass, no report is lost."""
    reports = Reports(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reports.collect, collector)
        for number in range(_MANY):
            reports.put(make_report(id=number))
            if number % 100 == 99:
                await trio.lowlevel.checkpoint()
        reports.end(60)
        await reports.over.wait()
    assert (reports.collected, reports.lost) == (_MANY, 0)


@pytest.fixture
def reports_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "trioserve.reports")
    return caplog


async def _log(*batches: list[ConnectionReport], seconds: float = 0.0) -> None:
    # Reports for `log_reports`, with this many seconds between two batches.
    send, receive = trio.open_memory_channel[ConnectionReport](10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_reports, receive)
        for batch in batches:
            for report in batch:
                send.send_nowait(report)
            await trio.sleep(seconds)
        send.close()


async def test_equal_reports_are_folded(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    """Law 15: a few are logged, and the others counted."""
    cut = [make_report(id=n, reason=Reason.CUT) for n in range(9000)]
    refused = [
        make_report(
            target="10.0.0.1:80",
            reason=Reason.CONNECT_REFUSED,
            error=f"ConnectionRefusedError: {n}",
        )
        for n in range(_BURST + 1)
    ]
    await _log(cut + refused)
    texts = [record.getMessage() for record in reports_log.records]
    assert len(texts) == 2 * _BURST + 2
    assert texts[-2:] == [
        f"{9000 - _BURST} more within 1 s: it was still open when the drain ended",
        "1 more within 1 s: the target refused (10.0.0.1:80): ConnectionRefusedError",
    ]
    assert {record.levelno for record in reports_log.records} == {logging.WARNING}


async def test_reports_of_success_are_not_folded(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    await _log([make_report()] * 500)
    assert len(reports_log.records) == 500


async def test_reports_that_differ_are_not_folded(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    await _log(
        [
            make_report(reason=reason, target=target, error=error)
            for reason in (Reason.CONNECT_FAILED, Reason.SERVER_RESET)
            for target in ("10.0.0.1:80", "10.0.0.2:80")
            for error in ("OSError: 1", "ValueError: 2")
            for _ in range(_BURST)
        ]
    )
    assert len(reports_log.records) == 8 * _BURST


async def test_folded_reports_are_summed_up_after_a_second(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    """Also if no other connection ends, and before the next ones are logged."""
    batch = [make_report(reason=Reason.IDLE)] * (_BURST + 5)
    await _log(batch, [], [], seconds=0.6)
    counts = Counter("more" in r.getMessage() for r in reports_log.records)
    assert counts == {False: _BURST, True: 1}
    reports_log.clear()
    await _log(batch, batch, batch, seconds=0.6)
    folded = [n for n, r in enumerate(reports_log.records) if "more" in r.getMessage()]
    assert folded == [_BURST, 2 * _BURST + 1]
    assert reports_log.records[_BURST].getMessage().startswith(f"{_BURST + 10} more")


async def test_a_second_with_few_reports_has_no_sum(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    await _log(*[[make_report(reason=Reason.IDLE)]] * (3 * _BURST), seconds=1.0)
    assert len(reports_log.records) == 3 * _BURST


async def test_folded_reports_are_summed_up_on_cancellation(
    autojump_clock: object, reports_log: pytest.LogCaptureFixture
) -> None:
    send, receive = trio.open_memory_channel[ConnectionReport](100)
    for _ in range(_BURST + 7):
        send.send_nowait(make_report(reason=Reason.CUT))
    with trio.move_on_after(0.1):
        await log_reports(receive)
    assert reports_log.records[-1].getMessage().startswith("7 more")


async def test_reports_below_the_log_level_are_not_counted(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    await _log([make_report(reason=Reason.CLIENT_RESET)] * 100)
    assert caplog.records == []


# -- a collector of somebody else's


async def _let_go(running: Running, count: int) -> None:
    for _ in range(count):
        client = await running.connect()
        await client.send_eof()
        assert await receive_all(client) == b""
        await trio.testing.wait_all_tasks_blocked()


async def test_a_slow_collector_is_logged_once_a_second(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 15: at once, with the count so far, and at the end with the total."""
    release = trio.Event()

    async def collector(
        reports: trio.MemoryReceiveChannel[ConnectionReport],
    ) -> None:
        await release.wait()
        async for _ in reports:
            pass

    slow = "the collector is too slow; reports lost so far: "
    async with serving(
        echo, collector=collector, report_buffer=1, limits=Limits(max_connections=10)
    ) as running:
        await _let_go(running, 1)
        assert caplog.messages == []
        await _let_go(running, 4)
        assert caplog.messages == [f"{slow}1"]
        await trio.sleep(1)
        await _let_go(running, 3)
        assert caplog.messages == [f"{slow}1", f"{slow}5"]
        release.set()
    assert caplog.messages[2:] == ["reports lost in all: 7"]
    assert running.server.statistics().lost == 7


async def test_reports_lost_by_a_dead_collector_are_logged_at_the_end(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def collector(_: object) -> None:
        raise ValueError("no room")

    async with serving(echo, collector=collector) as running:
        await _let_go(running, 3)
        assert len(caplog.messages) == 1
    assert caplog.messages[1:] == ["reports lost in all: 3"]


async def test_keyboard_interrupt_comes_out_of_a_collectors_group() -> None:
    """Law 1: without the other errors of the group."""

    async def collector(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        raise BaseExceptionGroup("both", [ValueError(), KeyboardInterrupt()])

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with serving(echo, collector=collector) as running:
            await running.ended.wait()

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
import trustme

from app.process import without_time
from app.sample_reports import make_report
from support import serving
from trioserve import (
    Attempt,
    ConnectionReport,
    Layers,
    Reason,
    Server,
    TcpAddress,
    TlsOptions,
    echo,
)
from trioserve.app.output import _opening
from trioserve.app.output._log import Format
from trioserve.app.output._opening import open_output
from trioserve.app.output._output import Output
from trioserve.app.output._screen import Screen
from trioserve.app.output._suppression import Choice


class Writer:
    """A writer that keeps lines, and loses some when told to."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, fd: int, **options: Any) -> None:
        self.fd = fd
        self.lines: list[str] = []
        self.lost = 0
        self.lose: Callable[[int], None] = options.get("on_lost", int)
        Writer.made.append(self)

    def write(self, line: str) -> bool:
        self.lines.append(line)
        return True

    def close(self, within: float) -> bool:
        return True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    monkeypatch.setattr(_opening, "LineWriter", Writer)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def said(writer: Writer) -> list[str]:
    return [without_time(line) for line in writer.lines]


def test_without_a_file_there_is_only_a_log(writers: list[Writer]) -> None:
    with open_output("echo", "text", None) as output:
        output.log.say("event", "said")
        assert output.unwritten == 0
    (log,) = writers
    assert log.fd == 2
    assert said(log) == ["said"]


async def test_losses_are_logged_once_a_second(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: each loss is in one event, so that the events add up to the total."""
    async with serving(echo) as running:
        with open_output("echo", "text", os.devnull) as output:
            log, reports = writers
            async with trio.open_nursery() as nursery:
                nursery.start_soon(output.watch, running.server)
                reports.lost = 4
                log.lose(2)
                log.lose(1)
                await trio.sleep(0.5)
                assert output.unwritten == 4
                assert said(log) == []
                await trio.sleep(2)
                first = ["warning: reports lost: 4", "warning: log lines lost: 3"]
                assert said(log) == first
                nursery.cancel_scope.cancel()
            reports.lost = 5
            assert output.end_reports(2) == 7
            assert output.end_reports(2) == 7
            log.lose(1)
        log.lose(6)
    assert said(log) == [
        *first,
        "warning: reports lost: 3",
        "warning: log lines lost: 1",
        "warning: log lines lost: 6",
    ]


async def test_certificates_that_expire_are_logged_from_the_start(
    writers: list[Writer], tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """In words, and for machines."""
    now, ca = dt.datetime.now(dt.UTC).replace(tzinfo=None), trustme.CA()
    paths = [str(tmp_path / name) for name in ("soon.pem", "gone.pem")]
    for path, days in zip(paths, (5.5, -2.5), strict=True):
        issued = ca.issue_cert("localhost", not_after=now + dt.timedelta(days=days))
        issued.private_key_and_cert_chain_pem.write_to_path(path)
    layers = Layers(tls=TlsOptions(cert=paths))
    forms: tuple[Format, ...] = ("text", "logfmt")
    for form in forms:
        async with serving(echo, layers=layers) as running:
            with open_output("echo", form, None) as output:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(output.watch, running.server)
                    await trio.sleep(100)
                    nursery.cancel_scope.cancel()
    text, machines = (said(log) for log in writers)
    use = "renew it; new files are used within a minute, without a restart"
    soon, gone = paths
    assert [re.sub("at .*? UTC", "at DATE", line) for line in text] == [
        f"warning: {soon} expires in 5 days, at DATE: {use}",
        f"error: {gone} expired 2 days ago, at DATE, and clients refuse it: {use}",
    ]
    assert "level=warning event=certificate-expires" in machines[0]
    assert f"cert={soon} names=localhost expires=" in machines[0]
    assert machines[0].endswith(" days=5.5")
    assert "level=error event=certificate-expired" in machines[1]
    assert machines[1].endswith(" days=-2.5")


@pytest.mark.parametrize(("terminal", "line"), [(True, "hi"), (False, "message=hi")])
def test_a_terminal_gets_text_and_a_pipe_logfmt(
    writers: list[Writer],
    terminal: bool,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def isatty(fd: int) -> bool:
        return terminal

    monkeypatch.setattr(os, "isatty", isatty)
    with open_output("echo", None, None) as output:
        output.log.say("event", "hi")
    assert writers[0].lines[0].endswith(line)


async def test_a_pipe_gets_the_live_view_every_second(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(echo) as running:
        with open_output("echo", "text", None) as output:
            with trio.move_on_after(2.5):
                await output.show(running.server)
            output.end_show()
    starts = [line.split(":")[0] for line in said(writers[0])]
    assert starts == ["up 0s", "up 1s", "up 2s", "up 2s"]


async def test_a_terminal_shows_the_live_view_below_the_lines(
    writers: list[Writer],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    def open_screen(fd: int, write: Callable[[str], bool]) -> Screen:
        return Screen(write, lambda: (60, 20))

    monkeypatch.setattr(_opening, "open_screen", open_screen)
    async with serving(echo) as running:
        with open_output("echo", "text", None) as output:
            with trio.move_on_after(0.7):
                await output.show(running.server)
            output.log.say("event", "a line")
            output.end_show()
            output.log.say("event", "the last line")
    first, second, line, end, last = writers[0].lines
    view = first.splitlines()
    assert (view[0], len(view)) == ("  up      0s", 5)
    erased = "\x1b[5F\x1b[K\x1b[E\x1b[J\x1b[F"
    assert second.startswith(f"{erased}  up ")
    assert re.match(rf"{re.escape(erased)}..:..:.. a line\n  up ", line)
    assert end.startswith(f"{erased}  up ")
    assert without_time(last) == "the last line"


def test_with_reports_on_the_terminal_there_is_no_view(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def open_screen(fd: int, write: Callable[[str], bool]) -> None:
        opened.append(fd)

    def isatty(fd: int) -> bool:
        return terminal

    monkeypatch.setattr(_opening, "open_screen", open_screen)
    monkeypatch.setattr(os, "isatty", isatty)
    terminal = True
    for reports in ("-", os.devnull):
        with open_output("echo", "text", reports):
            assert opened == []
    terminal = False
    with open_output("echo", "text", os.devnull):
        assert opened == [2]


async def _collected(
    output: Output, *batches: list[ConnectionReport], server: Server
) -> None:
    # As from a server, with more than a second between two batches.
    send, receive = trio.open_memory_channel[ConnectionReport](10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.collect, receive)
        nursery.start_soon(output.watch, server)
        for batch in batches:
            for report in batch:
                send.send_nowait(report)
            await trio.sleep(1.5)
        nursery.cancel_scope.cancel()


REFUSED = make_report(reason=Reason.CONNECT_REFUSED, target="10.0.0.1:80", error="E: x")


@pytest.mark.parametrize("form", ["text", "logfmt", "json", "haproxy"])
async def test_equal_ends_are_suppressed_and_every_report_is_written(
    writers: list[Writer], form: Format, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: except in HAProxy's format, which has no line for a count."""
    many = [REFUSED] * 1317
    async with serving(echo) as running:
        with open_output("proxy", form, os.devnull) as output:
            await _collected(output, many, many, server=running.server)
            log, reports = writers
            assert len(reports.lines) == 2 * 1317
            if form == "haproxy":
                assert len(log.lines) == 2 * 1317
                return
            assert len(log.lines) == 2 * 6
            assert sum("connect_refused" in line for line in log.lines) == 2 * 6
            for line in log.lines[5], log.lines[11]:
                match form:
                    case "text":
                        assert without_time(line) == (
                            "warning: 1,312 more within 1s:"
                            " target_error/connect_refused > 10.0.0.1:80 (E)"
                        )
                    case "logfmt":
                        assert line.endswith(
                            " level=warning event=suppressed of=connection count=1312"
                            " outcome=target_error reason=connect_refused"
                            " target=10.0.0.1:80 error=E"
                        )
                    case _:
                        assert json.loads(line)["count"] == 1312


async def test_suppressed_events_are_counted_before_the_end(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    send, receive = trio.open_memory_channel[ConnectionReport](100)
    for _ in range(7):
        send.send_nowait(REFUSED)
    send.close()
    with open_output("proxy", "text", None) as output:
        await output.collect(receive)
        assert len(writers[0].lines) == 5
    assert " 2 more within 1s: " in writers[0].lines[-1]


async def test_connections_that_ended_well_are_never_suppressed(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(echo) as running:
        with open_output("echo", "text", None) as output:
            report = make_report(bytes_sent=1)
            await _collected(output, [report] * 400, server=running.server)
    assert len(writers[0].lines) == 400


@pytest.mark.parametrize(
    ("choice", "logged"),
    [("all", [1, 2, 3]), ("active", [2, 3]), ("failed", [3]), ("none", [])],
)
async def test_the_choice_decides_which_connections_are_logged(
    writers: list[Writer], choice: Choice, logged: list[int]
) -> None:
    send, receive = trio.open_memory_channel[ConnectionReport](3)
    send.send_nowait(make_report(id=1))
    send.send_nowait(make_report(id=2, bytes_received=1))
    send.send_nowait(make_report(id=3, reason=Reason.CUT))
    send.close()
    with open_output("echo", "json", os.devnull, connections=choice) as output:
        await output.collect(receive)
    log, reports = writers
    assert [json.loads(line)["id"] for line in log.lines] == logged
    assert len(reports.lines) == 3


async def test_changes_of_a_flapping_target_are_suppressed(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    target = TcpAddress("10.0.0.1", 80)
    up = Attempt(address="10.0.0.1:80", seconds=0.1)
    down = dataclasses.replace(up, error="OSError: no")
    async with serving(echo) as running:
        with open_output("proxy", "text", None) as output:
            for _ in range(100):
                output.attempt(target, down)
                output.attempt(target, up)
            await _collected(output, [], server=running.server)
    assert said(writers[0])[-2:] == [
        "warning: 95 more within 1s: 10.0.0.1:80 does not answer",
        "95 more within 1s: 10.0.0.1:80 answers again",
    ]
    assert len(writers[0].lines) == 12


def test_ending_without_a_view_does_nothing(writers: list[Writer]) -> None:
    with open_output("echo", "text", None) as output:
        output.end_show()
    assert writers[0].lines == []

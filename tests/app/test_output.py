from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from support import serving
from trioserve import echo
from trioserve.app import _output
from trioserve.app._output import open_output
from trioserve.app._screen import Screen


class Writer:
    """Takes lines, and loses some when it is asked to."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, fd: int, **options: Any) -> None:
        self.fd = fd
        self.lines: list[str] = []
        self.lost = 0
        self.on_lost: Callable[[int], None] = options["on_lost"]
        Writer.made.append(self)

    def write(self, line: str) -> bool:
        self.lines.append(line)
        return True

    def close(self, within: float) -> bool:
        return True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    monkeypatch.setattr(_output, "LineWriter", Writer)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_without_a_file_there_is_only_a_log(writers: list[Writer]) -> None:
    with open_output("echo", "text", None) as output:
        output.log.say("event", "said")
    (log,) = writers
    assert log.fd == 2
    assert log.lines == ["said"]


def test_losses_are_said_when_lines_get_through_again(writers: list[Writer]) -> None:
    with open_output("echo", "text", os.devnull):
        log, reports = writers
        log.on_lost(3)
        reports.on_lost(4)
    assert log.lines == [
        "warning: log lines lost: 3",
        "warning: reports lost: 4",
    ]


def test_what_was_lost_in_all_is_said_at_the_end(writers: list[Writer]) -> None:
    with open_output("echo", "text", "-"):
        log, reports = writers
        assert reports.fd == 1
        reports.lost = 5
    assert log.lines == ["warning: reports lost in all: 5"]


@pytest.mark.parametrize(("terminal", "line"), [(True, "hi"), (False, "message=hi")])
def test_people_get_text_and_pipes_get_logfmt(
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


async def test_a_pipe_is_told_how_it_stands_every_second(
    writers: list[Writer], autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(echo) as running:
        with open_output("echo", "text", None) as output:
            with trio.move_on_after(2.5):
                await output.show(running.server)
            output.end_show()
    starts = [line.split(":")[0] for line in writers[0].lines]
    assert starts == ["up 0s", "up 1s", "up 2s", "up 2s"]


async def test_a_terminal_shows_how_it_stands_below_the_lines(
    writers: list[Writer],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    def open_screen(fd: int, write: Callable[[str], bool]) -> Screen:
        return Screen(write, lambda: (60, 20))

    monkeypatch.setattr(_output, "open_screen", open_screen)
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
    assert line.startswith(f"{erased}a line\n  up ")
    assert end.startswith(f"{erased}  up ")
    assert last == "the last line"


def test_reports_on_a_terminal_leave_no_room_for_a_view(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def open_screen(fd: int, write: Callable[[str], bool]) -> None:
        opened.append(fd)

    def isatty(fd: int) -> bool:
        return terminal

    monkeypatch.setattr(_output, "open_screen", open_screen)
    monkeypatch.setattr(os, "isatty", isatty)
    terminal = True
    for reports in ("-", os.devnull):
        with open_output("echo", "text", reports):
            assert opened == []
    terminal = False
    with open_output("echo", "text", os.devnull):
        assert opened == [2]


def test_without_a_view_there_is_nothing_to_end(writers: list[Writer]) -> None:
    with open_output("echo", "text", None) as output:
        output.end_show()
    assert writers[0].lines == []

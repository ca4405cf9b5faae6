"""The bottom of a terminal, on an emulated one."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
import unicodedata
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.app.output._screen import Screen, open_screen


class Emulated(pyte.Screen):
    """With a history of lines that left it at the top or were cleared, as in tmux."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows)
        self.history: list[str] = []

    def index(self) -> None:
        if self.cursor.y == self.lines - 1:
            self.history.append(self.display[0].rstrip())
        super().index()

    def erase_in_display(self, how: int = 0, *args: Any, **kwargs: Any) -> None:
        if (self.cursor.y, self.cursor.x) == (0, 0):
            self.history += "\n".join(self.display).rstrip().splitlines()
        super().erase_in_display(how, *args, **kwargs)


class Terminal:
    """A terminal, and its writer, which drops a text if it has no room."""

    def __init__(self, columns: int, rows: int) -> None:
        self.screen = Emulated(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self.has_room = True
        self.taken: list[str] = []

    def write(self, text: str) -> bool:
        if self.has_room:
            self.taken.append(text)
            self._stream.feed(text.replace("\n", "\r\n") + "\r\n")
        return self.has_room

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines

    @property
    def lines(self) -> list[str]:
        """The lines on it, down to the one with the cursor."""
        shown = [line.rstrip() for line in self.screen.display]
        return shown[: self.screen.cursor.y]


WORDS = st.text("abc ", max_size=12).map(str.rstrip)
MOVES = st.lists(
    st.tuples(st.just("line"), WORDS)
    | st.tuples(st.just("show"), st.lists(WORDS, min_size=1, max_size=4))
    | st.tuples(st.just("room"), st.booleans())
    | st.tuples(st.just("close"), st.none()),
    max_size=20,
)


@given(moves=MOVES)
def test_lines_scroll_above_the_view_whatever_is_dropped(
    moves: list[tuple[str, object]],
) -> None:
    terminal = Terminal(20, 50)
    screen = Screen(terminal.write, terminal.size)
    above: list[str] = []
    view: list[str] = []
    for move, what in moves:
        match move, what:
            case "line", str():
                screen.line(what)
                if terminal.has_room:
                    above.append(what)
            case "show", list():
                screen.show(what)
                view = what
            case "room", bool():
                terminal.has_room = what
            case _:
                terminal.has_room = True
                screen.show(view)
                screen.close()
                above, view = above + view, []
    # The next text repairs what was dropped.
    terminal.has_room = True
    screen.show(view)
    assert "\n".join(terminal.lines).strip() == "\n".join(above + view).strip()
    assert "\x1b[?" not in "".join(terminal.taken)  # no hidden cursor, no other screen


@given(st.lists(WORDS, max_size=30), st.integers(2, 10), st.lists(WORDS, max_size=30))
def test_a_view_that_is_too_high_is_cut(
    above: list[str], rows: int, view: list[str]
) -> None:
    terminal = Terminal(20, rows)
    screen = Screen(terminal.write, terminal.size)
    for line in above:
        screen.line(line)
    for _ in range(3):
        screen.show(view)
    shown = view[: rows - 1]
    assert terminal.lines[len(terminal.lines) - len(shown) :] == shown
    # It was painted several times, and is there once.
    everything = terminal.screen.history + terminal.lines
    assert "\n".join(everything).strip() == "\n".join(above + shown).strip()


COLOURED = st.lists(
    st.sampled_from(["ab", "字", "e\N{COMBINING ACUTE ACCENT}", "\x1b[31m"])
    | st.text("xyz", min_size=1, max_size=5).map("\x1b[32m{}\x1b[0m".format),
    max_size=5,
).map("".join)


@given(COLOURED, st.integers(3, 20))
def test_a_line_that_is_too_wide_is_cut(line: str, columns: int) -> None:
    terminal = Terminal(columns, 5)
    screen = Screen(terminal.write, terminal.size)
    screen.show([line, "next"])
    assert terminal.screen.cursor.y == 2
    assert terminal.lines[1] == "next"[: columns - 1]
    plain = unicodedata.normalize("NFC", re.sub(r"\x1b\[\d+m", "", line))
    assert plain.startswith(terminal.lines[0])
    # The colour ends with the line.
    assert terminal.screen.buffer[1][0].fg == "default"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("abcdefg", "abcde"),
        ("ab字字", "ab字"),
        ("abcde\N{COMBINING ACUTE ACCENT}f", "abcdé"),
        ("\x1b[32mabcdefg\x1b[0m", "\x1b[32mabcde\x1b[0m"),
        ("\x1b[32mabc", "\x1b[32mabc\x1b[0m"),
    ],
)
def test_a_line_has_as_many_characters_as_fit(line: str, shown: str) -> None:
    terminal = Terminal(6, 5)
    Screen(terminal.write, terminal.size).show([line])
    (written,) = terminal.taken
    assert unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", shown)


def test_a_terminal_that_got_narrower_has_wrapped_the_view() -> None:
    terminal = Terminal(40, 10)
    columns = 40
    screen = Screen(terminal.write, lambda: (columns, 10))
    screen.show(["a" * 30, "b", ""])
    columns = 16
    screen.show(["c"])
    # Two rows of the first line, one of the second, one of the empty one.
    assert terminal.taken[-1] == "\x1b[4F\x1b[K\x1b[E\x1b[J\x1b[Fc"


def test_in_the_background_lines_are_written_without_a_view() -> None:
    terminal = Terminal(20, 30)
    size: tuple[int, int] | None = (20, 30)
    screen = Screen(terminal.write, lambda: size)
    screen.show(["old", "view"])
    size = None
    terminal.write("$ command")
    screen.show(["view"])
    screen.line("line")
    terminal.write("$ fg")
    size = (20, 30)
    screen.show(["view"])
    screen.show(["new view"])
    assert terminal.lines == ["old", "view", "$ command", "line", "$ fg", "new view"]


def test_the_screen_tells_foreground_from_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    def write(text: str) -> bool:
        written.append(text)
        return True

    monkeypatch.setenv("TERM", "xterm")
    groups = [os.getpgrp(), os.getpgrp() + 1, os.getpgrp()]

    def tcgetpgrp(fd: int) -> int:
        assert fd == theirs
        return groups.pop(0)

    ours, theirs = pty.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", tcgetpgrp)
    screen = open_screen(theirs, write)
    assert screen is not None
    for view in ("one", "two", "three"):
        screen.show([view])
    os.close(ours)
    os.close(theirs)
    assert written == ["one", "three"]


def test_threads_take_turns() -> None:
    terminal = Terminal(20, 400)
    written: list[str] = []

    def write(text: str) -> bool:
        written.append(text)
        return True

    screen = Screen(write, terminal.size)
    lines = [f"line {number}" for number in range(100)]

    def log() -> None:
        for line in lines:
            screen.line(line)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        logging = threading.Thread(target=log)
        logging.start()
        for height in range(100):
            screen.show(["view"] * (height % 4))
        logging.join()
    finally:
        sys.setswitchinterval(interval)
    screen.show(["end"])
    for text in written:
        terminal.write(text)
    assert [line for line in terminal.lines if line] == [*lines, "end"]


def test_a_terminal_that_reports_no_size_has_a_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    def write(text: str) -> bool:
        written.append(text)
        return True

    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    assert os.get_terminal_size(theirs) == (0, 0)
    screen = open_screen(theirs, write)
    assert screen is not None
    screen.show(["a" * 100, "b"])
    os.close(ours)
    os.close(theirs)
    assert written == ["a" * 79 + "\nb"]


def test_only_a_terminal_that_can_move_its_cursor_has_a_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    def write(text: str) -> bool:
        written.append(text)
        return True

    reader, writer = os.pipe()
    monkeypatch.setenv("TERM", "xterm")
    assert open_screen(writer, write) is None
    os.close(reader)
    os.close(writer)
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "dumb")
    assert open_screen(theirs, write) is None
    monkeypatch.setenv("TERM", "xterm")
    screen = open_screen(theirs, write)
    assert screen is not None
    os.close(ours)
    os.close(theirs)
    # A terminal that is gone gets the usual size.
    screen.show(["a" * 100])
    assert written == ["a" * 79]

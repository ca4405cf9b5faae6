from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from app.process import fill
from trioserve.app import _writer
from trioserve.app._writer import LineWriter, open_to_append


def _read_all(fd: int) -> list[str]:
    with os.fdopen(fd) as file:
        return file.read().splitlines()


def test_lines_arrive_in_order_and_the_file_is_closed() -> None:
    reader, writer_fd = os.pipe()
    writer = LineWriter(writer_fd, close_fd=True)
    for number in range(2000):
        writer.write(str(number))
    assert writer.close(10)
    assert _read_all(reader) == [str(number) for number in range(2000)]
    assert writer.lost == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_costs_lines_that_are_counted(
    blocking: bool,
) -> None:
    reader, writer_fd = os.pipe()
    stuffed = fill(writer_fd)
    os.set_blocking(writer_fd, blocking)
    said: list[int] = []
    all_said = threading.Event()

    def on_lost(count: int) -> None:
        said.append(count)
        all_said.set()

    writer = LineWriter(writer_fd, close_fd=True, capacity=3, on_lost=on_lost)
    for number in range(100):
        writer.write(str(number))
    assert writer.lost >= 90
    os.read(reader, stuffed)
    assert all_said.wait(10)
    writer.write("room again")
    assert writer.close(10)
    *lines, last = _read_all(reader)
    assert last == "room again"
    assert len(lines) + writer.lost == 100
    assert sum(said) == writer.lost


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_file_that_is_rotated_is_made_anew(how: str, tmp_path: Path) -> None:
    path, old = tmp_path / "lines", tmp_path / "lines.1"
    writer = LineWriter(open_to_append(str(path)), close_fd=True, path=str(path))
    for text in ("first", "second"):
        writer.write(text)
        _wait_until_written(path, text)
    if how == "renamed":
        path.rename(old)
        assert old.read_text() == "first\nsecond\n"
    else:
        path.unlink()
    writer.write("third")
    assert writer.close(10)
    assert path.read_text() == "third\n"
    assert writer.lost == 0


def _wait_until_written(path: Path, text: str) -> None:
    # There is no event for it.
    deadline = time.monotonic() + 10
    while text not in path.read_text():
        assert time.monotonic() < deadline


def test_a_file_that_cannot_be_made_anew_is_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "lines"
    errors: list[int | None] = []
    fd = open_to_append(str(path))
    reader = os.open(path, os.O_RDONLY)
    writer = LineWriter(
        fd,
        close_fd=True,
        path=str(path),
        on_error=lambda error: errors.append(error.errno),
    )
    path.unlink()
    folder.rmdir()
    writer.write("one")
    writer.write("two")
    assert writer.close(10)
    assert _read_all(reader) == ["one", "two"]
    assert errors == [errno.ENOENT]
    assert writer.lost == 0


def test_a_file_system_that_is_gone_costs_lines_that_are_counted(
    tmp_path: Path,
) -> None:
    errors: list[int | None] = []
    writer = LineWriter(
        100_000,  # as little there as a file whose server is gone
        path=str(tmp_path / "lines"),
        on_error=lambda error: errors.append(error.errno),
    )
    writer.write("one")
    assert writer.close(10)
    assert writer.lost == 1
    assert errors == [errno.EBADF]


def test_a_pipe_is_never_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(open_to_append(str(path)), close_fd=True, path=str(path))
    path.unlink()
    writer.write("line")
    assert writer.close(10)
    assert _read_all(reader) == ["line"]
    assert not path.exists()


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer_fd = os.pipe()
    write = os.write
    refused: list[int] = []

    def write_when_asked_again(fd: int, data: memoryview) -> int:
        if fd == writer_fd and not refused:
            refused.append(fd)
            raise BlockingIOError
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_when_asked_again)
    writer = LineWriter(writer_fd, close_fd=True)
    writer.write("line")
    assert writer.close(10)
    assert refused
    assert _read_all(reader) == ["line"]
    assert writer.lost == 0


def test_a_reader_that_never_reads_does_not_hold_up_the_end() -> None:
    reader, writer_fd = os.pipe()
    fill(writer_fd)
    writer = LineWriter(writer_fd, capacity=3)
    for number in range(10):
        writer.write(str(number))
    assert not writer.close(0.01)
    written_at_most = _writer._BATCH
    assert 10 - written_at_most <= writer.lost <= 10
    assert writer.lost >= 4
    os.close(reader)
    assert writer.close(10)
    os.close(writer_fd)


def test_a_reader_that_is_gone_is_said_once() -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    errors: list[int | None] = []
    writer = LineWriter(
        writer_fd, close_fd=True, on_error=lambda error: errors.append(error.errno)
    )
    for number in range(2000):
        writer.write(str(number))
    assert writer.close(10)
    assert writer.lost == 2000
    assert errors == [errno.EPIPE]


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    writer = LineWriter(os.open("/dev/full", os.O_WRONLY), close_fd=True)
    writer.write("one")
    assert writer.close(10)
    assert writer.lost == 1


def test_half_a_line_is_ended_before_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A disk takes three and a half lines, is full, and then has room again.
    written = bytearray()
    room = [11, 3, 0]
    failed = threading.Event()

    def write_some(fd: int, data: memoryview) -> int:
        count = room.pop(0) if room else len(data)
        if not count:
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        written.extend(data[:count])
        return count

    monkeypatch.setattr(_writer, "_write_some", write_some)
    said: list[int] = []
    writer = LineWriter(-1, on_lost=said.append)
    with writer._wake:  # so that all four are one batch
        for _ in range(4):
            writer._lines.append("line")
        writer._wake.notify()
    assert failed.wait(10)
    writer.write("next")
    assert writer.close(10)
    assert written == b"line\nline\nline"[:14] + b"\nnext\n"
    assert said == [2]
    assert writer.lost == 2


def test_a_disk_that_stays_full_loses_each_line_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though half of the first one is on it, and is to be ended."""
    room = [2]

    def write_some(fd: int, data: memoryview) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return room.pop()

    monkeypatch.setattr(_writer, "_write_some", write_some)
    monkeypatch.setattr(_writer, "_BATCH", 1)
    writer = LineWriter(-1)
    for _ in range(3):
        writer.write("line")
    assert writer.close(10)
    assert writer.lost == 3

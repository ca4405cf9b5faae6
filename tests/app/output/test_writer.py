from __future__ import annotations

import contextlib
import errno
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.process import PATIENCE, fill, read_all
from trioserve.app.output import _descriptors, _writer
from trioserve.app.output._writer import LineWriter


def test_lines_arrive_in_order_and_the_file_is_closed() -> None:
    reader, writer_fd = os.pipe()
    writer = LineWriter(writer_fd, close_fd=True)
    for number in range(2000):
        writer.write(str(number))
    assert writer.close(PATIENCE)
    assert read_all(reader) == [str(number) for number in range(2000)]
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
    assert all_said.wait(PATIENCE)
    writer.write("room again")
    assert writer.close(PATIENCE)
    *lines, last = read_all(reader)
    assert last == "room again"
    assert len(lines) + writer.lost == 100
    assert sum(said) == writer.lost


def test_a_full_pipe_in_non_blocking_mode_is_waited_for(
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
    monkeypatch.setattr(_descriptors, "_NOWAIT", 0)
    writer = LineWriter(writer_fd, close_fd=True)
    writer.write("line")
    assert writer.close(PATIENCE)
    assert refused
    assert read_all(reader) == ["line"]
    assert writer.lost == 0


@pytest.mark.parametrize("blocking", [True, False])
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=60),
    capacity=st.integers(1, 4000),
    read=st.integers(0, 200_000),
)
def test_after_a_close_that_times_out_each_line_is_in_the_pipe_or_lost(
    blocking: bool, lengths: list[int], capacity: int, read: int
) -> None:
    """Law 3: also lines that are being written, and half a line."""
    reader, writer_fd = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer_fd, blocking)
    writer = LineWriter(writer_fd, close_fd=True, capacity=capacity)
    for _ in range(20):
        for length in lengths:
            writer.write("x" * length)
    data = b""
    with contextlib.suppress(BlockingIOError):
        data = os.read(reader, read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_writer, "_GRACE", PATIENCE)
        writer.close(0.01)
    lost = writer.lost
    while chunk := os.read(reader, 1 << 20):
        data += chunk
    os.close(reader)
    assert data.count(b"\n") + lost == 20 * len(lengths)
    assert not writer.write("afterwards")
    assert writer.lost == lost + 1


def test_a_reader_that_never_reads_does_not_block_the_end() -> None:
    reader, writer_fd = os.pipe()
    fill(writer_fd)
    said: list[int] = []
    writer = LineWriter(writer_fd, close_fd=True, capacity=3, on_lost=said.append)
    for number in range(10):
        writer.write(str(number))
    assert not writer.close(0.01)
    assert writer.lost == 10
    os.close(reader)
    # The second call returns at once.
    assert writer.close(PATIENCE)
    assert writer.lost == 10
    assert said == []


def test_a_write_that_hangs_does_not_block_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lines count as lost, and only once if they are written after all."""
    hangs, goes_on = threading.Event(), threading.Event()

    def write_some(fd: int, data: memoryview) -> int:
        hangs.set()
        assert goes_on.wait(PATIENCE)
        return len(data)

    monkeypatch.setattr(_writer, "write_some", write_some)
    monkeypatch.setattr(_writer, "_GRACE", 0.0)
    writer = LineWriter(-1)
    writer.write("one")
    assert hangs.wait(PATIENCE)
    writer.write("two")
    assert not writer.close(0.0)
    assert writer.lost == 2
    assert not writer.close(PATIENCE)
    goes_on.set()
    writer._thread.join(PATIENCE)
    assert writer.close(0.0)
    assert writer.lost == 2


@pytest.mark.parametrize("nowait", [True, False])
def test_a_pipe_is_written_to_without_support_for_nowait(
    nowait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does not support the flag, or the C library does not."""

    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "pwritev", unsupported)
    monkeypatch.setattr(_descriptors, "_NOWAIT", int(nowait))
    reader, writer_fd = os.pipe()
    writer = LineWriter(writer_fd, close_fd=True)
    writer.write("line")
    assert writer.close(PATIENCE)
    assert read_all(reader) == ["line"]


def test_a_reader_that_is_gone_is_reported_once() -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    errors: list[int | None] = []
    writer = LineWriter(
        writer_fd, close_fd=True, on_error=lambda error: errors.append(error.errno)
    )
    for number in range(2000):
        writer.write(str(number))
    assert writer.close(PATIENCE)
    assert writer.lost == 2000
    assert errors == [errno.EPIPE]


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    writer = LineWriter(os.open("/dev/full", os.O_WRONLY), close_fd=True)
    writer.write("one")
    assert writer.close(PATIENCE)
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

    monkeypatch.setattr(_writer, "write_some", write_some)
    said: list[int] = []
    writer = LineWriter(-1, on_lost=said.append)
    with writer._wake:  # so that all four are one batch
        for _ in range(4):
            writer._lines.append("line")
        writer._wake.notify()
    assert failed.wait(PATIENCE)
    writer.write("next")
    assert writer.close(PATIENCE)
    assert written == b"line\nline\nline"[:14] + b"\nnext\n"
    assert said == [2]
    assert writer.lost == 2


def test_a_disk_that_stays_full_loses_each_line_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if half of the first one is on it, and needs a newline."""
    room = [2]

    def write_some(fd: int, data: memoryview) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return room.pop()

    monkeypatch.setattr(_writer, "write_some", write_some)
    monkeypatch.setattr(_writer, "_BATCH", 1)
    writer = LineWriter(-1)
    for _ in range(3):
        writer.write("line")
    assert writer.close(PATIENCE)
    assert writer.lost == 3

"""A writer whose file is rotated, reopened, or replaced by something else."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import time
from pathlib import Path

import pytest

from app.process import PATIENCE, read_all
from trioserve.app.output._descriptors import open_to_append
from trioserve.app.output._writer import LineWriter


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_rotated_file_is_created_again(how: str, tmp_path: Path) -> None:
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
    assert writer.close(PATIENCE)
    assert path.read_text() == "third\n"
    assert writer.lost == 0


def _wait_until_written(path: Path, text: str) -> None:
    # There is no event for it.
    deadline = time.monotonic() + PATIENCE
    while text not in path.read_text():
        assert time.monotonic() < deadline


def test_if_a_rotated_file_cannot_be_created_the_old_one_stays_in_use(
    tmp_path: Path,
) -> None:
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
    assert writer.close(PATIENCE)
    assert read_all(reader) == ["one", "two"]
    assert errors == [errno.ENOENT]
    assert writer.lost == 0


def test_a_file_system_that_is_gone_costs_lines_that_are_counted(
    tmp_path: Path,
) -> None:
    errors: list[int | None] = []
    writer = LineWriter(
        100_000,  # not open; a file whose server is gone fails alike
        path=str(tmp_path / "lines"),
        on_error=lambda error: errors.append(error.errno),
    )
    writer.write("one")
    assert writer.close(PATIENCE)
    assert writer.lost == 1
    assert errors == [errno.EBADF]


class Unwritable:
    """Something that can't be written, in the place of a file."""

    def __init__(self, path: Path, kind: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "socket":
                self._socket.bind(str(path))
            case _:
                path.symlink_to(path)

    def close(self) -> None:
        self._socket.close()


UNWRITABLE = {
    "pipe": errno.ENXIO,
    "folder": errno.EISDIR,
    "socket": errno.ENXIO,
    "link": errno.ELOOP,
}


@pytest.mark.parametrize(("kind", "code"), UNWRITABLE.items())
def test_something_else_in_the_place_of_the_file_does_not_stop_the_writer(
    kind: str, code: int, tmp_path: Path
) -> None:
    path, old = tmp_path / "lines", tmp_path / "old"
    errors: list[int | None] = []
    reopened: queue.Queue[OSError | None] = queue.Queue()
    writer = LineWriter(
        open_to_append(str(path)),
        close_fd=True,
        path=str(path),
        on_error=lambda error: errors.append(error.errno),
        on_reopened=reopened.put,
    )
    # Its thread looks at the file as it starts: after that, only for a line.
    assert writer.reopen()
    assert reopened.get(timeout=10) is None
    path.rename(old)
    with contextlib.closing(Unwritable(path, kind)):
        writer.write("one")
        writer.write("two")
        assert writer.close(10)
    assert old.read_text() == "one\ntwo\n"
    assert errors == [code]
    assert writer.lost == 0


@pytest.mark.parametrize(("kind", "code"), UNWRITABLE.items())
def test_if_a_file_cannot_be_reopened_the_old_one_stays_in_use(
    kind: str, code: int, tmp_path: Path
) -> None:
    path, old = tmp_path / "lines", tmp_path / "old"
    reopened: queue.Queue[OSError | None] = queue.Queue()
    errors: list[OSError] = []
    writer = LineWriter(
        open_to_append(str(path)),
        close_fd=True,
        path=str(path),
        on_error=errors.append,
        on_reopened=reopened.put,
    )
    assert writer.reopen()
    assert reopened.get(timeout=10) is None
    path.rename(old)
    with contextlib.closing(Unwritable(path, kind)):
        assert writer.reopen()
        error = reopened.get(timeout=10)
        assert error is not None
        assert error.errno == code
        assert errors == []
        writer.write("one")
        assert writer.close(10)
    assert old.read_text() == "one\n"


def test_a_pipe_is_opened_when_it_gets_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        open_to_append(str(path))
    errors: queue.Queue[int | None] = queue.Queue()
    lost: queue.Queue[int] = queue.Queue()
    writer = LineWriter(
        None,
        close_fd=True,
        path=str(path),
        on_error=lambda error: errors.put(error.errno),
        on_lost=lost.put,
    )
    # Before there is anything to write.
    assert errors.get(timeout=10) == errno.ENXIO
    writer.write("one")
    _wait_until_lost(writer, 1)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.write("two")
    assert lost.get(timeout=10) == 1
    writer.write("three")
    assert writer.close(10)
    assert read_all(reader) == ["two", "three"]
    assert errors.empty()


def test_a_pipe_that_never_gets_a_reader_costs_lines_that_are_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = LineWriter(None, close_fd=True, path=str(path))
    writer.write("one")
    assert writer.close(10)
    assert writer.lost == 1


def _wait_until_lost(writer: LineWriter, count: int) -> None:
    # There is no event for it.
    deadline = time.monotonic() + 10
    while writer.lost < count:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by descriptor"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "next\n"),
        ("whole\n", "whole\nnext\n"),
        ("ha", "ha\nnext\n"),
        ("whole\nha", "whole\nha\nnext\n"),
    ],
)
def test_half_a_line_at_the_end_of_a_file_is_ended_when_it_is_opened(
    before: str, after: str, named: bool, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_text(before)
    name = str(path) if named else None
    writer = LineWriter(open_to_append(str(path)), close_fd=True, path=name)
    writer.write("next")
    assert writer.close(PATIENCE)
    assert path.read_text() == after
    assert writer.lost == 0


@pytest.mark.parametrize("how", ["rotated", "reopened"])
def test_half_a_line_is_ended_in_its_own_file(how: str, tmp_path: Path) -> None:
    path, other = tmp_path / "lines", tmp_path / "other"
    path.write_text("ha")
    other.write_text("another ha")
    reopened: queue.Queue[OSError | None] = queue.Queue()
    writer = LineWriter(
        open_to_append(str(path)),
        close_fd=True,
        path=str(path),
        on_reopened=reopened.put,
    )
    other.replace(path)
    if how == "reopened":
        assert writer.reopen()
        assert reopened.get(timeout=PATIENCE) is None
    writer.write("next")
    assert writer.close(PATIENCE)
    assert path.read_text() == "another ha\nnext\n"


def test_a_descriptor_without_a_path_cannot_be_reopened() -> None:
    writer = LineWriter(os.open(os.devnull, os.O_WRONLY), close_fd=True)
    assert not writer.reopen()
    assert writer.close(10)


def test_a_file_is_reopened_without_a_callback(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    writer = LineWriter(open_to_append(str(path)), close_fd=True, path=str(path))
    path.unlink()
    assert writer.reopen()
    writer.write("line")
    assert writer.close(10)
    assert path.read_text() == "line\n"


def test_a_pipe_is_never_created_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(open_to_append(str(path)), close_fd=True, path=str(path))
    path.unlink()
    writer.write("line")
    assert writer.close(PATIENCE)
    assert read_all(reader) == ["line"]
    assert not path.exists()

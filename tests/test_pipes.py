"""Pipes: bytes on their way between two sockets, and which flow gets one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Generator
from typing import Any

import pytest

from app.process import PATIENCE
from links import socket_pair, some_bytes
from support import no_free_fd, open_fds
from trioserve._pipes import DEEP, DEEP_SIZE, MOST, SIZE, Pipe, Pipes


@contextlib.contextmanager
def _link() -> Generator[tuple[socket.socket, socket.socket]]:
    """Two non-blocking ends."""
    one, other = socket_pair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def _deliver(data: bytes, there: socket.socket, source: socket.socket) -> None:
    """Send, and wait until all of it has arrived."""
    before = _arrived(source)
    there.sendall(data)
    while _arrived(source) < before + len(data):
        select.select([source], [], [], PATIENCE)


def _arrived(source: socket.socket) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(source, termios.FIONREAD, bytes(4)))[0]
    return count


@pytest.fixture
def pipe() -> Generator[Pipe]:
    pipe = Pipe(SIZE)
    yield pipe
    pipe.close()


# -- One pipe


def test_bytes_come_out_of_a_pipe_as_they_went_in(pipe: Pipe) -> None:
    """Each byte once, in order, and counted while it is inside."""
    with _link() as (source, there), _link() as (sink, here):
        _deliver(b"hello", there, source)
        assert pipe.fill(source.fileno(), SIZE) == pipe.filled == 5
        assert pipe.drain(sink.fileno()) == 5
        assert pipe.filled == 0
        select.select([here], [], [], PATIENCE)
        assert here.recv(10) == b"hello"


def test_a_pipe_whose_descriptor_was_reused_raises(pipe: Pipe) -> None:
    """Law 4: a read of another file might return nothing without end."""
    with _link() as (source, there), _link() as (sink, _):
        _deliver(b"hello", there, source)
        pipe.fill(source.fileno(), SIZE)
        another, its_writer = os.pipe()
        os.dup2(another, pipe.reader)
        os.close(another)
        os.close(its_writer)
        with pytest.raises(OSError, match="lost its bytes"):
            pipe.drain(sink.fileno())
        with pytest.raises(OSError, match="lost its bytes"):
            pipe.read()
        assert pipe.filled == 5


def test_a_pipe_never_waits(pipe: Pipe) -> None:
    """And a call that can't proceed changes nothing."""
    with _link() as (source, there), _link() as (sink, _):
        with pytest.raises(BlockingIOError):
            pipe.fill(source.fileno(), SIZE)
        assert pipe.filled == 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sink.send(bytes(1_000_000))
        _deliver(b"hello", there, source)
        pipe.fill(source.fileno(), SIZE)
        with pytest.raises(BlockingIOError):
            pipe.drain(sink.fileno())
        assert pipe.filled == 5


def test_the_end_of_file_fills_it_with_nothing(pipe: Pipe) -> None:
    with _link() as (source, there):
        _deliver(b"hello", there, source)
        there.shutdown(socket.SHUT_WR)
        assert pipe.fill(source.fileno(), SIZE) == 5
        assert pipe.read() == b"hello"
        select.select([source], [], [], PATIENCE)
        assert pipe.fill(source.fileno(), SIZE) == pipe.filled == 0


def test_a_pipe_can_be_emptied_by_reading(pipe: Pipe) -> None:
    """Without the bytes that a sink has taken before."""
    with _link() as (source, there), _link() as (sink, here):
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        _deliver(some_bytes(0, 100_000), there, source)
        received = pipe.fill(source.fileno(), SIZE)
        sent = pipe.drain(sink.fileno())
        assert 0 < sent < received
        assert pipe.read() == some_bytes(sent, received - sent)
        assert pipe.filled == 0
        assert pipe.read() == b""


def test_a_closed_pipe_has_no_descriptor() -> None:
    """Law 13: neither end, and bytes in it are gone."""
    before = open_fds()
    with _link() as (source, there):
        _deliver(b"hello", there, source)
        pipe = Pipe(SIZE)
        pipe.fill(source.fileno(), SIZE)
        pipe.close()
    assert open_fds() == before


def test_no_other_program_inherits_a_pipe(pipe: Pipe) -> None:
    """Law 13: it would keep a closed pipe open."""
    assert not os.get_inheritable(pipe.reader)
    assert not os.get_inheritable(pipe.writer)


# -- All pipes of a run


def test_there_are_a_few_deep_pipes_and_a_limit_for_all() -> None:
    """Law 9: all pipes together hold a bounded amount."""
    before = open_fds()
    pipes = Pipes()
    taken = [pipe for _ in range(MOST) if (pipe := pipes.take())]
    assert [pipe.size for pipe in taken] == [DEEP_SIZE] * DEEP + [SIZE] * (MOST - DEEP)
    assert pipes.lent == MOST
    assert pipes.take() is None
    assert pipes.lent == MOST
    for pipe in taken:
        pipes.give_back(pipe)
    pipes.close()
    assert pipes.lent == 0
    assert open_fds() == before


def test_an_empty_pipe_is_used_again() -> None:
    """Making one costs more than using it."""
    pipes = Pipes(most=1)
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe)
    assert pipes.take() is pipe
    pipes.give_back(pipe)
    pipes.close()


def test_a_pipe_with_bytes_in_it_is_never_lent_again() -> None:
    """Law 1: they would go to another connection."""
    before = open_fds()
    pipes = Pipes(most=1)
    with _link() as (source, there):
        _deliver(b"mine", there, source)
        pipe = pipes.take()
        assert pipe is not None
        pipe.fill(source.fileno(), SIZE)
        pipes.give_back(pipe)
    assert pipes.lent == 0
    assert open_fds() == before
    other = pipes.take()
    assert other is not None
    assert other.filled == 0
    with pytest.raises(BlockingIOError):
        os.read(other.reader, 1)
    pipes.give_back(other)
    pipes.close()


def test_only_pipes_that_nobody_uses_are_closed() -> None:
    """And new ones can be made afterwards."""
    before = open_fds()
    pipes = Pipes(most=2)
    used, unused = pipes.take(), pipes.take()
    assert used is not None
    assert unused is not None
    pipes.give_back(unused)
    pipes.close()
    assert open_fds() == before + 2
    os.fstat(used.reader)
    pipes.give_back(used)
    assert pipes.take() is used
    pipes.give_back(used)
    pipes.close()
    assert open_fds() == before


def test_out_of_descriptors_there_is_no_pipe() -> None:
    """And there is one when there are descriptors again."""
    pipes = Pipes()
    with no_free_fd():
        assert pipes.take() is None
    assert pipes.lent == 0
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe)
    pipes.close()


def _grants(size: int) -> Any:
    """As Linux for a user with many pipes: each holds ``size``, and no more."""
    ask = fcntl.fcntl

    def answer(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            ask(fd, command, size)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return ask(fd, command, argument)

    return answer


def test_a_pipe_that_is_not_made_deeper_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 KiB, the usual size of a pipe, is worth it."""
    monkeypatch.setattr(fcntl, "fcntl", _grants(65_536))
    pipes = Pipes()
    pipe = pipes.take()
    assert pipe is not None
    assert pipe.size == 65_536
    pipes.give_back(pipe)
    pipes.close()


def test_a_small_pipe_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 13: it is closed at once."""
    before = open_fds()
    monkeypatch.setattr(fcntl, "fcntl", _grants(8192))
    pipes = Pipes()
    assert pipes.take() is None
    assert pipes.lent == 0
    assert open_fds() == before

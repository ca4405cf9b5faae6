"""Pipes: bytes on their way between two sockets, and who may have one."""

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
    """Two ends that never wait."""
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


def test_what_goes_in_comes_out(pipe: Pipe) -> None:
    """Each byte once, in order, and counted while it is inside."""
    with _link() as (source, there), _link() as (sink, here):
        _deliver(b"hello", there, source)
        assert pipe.fill(source.fileno()) == pipe.filled == 5
        assert pipe.drain(sink.fileno()) == 5
        assert pipe.filled == 0
        select.select([here], [], [], PATIENCE)
        assert here.recv(10) == b"hello"


def test_a_pipe_whose_number_is_anothers_says_so(pipe: Pipe) -> None:
    """Law 4: of another's, nothing would come out for ever."""
    with _link() as (source, there), _link() as (sink, _):
        _deliver(b"hello", there, source)
        pipe.fill(source.fileno())
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
    """And what can't be done has changed nothing."""
    with _link() as (source, there), _link() as (sink, _):
        with pytest.raises(BlockingIOError):
            pipe.fill(source.fileno())
        assert pipe.filled == 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sink.send(bytes(1_000_000))
        _deliver(b"hello", there, source)
        pipe.fill(source.fileno())
        with pytest.raises(BlockingIOError):
            pipe.drain(sink.fileno())
        assert pipe.filled == 5


def test_the_end_of_file_fills_it_with_nothing(pipe: Pipe) -> None:
    with _link() as (source, there):
        _deliver(b"hello", there, source)
        there.shutdown(socket.SHUT_WR)
        assert pipe.fill(source.fileno()) == 5
        assert pipe.read() == b"hello"
        select.select([source], [], [], PATIENCE)
        assert pipe.fill(source.fileno()) == pipe.filled == 0


def test_a_pipe_can_be_emptied_into_our_hands(pipe: Pipe) -> None:
    """Without losing what a sink had taken before, or taking it twice."""
    with _link() as (source, there), _link() as (sink, here):
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        _deliver(some_bytes(0, 100_000), there, source)
        received = pipe.fill(source.fileno())
        sent = pipe.drain(sink.fileno())
        assert 0 < sent < received
        assert pipe.read() == some_bytes(sent, received - sent)
        assert pipe.filled == 0
        assert pipe.read() == b""


def test_a_closed_pipe_has_no_descriptor() -> None:
    """Law 13: neither end, and whatever is in it is gone."""
    before = open_fds()
    with _link() as (source, there):
        _deliver(b"hello", there, source)
        pipe = Pipe(SIZE)
        pipe.fill(source.fileno())
        pipe.close()
    assert open_fds() == before


def test_no_other_program_inherits_a_pipe(pipe: Pipe) -> None:
    """Law 13: it would keep what is closed here."""
    assert not os.get_inheritable(pipe.reader)
    assert not os.get_inheritable(pipe.writer)


# -- All pipes of a run


def test_there_are_a_few_deep_ones_and_not_many_of_the_others() -> None:
    """Law 9: what all pipes hold together has a bound."""
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
    """Law 1: they would come out at somebody else's."""
    before = open_fds()
    pipes = Pipes(most=1)
    with _link() as (source, there):
        _deliver(b"mine", there, source)
        pipe = pipes.take()
        assert pipe is not None
        pipe.fill(source.fileno())
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
    """And there may be more of them afterwards."""
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
    """And there is one when there are descriptors."""
    pipes = Pipes()
    with no_free_fd():
        assert pipes.take() is None
    assert pipes.lent == 0
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe)
    pipes.close()


def _grants(size: int) -> Any:
    """As Linux does for a user who has many pipes: they hold ``size``, and no more."""
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
    """64 KiB, a pipe's usual size, are worth it."""
    monkeypatch.setattr(fcntl, "fcntl", _grants(65_536))
    pipes = Pipes()
    pipe = pipes.take()
    assert pipe is not None
    assert pipe.size == 65_536
    pipes.give_back(pipe)
    pipes.close()


def test_a_pipe_that_holds_little_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 13: it is closed at once."""
    before = open_fds()
    monkeypatch.setattr(fcntl, "fcntl", _grants(8192))
    pipes = Pipes()
    assert pipes.take() is None
    assert pipes.lent == 0
    assert open_fds() == before

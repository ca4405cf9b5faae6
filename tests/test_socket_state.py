"""The state of a socket, asked without moving a byte."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import termios
from typing import Any

import pytest
import trio
import trio.testing

from links import over, socket_pair, sockets
from support import acknowledged, reset
from trioserve._socket_transport import SocketTransport
from trioserve._stream_transport import StreamTransport


@pytest.mark.parametrize("sends", [b"", b"hello"])
@pytest.mark.parametrize("ends", ["eof", "reset", "eof, then reset"])
async def test_a_peer_that_is_gone_is_noticed_without_receiving(
    sends: bytes, ends: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: a reset at once, an EOF after a while if no byte is left to receive."""
    with over(sockets) as (transport, link):
        peer = link.peer
        gone = trio.Event()

        async def wait() -> None:
            await transport.wait_peer_gone(5)
            gone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await peer.send_all(sends)
            await trio.sleep(100)
            assert not gone.is_set()
            if ends.startswith("eof"):
                await peer.send_eof()
                await trio.sleep(4)
                assert not gone.is_set()
            if ends.endswith("reset"):
                reset(peer)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert gone.is_set()
                assert isinstance(transport.error, ConnectionError)
            else:
                await trio.sleep(2)
                assert gone.is_set() is (sends == b"")
                assert transport.error is None
                nursery.cancel_scope.cancel()
        assert transport.received == 0


@pytest.mark.parametrize("sends", [b"", b"hello"])
async def test_a_closed_unix_peer_is_gone_if_it_has_sent_nothing(
    sends: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Its close ends both directions, and bytes that it sent stay."""
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours)
    theirs.sendall(sends)
    theirs.close()
    with trio.move_on_after(1000) as patience:
        await transport.wait_peer_gone(5)
    assert patience.cancelled_caught is (sends == b"hello")
    assert trio.current_time() == (1000 if sends else 0)
    assert transport.error is None
    transport.close()


@pytest.mark.parametrize("closed_at", [0, 1, 2])
async def test_wait_peer_gone_of_a_closed_transport_never_returns(
    closed_at: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Law 1: its descriptor may have been reused."""
    wait_readable, woken = trio.lowlevel.wait_readable, 0

    async def wait_and_close(fd: Any) -> None:
        nonlocal woken
        await wait_readable(fd)
        woken += 1
        if woken == closed_at:
            transport.close()

    with over(sockets) as (transport, link):
        reset(link.peer)
        if not closed_at:
            transport.close()
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_and_close)
        with trio.move_on_after(1000) as patience:
            await transport.wait_peer_gone(5)
        assert patience.cancelled_caught
        assert woken == closed_at


async def test_out_of_descriptors_no_peer_is_gone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: what can't be known is not an error."""

    def epoll() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with over(sockets) as (transport, link):
        monkeypatch.setattr(select, "epoll", epoll)
        reset(link.peer)
        with trio.move_on_after(1000) as patience:
            await transport.wait_peer_gone(5)
        assert patience.cancelled_caught


async def test_a_peek_does_not_lose_the_error() -> None:
    """Law 8: it takes the error from the kernel, and keeps it."""
    with over(sockets) as (transport, link):
        assert not transport.readable()
        await link.peer.send_all(b"hello")
        assert transport.readable()
        assert await transport.receive() == b"hello"
        assert not transport.readable()
        reset(link.peer)
        assert transport.readable()
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


async def test_the_wait_for_acknowledgements(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: it is bounded, since a peer may never read."""
    with over(sockets) as (transport, _):
        assert transport.unsent() == 0
        await transport.wait_acknowledged(5)
        assert trio.current_time() == 0
        with trio.move_on_after(1):
            await transport.send(bytes(30_000_000))
        assert transport.unsent()
        await acknowledged()
        await transport.wait_acknowledged(5)
        assert trio.current_time() == 6
        transport.abort()
        assert transport.unacknowledged
        assert transport.unsent() is None


async def test_a_broken_transport_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It will never be acknowledged."""
    with over(sockets) as (transport, link):
        with trio.move_on_after(1):
            await transport.send(bytes(30_000_000))
        reset(link.peer)
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()
        await transport.wait_acknowledged(5)
        assert trio.current_time() == 1


async def test_unacknowledged_bytes_of_a_unix_socket_are_unknown() -> None:
    """Law 5: its kernel counts memory, and not bytes."""
    one, other = socket.socketpair(socket.AF_UNIX)
    transport = SocketTransport(one)
    with other:
        await transport.send(b"hello")
        assert transport.unsent()
        transport.abort()
        assert transport.unacknowledged is None


async def test_no_more_is_unacknowledged_than_was_sent() -> None:
    """Law 5: other code may have sent bytes through the socket before."""
    one, other = socket_pair()
    with other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(100_000))
        transport = SocketTransport(one)
        transport.abort()
        assert transport.unacknowledged == 0


async def test_unacknowledged_bytes_may_be_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the system does not tell them."""
    with over(sockets) as (transport, _):
        monkeypatch.setattr(termios, "TIOCOUTQ", 0)
        assert transport.unsent() is None


@pytest.mark.parametrize("taken", [False, True])
async def test_a_reset_is_known_without_waiting(
    taken: bool,
) -> None:
    """Law 8: nothing is taken: receives get the bytes first, then the error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
    sock.setblocking(False)
    transport = SocketTransport(sock)
    assert not transport.is_reset()
    peer.sendall(b"hello")
    assert not transport.is_reset()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    if taken:  # other code has read SO_ERROR
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert transport.is_reset()
    assert isinstance(transport.error, ConnectionResetError)
    assert await transport.receive() == b"hello"
    with pytest.raises(trio.BrokenResourceError):
        await transport.receive()
    assert transport.is_reset()
    transport.close()


async def test_a_reset_of_a_unix_socket_or_a_stream_is_not_known() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    one, _ = trio.testing.memory_stream_pair()
    for transport in (SocketTransport(ours), StreamTransport(one)):
        assert not transport.is_reset()
        transport.close()
        await transport.wait_closed()
        assert not transport.is_reset()


async def test_a_closed_transport_is_readable_and_writable() -> None:
    """So that a wait for it ends."""
    with over(sockets) as (transport, _):
        transport.close()
        assert transport.readable()
        assert transport.writable()

"""A transport over a socket: how it waits, sends and receives; socket options."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from links import over, socket_pair, sockets
from support import receive_all, reset
from sweep import Begin, sweep
from trioserve._shared_socket import SharedSocketTransport
from trioserve._socket_transport import SocketTransport
from trioserve._transport import Transport


def test_a_receive_right_after_a_send_loses_nothing() -> None:
    """Law 4: cancelled at any step, bytes that are not returned are still there."""

    async def scenario(begin: Begin) -> None:
        with over(sockets) as (transport, link):
            await link.peer.send_all(b"hello")
            taken = b""
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                while len(taken) < 5:
                    await transport.send(b"more")
                    taken += await transport.receive(2)
            assert transport.received == len(taken)
            while len(taken) < 5:
                taken += await transport.receive()
            assert taken == b"hello"
            await transport.send_eof()
            assert len(await receive_all(link.peer)) == transport.sent

    assert sweep(scenario) >= 3


async def test_a_receive_right_after_a_send_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """If bytes have arrived: the send was a checkpoint."""
    waits: list[float] = []
    with over(sockets) as (transport, link):
        transport.on_wait = lambda: waits.append(transport.receiving_since)
        await link.peer.send_all(b"question")
        await trio.sleep(2)
        await transport.send(b"answer")
        assert await transport.receive() == b"question"
        assert (transport.moved_at, transport.first_byte_at) == (2, 2)
        assert not waits
        await transport.send(b"answer")
        with trio.move_on_after(1):
            await transport.receive()
        assert waits == [2]


async def test_a_receive_that_waited_is_followed_by_one_that_waits() -> None:
    """Only a send right before a receive counts."""
    waits: list[float] = []
    with over(sockets) as (transport, link):
        transport.on_wait = lambda: waits.append(transport.receiving_since)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receives_once, transport)
            await trio.testing.wait_all_tasks_blocked()
            await transport.send(b"hello")
            await link.peer.send_all(b"xx")
        await _receives_once(transport)
    assert len(waits) == 2


async def test_a_cancelled_receive_takes_nothing() -> None:
    """Not even right after a send, when it need not wait."""
    with over(sockets) as (transport, link):
        await link.peer.send_all(b"x")
        await transport.send(b"hello")
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.receive()
        assert scope.cancelled_caught
        assert transport.received == 0
        await _receives_once(transport)


async def _receives_once(transport: Transport) -> None:
    assert await transport.receive(1) == b"x"


async def _sends_once(transport: Transport) -> None:
    await transport.send(b"y")


async def _sends_and_receives_twice(transport: Transport) -> None:
    await transport.send(b"y")
    assert await transport.receive(1) == b"x"
    assert await transport.receive(1) == b"x"


@pytest.mark.parametrize(
    ("use", "passes"),
    [(_receives_once, 1), (_sends_once, 1), (_sends_and_receives_twice, 2)],
)
async def test_receives_that_need_not_wait_let_others_run(
    use: Callable[[Transport], Awaitable[None]], passes: int
) -> None:
    """However many bytes are there; only right after a send it is no checkpoint."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with over(sockets) as (transport, link):
        await link.peer.send_all(b"x" * 200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(100):
                await use(transport)
            nursery.cancel_scope.cancel()
    assert turns >= 100 * passes - 1  # the last turn may be missing


async def test_bytes_that_another_process_took_are_waited_for() -> None:
    """Two processes may share a socket; the slower one waits again."""
    one, other = socket_pair()
    readers = SocketTransport(one), SocketTransport(one.dup())
    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(reader.receive, 1)
        for _ in readers:
            await trio.testing.wait_all_tasks_blocked()
            other.send(b"x")
    for reader in readers:
        assert reader.received == 1
        reader.close()
    other.close()


async def test_a_second_receiver_is_an_error_right_after_a_send() -> None:
    """Even if the first one's bytes are there and it has not run since."""
    with over(sockets) as (transport, link):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receives_once, transport)
            await trio.testing.wait_all_tasks_blocked()
            await transport.send(b"hello")
            os.write(link.peer.socket.fileno(), b"x")
            with pytest.raises(trio.BusyResourceError):
                await transport.receive()
        assert transport.received == 1


async def test_bytes_that_have_arrived_can_be_discarded_at_once() -> None:
    """Law 4: so that a close does not send RST because of them."""
    with over(sockets) as (transport, link):
        assert isinstance(transport, SocketTransport)
        await link.peer.send_all(bytes(10))
        transport.discard_readable(100)
        assert (transport.discarded, transport.eof) == (10, False)
        await link.peer.send_eof()
        transport.discard_readable(100)
        assert (transport.discarded, transport.eof) == (10, True)
        transport.discard_readable(10)


@pytest.mark.parametrize("message", [b"", b"busy\n"])
async def test_a_refusal_is_a_message_and_eof(message: bytes) -> None:
    """Law 6: as much as goes without waiting, and no error if the peer is gone."""
    with over(sockets) as (transport, link):
        assert isinstance(transport, SocketTransport)
        transport.send_refusal(message)
        assert (transport.sent, transport.sent_eof) == (len(message), True)
        assert await receive_all(link.peer) == message
        reset(link.peer)
        transport.send_refusal(message)


async def test_the_kernel_holds_little_for_a_peer_that_never_reads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: some kilobytes, where it would take megabytes."""
    one, other = socket_pair()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    transport = SocketTransport(one)
    with other, trio.move_on_after(1):
        while True:
            await transport.send(bytes(1000))
    assert 0 < transport.sent < 100_000
    transport.close()


async def test_a_unix_socket_works_without_tcp_options() -> None:
    """Without what only TCP has."""
    one, other = socket.socketpair(socket.AF_UNIX)
    transport, peer = SocketTransport(one), SocketTransport(other)
    await transport.send(b"hello")
    assert await peer.receive() == b"hello"
    assert transport.trio_socket().family == socket.AF_UNIX
    transport.close()
    assert await peer.receive() == b""
    peer.close()


@pytest.mark.parametrize("owned", [False, True])
async def test_a_detached_socket_has_no_state(owned: bool) -> None:
    """Law 1: whatever is asked: it has no descriptor."""
    with sockets() as link:
        transport: SocketTransport
        if owned:
            transport = SharedSocketTransport(link.ours)
            number = link.ours.socket.detach()
        else:
            sock = socket.socket(fileno=link.ours.socket.detach())
            transport = SocketTransport(sock)
            number = sock.detach()
        assert not transport.end_is_receivable()
        assert not transport.is_reset()
        assert transport.readable()
        assert transport.writable()
        assert transport.unsent() is None
        assert not transport.observe_acks(trio.current_time())
        await transport.wait_acknowledged(5)
        await transport.discard(1000, 5)
        transport.discard_readable(1000)
        transport.send_refusal(b"bye")
        for use in (transport.receive(), transport.send(b"x"), transport.send_eof()):
            with pytest.raises(trio.ClosedResourceError):
                await use
        with pytest.raises(trio.ClosedResourceError):
            await transport.wait_writable()
        transport.abort()
        assert transport.unacknowledged is None
        assert (transport.received, transport.sent) == (0, 0)
        os.close(number)

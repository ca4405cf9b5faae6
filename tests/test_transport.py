"""Transports of every kind: exact counts, sticky errors, and how they close."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    CLOSES,
    MEDIA,
    REAL_MEDIA,
    TLS_MEDIA,
    Close,
    Medium,
    Peer,
    RealMedium,
    connection_over,
    memory,
    numbers,
    over,
    socket_pair,
    sockets,
    some_bytes,
)
from support import is_reset, open_fds, receive_all, receive_exactly, reset, run
from sweep import Begin, sweep
from trioserve import Connection
from trioserve._socket_transport import SocketTransport
from trioserve._stream_transport import StreamTransport
from trioserve._transport import Transport

ANY = (*MEDIA, *TLS_MEDIA)
REAL = (*REAL_MEDIA, *TLS_MEDIA)

# -- A connection as a Trio stream


async def _raw_connections() -> tuple[Connection, Connection]:
    one, other = socket_pair()
    return connection_over(SocketTransport(one)), connection_over(
        SocketTransport(other)
    )


async def _memory_connections() -> tuple[Connection, Connection]:
    one, other = trio.testing.memory_stream_pair()
    return connection_over(StreamTransport(one)), connection_over(
        StreamTransport(other)
    )


async def _clogged_connections() -> tuple[Connection, Connection]:
    pair = await _raw_connections()
    for connection in pair:
        with trio.move_on_after(1):
            while True:
                await connection.send_all(bytes(100_000))
    return pair


async def test_a_connection_over_a_socket_is_a_half_closeable_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As Trio defines one; lingering does not change it."""
    before = open_fds()
    await trio.testing.check_half_closeable_stream(
        _raw_connections, _clogged_connections
    )
    assert open_fds() == before


async def test_a_connection_over_a_stream_is_a_half_closeable_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As Trio defines one, over any stream."""
    await trio.testing.check_half_closeable_stream(_memory_connections, None)


# -- Counting


@given(
    script=st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), max_size=8),
    medium=st.sampled_from(ANY),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_bytes_received_and_sent_are_counted(
    script: list[tuple[bool, int]], medium: Medium, schedule: object
) -> None:
    """Law 4: exactly, in any order of moves."""

    async def main() -> None:
        with over(medium) as (transport, link):
            peer = Peer(link.peer)
            received = sent = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.read)
                for outward, count in script:
                    if outward:
                        await transport.send(some_bytes(sent, count))
                        sent += count
                    else:
                        nursery.start_soon(peer.send, count)
                        received += count
                        while transport.received < received:
                            assert await transport.receive(1 + count // 3)
                await transport.send_eof()
            assert (transport.received, transport.sent) == (received, sent)
            assert peer.received == some_bytes(0, sent)
            assert peer.tail == "eof"

    run(main)


async def test_a_cancelled_send_has_counted_its_exact_prefix(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 4: the peer can read as many bytes as were counted, and no more."""
    with over(sockets) as (transport, link):
        with trio.move_on_after(1) as scope:
            await transport.send(some_bytes(0, 30_000_000))
        assert scope.cancelled_caught
        assert 0 < transport.sent < 30_000_000
        await transport.send_eof()
        assert await receive_all(link.peer) == some_bytes(0, transport.sent)


def test_a_send_cancelled_at_any_step_has_counted_its_bytes() -> None:
    """Law 4: a cancellation that comes with the last byte does not hide it."""

    async def scenario(begin: Begin) -> None:
        with over(sockets) as (transport, link):
            returned = 0
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                for i in range(3):
                    await transport.send(some_bytes(10 * i, 10))
                    returned += 10
            assert transport.sent == returned
            await transport.send_eof()
            assert await receive_all(link.peer) == some_bytes(0, transport.sent)

    assert sweep(scenario) >= 3


@pytest.mark.parametrize("medium", ANY)
def test_a_receive_cancelled_at_any_step_has_taken_nothing(medium: Medium) -> None:
    """Law 4: bytes that are not returned are still there."""

    async def scenario(begin: Begin) -> None:
        with over(medium) as (transport, link):
            taken = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.peer.send_all, b"hello")
                with trio.CancelScope() as scope:
                    begin(scope.cancel)
                    while len(taken) < 5:
                        taken += await transport.receive(2)
            assert transport.received == len(taken)
            while len(taken) < 5:
                taken += await transport.receive()
            assert taken == b"hello"

    assert sweep(scenario) >= 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, numbers])
@pytest.mark.parametrize("size", [0, 8, 400_000, 1_000_000, 8_000_000])
async def test_any_buffer_is_sent_whole(
    kind: Callable[[bytes], bytes | bytearray | memoryview], size: int
) -> None:
    """Also if its length is not in bytes."""
    with over(sockets) as (transport, link):
        data = some_bytes(0, size)

        async def send() -> None:
            await transport.send(kind(data))
            await transport.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive_all(link.peer) == data
        assert transport.sent == size


def _moments(transport: Transport) -> tuple[float, float | None]:
    return transport.moved_at, transport.first_byte_at


@pytest.mark.parametrize("medium", ANY)
async def test_the_time_of_the_last_byte(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: for timers; a wait without bytes does not move it."""
    with over(medium) as (transport, link):
        await trio.sleep(1)
        await transport.send(b"hello")
        assert _moments(transport) == (1, None)
        await trio.sleep(1)
        await link.peer.send_all(b"hello")
        await transport.receive()
        assert _moments(transport) == (2, 2)
        await trio.sleep(1)
        await link.peer.send_all(b"hello")
        await transport.receive()
        assert _moments(transport) == (3, 2)
        with trio.move_on_after(5):
            await transport.receive()
        assert transport.moved_at == 3


@pytest.mark.parametrize("medium", ANY)
async def test_on_wait_is_called_for_every_wait(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: and the start of the wait is kept."""
    waits: list[tuple[float, float]] = []
    with over(medium) as (transport, _):
        transport.on_wait = lambda: waits.append(
            (transport.receiving_since, transport.sending_since)
        )
        await trio.sleep(3)
        with trio.move_on_after(1):
            await transport.receive()
        assert waits == [(3, math.inf)]
        assert transport.receiving_since == math.inf
        with trio.move_on_after(1):
            while True:
                await transport.send(bytes(1_000_000))
                if medium is memory:
                    break
        assert waits[-1] == (math.inf, trio.current_time() - (medium is not memory))
        assert transport.sending_since == math.inf


async def test_a_send_that_waits_counts_from_its_last_byte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: a slow reader has not stalled."""
    with over(sockets) as (transport, link):
        # Else the kernel makes it larger for one that reads fast: up to 32 MiB.
        link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        async with trio.open_nursery() as nursery:
            await trio.sleep(1)
            nursery.start_soon(transport.send, bytes(30_000_000))
            await trio.sleep(2)
            assert transport.sending_since == 1
            await receive_exactly(link.peer, 10_000_000)
            await trio.sleep(2)
            assert transport.sending_since == transport.moved_at == 3
            nursery.cancel_scope.cancel()


# -- Errors


@pytest.mark.parametrize("medium", REAL)
async def test_an_error_is_sticky_after_the_bytes_before_it(medium: RealMedium) -> None:
    """Law 8: the kernel forgets an error that was read; here it stays."""
    with over(medium) as (transport, link):
        await link.peer.send_all(b"hello")
        reset(link.peer)
        assert await transport.receive() == b"hello"
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError) as raised:
                await transport.receive()
            assert isinstance(raised.value.__cause__, ConnectionResetError)
            with pytest.raises(trio.BrokenResourceError):
                await transport.send(b"hello")
        assert not transport.eof


@pytest.mark.parametrize("medium", REAL)
async def test_a_send_that_finds_the_reset_does_not_hide_it(medium: RealMedium) -> None:
    """Law 8: bytes that arrived before are received, and then comes no EOF."""
    with over(medium) as (transport, link):
        await link.peer.send_all(b"hello")
        reset(link.peer)
        with pytest.raises(trio.BrokenResourceError):
            await transport.send(b"good bye")
        assert transport.sent == 0
        assert await transport.receive() == b"hello"
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


@pytest.mark.parametrize("medium", REAL)
async def test_an_eof_that_finds_the_reset_does_not_hide_it(medium: RealMedium) -> None:
    """Law 8: to send EOF to a peer that is gone is not an error; the next call is."""
    with over(medium) as (transport, link):
        await link.peer.send_all(b"hello")
        reset(link.peer)
        await transport.send_eof()
        assert await transport.receive() == b"hello"
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


async def test_the_first_error_stays() -> None:
    """Law 8: later errors follow from it and say less."""
    with over(sockets) as (transport, link):
        reset(link.peer)
        assert transport.readable()
        await transport.send_eof()
        assert isinstance(transport.error, ConnectionResetError)


@pytest.mark.parametrize("medium", ANY)
async def test_eof_comes_again(medium: Medium) -> None:
    """Law 7: it is a state, not an event; sending goes on."""
    with over(medium) as (transport, link):
        await link.peer.send_eof()
        for _ in range(3):
            assert await transport.receive() == b""
        assert transport.eof
        await transport.send(b"hello")
        assert await receive_exactly(link.peer, 5) == b"hello"


@pytest.mark.parametrize("medium", ANY)
async def test_eof_is_sent_once(medium: Medium) -> None:
    """Law 7: nothing can be sent after it, and a second call does nothing."""
    with over(medium) as (transport, link):
        waits: list[bool] = []
        transport.on_wait = lambda: waits.append(transport.sent_eof)
        await transport.send_eof()
        await transport.send_eof()
        assert waits == [True]
        with pytest.raises(trio.ClosedResourceError):
            await transport.send(b"too late")
        with pytest.raises(trio.ClosedResourceError):
            await transport.wait_writable()
        await link.peer.send_all(b"hello")
        assert await transport.receive() == b"hello"


# -- Two tasks


@pytest.mark.parametrize("medium", ANY)
async def test_a_second_receiver_is_an_error(medium: Medium) -> None:
    """The first goes on."""
    with over(medium) as (transport, link):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await transport.receive() == b"hello"

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await transport.receive()
            await link.peer.send_all(b"hello")


@pytest.mark.parametrize("medium", REAL)
async def test_a_second_sender_is_an_error(medium: RealMedium) -> None:
    """Also if the second only sends EOF."""
    with over(medium) as (transport, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, bytes(30_000_000))
            await trio.testing.wait_all_tasks_blocked()
            uses: tuple[Callable[[], Awaitable[None]], ...] = (
                lambda: transport.send(b"me too"),
                transport.wait_writable,
                transport.send_eof,
            )
            for use in uses:
                with pytest.raises(trio.BusyResourceError):
                    await use()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("medium", ANY)
@pytest.mark.parametrize("close", CLOSES, ids=["abort", "close"])
async def test_a_close_ends_every_wait(
    medium: Medium, close: Close, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 5: it is synchronous and idempotent."""
    with over(medium) as (transport, _):
        told = 0

        async def wait(use: Callable[[], Awaitable[object]]) -> None:
            nonlocal told
            with pytest.raises(trio.ClosedResourceError):
                await use()
            told += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, transport.receive)
            if medium is not memory:
                nursery.start_soon(wait, lambda: transport.send(bytes(30_000_000)))
            await trio.testing.wait_all_tasks_blocked()
            close(transport)
            close(transport)
        await transport.wait_closed()
        assert told == 2 - (medium is memory)
        assert transport.closed
        uses: tuple[Callable[[], Awaitable[object]], ...] = (
            transport.receive,
            lambda: transport.send(b""),
            transport.send_eof,
        )
        for use in uses:
            with pytest.raises(trio.ClosedResourceError):
                await use()


@pytest.mark.parametrize("medium", REAL)
async def test_close_sends_fin_and_abort_sends_rst(medium: RealMedium) -> None:
    """Law 8: a cut does not look like a clean end."""
    for close, resets in zip(CLOSES, (True, False), strict=True):
        with over(medium) as (transport, link):
            close(transport)
            await transport.wait_closed()
            assert await is_reset(link.peer) is resets


@pytest.mark.parametrize("medium", MEDIA)
async def test_release_leaves_the_stream_open(medium: Medium) -> None:
    """Law 13: it belongs to its owner again."""
    with over(medium) as (transport, link):
        transport.release()
        transport.release()
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        await link.ours.send_all(b"hello")
        assert await receive_exactly(link.peer, 5) == b"hello"


# -- Ending


async def test_discarded_bytes_are_counted() -> None:
    """Law 4: up to a maximum, or until EOF."""
    with over(sockets) as (transport, link):
        await link.peer.send_all(bytes(10_000))
        await transport.discard(4_000, 5)
        assert transport.discarded == transport.received == 4_000
        await link.peer.send_eof()
        await transport.discard(100_000, 5)
        assert transport.discarded == transport.received == 10_000
        assert transport.eof


async def test_a_reset_ends_a_discard() -> None:
    """Law 8: it is not raised, and still remembered."""
    with over(sockets) as (transport, link):
        await link.peer.send_all(bytes(10))
        reset(link.peer)
        await transport.discard(100, 5)
        assert transport.discarded == 10
        assert transport.error is not None


@pytest.mark.parametrize("medium", ANY)
async def test_an_unused_stream_is_writable(medium: Medium) -> None:
    """The wait for it returns at once."""
    with over(medium) as (transport, _):
        await transport.wait_writable()

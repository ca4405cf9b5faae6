"""Transports: exact counts, sticky errors, and who waits can be told."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    MEDIA,
    REAL_MEDIA,
    AnyLink,
    Medium,
    Peer,
    RealMedium,
    Whole,
    foreign,
    memory,
    socket_pair,
    sockets,
    some_bytes,
)
from support import (
    PanicError,
    acknowledged,
    is_reset,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
)
from sweep import Begin, sweep
from trioserve import Connection, Timeouts
from trioserve._errors import leaves
from trioserve._lifecycle import Lifecycle
from trioserve._relay import transport_of
from trioserve._socket_transport import SocketTransport
from trioserve._stream_transport import StreamTransport
from trioserve._timers import Timers
from trioserve._transport import Transport

L = TypeVar("L", bound=AnyLink)


@contextlib.contextmanager
def _over(medium: Callable[[], L]) -> Generator[tuple[Transport, L]]:
    """A transport over one end of a link."""
    with medium() as link:
        transport = transport_of(link.ours)
        try:
            yield transport, link
        finally:
            transport.release()


# -- A connection as a Trio stream


def _connection(transport: Transport) -> Connection:
    life = Lifecycle(
        transport,
        token=None,
        id=1,
        peer="peer",
        peer_key=None,
        local="local",
        listener="listener",
        timeouts=Timeouts(),
        timers=Timers(),
        draining=trio.Event(),
    )
    return Connection(life)


async def _raw_connections() -> tuple[Connection, Connection]:
    one, other = socket_pair()
    return _connection(SocketTransport(one)), _connection(SocketTransport(other))


async def _memory_connections() -> tuple[Connection, Connection]:
    one, other = trio.testing.memory_stream_pair()
    return _connection(StreamTransport(one)), _connection(StreamTransport(other))


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
    """As Trio defines one, whatever is below."""
    await trio.testing.check_half_closeable_stream(_memory_connections, None)


# -- Counting


@given(
    script=st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), max_size=8),
    medium=st.sampled_from(MEDIA),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_what_came_and_went_is_counted(
    script: list[tuple[bool, int]], medium: Medium, schedule: object
) -> None:
    """Law 4: received and sent are the bytes, whatever moves when."""

    async def main() -> None:
        with _over(medium) as (transport, link):
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
    with _over(sockets) as (transport, link):
        with trio.move_on_after(1) as scope:
            await transport.send(some_bytes(0, 30_000_000))
        assert scope.cancelled_caught
        assert 0 < transport.sent < 30_000_000
        await transport.send_eof()
        assert await receive_all(link.peer) == some_bytes(0, transport.sent)


def test_a_send_cancelled_at_any_step_has_counted_what_went() -> None:
    """Law 4: a cancel that comes with the last byte does not hide it."""

    async def scenario(begin: Begin) -> None:
        with _over(sockets) as (transport, link):
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


def test_a_receive_cancelled_at_any_step_has_taken_nothing() -> None:
    """Law 4: what is not returned is still there."""

    async def scenario(begin: Begin) -> None:
        with _over(sockets) as (transport, link):
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


def test_what_is_received_right_after_a_send_is_whole_at_any_step() -> None:
    """Law 4: then it tries before it waits; what is not returned is still there."""

    async def scenario(begin: Begin) -> None:
        with _over(sockets) as (transport, link):
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


def _numbers(data: bytes) -> memoryview:
    return memoryview(data).cast("Q")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, _numbers])
@pytest.mark.parametrize("size", [0, 8, 400_000, 1_000_000, 8_000_000])
async def test_whatever_holds_bytes_is_sent_whole(
    kind: Callable[[bytes], bytes | bytearray | memoryview], size: int
) -> None:
    """Also if its length is not in bytes."""
    with _over(sockets) as (transport, link):
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


@pytest.mark.parametrize("medium", MEDIA)
async def test_it_is_known_when_bytes_moved(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: timers rest on it; waiting without bytes moves nothing."""
    with _over(medium) as (transport, link):
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


@pytest.mark.parametrize("medium", MEDIA)
async def test_whoever_keeps_timers_is_told_of_every_wait(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: and since when it lasts."""
    waits: list[tuple[float, float]] = []
    with _over(medium) as (transport, _):
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


async def test_what_is_there_right_after_a_send_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A send has let others run; once more is not needed, unless nothing is there."""
    waits: list[float] = []
    with _over(sockets) as (transport, link):
        transport.on_wait = lambda: waits.append(transport.receiving_since)
        await link.peer.send_all(b"question")
        await trio.sleep(2)
        await transport.send(b"answer")
        assert await transport.receive() == b"question"
        assert _moments(transport) == (2, 2)
        assert not waits
        await transport.send(b"answer")
        with trio.move_on_after(1):
            await transport.receive()
        assert waits == [2]


async def test_who_waited_waits_first_again_whatever_was_sent_meanwhile() -> None:
    """A send is right before a receive, or it does not count."""
    waits: list[float] = []
    with _over(sockets) as (transport, link):
        transport.on_wait = lambda: waits.append(transport.receiving_since)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receives_once, transport)
            await trio.testing.wait_all_tasks_blocked()
            await transport.send(b"hello")
            await link.peer.send_all(b"xx")
        await _receives_once(transport)
    assert len(waits) == 2


async def test_a_cancelled_receive_takes_nothing_that_is_there() -> None:
    """Not even right after a send, when it need not wait."""
    with _over(sockets) as (transport, link):
        await link.peer.send_all(b"x")
        await transport.send(b"hello")
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.receive()
        assert scope.cancelled_caught
        assert transport.received == 0
        await _receives_once(transport)


async def test_a_send_that_waits_counts_from_its_last_byte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: a slow reader is no stalled one."""
    with _over(sockets) as (transport, link):
        async with trio.open_nursery() as nursery:
            await trio.sleep(1)
            nursery.start_soon(transport.send, bytes(30_000_000))
            await trio.sleep(2)
            assert transport.sending_since == 1
            await receive_exactly(link.peer, 10_000_000)
            await trio.sleep(2)
            assert transport.sending_since == transport.moved_at == 3
            nursery.cancel_scope.cancel()


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
async def test_nobody_who_need_not_wait_keeps_others_from_running(
    use: Callable[[Transport], Awaitable[None]], passes: int
) -> None:
    """However much is there; only a receive right after a send is no turn."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with _over(sockets) as (transport, link):
        await link.peer.send_all(b"x" * 200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(100):
                await use(transport)
            nursery.cancel_scope.cancel()
    assert turns >= 100 * passes - 1  # in the last one it may be late


# -- Errors


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_bytes_then_reset_and_reset_for_ever(medium: RealMedium) -> None:
    """Law 8: the kernel forgets an error that was read; here it stays."""
    with _over(medium) as (transport, link):
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


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_a_send_that_finds_the_reset_does_not_hide_it(medium: RealMedium) -> None:
    """Law 8: what had arrived is still received, and then it is no EOF."""
    with _over(medium) as (transport, link):
        await link.peer.send_all(b"hello")
        reset(link.peer)
        with pytest.raises(trio.BrokenResourceError):
            await transport.send(b"good bye")
        assert transport.sent == 0
        assert await transport.receive() == b"hello"
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_an_eof_that_finds_the_reset_does_not_hide_it(medium: RealMedium) -> None:
    """Law 8: sending EOF to nobody is no error; what comes after it is."""
    with _over(medium) as (transport, link):
        await link.peer.send_all(b"hello")
        reset(link.peer)
        await transport.send_eof()
        assert await transport.receive() == b"hello"
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


async def test_the_first_error_is_the_one_that_stays() -> None:
    """Law 8: what fails because of it says less."""
    with _over(sockets) as (transport, link):
        reset(link.peer)
        assert transport.readable()
        await transport.send_eof()
        assert isinstance(transport.error, ConnectionResetError)


@pytest.mark.parametrize("sends", [b"", b"hello"])
@pytest.mark.parametrize("ends", ["eof", "reset", "eof, then reset"])
async def test_who_is_gone_is_known_and_nothing_is_taken(
    sends: bytes, ends: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: a reset at once, an EOF after a while if there is nothing to receive."""
    with _over(sockets) as (transport, link):
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
async def test_a_unix_socket_that_is_closed_is_gone_if_it_has_said_nothing(
    sends: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """There a closed socket ends both directions, and what it sent stays."""
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
async def test_who_is_closed_meanwhile_is_not_gone(
    closed_at: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Law 1: the descriptor may be somebody else's by then."""
    wait_readable, woken = trio.lowlevel.wait_readable, 0

    async def wait_and_close(fd: Any) -> None:
        nonlocal woken
        await wait_readable(fd)
        woken += 1
        if woken == closed_at:
            transport.close()

    with _over(sockets) as (transport, link):
        reset(link.peer)
        if not closed_at:
            transport.close()
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_and_close)
        with trio.move_on_after(1000) as patience:
            await transport.wait_peer_gone(5)
        assert patience.cancelled_caught
        assert woken == closed_at


async def test_out_of_descriptors_nobody_is_gone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: what can't be seen is no error."""

    def epoll() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with _over(sockets) as (transport, link):
        monkeypatch.setattr(select, "epoll", epoll)
        reset(link.peer)
        with trio.move_on_after(1000) as patience:
            await transport.wait_peer_gone(5)
        assert patience.cancelled_caught


async def test_looking_whether_it_is_readable_does_not_lose_the_error() -> None:
    """Law 8: a peek takes the error from the kernel, and keeps it."""
    with _over(sockets) as (transport, link):
        assert not transport.readable()
        await link.peer.send_all(b"hello")
        assert transport.readable()
        assert await transport.receive() == b"hello"
        assert not transport.readable()
        reset(link.peer)
        assert transport.readable()
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


@pytest.mark.parametrize("medium", MEDIA)
async def test_eof_comes_again(medium: Medium) -> None:
    """Law 7: it is a state, not an event; sending goes on."""
    with _over(medium) as (transport, link):
        await link.peer.send_eof()
        for _ in range(3):
            assert await transport.receive() == b""
        assert transport.eof
        await transport.send(b"hello")
        assert await receive_exactly(link.peer, 5) == b"hello"


@pytest.mark.parametrize("medium", MEDIA)
async def test_eof_is_sent_once(medium: Medium) -> None:
    """Law 7: nothing can be sent after it, and it can be asked for twice."""
    with _over(medium) as (transport, link):
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


async def test_a_stream_that_cannot_send_eof_says_so() -> None:
    """Law 7: whoever relays has to know before."""
    with memory() as link:
        transport = StreamTransport(Whole(link.ours))
        assert not transport.can_half_close
        with pytest.raises(TypeError, match="Whole can't send EOF"):
            await transport.send_eof()


# -- Two tasks


async def test_bytes_that_somebody_else_took_are_waited_for() -> None:
    """Two processes may share a socket; who comes too late waits again."""
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


@pytest.mark.parametrize("medium", MEDIA)
async def test_two_receivers_are_one_too_many(medium: Medium) -> None:
    """The first goes on, the second is told."""
    with _over(medium) as (transport, link):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await transport.receive() == b"hello"

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await transport.receive()
            await link.peer.send_all(b"hello")


async def test_two_receivers_are_one_too_many_right_after_a_send() -> None:
    """Also if what the first waits for is there, and it has not run since."""
    with _over(sockets) as (transport, link):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receives_once, transport)
            await trio.testing.wait_all_tasks_blocked()
            await transport.send(b"hello")
            os.write(link.peer.socket.fileno(), b"x")
            with pytest.raises(trio.BusyResourceError):
                await transport.receive()
        assert transport.received == 1


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_two_senders_are_one_too_many(medium: RealMedium) -> None:
    """Also if the second sends EOF only."""
    with _over(medium) as (transport, _):
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


Close = Callable[[Transport], None]
CLOSES: tuple[Close, ...] = (lambda t: t.abort(), lambda t: t.close())


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("close", CLOSES, ids=["abort", "close"])
async def test_who_waits_is_told_that_it_was_closed(
    medium: Medium, close: Close, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 5: closing is synchronous, ends every wait, and twice is once."""
    with _over(medium) as (transport, _):
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


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_closed_it_ends_by_fin_and_aborted_by_rst(medium: RealMedium) -> None:
    """Law 8: a cut looks like one."""
    for close, resets in zip(CLOSES, (True, False), strict=True):
        with _over(medium) as (transport, link):
            close(transport)
            await transport.wait_closed()
            assert await is_reset(link.peer) is resets


async def test_its_owner_closes_the_socket_below() -> None:
    """Law 13: who waits is told; nothing is done to the descriptor any more."""
    with _over(sockets) as (transport, link):
        link.ours.socket.close()
        assert transport.readable()
        assert transport.unsent() is None
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        transport.abort()
        transport.close()


async def test_a_sender_whose_descriptor_is_somebody_elses_writes_nothing() -> None:
    """Law 1: closed while it waits in the middle of a send."""
    with _over(sockets) as (transport, link), sockets() as stranger:
        number = link.ours.socket.fileno()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send(bytes(30_000_000))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                link.ours.socket.close()
                os.dup2(stranger.ours.socket.fileno(), number)
            await stranger.ours.send_all(b"hello")
            assert await receive_exactly(stranger.peer, 5) == b"hello"
        finally:
            os.close(number)


async def test_a_receiver_whose_descriptor_is_somebody_elses_takes_nothing() -> None:
    """Law 1: closed right after a send, before a receive that need not wait."""
    with _over(sockets) as (transport, link), sockets() as stranger:
        number = link.ours.socket.fileno()
        await transport.send(b"bye")
        link.ours.socket.close()
        os.dup2(stranger.ours.socket.fileno(), number)
        try:
            await stranger.peer.send_all(b"hello")
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()
            assert await receive_exactly(stranger.ours, 5) == b"hello"
        finally:
            os.close(number)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_sender_that_could_go_on_when_its_descriptor_changed_hands(
    schedule: object,
) -> None:
    """Law 1: woken for the old socket, nobody writes to the new one."""

    async def main() -> None:
        with (
            _over(sockets) as (transport, link),
            sockets() as stranger,
            sockets() as bell,
        ):
            ours, number = link.ours.socket, link.ours.socket.fileno()

            async def change_hands() -> None:
                await bell.ours.receive_some()
                ours.close()
                os.dup2(stranger.ours.socket.fileno(), number)

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await transport.send(bytes(30_000_000))

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    nursery.start_soon(change_hands)
                    await trio.testing.wait_all_tasks_blocked()
                    # In one step, so that both wake up in the same turn.
                    os.read(link.peer.socket.fileno(), 30_000_000)
                    os.write(bell.peer.socket.fileno(), b"!")
                await stranger.ours.send_all(b"hello")
                assert await receive_exactly(stranger.peer, 5) == b"hello"
            finally:
                os.close(number)

    run(main)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_receiver_that_could_go_on_when_its_descriptor_changed_hands(
    schedule: object,
) -> None:
    """Law 1: woken for the old socket, nobody takes what came to the new one."""

    async def main() -> None:
        with (
            _over(sockets) as (transport, link),
            sockets() as stranger,
            sockets() as bell,
        ):
            ours, number = link.ours.socket, link.ours.socket.fileno()
            await stranger.peer.send_all(b"not yours")

            async def change_hands() -> None:
                await bell.ours.receive_some()
                ours.close()
                os.dup2(stranger.ours.socket.fileno(), number)

            async def receive() -> None:
                # It may have been faster.
                with contextlib.suppress(trio.ClosedResourceError):
                    assert await transport.receive() == b"yours"

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    nursery.start_soon(change_hands)
                    await trio.testing.wait_all_tasks_blocked()
                    # In one step, so that both wake up in the same turn.
                    os.write(link.peer.socket.fileno(), b"yours")
                    os.write(bell.peer.socket.fileno(), b"!")
                assert await stranger.ours.receive_some() == b"not yours"
            finally:
                os.close(number)

    run(main)


async def test_a_closed_stream_cannot_be_shared() -> None:
    """There is nothing to share."""
    with sockets() as link:
        await link.ours.aclose()
        with pytest.raises(trio.ClosedResourceError):
            SocketTransport.share(link.ours)


@pytest.mark.parametrize("medium", MEDIA)
async def test_released_the_stream_is_as_it_was(medium: Medium) -> None:
    """Law 13: it goes back to whoever owns it, open."""
    with _over(medium) as (transport, link):
        transport.release()
        transport.release()
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        await link.ours.send_all(b"hello")
        assert await receive_exactly(link.peer, 5) == b"hello"


# -- Ending


async def test_what_is_thrown_away_is_counted() -> None:
    """Law 4: up to so many bytes, or until EOF."""
    with _over(sockets) as (transport, link):
        await link.peer.send_all(bytes(10_000))
        await transport.discard(4_000, 5)
        assert transport.discarded == transport.received == 4_000
        await link.peer.send_eof()
        await transport.discard(100_000, 5)
        assert transport.discarded == transport.received == 10_000
        assert transport.eof


async def test_a_reset_ends_the_throwing_away() -> None:
    """Law 8: nobody is interested in it, and it is still remembered."""
    with _over(sockets) as (transport, link):
        await link.peer.send_all(bytes(10))
        reset(link.peer)
        await transport.discard(100, 5)
        assert transport.discarded == 10
        assert transport.error is not None


async def test_what_is_there_can_be_thrown_away_without_waiting() -> None:
    """Law 4: so that closing does not reset for bytes that nobody read."""
    with _over(sockets) as (transport, link):
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
    """Law 6: as much as goes without waiting, and no error if nobody is there."""
    with _over(sockets) as (transport, link):
        assert isinstance(transport, SocketTransport)
        transport.send_refusal(message)
        assert (transport.sent, transport.sent_eof) == (len(message), True)
        assert await receive_all(link.peer) == message
        reset(link.peer)
        transport.send_refusal(message)


async def test_flushed_is_what_the_peer_has_acknowledged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: bounded, since a peer may never read."""
    with _over(sockets) as (transport, _):
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


async def test_nobody_waits_until_a_broken_one_has_acknowledged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It never will."""
    with _over(sockets) as (transport, link):
        with trio.move_on_after(1):
            await transport.send(bytes(30_000_000))
        reset(link.peer)
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()
        await transport.wait_acknowledged(5)
        assert trio.current_time() == 1


@pytest.mark.parametrize("medium", MEDIA)
async def test_an_unused_stream_is_writable(medium: Medium) -> None:
    """Waiting for it returns at once."""
    with _over(medium) as (transport, _):
        await transport.wait_writable()


async def test_of_what_nobody_reads_the_kernel_holds_little(
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


async def test_a_unix_socket_is_a_socket() -> None:
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
async def test_a_socket_that_was_detached_tells_nothing(owned: bool) -> None:
    """Law 1: whatever is asked of it: there is no descriptor to ask."""
    with sockets() as link:
        if owned:
            transport = SocketTransport.share(link.ours)
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


async def test_unacknowledged_of_a_unix_socket_is_unknown() -> None:
    """Law 5: what its kernel counts is memory, and not bytes."""
    one, other = socket.socketpair(socket.AF_UNIX)
    transport = SocketTransport(one)
    with other:
        await transport.send(b"hello")
        assert transport.unsent()
        transport.abort()
        assert transport.unacknowledged is None


async def test_no_more_is_unacknowledged_than_was_sent() -> None:
    """Law 5: whoever had the socket before may have sent much."""
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


async def test_what_a_system_does_not_tell_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes not acknowledged are a courtesy of the kernel."""
    with _over(sockets) as (transport, _):
        monkeypatch.setattr(termios, "TIOCOUTQ", 0)
        assert transport.unsent() is None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, _numbers])
async def test_of_a_foreign_stream_too_it_is_bytes_that_are_counted(
    kind: Callable[[bytes], bytes | bytearray | memoryview],
) -> None:
    """Law 5: also if the length of what was sent is not in bytes."""
    with _over(foreign) as (transport, link):
        await transport.send(kind(bytes(80)))
        assert transport.sent == 80
        assert await receive_exactly(link.peer, 80) == bytes(80)


class _Raises(Whole):
    """A stream that raises when it is closed."""

    def __init__(self, below: Any, error: BaseException) -> None:
        super().__init__(below)
        self._error = error

    async def aclose(self) -> None:
        raise self._error


NO_EXCEPTIONS = [
    PanicError("panicked"),
    GeneratorExit(),
    BaseExceptionGroup("both", [PanicError(), ValueError()]),
]


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("close", CLOSES)
async def test_whatever_a_foreign_stream_raises_when_it_is_closed_ends_nothing(
    close: Close, error: BaseException
) -> None:
    """Law 1: also what is no Exception."""
    with memory() as link:
        transport = StreamTransport(_Raises(link.ours, error))
        close(transport)
        await transport.wait_closed()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_it_when_a_foreign_stream_is_closed(
    kind: type[BaseException], grouped: bool
) -> None:
    """Nothing keeps that to itself, whatever else is raised with it."""
    error = kind("the end")
    raised = BaseExceptionGroup("both", [PanicError(), error]) if grouped else error

    async def main() -> None:
        with memory() as link:
            transport = StreamTransport(_Raises(link.ours, raised))
            transport.close()
            await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as failed:
        trio.run(main)
    (leaf,) = leaves(failed.value.__cause__ or failed.value)
    assert leaf is error


class _Hangs(Whole):
    """A stream that takes for ever to close, or raises when it is pressed."""

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("and now this")


@pytest.mark.parametrize(("close", "seconds"), [(CLOSES[0], 0), (CLOSES[1], 2)])
async def test_a_foreign_stream_that_does_not_close_is_not_waited_for(
    close: Close, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: nor can it end the program."""
    with memory() as link:
        transport = StreamTransport(_Hangs(link.ours))
        close(transport)
        await transport.wait_closed()
        assert trio.current_time() == seconds


@pytest.mark.parametrize("taken", [False, True])
async def test_whether_its_peer_has_reset_it_is_known_without_waiting(
    taken: bool,
) -> None:
    """Law 8: whoever asks takes nothing: the bytes first, and then the error."""
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
    if taken:  # by somebody else who has asked
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert transport.is_reset()
    assert isinstance(transport.error, ConnectionResetError)
    assert await transport.receive() == b"hello"
    with pytest.raises(trio.BrokenResourceError):
        await transport.receive()
    assert transport.is_reset()
    transport.close()


async def test_of_a_unix_socket_or_a_stream_nobody_can_say_whether_it_is_over() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    one, _ = trio.testing.memory_stream_pair()
    for transport in (SocketTransport(ours), StreamTransport(one)):
        assert not transport.is_reset()
        transport.close()
        await transport.wait_closed()
        assert not transport.is_reset()


async def test_what_is_closed_makes_nobody_wait() -> None:
    """A look at a transport that was closed finds that a wait would end."""
    with _over(sockets) as (transport, _):
        transport.close()
        assert transport.readable()
        assert transport.writable()


async def test_what_raises_is_known_as_a_stream_of_ours() -> None:
    """A transport over a foreign stream is only itself."""
    with _over(foreign) as (transport, link):
        assert transport.wraps(transport)
        assert not transport.wraps(link.peer)

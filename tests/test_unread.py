"""Bytes that are given back: the next receive gets them, and they count once."""

from __future__ import annotations

from typing import Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    MEDIA,
    TLS_MEDIA,
    Medium,
    RealLink,
    RealMedium,
    TlsPeer,
    foreign,
    memory,
    over,
    sockets,
    some_bytes,
)
from support import receive_all, relayed, reset, run, serving
from sweep import Begin, sweep
from trioserve import Connection, RelayResult, proxy
from trioserve._connection import lifecycle_of
from trioserve._relay import transport_of
from trioserve._transport import Transport

ANY = (*MEDIA, *TLS_MEDIA)

# -- Receiving


_Step = tuple[Literal["receive", "unread"], int]
_steps = st.tuples(st.sampled_from(["receive", "unread"]), st.integers(1, 3000))


@given(
    total=st.integers(0, 10_000),
    script=st.lists(_steps),
    medium=st.sampled_from(ANY),
    ends=st.sampled_from(["eof", "reset"]),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_unread_changes_neither_the_bytes_nor_their_count(
    total: int, script: list[_Step], medium: Medium, ends: str, schedule: object
) -> None:
    """Laws 4 and 16: a script of receives and unreads reads the same bytes."""

    async def main() -> None:
        with over(medium) as (transport, link):
            await link.peer.send_all(some_bytes(0, total))
            resets = ends == "reset" and isinstance(link.peer, trio.SocketStream)
            if resets:
                assert isinstance(link.peer, trio.SocketStream)
                reset(link.peer)
            else:
                await link.peer.send_eof()
            read = b""
            for what, count in script:
                if what == "unread":
                    keep = max(len(read) - count, 0)
                    transport.unread(read[keep:])
                    read = read[:keep]
                    if transport.unread_bytes:
                        assert transport.readable()
                elif len(read) < total:
                    data = await transport.receive(count)
                    assert 1 <= len(data) <= count
                    read += data
                assert transport.received == len(read) + len(transport.unread_bytes)
            while len(read) < total:
                read += await transport.receive()
            assert read == some_bytes(0, total)
            assert transport.received == total
            if resets:
                with pytest.raises(trio.BrokenResourceError):
                    await transport.receive()
            else:
                assert await transport.receive() == b""
                assert transport.eof

    run(main)


@pytest.mark.parametrize("medium", ANY)
async def test_eof_and_errors_come_after_unread_bytes(medium: Medium) -> None:
    """Laws 8 and 16: as they did before the bytes were given back."""
    for resets in (False, True):
        with over(medium) as (transport, link):
            await link.peer.send_all(b"hello")
            assert await transport.receive() == b"hello"
            if resets and isinstance(link.peer, trio.SocketStream | TlsPeer):
                reset(link.peer)
                with pytest.raises(trio.BrokenResourceError):
                    await transport.receive()
            else:
                await link.peer.send_eof()
                assert await transport.receive() == b""
            transport.unread(b"lo")
            transport.unread(b"hel")
            assert await transport.receive() == b"hello"
            if resets and link.resets:
                with pytest.raises(trio.BrokenResourceError):
                    await transport.receive()
            else:
                assert await transport.receive() == b""
            assert transport.received == 5


@pytest.mark.parametrize("medium", [sockets, memory])
def test_a_cancelled_receive_of_unread_bytes_takes_nothing(
    medium: Medium,
) -> None:
    """Law 4: at any step, bytes that are not returned are still there."""

    async def scenario(begin: Begin) -> None:
        with over(medium) as (transport, link):
            await link.peer.send_all(b"hello")
            transport.unread(await transport.receive())
            taken = b""
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                while len(taken) < 5:
                    taken += await transport.receive(2)
            while len(taken) < 5:
                taken += await transport.receive(2)
            assert taken == b"hello"

    assert sweep(scenario) >= 3


async def test_a_second_receiver_does_not_overtake_unread_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 4: two tasks that receive are an error, as with other bytes."""
    checkpoint = trio.lowlevel.cancel_shielded_checkpoint

    async def others_run() -> None:
        with pytest.raises(trio.BusyResourceError):
            transport.check_receivable()
        with pytest.raises(trio.BusyResourceError):
            transport.unread(b"x")
        await checkpoint()

    with over(sockets) as (transport, link):
        await link.peer.send_all(b"hello")
        transport.unread(await transport.receive())
        monkeypatch.setattr(trio.lowlevel, "cancel_shielded_checkpoint", others_run)
        assert await transport.receive(2) == b"he"
        assert await transport.receive() == b"llo"


async def test_unread_is_an_error_while_a_receive_waits() -> None:
    """It would return later bytes first."""
    with over(sockets) as (transport, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                transport.unread(b"x")
            nursery.cancel_scope.cancel()


# -- Throwing it away


@pytest.mark.parametrize("medium", ANY)
async def test_unread_bytes_that_are_dropped_count_as_discarded(medium: Medium) -> None:
    """Law 4: by each way to close."""

    async def discard(transport: Transport) -> None:
        await transport.discard(3, 5)
        assert transport.discarded == 3
        await transport.discard(100, 5)

    async def discard_readable(transport: Transport) -> None:
        transport.discard_readable(100)

    async def close(transport: Transport) -> None:
        transport.close()
        await transport.wait_closed()

    async def abort(transport: Transport) -> None:
        transport.abort()
        await transport.wait_closed()

    async def release(transport: Transport) -> None:
        transport.release()

    for throw_away in (discard, discard_readable, close, abort, release):
        with medium() as link:
            transport = transport_of(link.ours)
            await link.peer.send_all(b"hello")
            await link.peer.send_eof()
            transport.unread(await transport.receive())
            await throw_away(transport)
            assert (transport.received, transport.discarded) == (5, 5)
            assert not transport.unread_bytes
            transport.release()
            transport.unread(b"more")
            assert transport.discarded == 9


async def test_a_close_by_other_code_discards_unread_bytes() -> None:
    """Law 4: as soon as that is noticed."""
    with sockets() as link:
        transport = transport_of(link.ours)
        await link.peer.send_all(b"hello")
        transport.unread(await transport.receive())
        link.ours.socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        assert transport.discarded == 5


async def test_a_peer_whose_bytes_were_given_back_is_not_gone_at_its_eof(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: they are still to be received."""
    with over(sockets) as (transport, link):
        await link.peer.send_all(b"hello")
        transport.unread(await transport.receive())
        await link.peer.send_eof()
        with trio.move_on_after(100) as scope:
            await transport.wait_peer_gone(5)
        assert scope.cancelled_caught


# -- Relays


async def _give_all_back(transport: Transport, link: RealLink, data: bytes) -> None:
    """Let a peer send bytes, and give them back when all have arrived."""
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.peer.send_all, data)
        while len(received) < len(data):
            received += await transport.receive()
    transport.unread(received)


@pytest.mark.parametrize("medium", [sockets, foreign], ids=["engine", "tasks"])
@pytest.mark.parametrize("size", [1, 300_000])
async def test_a_relay_passes_unread_bytes_on_first(
    medium: RealMedium, size: int
) -> None:
    """Law 4: both ways, once, and after the caller's ``first``."""
    head, middle, tail = b"head", some_bytes(0, size), b"tail"
    with over(medium) as (one, a), over(medium) as (other, b):
        sides = [one, other]
        for side, link in zip(sides, (a, b), strict=True):
            await _give_all_back(side, link, middle)
        results: list[RelayResult] = []
        heard: list[bytes] = []

        async def relay_them() -> None:
            results.append(await relayed(*sides, first=head))

        async def listen(link: RealLink) -> None:
            heard.append(await receive_all(link.peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_them)
            for link in (a, b):
                await link.peer.send_all(tail)
                await link.peer.send_eof()
                nursery.start_soon(listen, link)
        assert sorted(heard) == sorted([head + middle + tail, middle + tail])
        (result,) = results
        assert result.a_to_b.delivered == len(head + middle + tail)
        assert result.b_to_a.delivered == len(middle + tail)
        assert result.a_to_b.discarded == result.b_to_a.discarded == 0


async def test_a_relay_that_can_not_send_unread_bytes_resets_both() -> None:
    """Other tasks are sending to both sides; the unread bytes are lost."""
    with over(sockets) as (one, _), over(sockets) as (other, _):

        async def send(side: Transport) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await side.send(bytes(30_000_000))

        async with trio.open_nursery() as nursery:
            for side in (one, other):
                side.unread(b"hello")
                nursery.start_soon(send, side)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await relayed(one, other)


@pytest.mark.parametrize("faults", ["", "latency=100ms"])
async def test_a_proxy_passes_unread_bytes_on_first(
    faults: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: through faults, too, which treat them like all other bytes."""

    async def upstream(conn: Connection) -> None:
        await conn.send_all(await receive_all(conn))

    async with serving(upstream) as target:
        pass_on = proxy(target.address, faults=faults)

        async def handler(conn: Connection) -> None:
            lifecycle_of(conn).transport.unread(await conn.receive_some())
            await pass_on(conn)

        async with serving(handler) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            await client.send_eof()
            began = trio.current_time()
            assert await receive_all(client) == b"hello"
            took = trio.current_time() - began
    (report,) = running.reports
    assert report.upstream is not None
    assert (report.bytes_received, report.upstream.bytes_sent) == (5, 5)
    assert (took >= 0.1) == bool(faults)

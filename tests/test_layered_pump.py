"""Relays by the engine where a side speaks TLS: what is different from sockets.

That they keep the same rules is in test_relay.py.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from links import (
    TLS_MEDIA,
    Peer,
    RealLink,
    RealMedium,
    Sockets,
    TlsPeer,
    narrow,
    sockets,
    some_bytes,
    tls13,
    tls_sessions,
)
from support import Result, acknowledged, reset, run
from test_engine import Heard, started
from trioserve import Reason, Timeouts, relay
from trioserve._engine import Engine
from trioserve._layered_pump import LayeredPump
from trioserve._relay import transport_of
from trioserve._tls_transport import TlsTransport
from trioserve._transport import EngineTransport

MUCH = 3_000_000


def transport(link: RealLink) -> TlsTransport:
    """Our end's transport."""
    made = transport_of(link.ours)
    assert isinstance(made, TlsTransport)
    return made


def tls_peer(link: RealLink) -> TlsPeer:
    """The other end."""
    peer: object = link.peer
    assert isinstance(peer, TlsPeer)
    return peer


@asynccontextmanager
async def relaying(
    a: RealLink, b: RealLink, **options: Any
) -> AsyncGenerator[tuple[Peer, Peer, Result]]:
    """A relay, and two peers that read."""
    one, other = Peer(a.peer), Peer(b.peer)
    with a, b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours, **options)
            nursery.start_soon(one.read)
            nursery.start_soon(other.read)
            await trio.testing.wait_all_tasks_blocked()
            yield one, other, result


@pytest.mark.parametrize("there", [sockets, *TLS_MEDIA])
@pytest.mark.parametrize("medium", TLS_MEDIA)
def test_no_task_moves_bytes(medium: RealMedium, there: RealMedium) -> None:
    """Each side waits for the other one, with much on the way, in both directions."""

    async def main() -> None:
        async with relaying(medium(), there()) as (one, other, result):
            assert not any("run_pump" in task.name for task in _tasks())
            one.stop_reading()
            other.stop_reading()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.send, MUCH)
                nursery.start_soon(other.send, MUCH)
                await trio.testing.wait_all_tasks_blocked(0.01)
                one.read_on()
                other.read_on()
            await one.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert other.tail == "eof"
            await other.send(1000)
            await other.send_eof()
        assert one.received == other.sent
        assert other.received == one.sent
        assert (one.tail, other.tail) == ("eof", "eof")
        assert result.value.reason is Reason.CLIENT_CLOSED
        assert result.value.a_to_b.delivered == len(one.sent)
        assert result.value.b_to_a.delivered == len(other.sent)

    run(main)


def _tasks() -> list[trio.lowlevel.Task]:
    found = [trio.lowlevel.current_root_task()]
    for task in found:
        assert task is not None
        for nursery in task.child_nurseries:
            found += nursery.child_tasks
    return [task for task in found if task is not None]


@pytest.mark.parametrize("ends", [False, True])
async def test_what_has_come_with_the_handshake_is_relayed_at_once(
    ends: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The kernel has no byte more, so no event tells of it."""
    a, b = tls13(), sockets()
    peer = tls_peer(a).transport
    peer.session.write(b"hello")
    if ends:
        peer.session.close()
    transport(a).session.feed(peer.session.output())
    async with relaying(a, b) as (one, other, _):
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (bytes(other.received), other.tail) == (
            b"hello",
            "eof" if ends else "open",
        )
        await other.send_eof()
        await one.send_eof()


async def test_bytes_from_before_are_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 5: those that were given back, then those that OpenSSL holds."""
    a, b = tls13(), sockets()
    peer = tls_peer(a).transport
    peer.session.write(b"3")
    transport(a).session.feed(peer.session.output())
    transport(a).unread(b"2")
    async with relaying(a, b, first=b"1") as (one, other, _):
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bytes(other.received) == b"123"
        await other.send_eof()
        await one.send_eof()


async def test_an_echo_of_itself(autojump_clock: trio.testing.MockClock) -> None:
    """One pump has the same transport as source and sink."""
    with tls13() as a:
        peer = Peer(a.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, a.ours)
            nursery.start_soon(peer.read)
            await peer.send(MUCH)
            await peer.send_eof()
        assert (peer.received, peer.tail) == (peer.sent, "eof")


async def test_an_echo_to_a_client_that_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its bytes have come, and the next send says that it has reset the connection."""
    with tls13() as a:
        ours, peer, heard = transport(a), tls_peer(a), Heard()
        with started(heard, LayeredPump(ours, ours)):
            peer.transport.session.write(b"hello")
            os.write(peer.socket.fileno(), peer.transport.session.output())
            reset(peer)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert heard.told == ["error"]
        assert ours.received == 5
        assert ours.error is not None


@pytest.mark.parametrize("medium", TLS_MEDIA)
async def test_an_eof_for_which_there_is_no_room_comes_later(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 5: a close_notify is bytes, and may have to wait like all bytes."""
    a, b = sockets(), medium()
    narrow(b.peer)
    async with relaying(a, b) as (one, other, result):
        other.stop_reading()
        sink = transport(b)
        while not sink.held:
            sink.send_now(bytes(60_000), trio.current_time())
            if sink.held:
                await acknowledged()
                sink.send_now(b"", trio.current_time())  # what is held
        before = sink.sent
        await one.send_eof()
        await acknowledged()
        assert sink.sent_eof
        assert sink.held
        assert other.tail == "open"
        other.read_on()
        await acknowledged()
        assert (other.tail, len(other.received)) == ("eof", before)
        await other.send(10)
        await other.send_eof()
    assert bytes(one.received) == some_bytes(0, 10)
    assert result.value.reason is Reason.CLIENT_CLOSED


@pytest.mark.parametrize("medium", TLS_MEDIA)
async def test_a_record_that_is_not_valid_resets_the_other_side(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: all bytes before it arrive; and the peer is told."""
    a, b = medium(), sockets()
    async with relaying(a, b) as (one, other, result):
        await one.send(1000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await tls_peer(a).transport.below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert (other.received, other.tail) == (one.sent, "reset")
    assert one.tail == "reset"
    told = tls_peer(a).transport.error
    assert "bad_record_mac" in str(told) or "decrypt" in str(told)
    assert result.value.reason is Reason.CLIENT_RESET


@pytest.mark.parametrize("medium", TLS_MEDIA)
async def test_an_error_right_after_bytes_does_not_wait_for_an_event(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: the other side is reset, though the peer does not close."""
    a, b = medium(), sockets()
    async with relaying(a, b) as (one, other, _):
        await one.send(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        one.stop_reading()
        peer = tls_peer(a).transport
        peer.session.write(b"x" * 1000)
        bad = b"\x17\x03\x03\x00\x20" + bytes(32)
        await peer.below.send(peer.session.output() + bad)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert other.received == one.sent + b"x" * 1000
        assert other.tail == "reset"
        one.read_on()


async def test_a_record_that_is_not_valid_while_a_task_sends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The alert can not be sent in the middle of that, and the relay ends."""
    a, b = tls13(), sockets()
    async with relaying(a, b) as (one, _, result):
        one.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(a.ours).send, 10 * MUCH)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await tls_peer(a).transport.below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        one.read_on()
    assert result.value.reason is Reason.CLIENT_RESET


@asynccontextmanager
async def blocked() -> AsyncGenerator[tuple[Sockets, LayeredPump, Heard]]:
    """A source's link, and a pump to a TLS side that has no room for its bytes."""
    with sockets() as a, tls13() as b:
        narrow(b.peer)
        source, sink = transport_of(a.ours), transport(b)
        assert isinstance(source, EngineTransport)
        pumps = LayeredPump(source, sink), LayeredPump(sink, source)
        heard = Heard()
        with started(heard, *pumps):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Peer(a.peer).send, MUCH)
                await acknowledged()
                nursery.cancel_scope.cancel()
            assert pumps[0].blocked
            yield a, pumps[0], heard
        source.release()


async def test_an_event_without_room_is_no_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: write_stall counts from the last byte, not from the last event."""
    async with blocked() as (a, pump, heard):
        sink = pump.sink
        since = sink.sending_since
        pump.on_writable(since + 5)
        assert (pump.blocked, sink.sending_since) == (True, since)
        assert sink.receive_now(trio.current_time()) is None
        a.ours.socket.close()
        pump.on_readable(Engine.of_this_run(), 0)
        assert heard.told[-1] == "closed"


@pytest.mark.parametrize("knows", ["the side", "its socket's transport"])
async def test_a_side_that_other_code_has_closed_gets_no_held_bytes(
    knows: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The relay was not told, but another task has noticed it."""
    async with blocked() as (_, pump, heard):
        sink = pump.sink
        closed = sink if knows == "the side" else sink.carrier
        closed.mark_closed()
        sent = sink.sent
        pump.on_writable(trio.current_time())
        assert (heard.told[-1], sink.sent) == ("closed", sent)
        assert not pump.blocked
        closed.closed = False  # so that its socket is closed at the end


@pytest.mark.parametrize("medium", TLS_MEDIA)
async def test_a_descriptor_that_other_code_has_closed_ends_the_relay(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """While a duplicate of it is open, the epoll goes on to tell that it has room."""
    a, b = sockets(), medium()
    async with relaying(a, b) as (one, other, result):
        other.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, 10 * MUCH)
            await acknowledged()
            nursery.cancel_scope.cancel()
        sock = transport(b).carrier.sock
        with sock.dup():
            sock.close()
            other.read_on()
            # Not until all tasks are blocked: without its end, the engine never is.
            patience = time.monotonic() + 20
            while result.is_pending and time.monotonic() < patience:
                await trio.lowlevel.checkpoint()
            assert not result.is_pending
    assert result.value.reason is Reason.ABORTED


async def test_bytes_for_a_side_whose_eof_other_code_has_sent_end_the_relay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with sockets() as a, tls13() as b:
        source, sink = transport_of(a.ours), transport(b)
        assert isinstance(source, EngineTransport)
        heard = Heard()
        with started(heard, LayeredPump(source, sink), LayeredPump(sink, source)):
            await sink.send_eof()
            assert not heard.told
            await a.peer.send_all(b"x")
            await acknowledged()
            assert heard.told == ["closed"]
        source.release()


@pytest.mark.parametrize("which", ["client", "target"])
async def test_a_side_that_is_gone_while_bytes_go_there(
    which: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: a reset of one side is one for the other, in both directions."""
    a, b = tls13(), tls13()
    gone, left = map(transport, (a, b) if which == "client" else (b, a))
    async with relaying(a, b) as (one, other, result):
        sender = other if which == "client" else one
        loser = one if which == "client" else other
        loser.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, MUCH)
            await trio.testing.wait_all_tasks_blocked(0.01)
            loser.reset()
        loser.read_on()
    assert sender.tail == "reset" or sender.broke
    assert result.value.reason in (Reason.CLIENT_RESET, Reason.SERVER_RESET)
    assert gone.error is not None
    assert left.closed


async def test_a_peer_that_takes_nothing_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 9 and 12: by write_stall, and the bytes that it missed are counted."""
    a, b = sockets(), tls13()
    async with relaying(a, b, timeouts=Timeouts(write_stall=30)) as (
        one,
        other,
        result,
    ):
        other.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, 10 * MUCH)
        other.read_on()
    assert result.value.reason is Reason.WRITE_STALL
    flow = result.value.a_to_b
    assert flow.received == flow.delivered + flow.discarded
    assert other.tail == "reset"


@pytest.mark.parametrize("way", ["abort", "close", "eof"])
@pytest.mark.parametrize("side", ["source", "sink"])
async def test_other_code_closes_a_side(
    way: str, side: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The relay ends as aborted, and the engine forgets both sides."""
    a, b = tls13(), sockets()
    if side == "sink":
        a, b = b, a
    tls = a if side == "source" else b
    async with relaying(a, b) as (one, other, result):
        match way:
            case "abort":
                transport(tls).abort()
            case "close":
                transport(tls).close()
            case _:
                await transport(tls).send_eof()
                await (other if side == "source" else one).send(10)
    assert result.value.reason is Reason.ABORTED


async def test_a_close_that_has_to_wait_ends_the_relay_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Otherwise the engine would move bytes between the last ones of the close."""
    a, b = sockets(), tls13()
    narrow(b.peer)
    async with relaying(a, b) as (one, other, result):
        other.stop_reading()
        sink = transport(b)
        while not sink.held:
            sink.send_now(bytes(60_000), trio.current_time())
            if sink.held:
                await acknowledged()
                sink.send_now(b"", trio.current_time())  # what is held
        sink.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not result.is_pending
        other.read_on()
    assert result.value.reason is Reason.ABORTED
    assert other.tail == one.tail == "reset"


async def test_two_relays_of_one_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The second one raises, and the first goes on."""
    a, b, c = tls13(), sockets(), sockets()
    async with relaying(a, b) as (one, other, _):
        with pytest.raises(trio.BusyResourceError):
            await relay(c.ours, a.ours)
        await one.send(10)
        await one.send_eof()
        await other.send_eof()
    c.__exit__()
    assert other.received == one.sent


async def test_a_task_that_sends_at_the_same_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The relay raises: bytes of both would be mixed."""
    a, b = sockets(), tls13()
    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(b.ours).send, MUCH)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await a.peer.send_all(b"x")
            with pytest.raises(trio.BusyResourceError, match="sending"):
                await relay(a.ours, b.ours)
            nursery.cancel_scope.cancel()


async def test_a_transport_over_a_stream_is_relayed_by_tasks() -> None:
    """It has no socket at whose events bytes could move."""
    ours, theirs = trio.testing.memory_stream_pair()
    server, _ = tls_sessions(ssl.TLSVersion.TLSv1_3)
    below = transport_of(ours)
    over = TlsTransport(below, server)
    assert over.for_engine() is None
    over.tell_closing()  # nobody observes it
    assert over.pollable() is None
    await theirs.aclose()
    await ours.aclose()


async def test_a_send_without_waiting() -> None:
    """It takes a chunk if there is room, and none after an error or its own EOF."""
    with tls13() as link:
        ours = transport(link)
        assert ours.send_now(b"", trio.current_time()) == 0
        assert ours.send_now(bytes(100_000), trio.current_time()) == 65_536 == ours.sent
        ours.session.close()
        assert ours.send_now(b"x", trio.current_time()) == 0
        assert ours.error is not None
        assert ours.send_now(b"x", trio.current_time()) == 0
    with tls13() as link:
        ours = transport(link)
        ours.below.abort()
        assert ours.receive_held(trio.current_time()) is None
        with pytest.raises(trio.ClosedResourceError):
            ours.receive_now(trio.current_time())
        with pytest.raises(trio.ClosedResourceError):
            ours.send_eof_now()
    with tls13() as link:
        ours = transport(link)
        ours.sending_since = 0
        with pytest.raises(trio.BusyResourceError, match="sending"):
            ours.send_eof_now()
        ours.sending_since = float("inf")
        ours.carrier.sock.shutdown(socket.SHUT_WR)
        ours.send_eof_now()
        ours.send_eof_now()  # does nothing
        assert isinstance(ours.error, BrokenPipeError)

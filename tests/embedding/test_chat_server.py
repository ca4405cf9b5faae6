"""The chat of the examples, over loopback sockets."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from examples.embedding.chat_server import MAX_LINE, Room, handler
from support import (
    Running,
    is_reset,
    receive_all,
    receive_exactly,
    reset,
    send_received,
    serving,
)
from trioserve import Connection, Reason
from trioserve.testing import Peer, check_handler

pytestmark = pytest.mark.long

_STOPS = b"* the server stops; finish your line\n"


async def joins(running: Running, name: bytes) -> trio.SocketStream:
    client = await running.connect()
    await client.send_all(name + b"\n")
    await hears(client, b"* welcome, %b\n" % name)
    return client


async def hears(client: trio.SocketStream, text: bytes) -> None:
    assert await receive_exactly(client, len(text)) == text


async def test_every_client_gets_each_message(autojump_clock: MockClock) -> None:
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        bert = await joins(running, b"bert")
        await hears(anna, b"* bert is here\n")
        await bert.send_all(b"hello\nanybody there?\n")
        for client in (anna, bert):
            await hears(client, b"bert: hello\nbert: anybody there?\n")
        await bert.send_all(b"bye\n")
        await bert.send_eof()
        assert await receive_all(bert) == b"bert: bye\n"
        await hears(anna, b"bert: bye\n* bert has left\n")
    reasons = [report.reason for report in running.reports]
    assert reasons == [Reason.CLIENT_CLOSED, Reason.DRAINED]


async def test_a_client_that_does_not_read_is_dropped_with_a_reason(
    autojump_clock: MockClock,
) -> None:
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        slow = await joins(running, b"slow")
        await hears(anna, b"* slow is here\n")
        # Buffers of the kernel are full before the queue is.
        heard = b""
        while b"* slow has left\n" not in heard:
            await anna.send_all(b"x" * 900 + b"\n")
            heard = heard[-100:] + await anna.receive_some()
        assert await is_reset(slow)
    (report, _) = running.reports
    assert report.reason is Reason.ABORTED
    assert report.notes == {"dropped": "it reads too slowly"}


async def test_a_burst_drops_no_client_that_reads(autojump_clock: MockClock) -> None:
    burst = b"x\n" * 100_000
    heard = b"anna: x\n" * 100_000
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        bert = await joins(running, b"bert")
        await hears(anna, b"* bert is here\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anna.send_all, burst)
            nursery.start_soon(hears, anna, heard)
            nursery.start_soon(hears, bert, heard)
    assert {report.reason for report in running.reports} == {Reason.DRAINED}


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no end", "end"])
async def test_the_length_of_a_line_is_limited(
    end: bytes, autojump_clock: MockClock
) -> None:
    async with serving(partial(handler, room=Room())) as running:
        client = await joins(running, b"anna")
        await client.send_all(bytes(MAX_LINE + 1) + end)
        assert await receive_all(client) == b"* your line is too long\n"
    assert running.reports[0].notes == {"dropped": "a line was too long"}


async def test_during_a_drain_a_client_can_finish_its_line_and_others_get_it(
    autojump_clock: MockClock,
) -> None:
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        bert = await joins(running, b"bert")
        await hears(anna, b"* bert is here\n")
        await send_received(running, anna, b"good")
        await send_received(running, bert, b"good")
        running.server.start_draining()
        await hears(anna, _STOPS)
        await hears(bert, _STOPS)
        await anna.send_all(b"bye\n")
        assert await receive_all(anna) == b"anna: goodbye\n"
        await bert.send_all(b" night\n")
        heard = b"anna: goodbye\n* anna has left\nbert: good night\n"
        assert await receive_all(bert) == heard
        assert (await running.server.drain()).clean
    assert {report.reason for report in running.reports} == {Reason.DRAINED}


async def test_a_client_that_does_not_finish_its_line_during_a_drain_is_told(
    autojump_clock: MockClock,
) -> None:
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        await send_received(running, anna, b"good")
        running.server.start_draining()
        await hears(anna, _STOPS)
        assert await is_reset(anna)
        assert (await running.server.drain()).cut == 1


async def test_a_client_that_vanishes_is_reported_and_the_others_are_told(
    autojump_clock: MockClock,
) -> None:
    async with serving(partial(handler, room=Room())) as running:
        anna = await joins(running, b"anna")
        gone = await joins(running, b"gone")
        await hears(anna, b"* gone is here\n")
        reset(gone)
        await hears(anna, b"* gone has left\n")
    assert running.reports[0].reason is Reason.CLIENT_RESET


@pytest.mark.nightly("every law, with two peers")
def test_it_keeps_every_law_but_one() -> None:
    room = Room()

    async def handle(conn: Connection) -> None:
        await handler(conn, room=room)

    anna = Peer().send(b"anna\n").expect(b"* welcome, anna\n").meet("anna is here")
    bert = Peer().meet("anna is here").send(b"bert\n").expect(b"* welcome, bert\n")
    anna = anna.expect(b"* bert is here\n").meet("bert is here")
    anna = anna.send(b"hi\n").expect(b"anna: hi\n")
    bert = bert.meet("bert is here").expect(b"anna: hi\n* anna has left\n")
    peers = [each.half_close().expect_eof() for each in (anna, bert)]
    why = "everybody in the room hears everything"
    check_handler(handle, *peers, without={"alone": why})

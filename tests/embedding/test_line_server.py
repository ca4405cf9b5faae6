"""The line server of the examples, over loopback sockets, and by all laws."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from examples.embedding.line_server import LINE_SECONDS, MAX_LINE, handler
from support import receive_all, receive_exactly, reset, send_received, serving
from trioserve import Connection, Reason, Timeouts
from trioserve.testing import Peer, check_handler

pytestmark = pytest.mark.long

_HELP = b"ERROR: SET key value, or GET key, or QUIT\n"


async def handle(conn: Connection) -> None:
    """The handler with a store of its own for each connection."""
    await handler(conn, store={})


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"SET k v\nGET k\nGET x\n", b"OK\nv\nNONE\n"),
        (b"SET k v\nSET k w\nGET k\n", b"OK\nOK\nw\n"),
        (b"\nHELLO\n", 2 * _HELP),
        (b"GET x\nQUIT\nGET x\n", b"NONE\n"),
        (b"GET x\nGET", b"NONE\nERROR: the last line has no end\n"),
        (b"GET " + b"x" * (MAX_LINE - 4) + b"\n", b"NONE\n"),
        (b"GET " + b"x" * (MAX_LINE - 3) + b"\n", b"ERROR: the line is too long\n"),
        (b"x" * (MAX_LINE + 1), b"ERROR: the line is too long\n"),
    ],
)
async def test_each_command_has_its_answer(
    said: bytes, heard: bytes, autojump_clock: MockClock
) -> None:
    async with serving(handle) as running:
        client = await running.connect()
        await client.send_all(said)
        await client.send_eof()
        assert await receive_all(client) == heard


async def test_clients_share_a_store(autojump_clock: MockClock) -> None:
    async with serving(partial(handler, store={})) as running:
        one, two = await running.connect(), await running.connect()
        await one.send_all(b"SET k v\n")
        assert await receive_exactly(one, 3) == b"OK\n"
        await two.send_all(b"GET k\n")
        assert await receive_exactly(two, 2) == b"v\n"


async def test_a_drain_waits_for_half_a_line_and_answers_it(
    autojump_clock: MockClock,
) -> None:
    async with serving(handle) as running:
        busy, idle = await running.connect(), await running.connect()
        for client, part in ((busy, b"GET"), (idle, b"")):
            await client.send_all(b"GET x\n" + part)
            assert await receive_exactly(client, 5) == b"NONE\n"
        running.server.start_draining()
        assert await receive_all(idle) == b""
        await busy.send_all(b" x\n")
        assert await receive_all(busy) == b"NONE\n"
        assert (await running.server.drain()).clean
    assert {report.reason for report in running.reports} == {Reason.DRAINED}


async def test_a_client_that_does_not_finish_its_line_during_a_drain_is_told(
    autojump_clock: MockClock,
) -> None:
    async with serving(handle) as running:
        client = await running.connect()
        await send_received(running, client, b"GET")
        running.server.start_draining()
        assert await receive_all(client) == b"ERROR: the line took too long\n"
        assert (await running.server.drain()).clean


async def test_a_slow_line_is_ended_even_if_bytes_keep_coming(
    autojump_clock: MockClock,
) -> None:
    async with serving(handle) as running:
        client = await running.connect()
        await trio.sleep(60)  # waiting for a line is not slow
        began = trio.current_time()
        while not running.reports:
            await client.send_all(b"x")
            await trio.sleep(LINE_SECONDS / 8)
        assert await receive_all(client) == b"ERROR: the line took too long\n"
        assert trio.current_time() - began < 2 * LINE_SECONDS
    assert running.reports[0].notes == {"error": "the line took too long"}


async def test_a_client_that_does_not_read_is_ended_and_affects_no_other(
    autojump_clock: MockClock,
) -> None:
    async with serving(handle, timeouts=Timeouts(write_stall=5)) as running:
        slow, other = await running.connect(), await running.connect()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await slow.send_all(b"\n" * 10_000)
                await other.send_all(b"GET x\n")
                assert await receive_exactly(other, 5) == b"NONE\n"
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.WRITE_STALL


async def test_a_client_that_vanishes_is_reported_and_affects_no_other(
    autojump_clock: MockClock,
) -> None:
    async with serving(handle) as running:
        gone, other = await running.connect(), await running.connect()
        await gone.send_all(b"GET")
        await other.send_all(b"GET x\n")
        assert await receive_exactly(other, 5) == b"NONE\n"
        reset(gone)
        await other.send_all(b"GET x\n")
        assert await receive_exactly(other, 5) == b"NONE\n"
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.CLIENT_RESET


@pytest.mark.long("every law")
def test_it_keeps_every_law() -> None:
    peer = Peer().send(b"SET k v\nGET k\n").expect(b"OK\nv\n")
    peer = peer.send(b"GET k\n").expect(b"v\n").half_close().expect_eof()
    check_handler(handle, peer)

"""Handing a relay over to the server, which runs it when the handler has returned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from links import memory, sockets
from support import is_reset, open_fds, receive_all, receive_exactly, serving
from trioserve import Connection, Reason, Relay, RelayResult, hand_over, relay

Handler = Callable[[Connection], Awaitable[object]]


async def _returned(conn: Connection, upstream: trio.abc.Stream) -> object:
    return hand_over(conn, upstream)


async def _left(conn: Connection, upstream: trio.abc.Stream) -> object:
    hand_over(conn, upstream)
    return "goes on"


async def _awaited(conn: Connection, upstream: trio.abc.Stream) -> object:
    result = await hand_over(conn, upstream)
    conn.note(reason=str(result.reason))
    await upstream.aclose()
    return result


async def _here(conn: Connection, upstream: trio.abc.Stream) -> object:
    result = await relay(conn, upstream)
    await upstream.aclose()
    return result


@pytest.mark.parametrize("way", [_returned, _left, _awaited, _here])
@pytest.mark.parametrize("link", [sockets, memory])
async def test_it_relays_both_ways_and_closes_both_sides(
    way: Callable[..., Awaitable[object]],
    link: Callable[[], Any],
    autojump_clock: object,
) -> None:
    """Laws 4 and 7: whoever runs it, and whatever the upstream is."""
    before = open_fds()
    with link() as upstream:

        async def handler(conn: Connection) -> object:
            return await way(conn, upstream.ours)

        async with serving(handler) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(upstream.peer, 5) == b"hello"
            await upstream.peer.send_all(b"you too")
            assert await receive_exactly(client, 7) == b"you too"
            await client.send_eof()
            assert await receive_all(upstream.peer) == b""
            await upstream.peer.aclose()
            assert await receive_all(client) == b""
        (report,) = running.reports
        assert report.reason is Reason.CLIENT_CLOSED
        assert (report.bytes_received, report.upstream_bytes_received) == (5, 7)
        if way is _awaited:
            assert report.notes == {"reason": "client_closed"}
        if way in (_awaited, _here):
            assert isinstance(report.result, RelayResult)
    assert open_fds() == before


async def test_its_task_has_no_frame_of_the_handler(autojump_clock: object) -> None:
    with sockets() as upstream:

        async def handler(conn: Connection) -> Relay:
            return hand_over(conn, upstream.ours)

        async with serving(handler) as running:
            await running.connect()
            await trio.testing.wait_all_tasks_blocked()
            (conn,) = running.server.connections
            names = [
                frame.f_code.co_name
                for task in _tasks()
                if task.name.startswith(f"conn-{conn.id} ")
                for frame, _ in task.iter_await_frames()
            ]
            assert names
            assert "handler" not in names
            conn.abort()


def _tasks() -> list[trio.lowlevel.Task]:
    found: list[trio.lowlevel.Task] = []
    left = [trio.lowlevel.current_root_task()]
    while left:
        task = left.pop()
        assert task is not None
        found.append(task)
        left += [t for nursery in task.child_nurseries for t in nursery.child_tasks]
    return found


async def test_a_handler_that_raises_resets_both_sides(autojump_clock: object) -> None:
    """Law 8: the relay never begins."""
    with sockets() as upstream:

        async def handler(conn: Connection) -> Relay:
            hand_over(conn, upstream.ours)
            raise ValueError("no")

        async with serving(handler) as running:
            client = await running.connect()
            assert await is_reset(client)
            assert await is_reset(upstream.peer)
        assert running.reports[0].reason is Reason.HANDLER_ERROR


async def test_a_drain_cuts_it(autojump_clock: trio.testing.MockClock) -> None:
    """Law 5."""
    with sockets() as upstream:

        async def handler(conn: Connection) -> Relay:
            return hand_over(conn, upstream.ours)

        async with serving(handler) as running:
            client = await running.connect()
            await client.send_all(b"x")
            assert await receive_exactly(upstream.peer, 1) == b"x"
            summary = await running.server.drain(within=3)
            assert (summary.cut, trio.current_time()) == (1, 3)
            assert await is_reset(client)
            assert await is_reset(upstream.peer)
        assert running.reports[0].reason is Reason.CUT


async def test_there_is_one_for_a_connection(autojump_clock: object) -> None:
    with sockets() as one, sockets() as other:
        seen: list[BaseException] = []

        async def handler(conn: Connection) -> None:
            first = hand_over(conn, one.ours)
            with pytest.raises(trio.BusyResourceError, match="handed over") as busy:
                hand_over(conn, other.ours)
            await one.peer.send_eof()
            await first
            with pytest.raises(RuntimeError, match="awaited once") as twice:
                await first
            seen.extend((busy.value, twice.value))

        async with serving(handler) as running:
            client = await running.connect()
            assert await receive_all(client) == b""
            await client.send_eof()
        assert len(seen) == 2
        assert running.reports[0].reason is Reason.SERVER_CLOSED


async def test_an_upstream_that_is_closed_is_the_handlers_error(
    autojump_clock: object,
) -> None:
    with sockets() as upstream:
        upstream.ours.socket.close()

        async def handler(conn: Connection) -> Relay:
            return hand_over(conn, upstream.ours)

        async with serving(handler) as running:
            assert await is_reset(await running.connect())
        (report,) = running.reports
        assert report.reason is Reason.HANDLER_ERROR
        assert isinstance(report.exception, trio.ClosedResourceError)

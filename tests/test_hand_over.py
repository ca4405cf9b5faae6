"""Hand a relay over to the server, which runs it when the handler has returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest
import trio
import trio.testing

from certificates import Authority
from links import memory, sockets
from support import (
    Running,
    is_reset,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    serving,
)
from test_tls import secure
from trioserve import (
    Connection,
    Layers,
    Reason,
    Relay,
    RelayResult,
    Timeouts,
    TlsOptions,
    echo,
    hand_over,
    proxy,
    relay,
)
from trioserve._relay_engine import EngineRelay

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
async def test_it_relays_both_ways_and_closes_both(
    way: Callable[..., Awaitable[object]],
    link: Callable[[], Any],
    autojump_clock: object,
) -> None:
    """Laws 4 and 7: run by the server or the handler, over any upstream."""
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
        assert report.upstream is not None
        assert (report.bytes_received, report.upstream.bytes_received) == (5, 7)
        if way is _awaited:
            assert report.notes == {"reason": "client_closed"}
        if way in (_awaited, _here):
            assert isinstance(report.result, RelayResult)
    assert open_fds() == before


async def _frames_of_its_task(running: Running) -> list[str]:
    """The functions in which the task of the only connection waits."""
    await trio.testing.wait_all_tasks_blocked()
    (conn,) = running.server.connections
    return [
        frame.f_code.co_name
        for task in _tasks()
        if task.name.startswith(f"conn-{conn.id} ")
        for frame, _ in task.iter_await_frames()
    ]


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_between_sockets_it_goes_on_without_a_task(
    is_wrapped: bool, autojump_clock: object
) -> None:
    with sockets() as upstream:

        async def handler(conn: Connection) -> Relay:
            await trio.sleep(1)
            return hand_over(conn, upstream.ours)

        async def wrapper(conn: Connection) -> object:
            return await handler(conn)

        async with serving(wrapper if is_wrapped else handler) as running:
            await running.connect()
            assert "sleep" in await _frames_of_its_task(running)
            await trio.sleep(1)
            assert await _frames_of_its_task(running) == []
            running.server.connections[0].abort()


async def test_a_task_that_relays_has_no_frame_of_the_handler(
    autojump_clock: object,
) -> None:
    with memory() as upstream:

        async def handler(conn: Connection) -> Relay:
            return hand_over(conn, upstream.ours)

        async with serving(handler) as running:
            await running.connect()
            names = await _frames_of_its_task(running)
            assert names
            assert "handler" not in names
            running.server.connections[0].abort()


class _Spawned(trio.abc.Instrument):
    """The names of the tasks that are spawned in a block."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)

    def __enter__(self) -> Self:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


@pytest.mark.parametrize(
    ("ends", "tasks"), [("fin", 0), ("rst", 0), ("target", 0), ("cut", 1)]
)
async def test_a_proxy_that_connects_at_once_needs_no_task(
    ends: str, tasks: int
) -> None:
    """Not to begin, and not to end if nothing has to wait or is in the middle of it."""
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener[0] as target:
        host, port = target.socket.getsockname()
        async with serving(proxy(f"{host}:{port}")) as running:
            with _Spawned() as spawned:
                client = await running.connect()
                async with await target.accept() as served:
                    await client.send_all(b"hello")
                    assert await receive_exactly(served, 5) == b"hello"
                    if ends == "rst":
                        reset(client)
                    elif ends == "cut":
                        await running.server.drain(within=0)
                    elif ends == "target":
                        reset(served)
                        assert await is_reset(client)
                    else:
                        await client.send_eof()
                        assert await receive_all(served) == b""
                await running.closed(1)
            assert len(spawned.names) == tasks


async def test_a_tls_client_that_just_closes_needs_no_task_to_end(
    tmp_path: Path,
) -> None:
    """No alert waits for it to read: it has sent FIN."""
    authority = Authority(tmp_path)
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener[0] as target:
        host, port = target.socket.getsockname()
        async with serving(proxy(f"{host}:{port}"), layers=layers) as running:
            client = await secure(running, authority.client_context())
            async with await target.accept() as served:
                await client.send(b"hello")
                assert await receive_exactly(served, 5) == b"hello"
                with _Spawned() as spawned:
                    await client.below.send_eof()
                    await running.closed(1)
                assert spawned.names == []
                assert await is_reset(served)
            client.abort()
        assert running.reports[0].reason is Reason.CLIENT_RESET


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
    """Law 8: the relay never starts."""
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


async def test_a_connection_has_one_relay_handed_over(autojump_clock: object) -> None:
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


async def test_an_awaited_relay_closes_its_upstream(
    autojump_clock: object,
) -> None:
    """Law 13: also if the handler runs it."""
    with sockets() as upstream:
        open_after: list[int] = []

        async def handler(conn: Connection) -> None:
            await hand_over(conn, upstream.ours)
            open_after.append(upstream.ours.socket.fileno())

        async with serving(handler) as running:
            client = await running.connect()
            await client.send_eof()
            await upstream.peer.send_eof()
            assert await receive_all(client) == b""
        assert open_after == [-1]


@pytest.mark.parametrize("kind", ["proxy", "hand_over"])
async def test_a_relay_that_the_server_runs_can_not_be_awaited(
    kind: str, autojump_clock: object
) -> None:
    """Law 1: another task that tries gets an error, and the relay goes on."""
    relays: list[Relay] = []
    async with serving(echo) as there:
        forward = proxy(there.address)

        async def handler(conn: Connection) -> Relay:
            if kind == "proxy":
                relays.append(await forward(conn))
            else:
                stream = await trio.open_tcp_stream("127.0.0.1", there.port)
                relays.append(hand_over(conn, stream))
            return relays[0]

        async with serving(handler) as running:
            client = await running.connect()
            await client.send_all(b"1")
            assert await receive_exactly(client, 1) == b"1"
            with pytest.raises(RuntimeError, match="awaited once"):
                await relays[0]
            await client.send_all(b"2")
            assert await receive_exactly(client, 1) == b"2"
            await client.send_eof()
            assert await receive_all(client) == b""
        assert running.reports[0].reason is Reason.CLIENT_CLOSED
        assert running.reports[0].result is None


async def test_a_proxy_does_not_dial_twice_for_one_connection(
    autojump_clock: object,
) -> None:
    """Law 13: and leaves no socket behind."""
    before = open_fds()
    async with serving(echo) as there:
        forward = proxy(there.address)

        async def handler(conn: Connection) -> Relay:
            await forward(conn)
            return await forward(conn)

        async with serving(handler) as running:
            assert await is_reset(await running.connect())
        (report,) = running.reports
        assert report.reason is Reason.HANDLER_ERROR
        assert isinstance(report.exception, trio.BusyResourceError)
        assert there.server.statistics().accepted == 1
    assert open_fds() == before


async def test_a_closed_connection_can_not_be_handed_over(
    autojump_clock: object,
) -> None:
    seen: list[str] = []
    with sockets() as upstream:

        async def handler(conn: Connection) -> None:
            conn.abort()
            with pytest.raises(trio.ClosedResourceError):
                hand_over(conn, upstream.ours)
            with pytest.raises(trio.ClosedResourceError):
                await proxy("127.0.0.1:1")(conn)
            seen.append("both")

        async with serving(handler) as running:
            assert await is_reset(await running.connect())
    assert seen == ["both"]


async def test_a_connection_that_was_to_be_an_upstream_is_reset(
    autojump_clock: object,
) -> None:
    """Law 15: its handler is not blamed for the exception of another one."""
    first: list[Connection] = []
    ready = trio.Event()

    async def handler(conn: Connection) -> None:
        if not first:
            first.append(conn)
            ready.set()
            await conn.receive_some()
            return
        hand_over(conn, first[0])
        raise ValueError("no")

    async with serving(handler) as running:
        upstream = await running.connect()
        await ready.wait()
        assert await is_reset(await running.connect())
        assert await is_reset(upstream)
    reports = {report.id: report for report in running.reports}
    assert reports[1].reason is Reason.ABORTED
    assert "did not start" in (reports[1].error or "")
    assert reports[2].reason is Reason.HANDLER_ERROR


async def test_new_timeouts_do_not_apply_to_a_relay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It keeps those of the moment in which it was made."""
    async with serving(echo) as there:
        forward = proxy(there.address)

        async def handler(conn: Connection) -> Relay:
            made = await forward(conn)
            conn.timeouts = dataclasses.replace(conn.timeouts, idle=1)
            return made

        async with serving(handler, timeouts=Timeouts(idle=10)) as running:
            client = await running.connect()
            assert await receive_all(client) == b""
            assert 10 <= trio.current_time() <= 11


async def test_the_relay_of_a_failed_dial_says_why(autojump_clock: object) -> None:
    """Awaited, it ends at once; an injected fault is not an error."""
    results: list[RelayResult] = []

    async def handler(conn: Connection) -> None:
        results.append(await (await proxy("127.0.0.1:1", faults="refuse")(conn)))

    async with serving(handler) as running:
        assert await is_reset(await running.connect())
    (result,) = results
    assert (result.reason, result.error) == (Reason.FAULT, None)
    assert result.a_to_b.received == 0


@pytest.mark.parametrize("way", [_returned, _awaited])
async def test_an_upstream_that_is_in_use_is_closed(
    way: Callable[..., Awaitable[object]], autojump_clock: object
) -> None:
    """Law 13: it belongs to the relay, even to one that can't start."""
    with sockets() as upstream:

        async def handler(conn: Connection) -> object:
            return await way(conn, upstream.ours)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receives_until_closed, upstream.ours)
            await trio.testing.wait_all_tasks_blocked()
            async with serving(handler) as running:
                assert await is_reset(await running.connect())
                assert await is_reset(upstream.peer)
            (report,) = running.reports
            assert isinstance(report.exception, trio.BusyResourceError)
        assert upstream.ours.socket.fileno() < 0


async def _receives_until_closed(stream: trio.SocketStream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def test_a_bug_at_the_end_of_a_relay_ends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 1: it is reported like a handler's error."""
    finish_now = EngineRelay.finish_now

    def finish_one(self: EngineRelay) -> bool:
        if self.a.received == 1:
            raise RuntimeError("a bug")
        return finish_now(self)

    monkeypatch.setattr(EngineRelay, "finish_now", finish_one)
    async with serving(echo) as there, serving(proxy(there.address)) as running:
        good, bad = await running.connect(), await running.connect()
        for client, data in ((good, b"good"), (bad, b"b")):
            await client.send_all(data)
            assert await receive_exactly(client, len(data)) == data
        await bad.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(bad)
        await good.send_all(b"still")
        assert await receive_exactly(good, 5) == b"still"
        await good.send_eof()
        assert await receive_all(good) == b""
    first, second = sorted(running.reports, key=lambda report: report.id)
    assert first.reason is Reason.CLIENT_CLOSED
    assert second.reason is Reason.HANDLER_ERROR
    assert second.error == "RuntimeError: a bug"

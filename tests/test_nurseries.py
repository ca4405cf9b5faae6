"""Nurseries: the caller's ``handler_nursery``, and the server's own."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import trioserve
from support import is_reset, receive_all, receive_exactly, serving
from trioserve import Connection, ConnectionReport, Limits, Reason, Timeouts

CONNECT = trio.testing.open_stream_to_socket_listener


async def _echo(stream: Any) -> None:
    async for data in stream:
        await stream.send_all(data)


@pytest.fixture(params=["trio", "trioserve"])
def serve_tcp(request: pytest.FixtureRequest) -> Any:
    """Trio's, and ours, which must do the same in the following tests."""
    module = trio if request.param == "trio" else trioserve
    return partial(module.serve_tcp, host="127.0.0.1")


# -- One that was lent: what Trio does


async def test_a_lent_nursery_holds_connections_only(
    serve_tcp: Any, autojump_clock: object
) -> None:
    """Law 13: so it ends after the last connection, even if serving goes on."""
    async with trio.open_nursery() as accepting:
        async with trio.open_nursery() as lent:
            serve = partial(serve_tcp, handler_nursery=lent)
            listeners = await accepting.start(serve, _echo, 0)
            assert not lent.child_tasks
            client = await CONNECT(listeners[0])
            await client.send_all(b"x")
            await receive_exactly(client, 1)
            assert len(lent.child_tasks) == 1
            await client.aclose()
        assert not accepting.cancel_scope.cancel_called
        accepting.cancel_scope.cancel()
    assert trio.current_time() == 0


@pytest.mark.parametrize("has_client", [False, True])
@pytest.mark.parametrize("is_in_it", [False, True])
async def test_a_lent_nursery_that_is_cancelled_ends_at_once(
    serve_tcp: Any,
    has_client: bool,
    is_in_it: bool,
    autojump_clock: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 5: serving may run in it, too."""
    client: trio.SocketStream | None = None
    async with trio.open_nursery() as accepting:
        async with trio.open_nursery() as lent:
            serve = partial(serve_tcp, handler_nursery=lent)
            where = lent if is_in_it else accepting
            listeners = await where.start(serve, _echo, 0)
            if has_client:
                client = await CONNECT(listeners[0])
                await client.send_all(b"x")
                await receive_exactly(client, 1)
            lent.cancel_scope.cancel()
        if client is not None:
            # Trio closes its SocketStream forcefully, which is a FIN.
            assert await is_reset(client) or serve_tcp.func is trio.serve_tcp
            await client.aclose()
        accepting.cancel_scope.cancel()
    assert trio.current_time() == 0
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_connections_go_on_when_serving_is_cancelled(
    serve_tcp: Any, autojump_clock: object
) -> None:
    """Law 1: ``serve`` itself ends at once."""
    async with trio.open_nursery() as lent:
        async with trio.open_nursery() as accepting:
            serve = partial(serve_tcp, handler_nursery=lent)
            listeners = await accepting.start(serve, _echo, 0)
            client = await CONNECT(listeners[0])
            await client.send_all(b"x")
            await receive_exactly(client, 1)
            accepting.cancel_scope.cancel()
        assert trio.current_time() == 0
        for _ in range(3):
            await trio.sleep(1)
            await client.send_all(b"y")
            assert await receive_exactly(client, 1) == b"y"
        assert len(lent.child_tasks) == 1
        await client.aclose()
    assert trio.current_time() == 3


async def test_keyboard_interrupt_comes_out_of_the_lent_nursery(
    serve_tcp: Any, autojump_clock: object
) -> None:
    """Law 1: and not out of ``serve``."""

    async def handler(stream: Any) -> None:
        raise KeyboardInterrupt

    clients: list[trio.SocketStream] = []
    async with trio.open_nursery() as accepting:
        with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
            async with trio.open_nursery() as lent:
                serve = partial(serve_tcp, handler_nursery=lent)
                listeners = await accepting.start(serve, handler, 0)
                clients.append(await CONNECT(listeners[0]))
                await trio.sleep_forever()
        await clients[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert accepting.child_tasks
        accepting.cancel_scope.cancel()


# -- One that was lent: what Trio does not have


async def test_timers_and_reports_live_as_long_as_the_last_connection(
    autojump_clock: object,
) -> None:
    """Laws 3 and 12: also if serving was cancelled, and they delay nothing."""
    reports: list[ConnectionReport] = []

    async def collector(channel: trio.MemoryReceiveChannel[Any]) -> None:
        async for report in channel:
            await trio.sleep(2)
            reports.append(report)

    async with trio.open_nursery() as lent:
        async with trio.open_nursery() as accepting:
            server = await accepting.start(
                partial(
                    trioserve.serve_tcp,
                    host="127.0.0.1",
                    handler_nursery=lent,
                    collector=collector,
                    timeouts=Timeouts(idle=7),
                ),
                _echo,
                0,
            )
            clients = [await CONNECT(server[0]) for _ in range(2)]
            await trio.testing.wait_all_tasks_blocked()
            accepting.cancel_scope.cancel()
        assert not server.draining.is_set()
        await clients[1].aclose()
        assert await receive_all(clients[0]) == b""
        await clients[0].aclose()
    assert trio.current_time() == 7
    await trio.sleep(3)
    assert [report.reason for report in reports] == [Reason.CLIENT_CLOSED, Reason.IDLE]
    statistics = server.statistics()
    assert (statistics.collected, statistics.lost) == (2, 0)


async def test_a_lent_nursery_and_a_drain(autojump_clock: object) -> None:
    """Law 5: a drain ends its connections, and then serving returns."""
    async with trio.open_nursery() as lent, trio.open_nursery() as accepting:
        serve = partial(trioserve.serve_tcp, host="127.0.0.1", handler_nursery=lent)
        server = await accepting.start(serve, _echo, 0)
        client = await CONNECT(server[0])
        await trio.testing.wait_all_tasks_blocked()
        summary = await server.drain(within=3)
        assert (summary.cut, trio.current_time()) == (1, 3)
        await client.aclose()


async def test_a_refusal_does_not_use_the_lent_nursery(autojump_clock: object) -> None:
    """Law 13: the nursery is for handlers only."""
    limits = Limits(max_connections=0, when_full="refuse", refusal=b"busy")
    async with trio.open_nursery() as accepting:
        async with trio.open_nursery() as lent:
            serve = partial(
                trioserve.serve_tcp,
                host="127.0.0.1",
                handler_nursery=lent,
                limits=limits,
            )
            server = await accepting.start(serve, _echo, 0)
            client = await CONNECT(server[0])
            assert await receive_exactly(client, 4) == b"busy"
            assert not lent.child_tasks
        await client.aclose()
        server.start_draining()


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_collector_in_a_system_task_may_end_the_program(is_gone: bool) -> None:
    """Law 1: serving raises its error; after the end of serving, Trio does."""

    async def collector(reports: Any) -> None:
        await reports.receive()
        raise KeyboardInterrupt

    async def main() -> None:
        async with trio.open_nursery() as lent:
            serve = partial(
                trioserve.serve_tcp,
                host="127.0.0.1",
                handler_nursery=lent,
                collector=collector,
            )
            async with trio.open_nursery() as accepting:
                server = await accepting.start(serve, _echo, 0)
                client = await CONNECT(server[0])
                await trio.testing.wait_all_tasks_blocked()
                if is_gone:
                    accepting.cancel_scope.cancel()
                else:
                    client.socket.close()
                    await trio.sleep_forever()
            client.socket.close()
            await trio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        trio.run(main)
    seen: Any = caught.value
    while isinstance(seen, BaseExceptionGroup | trio.TrioInternalError):
        seen = seen.__cause__ or seen.exceptions[0]  # type: ignore[union-attr]
    assert isinstance(seen, KeyboardInterrupt)


# -- The one that handlers run in


async def test_a_handler_that_cancels_its_parent_nursery_ends_nothing(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 1: neither open nor later connections; the log names the task."""

    async def handler(conn: Connection) -> None:
        async for data in conn:
            if data == b"end":
                nursery = trio.lowlevel.current_task().parent_nursery
                assert nursery is not None
                nursery.cancel_scope.cancel()
            await conn.send_all(data)

    async with serving(handler) as running:
        first, second = await running.connect(), await running.connect()
        for word in (b"end", b"end"):
            await second.send_all(word)
            assert await receive_exactly(second, 3) == word
        third = await running.connect()
        for client in (first, second, third):
            await trio.sleep(10)
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
        assert not running.ended.is_set()
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "conn-2 127.0.0.1:" in record.getMessage()
        assert "has cancelled the nursery that handlers run in" in record.getMessage()
        for client in (first, second, third):
            await client.aclose()
    assert {report.reason for report in running.reports} == {Reason.CLIENT_CLOSED}


async def test_a_handler_that_cancels_the_server_from_inside(
    autojump_clock: object,
) -> None:
    """Law 1: it has to climb up for that. It does not look like a drain."""

    async def handler(conn: Connection) -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        above = nursery.parent_task.parent_nursery
        assert above is not None
        above.cancel_scope.cancel()
        await conn.receive_some()

    async def connect(listener: trio.SocketListener) -> None:
        async with await CONNECT(listener) as client:
            assert await is_reset(client)

    listeners = await trioserve.open_listeners("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        assert isinstance(listeners[0], trio.SocketListener)
        nursery.start_soon(connect, listeners[0])
        with pytest.raises(RuntimeError, match="of the server's own has cancelled"):
            await trioserve.serve(handler, listeners)


async def test_a_task_that_a_handler_left_in_its_parent_nursery(
    autojump_clock: object,
) -> None:
    """Law 13: it ends with the server."""
    ended: list[float] = []

    async def stray() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async def handler(conn: Connection) -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.start_soon(stray)

    async with serving(handler) as running:
        client = await running.connect()
        assert await receive_all(client) == b""
        await client.aclose()
        await trio.sleep(5)
        await running.server.drain()
    assert ended == [5]

"""Proxy: from the client to the target and back, or a report that says why not."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import Peer, some_bytes
from support import (
    is_reset,
    no_free_fd,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
    serving,
)
from sweep import Begin, sweep
from targets import Resolver, black_hole, full_queue, refusing
from trioserve import (
    Address,
    Attempt,
    Connection,
    Limits,
    Outcome,
    Phase,
    Reason,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
    parse_address,
    proxy,
)
from trioserve._connection import lifecycle_of
from trioserve._origins import local_endpoints


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "has no port"),
        (":80", "has no host; did you mean 127.0.0.1:80?"),
        (TcpAddress("", 80), "has no host"),
        ("127.0.0.1:0", "has port 0: it can't be dialed"),
        ("unix:a?mode=600", "has a mode, which is for listening; did you mean unix:a?"),
    ],
)
def test_an_invalid_target_is_an_error(target: str | Address, message: str) -> None:
    """When the handler is made; the first target or another one."""
    with pytest.raises(ValueError, match=re.escape(message)):
        proxy(target)
    with pytest.raises(ValueError, match=re.escape(message)):
        proxy("127.0.0.1:1", target)


@pytest.mark.parametrize("parse", [str, parse_address])
async def test_the_report_has_both_sides(
    parse: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: the client's and the target's bytes, exactly."""

    async def target(conn: Connection) -> None:
        assert await receive_exactly(conn, 5) == b"hello"
        await conn.send_all(b"good bye")
        assert await conn.receive_some() == b""

    async with (
        serving(target) as there,
        serving(proxy(parse(there.address))) as running,
    ):
        client = await running.connect()
        await trio.sleep(1)
        await client.send_all(b"hello")
        await client.send_eof()
        assert await receive_all(client) == b"good bye"
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        (report,) = running.reports
        assert report.first_byte == 1
        assert report.target == there.address
        assert report.upstream is not None
        assert (report.bytes_received, report.upstream.bytes_sent) == (5, 5)
        assert (report.bytes_sent, report.upstream.bytes_received) == (8, 8)
        assert report.connect is not None
        assert report.reason is Reason.CLIENT_CLOSED
        assert report.phase is Phase.CLOSING


async def test_a_handler_may_proxy_and_go_on_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Then the proxy has ended, and the report has its bytes."""

    async def handler(conn: Connection) -> str:
        result = await (await proxied(conn))
        conn.note(sent=conn.bytes_sent, reason=str(result.reason))
        return "after that"

    async with serving(echo) as there, serving(handler) as running:
        proxied = proxy(there.address)
        client = await running.connect()
        await client.send_all(b"hello")
        await client.send_eof()
        assert await receive_all(client) == b"hello"
        await client.aclose()
        with refusing() as address:
            proxied = proxy(address)
            refused = await running.connect()
            assert await is_reset(refused)
        await trio.testing.wait_all_tasks_blocked()
        went_well, refused_report = running.reports
        assert (went_well.reason, went_well.result) == ("client_closed", "after that")
        assert went_well.notes == {"sent": 5, "reason": "client_closed"}
        assert refused_report.reason is Reason.CONNECT_REFUSED
        assert refused_report.notes == {"sent": 0, "reason": "connect_refused"}


async def test_a_wrapper_of_a_proxy_is_called(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Even if it has all attributes of the proxy, like a decorator."""

    class Counts:
        def __init__(self, handler: Any) -> None:
            self.handler = handler
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.handler, name)

        async def __call__(self, conn: Connection) -> None:
            self.calls += 1
            await self.handler(conn)

    async with serving(echo) as there:
        counts = Counts(proxy(there.address))
        async with serving(counts) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b"hello"
        assert counts.calls == 1


@given(
    clients=st.lists(
        st.tuples(
            st.sampled_from(["wait", "close", "reset", "leave"]), st.integers(0, 90_000)
        ),
        min_size=1,
        max_size=5,
    ),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_a_chain_of_proxies_counts_every_byte(
    clients: list[tuple[str, int]], schedule: object
) -> None:
    """Laws 4 and 13: whatever clients do, over two proxies to an echo."""
    before = open_fds()

    async def talk(client: trio.SocketStream, how: str, count: int) -> None:
        data = some_bytes(0, count)
        peer = Peer(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.read)
            await peer.send(count)
            match how:
                case "wait":
                    await peer.send_eof()
                case "close":
                    await trio.testing.wait_all_tasks_blocked()
                    client.socket.close()
                case "reset":
                    peer.reset()
                case _:  # "leave"
                    nursery.cancel_scope.cancel()
        assert data.startswith(peer.received)
        if how == "wait":
            assert peer.received == data
        await client.aclose()

    async def main() -> None:
        async with (
            serving(echo) as last,
            serving(proxy(last.address)) as second,
            serving(proxy(second.address)) as first,
        ):
            async with trio.open_nursery() as nursery:
                for how, count in clients:
                    client = await first.connect()
                    nursery.start_soon(talk, client, how, count)
        for report in first.reports + second.reports + last.reports:
            assert report.outcome != "handler_error", report
        assert len(first.reports) == len(clients)

    run(main)
    assert open_fds() == before


async def test_a_target_that_refuses_resets_the_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: a failed dial never looks like a clean end."""
    with refusing() as target:
        async with serving(proxy(target)) as running:
            client = await running.connect()
            assert await is_reset(client)
            await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.phase) == (Reason.CONNECT_REFUSED, Phase.CONNECT)
    assert report.termination_state == "SC"
    assert report.error is not None
    assert report.error.startswith("ConnectionRefusedError: ")
    assert report.connect is None
    assert report.limit is None


async def test_a_target_that_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: the connect timeout is exact, whatever the client sends meanwhile."""
    with black_hole() as target:
        handler = proxy(target, timeouts=Timeouts(connect=3))
        async with serving(handler) as running:
            client = await running.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Peer(client).send, 10)
                assert await is_reset(client)
            assert trio.current_time() == 3
            await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.duration) == (Reason.CONNECT_TIMEOUT, 3)
    assert report.termination_state == "sC"
    assert report.limit == 3
    assert report.bytes_received == 0


async def test_a_target_that_cannot_be_reached(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """For any other error of the system."""
    async with serving(proxy("127.255.255.255:9")) as running:
        client = await running.connect()
        assert await is_reset(client)
        await client.aclose()
    assert running.reports[0].reason is Reason.CONNECT_FAILED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_local_shortage_is_not_blamed_on_the_target(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: neither by the reason nor by HAProxy's letters."""
    told: list[Attempt] = []

    async def handler(conn: Connection) -> None:
        with no_free_fd():
            await through(conn)

    async with serving(echo) as there:
        _, _, port = there.address.rpartition(":")
        through = proxy(
            f"{host}:{port}", on_attempt=lambda _, attempt: told.append(attempt)
        )
        async with serving(handler) as running:
            client = await running.connect()
            assert await is_reset(client)
            await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.phase) == (Reason.RESOURCE, Phase.CONNECT)
    assert (report.outcome, report.termination_state) == (Outcome.RESOURCE, "RC")
    assert report.limit is None
    assert report.error is not None
    assert "Too many open files" in report.error
    assert report.attempts == tuple(told)
    assert [(attempt.ours, attempt.failed) for attempt in told] == [(True, False)]


@pytest.mark.parametrize("sends", [b"", b"hello"])
async def test_a_client_that_resets_ends_the_dialing(
    sends: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: whether or not it has sent a byte."""
    with black_hole() as target:
        async with serving(proxy(target), timeouts=Timeouts(connect=60)) as running:
            client = await running.connect()
            await client.send_all(sends)
            await trio.sleep(2)
            connection = running.server.connections[0]
            assert (connection.phase, connection.target) == ("connect", str(target))
            assert connection.age == 2
            reset(client)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(running.server.connections) == 0
            assert trio.current_time() == 2
    (report,) = running.reports
    assert (report.reason, report.phase) == (Reason.CLIENT_RESET, Phase.CONNECT)
    assert report.termination_state == "CC"
    assert [attempt.error for attempt in report.attempts] == ["given up"]
    assert report.bytes_received == 0
    assert report.error is not None
    assert report.error.startswith("ConnectionResetError: ")


async def test_a_client_that_resets_ends_the_dialing_of_a_second_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: it is watched once, however many targets are dialed."""
    with black_hole() as first, black_hole() as second:
        async with serving(
            proxy(first, second), timeouts=Timeouts(connect=60)
        ) as running:
            client = await running.connect()
            await trio.sleep(40)
            assert running.server.connections[0].target == str(second)
            reset(client)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(running.server.connections) == 0
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_RESET


@pytest.mark.parametrize("sends", [b"", b"hello"])
async def test_no_target_is_dialed_for_a_client_that_has_reset(
    sends: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: there is no target to pass the reset on to."""
    async with serving(echo) as there:
        limits = Limits(max_connections=0)
        async with serving(proxy(there.address), limits=limits) as running:
            for _ in range(3):
                client = await running.connect()
                await client.send_all(sends)
                reset(client)
            running.server.limits = Limits(max_connections=1)
            client = await running.connect()
            await client.send_all(b"?")
            assert await receive_exactly(client, 1) == b"?"
            await client.aclose()
    assert len(there.reports) == 1
    for report in running.reports[:3]:
        assert (report.reason, report.phase) == (Reason.CLIENT_RESET, Phase.CONNECT)
        assert report.attempts == ()
        assert report.error is not None
        assert report.error.startswith("ConnectionResetError: ")


async def test_a_client_that_resets_ends_the_wait_for_a_unix_socket(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: it gives up its place, and the next client connects."""
    path = str(tmp_path / "socket")
    with full_queue(path) as listener:
        handler = proxy(f"unix:{path}", timeouts=Timeouts(connect=60))
        async with serving(handler) as running:
            clients = [await running.connect() for _ in range(3)]
            await trio.sleep(2)
            for client in clients[:2]:
                reset(client)
            await trio.testing.wait_all_tasks_blocked(0.01)
            (connection,) = running.server.connections
            assert connection.peer == TcpAddress(*clients[2].socket.getsockname())
            listener.accept()[0].close()
            await trio.sleep(0.3)
            with listener.accept()[0] as target:
                target.sendall(b"here")
                assert await receive_exactly(clients[2], 4) == b"here"
            await clients[2].aclose()
    reasons = [report.reason for report in running.reports]
    assert reasons[:2] == 2 * [Reason.CLIENT_RESET]


async def test_a_silent_client_that_closes_ends_the_dialing_after_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: until then it may have closed only its own direction."""
    with black_hole() as target:
        async with serving(proxy(target), timeouts=Timeouts(connect=60)) as running:
            client = await running.connect()
            await trio.sleep(3)
            await client.send_eof()
            await trio.sleep(0.9)
            assert len(running.server.connections) == 1
            await trio.sleep(0.2)
            assert len(running.server.connections) == 0
    (report,) = running.reports
    assert (report.reason, report.error) == (Reason.CLIENT_GONE, None)
    assert report.termination_state == "CC"
    assert report.duration == 4


@pytest.mark.parametrize(("sends", "thinks"), [(b"", 0.5), (b"hello", 2)])
async def test_a_client_that_has_half_closed_is_answered(
    sends: bytes, thinks: float, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 7: EOF while the target is dialed ends its own direction only."""
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(path)
        async with serving(proxy(f"unix:{path}")) as running:
            client = await running.connect()
            await client.send_all(sends)
            await client.send_eof()
            await trio.sleep(thinks)
            stack.enter_context(listener.accept()[0])
            await trio.sleep(0.3)
            target = stack.enter_context(listener.accept()[0])
            target.setblocking(False)
            assert target.recv(100) == sends
            target.sendall(b"answer")
            target.close()
            assert await receive_all(client) == b"answer"
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.target == f"unix:{path}"
    assert report.connect is not None
    assert report.attempts == (Attempt(address=f"unix:{path}", seconds=report.connect),)


async def test_the_report_has_the_target_that_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And each attempt before it, with its duration."""
    with refusing() as first, black_hole() as second:
        async with (
            serving(echo) as there,
            serving(
                proxy(first, second, there.address), timeouts=Timeouts(connect=4)
            ) as running,
        ):
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await client.aclose()
    (report,) = running.reports
    assert report.target == there.address
    assert report.connect == 1
    fields = report.as_dict()["attempts"]
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    assert fields == [
        {"address": str(first), "seconds": 0, "error": refused, "ours": False},
        {"address": str(second), "seconds": 1, "error": "no answer", "ours": False},
        {"address": there.address, "seconds": 0, "error": None, "ours": False},
    ]


@pytest.mark.parametrize(
    "way", ["itself", "another listener", "a name", "no host", "a mapped address"]
)
async def test_a_loop_is_detected(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: it costs two connections, and not all there are."""
    listeners = await open_listeners("127.0.0.1:0", "127.0.0.1:0")
    port = listeners[way == "another listener"].socket.getsockname()[1]
    hosts = {
        "a name": "localhost",
        "no host": "0.0.0.0",
        "a mapped address": "[::ffff:127.0.0.1]",
    }
    host = hosts.get(way, "127.0.0.1")
    handler = proxy(f"{host}:{port}")
    async with serving(handler, listeners=listeners) as running:
        client = await running.connect()
        assert await is_reset(client)
        await client.aclose()
    first, second = sorted(running.reports, key=lambda report: report.id)
    assert (second.reason, second.termination_state) == (Reason.LOOP, "PC")
    assert second.target == f"{host}:{port}"
    assert first.reason is Reason.SERVER_RESET


@pytest.mark.parametrize("length", [2, 3])
async def test_a_loop_through_several_proxies_is_detected(
    length: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: each connection passes through each of them once."""
    listeners = [await open_listeners("127.0.0.1:0") for _ in range(length)]
    ports = [bound.socket.getsockname()[1] for (bound,) in listeners]
    async with contextlib.AsyncExitStack() as stack:
        ring = [
            await stack.enter_async_context(
                serving(proxy(f"127.0.0.1:{port}"), listeners=own)
            )
            for own, port in zip(listeners, [*ports[1:], ports[0]], strict=True)
        ]
        for _ in range(2):
            client = await ring[0].connect()
            assert await is_reset(client)
            await client.aclose()
    first, *others = (sorted(each.reports, key=lambda r: r.id) for each in ring)
    reset_by_target, loop = Reason.SERVER_RESET, Reason.LOOP
    assert [report.reason for report in first] == 2 * [reset_by_target, loop]
    assert [[report.reason for report in each] for each in others] == (length - 1) * [
        2 * [reset_by_target]
    ]


async def test_several_ways_to_a_proxy_are_not_a_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: also through other proxies of the same run."""
    async with contextlib.AsyncExitStack() as stack:
        last = await stack.enter_async_context(serving(echo))
        ways = [last.address]
        for _ in range(3):
            there = await stack.enter_async_context(serving(proxy(ways[-1])))
            ways.append(there.address)
            client = await there.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await client.aclose()


async def test_a_client_without_a_socket_is_not_watched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: the connect timeout ends the dialing."""
    ours, theirs = trio.testing.memory_stream_pair()

    class Once(trio.abc.Listener[trio.abc.Stream]):
        """Accepts one client, and no other."""

        async def accept(self) -> trio.abc.Stream:
            if once:
                return once.pop()
            await trio.sleep_forever()
            raise AssertionError  # pragma: no cover

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    once = [ours]
    with black_hole() as target:
        timeouts = Timeouts(connect=3)
        async with serving(
            proxy(target), listeners=[Once()], timeouts=timeouts
        ) as running:
            await theirs.aclose()
            await trio.sleep(4)
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.CONNECT_TIMEOUT, 3)


async def test_from_a_unix_socket_to_another(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Half-closes, bytes, and a target that closes, as with TCP."""
    paths = [f"unix:{tmp_path}/{name}" for name in ("front", "back")]
    async with (
        serving(echo, addresses=(paths[1],)) as back,
        serving(proxy(paths[1]), addresses=(paths[0],)) as front,
    ):
        client = await front.connect()
        data = some_bytes(0, 300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            assert await receive_exactly(client, len(data)) == data
        await client.send_eof()
        assert await receive_all(client) == b""
        assert (front.address, back.address) == tuple(paths)
    (report,) = front.reports
    assert (report.peer, report.target) == ("unix:", paths[1])
    assert report.upstream is not None
    assert report.upstream.bytes_sent == len(data)


async def test_a_target_that_resets(autojump_clock: trio.testing.MockClock) -> None:
    """Law 8: the client is reset too, and the report blames the target."""

    async def target(conn: Connection) -> None:
        await conn.send_all(b"some of")
        conn.abort()

    async with serving(target) as there, serving(proxy(there.address)) as running:
        client = await running.connect()
        assert await receive_exactly(client, 7) == b"some of"
        assert await is_reset(client)
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        (report,) = running.reports
        assert report.reason is Reason.SERVER_RESET
        assert report.bytes_sent == 7


@given(count=st.integers(0, 1000), schedule=st.random_module())
@settings(deadline=None)
def test_a_target_that_resets_at_once(count: int, schedule: object) -> None:
    """Law 8: also before connect has noticed that the target had accepted."""

    async def answer(listener: trio.SocketListener) -> None:
        stream = await listener.accept()
        os.write(stream.socket.fileno(), some_bytes(0, count))
        reset(stream)

    async def main() -> None:
        (target,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = target.socket.getsockname()[1]
        async with target, serving(proxy(f"127.0.0.1:{port}")) as running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, target)
                client = await running.connect()
                peer = Peer(client)
                await peer.read()
            assert peer.received == some_bytes(0, count)
            assert peer.tail == "reset"
            await client.aclose()
        (report,) = running.reports
        assert (report.reason, report.bytes_sent) == (Reason.SERVER_RESET, count)

    run(main)


async def test_a_proxy_uses_the_servers_timeouts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: unless it was given its own."""
    async with serving(echo) as there:
        for own, seconds in ((None, 8), (Timeouts(idle=5), 5)):
            handler = proxy(there.address, timeouts=own)
            async with serving(handler, timeouts=Timeouts(idle=8)) as running:
                client = await running.connect()
                assert await receive_all(client) == b""
                await client.aclose()
            (report,) = running.reports
            assert (report.reason, report.duration) == (Reason.IDLE, seconds)
            assert report.limit == seconds


async def test_the_reason_stays_while_the_close_lingers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: a timer during the close does not replace it."""
    timeouts = Timeouts(drain_idle=5, half_closed=1, linger=30, drain=60)
    async with (
        serving(echo) as there,
        serving(proxy(there.address), timeouts=timeouts) as running,
    ):
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        # EOF comes when the drain finds it idle; then it lingers for the client's EOF.
        running.server.start_draining()
        assert await client.receive_some() == b""
        await trio.sleep(20)
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.DRAINED, 5)
    assert report.duration == 25


@pytest.mark.untraced
def test_stopped_when_a_slow_target_answers_nothing_is_left(tmp_path: Path) -> None:
    """Laws 3 and 13: just before or just after the target has accepted."""
    path = tmp_path / "socket"

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            stack.callback(path.unlink)
            listener.listen(0)
            first = stack.enter_context(socket.socket(socket.AF_UNIX))
            first.connect(str(path))
            async with serving(proxy(f"unix:{path}")) as running:
                client = await running.connect()
                await client.send_all(b"hello")
                # Long enough for the watch of the client to start.
                await trio.sleep(1)
                begin(running.scope.cancel)
                stack.enter_context(listener.accept()[0])
                with (
                    trio.move_on_after(1),
                    contextlib.suppress(trio.BrokenResourceError),
                ):
                    assert await client.receive_some() == b""
            (report,) = running.reports
            assert report.outcome == "cut"
        assert open_fds() == before

    assert sweep(scenario) > 5


@pytest.mark.parametrize("end", ["idle", "drain"])
@pytest.mark.parametrize("side", ["client", "target"])
async def test_a_socket_that_other_code_closes_ends_its_relay(
    side: str, end: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 5 and 12: no event tells of it, so the next timer does, or the drain."""
    timeouts = Timeouts(idle=2 if end == "idle" else 1000)
    async with serving(echo) as behind:
        async with serving(proxy(behind.address), timeouts=timeouts) as running:
            client = await running.connect()
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            (conn,) = running.server.connections
            if side == "client":
                conn.socket.close()
            else:
                upstream = lifecycle_of(conn).upstream
                assert upstream is not None
                carrier = upstream.pollable()
                assert carrier is not None
                carrier.sock.close()
            if end == "idle":
                await trio.sleep(4)
                assert running.server.statistics().open == 0
            else:
                summary = await running.server.drain(within=1)
                assert summary.stuck == ()
            await client.aclose()
    (report,) = running.reports
    assert report.reason is (Reason.ABORTED if end == "idle" else Reason.CUT)


def test_stopped_at_any_step_nothing_is_left() -> None:
    """Laws 3, 4 and 13: while it dials, relays or ends."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as there:
            async with serving(proxy(there.address)) as running:
                client = await running.connect()
                peer = Peer(client)
                begin(running.scope.cancel)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peer.read)
                    await peer.send(1000)
                    await peer.send_eof()
                await client.aclose()
                await trio.testing.wait_all_tasks_blocked()
            assert len(running.reports) <= 1
            for report in running.reports:
                assert report.outcome in ("ok", "cut")
        assert open_fds() == before

    assert sweep(scenario) > 30


_RAISED = [
    ValueError("a bug"),
    ConnectionRefusedError(errno.ECONNREFUSED, "the metrics are not there"),
    OSError(errno.EMFILE, "no room for metrics"),
    trio.BrokenResourceError("the pipe to the metrics"),
]


@pytest.mark.parametrize("way", ["at once", "by a name", "refused", "raced", "silent"])
@pytest.mark.parametrize("error", _RAISED, ids=lambda error: type(error).__name__)
async def test_an_exception_in_on_attempt_is_the_handlers_error(
    error: Exception, way: str, autojump_clock: object
) -> None:
    """Laws 13 and 15: no target is blamed for it, and no socket is left."""
    calls: list[Attempt] = []

    def on_attempt(_: Address, attempt: Attempt) -> None:
        calls.append(attempt)
        raise error

    hosts = ["127.0.0.2", "127.0.0.1"] if way == "raced" else ["127.0.0.1"]
    trio.socket.set_custom_hostname_resolver(Resolver(hosts))
    async with serving(echo) as behind:
        port = parse_address(behind.address).port  # type: ignore[union-attr]
        with refusing() as refuses, black_hole() as silent:
            target = {
                "at once": behind.address,
                "refused": str(refuses),
                "silent": str(silent),
            }.get(way, f"target.test:{port}")
            before = open_fds()
            handler = proxy(target, behind.address, on_attempt=on_attempt)
            async with serving(handler) as running:
                client = await running.connect()
                assert await is_reset(client)
                await client.aclose()
                await running.server.drain()
            assert open_fds() == before
            assert not [end for end in local_endpoints() if str(port) in end]
    (report,) = running.reports
    assert report.reason is Reason.HANDLER_ERROR
    assert report.error == f"{type(error).__name__}: {error}"
    assert report.exception is error
    assert len(calls) == 1


async def test_a_program_may_end_in_on_attempt() -> None:
    def on_attempt(*_: object) -> None:
        raise SystemExit(3)

    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        async with serving(proxy("127.0.0.1:1", on_attempt=on_attempt)) as running:
            await running.connect()
            await running.ended.wait()

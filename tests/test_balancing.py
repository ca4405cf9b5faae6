"""A proxy with several targets: who gets a connection, and what a sick one costs."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any, get_args

import pytest
import trio
import trio.testing

from support import Running, is_reset, open_fds, receive_exactly, reset, run, serving
from sweep import Begin, sweep
from targets import black_hole, listening, refusing
from trioserve import (
    Connection,
    Health,
    Limits,
    Outcome,
    Reason,
    Target,
    TargetState,
    TcpAddress,
    Timeouts,
    UnixAddress,
    echo,
    proxy,
)
from trioserve._targets import Balance

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@contextlib.asynccontextmanager
async def echoes(count: int) -> AsyncGenerator[list[Running]]:
    """So many targets that answer."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(echo)) for _ in range(count)]


async def talk(running: Running, source: str | None = None) -> str | None:
    """One connection, there and back; the target that had it, None if it was reset."""
    client = await running.connect(source=source)
    known = len(running.reports)
    try:
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await client.send_eof()
        assert await client.receive_some() == b""
    except trio.BrokenResourceError:
        pass
    await client.aclose()
    while len(running.reports) == known:
        await trio.lowlevel.checkpoint()
    report = running.reports[-1]
    return report.target if report.outcome is Outcome.OK else None


# -- arguments


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("db:1", Target(TcpAddress("db", 1))),
        ("db:1?weight=3", Target(TcpAddress("db", 1), 3)),
        (" db:1?backup ", Target(TcpAddress("db", 1), 1, backup=True)),
        ("[::1]:1?weight=2&backup", Target(TcpAddress("::1", 1), 2, backup=True)),
        ("unix:/a?weight=1000", Target(UnixAddress("/a"), 1000)),
    ],
)
def test_a_target_is_a_text(text: str, target: Target) -> None:
    """Of an address, with options behind it; the same as a value."""
    (state,) = run(_states, text)
    assert state.target == target
    assert run(_states, str(target)) == run(_states, target)
    assert str(target) == text.strip().replace("weight=1&", "")


async def _states(target: Any) -> list[TargetState]:
    await trio.lowlevel.checkpoint()
    return list(proxy(target).targets())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("db:1?weight=0", "'weight=0' in 'db:1.weight=0' is not a weight; use"),
        ("db:1?weight=1001", "use weight=1 to weight=1000"),
        ("db:1?weight=x", "is not a weight"),
        ("db:1?heavy", "'heavy' in 'db:1.heavy' is not an option of a target; use"),
        ("db:1?backup&", "'' in"),
        (":1?backup", "has no host; did you mean 127.0.0.1:1?"),
        ("unix:a?backup&mode=600", "'mode=600' in"),
    ],
)
def test_a_wrong_option_of_a_target_is_an_error(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        proxy(target)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"balance": "best"}, ValueError, "balance must be 'first', .* not 'best'"),
        ({"health": 3}, TypeError, "health must be a Health or None, not 3"),
        ({"max_per_target": 0}, ValueError, "max_per_target must be 1 or more, not 0"),
        ({"on_target": 3}, TypeError, "on_target must be callable"),
    ],
)
def test_a_wrong_argument_is_an_error(
    argument: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        proxy("127.0.0.1:1", **argument)


# -- who gets a connection


@pytest.mark.parametrize("balance", get_args(Balance))
async def test_each_balance_serves(
    balance: Balance, autojump_clock: trio.testing.MockClock
) -> None:
    """And no connection is counted when it is over."""
    async with echoes(3) as there:
        handler = proxy(*(each.address for each in there), balance=balance)
        async with serving(handler) as running:
            turns = collections.Counter([await talk(running) for _ in range(12)])
            states = handler.targets()
        assert sum(state.connected for state in states) == 12
        assert not any(state.open or state.failed for state in states)
        assert [turns[each.address] for each in there] == [
            state.connected for state in states
        ]
    expected = {"first": [12, 0, 0], "round-robin": [4, 4, 4]}
    expected["least-connections"] = [4, 4, 4]
    if balance in expected:
        assert [state.connected for state in states] == expected[balance]
    elif balance == "source":
        assert sorted(turns.values()) == [12]


async def test_weights(autojump_clock: trio.testing.MockClock) -> None:
    async with echoes(2) as (one, two):
        handler = proxy(f"{one.address}?weight=3", two.address, balance="round-robin")
        async with serving(handler) as running:
            turns = [await talk(running) for _ in range(8)]
        assert turns == [*[one.address] * 2, two.address, one.address] * 2


async def test_a_client_keeps_its_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """By its IP address, as long as that target is up."""
    async with echoes(4) as there:
        handler = proxy(*(each.address for each in there), balance="source")
        async with serving(handler) as running:
            chosen = {
                source: {await talk(running, source) for _ in range(3)}
                for source in (f"127.0.0.{number}" for number in range(2, 12))
            }
        assert all(len(targets) == 1 for targets in chosen.values())
        assert len(set[str | None]().union(*chosen.values())) > 1


async def test_least_connections_counts_those_that_are_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with echoes(2) as (one, two):
        handler = proxy(one.address, two.address, balance="least-connections")
        async with serving(handler) as running:
            clients = [await running.connect() for _ in range(4)]
            for client in clients:
                await client.send_all(b"hello")
                await receive_exactly(client, 5)
            assert [state.open for state in handler.targets()] == [2, 2]
            by_target = {c.target: c for c in running.server.connections}
            by_target[one.address].abort()
            await running.closed(1)
            assert [state.open for state in handler.targets()] == [1, 2]
            assert await talk(running) == one.address


async def test_a_handler_that_proxies_twice_counts_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first target is given back when the second one is dialed."""
    async with serving(echo) as there:
        inner = proxy(there.address)
        counts: list[int] = []

        async def twice(conn: Connection) -> None:
            for _ in range(2):
                relay = await inner(conn)
                counts.append(inner.targets()[0].open)
                await relay

        async with serving(twice) as running:
            client = await running.connect()
            await client.send_eof()
            assert await client.receive_some() == b""
        counts.append(inner.targets()[0].open)
    assert counts == [1, 1, 0]


# -- down and up


class Told:
    """What on_target was told: when, and whether it is up."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, str, bool]] = []
        self.states: list[TargetState] = []

    def __call__(self, state: TargetState) -> None:
        self.states.append(state)
        now = trio.current_time()
        self.changes.append((now, str(state.target), state.up))


async def test_a_target_that_refuses_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: that is said when it is seen, with why; it is tried after the pause."""
    told = Told()
    async with echoes(1) as (good,):
        with refusing() as bad:
            handler = proxy(bad, good.address, on_target=told)
            async with serving(handler) as running:
                for _ in range(5):
                    assert await talk(running) == good.address
                tries = [len(report.attempts) for report in running.reports]
                assert tries == [2, 2, 2, 1, 1]
                (state,) = told.states
                assert not state.up
                assert state.failed == 3
                assert state.error is not None
                assert "Connection refused" in state.error
                assert handler.targets()[0].seconds == 0
                await trio.sleep(1.2)
                await talk(running)
                await talk(running)
                assert handler.targets()[0].failed == 4
    assert told.changes == [(0, str(bad), False)]


async def test_a_target_that_is_back_gets_connections_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: with the first one that connects to it, which is said, too."""
    told = Told()
    async with echoes(2) as (one, two):
        port = one.port
        handler = proxy(one.address, two.address, on_target=told, health=Health(fall=1))
        async with serving(handler) as running:
            await one.server.drain()
            assert await talk(running) == two.address
            async with serving(echo, addresses=(f"127.0.0.1:{port}",)):
                await trio.sleep(1.2)
                assert await talk(running) == one.address
                assert await talk(running) == one.address
    assert [up for *_, up in told.changes] == [False, True]
    assert told.states[-1].error is None


async def test_a_backup_is_used_while_the_others_are_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with echoes(1) as (good,):
        with refusing() as bad:
            async with serving(proxy(f"{good.address}?backup", bad)) as running:
                for tries in (2, 2, 2, 1):
                    assert await talk(running) == good.address
                    assert len(running.reports[-1].attempts) == tries


async def test_if_all_are_down_each_client_is_still_heard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: and its report says why none answered."""
    with refusing() as one, refusing() as two:
        async with serving(proxy(one, two, health=Health(fall=1))) as running:
            for _ in range(3):
                assert await talk(running) is None
                report = running.reports[-1]
                assert report.reason is Reason.CONNECT_REFUSED
                assert len(report.attempts) == 2


@pytest.mark.parametrize("count", [1, 2])
async def test_a_shortage_of_this_machine_takes_no_target_down(
    count: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: nor does a client that leaves."""
    with black_hole() as silent:
        handler = proxy(*[silent] * count, source="127.0.0.1", health=Health(fall=1))
        short = proxy("[::1]:1", source="127.0.0.1", health=Health(fall=1))
        async with serving(handler) as running, serving(short) as other:
            client = await running.connect()
            await trio.sleep(0.1)
            reset(client)
            await trio.sleep(2)
            assert await talk(other) is None
    assert other.reports[0].reason is Reason.RESOURCE
    for each in (handler, short):
        for state in each.targets():
            assert (state.up, state.failed, state.open) == (True, 0, 0)


async def test_a_target_is_not_blamed_for_what_little_time_was_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: after a wait for room, or with a very short --connect."""
    with black_hole() as silent:
        handler = proxy(silent, health=Health(fall=1))
        for seconds, failed in ((0.04, 0), (0.06, 1)):
            timeouts = Timeouts(connect=seconds)
            async with serving(handler, timeouts=timeouts) as running:
                assert await talk(running) is None
            assert running.reports[0].reason is Reason.CONNECT_TIMEOUT
            assert handler.targets()[0].failed == failed


def test_a_late_process_blames_no_target() -> None:
    """Law 15: if it was stopped for longer than all of the time there was."""

    async def main() -> None:
        with black_hole() as one, black_hole() as two, black_hole() as three:
            handler = proxy(one, two, three, health=Health(fall=1))
            async with serving(handler, timeouts=Timeouts(connect=3)) as running:
                client = await running.connect()
                await trio.testing.wait_all_tasks_blocked()
                clock = trio.lowlevel.current_clock()
                assert isinstance(clock, trio.testing.MockClock)
                clock.jump(30)
                assert await is_reset(client)
            assert [state.failed for state in handler.targets()] == [1, 0, 0]

    run(main)


async def test_a_silent_target_costs_a_second_until_it_is_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: 200 clients at once, and 200 clients after the first second."""

    async def ask(running: Running) -> None:
        client = await running.connect()
        await client.send_all(b"x")
        await client.receive_some()

    limits = Limits(max_connections=1000)
    async with serving(echo, limits=limits) as good:
        with black_hole() as silent:
            handler = proxy(silent, good.address)
            async with serving(handler, limits=limits) as running:
                for _ in range(2):
                    known = len(running.server.connections)
                    async with trio.open_nursery() as nursery:
                        for _ in range(200):
                            nursery.start_soon(ask, running)
                    new = running.server.connections[known:]
                    assert {conn.target for conn in new} == {good.address}
                    await trio.sleep(0.5)
                    assert handler.targets()[0].open == 0
                    assert handler.targets()[0].failed == 200
                running.scope.cancel()
    times = [report.connect or 0 for report in running.reports]
    assert sorted(times) == [0] * 200 + [1] * 200


async def test_a_silent_target_that_is_known_costs_little(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: one of three, ten clients a second, for a minute; p99 below 50 ms."""
    async with echoes(2) as (one, two):
        with black_hole() as silent:
            targets = one.address, silent, two.address
            handler = proxy(*targets, balance="round-robin")
            async with serving(handler) as running:
                for _ in range(600):
                    await talk(running)
                    await trio.sleep(0.1)
    times = sorted(report.connect or 0 for report in running.reports[30:])
    assert times[len(times) * 99 // 100] <= 0.05
    assert times[-1] <= 1


# -- room


async def test_connections_wait_for_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 2: never more than so many, and the first one that waits is the next."""
    async with echoes(2) as there:
        handler = proxy(*(each.address for each in there), max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            order: list[int] = []

            async def client(number: int) -> None:
                stream = await running.connect()
                await stream.send_all(b"x")
                await stream.receive_some()
                assert max(state.open for state in handler.targets()) == 1
                order.append(number)
                await trio.sleep(1)
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(client, number)
                    await trio.sleep(0.01)
    assert order == list(range(6))
    assert [round(report.connect or 0) for report in running.reports] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
    assert not any(state.open for state in handler.targets())


async def test_without_room_in_time_the_client_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: no target is blamed, and the report says which limit it was."""
    async with echoes(1) as (there,):
        handler = proxy(there.address, max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=3)) as running:
            holds = await running.connect()
            await holds.send_all(b"x")
            await holds.receive_some()
            client = await running.connect()
            assert await is_reset(client)
            assert trio.current_time() == 3
    report = running.reports[0]
    assert (report.reason, report.limit) == (Reason.TARGET_FULL, 1)
    assert (report.termination_state, report.attempts) == ("sQ", ())
    assert report.error == "NoRoomError: [Errno 110] no target had room within 3 s"
    assert handler.targets()[0].failed == 0


async def test_a_client_that_leaves_waits_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with echoes(1) as (there,):
        handler = proxy(there.address, max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            holds = await running.connect()
            await holds.send_all(b"x")
            await holds.receive_some()
            leaves = await running.connect()
            waits = await running.connect()
            await trio.sleep(0.1)
            await leaves.aclose()
            await trio.sleep(2)
            await holds.aclose()
            await waits.send_all(b"x")
            assert await waits.receive_some() == b"x"
    assert running.reports[0].reason is Reason.CLIENT_GONE


@pytest.mark.parametrize("how", ["cancel", "drain", "abort", "leave"])
def test_stopped_at_every_step_every_place_is_given_back(how: str) -> None:
    """Laws 2 and 13: while it fails, waits for room, is dialed, relayed, or ends."""

    async def client(running: Running) -> None:
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            stream = await running.connect()
            try:
                await stream.send_all(b"hello")
                await stream.receive_some()
            finally:
                reset(stream)

    def drain(running: Running) -> None:
        running.server.start_draining(0)

    def abort(running: Running) -> None:
        for conn in running.server.connections:
            conn.abort()

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as good:
            with refusing() as bad:
                handler = proxy(
                    bad, good.address, max_per_target=1, health=Health(fall=2)
                )
                timeouts = Timeouts(drain=1, connect=2)
                async with serving(handler, timeouts=timeouts) as running:
                    async with trio.open_nursery() as clients:
                        stops: dict[str, Callable[[], object]] = {
                            "cancel": running.scope.cancel,
                            "drain": functools.partial(drain, running),
                            "abort": functools.partial(abort, running),
                            "leave": clients.cancel_scope.cancel,
                        }
                        begin(stops[how])
                        for _ in range(3):
                            clients.start_soon(client, running)
                for state in handler.targets():
                    assert state.open == 0
        assert open_fds() == before

    assert sweep(scenario) > 30


# -- callbacks


@pytest.mark.parametrize("way", ["down", "up", "up at once"])
async def test_an_exception_in_on_target_is_the_handlers_error(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 13 and 15: as one in on_attempt is."""

    def on_target(state: TargetState) -> None:
        if state.up is (way != "down"):
            raise ValueError("a bug")

    host = "localhost" if way == "up" else "127.0.0.1"
    with refusing() as bad:
        handler = proxy(
            f"{host}:{bad.port}", health=Health(fall=1), on_target=on_target
        )
    async with serving(handler) as running:
        await talk(running)
        if way != "down":
            async with serving(echo, addresses=(str(bad),)):
                assert await talk(running) is None
    report = running.reports[-1]
    assert report.reason is Reason.HANDLER_ERROR
    assert report.error == "ValueError: a bug"
    assert handler.targets()[0].open == 0


async def test_the_first_of_two_errors_is_the_reports(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """When a target is up again, both callbacks are called."""

    def raises(*args: object) -> None:
        if up and not isinstance(args[0], TargetState):
            raise ValueError("the first")
        if up:
            raise ValueError("the second")

    up: list[bool] = []
    with refusing() as bad:
        health = Health(fall=1)
        handler = proxy(bad, health=health, on_attempt=raises, on_target=raises)
    async with serving(handler) as running:
        await talk(running)
        up.append(True)
        async with serving(echo, addresses=(str(bad),)):
            assert await talk(running) is None
    assert running.reports[-1].error == "ValueError: the first"


async def test_the_state_is_there_before_any_connection() -> None:
    with listening() as address:
        await trio.lowlevel.checkpoint()
        (state,) = proxy(address).targets()
    assert state == TargetState(
        target=Target(address),
        up=True,
        drained=False,
        gone=False,
        seconds=None,
        open=0,
        connected=0,
        failed=0,
        connect=None,
        connect_p50=None,
        connect_p99=None,
        error=None,
        retry=None,
        checks=0,
        checks_failed=0,
    )

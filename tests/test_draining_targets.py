"""A target that is drained at run time: it gets no new connections, until revived."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import trio
import trio.testing

from support import Running, is_reset, open_fds, receive_exactly, reset, serving
from sweep import Begin, sweep
from targets import refusing
from test_balancing import echoes, talk
from trioserve import (
    Reason,
    Target,
    TcpAddress,
    Timeouts,
    echo,
    parse_address,
    proxy,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


async def holds(running: Running) -> trio.SocketStream:
    """A client whose connection has its target."""
    client = await running.connect()
    await client.send_all(b"x")
    assert await receive_exactly(client, 1) == b"x"
    return client


async def test_a_drained_target_gets_no_new_connections(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its open one goes on; it is up all the time; then it is revived."""
    async with echoes(2) as (one, two):
        handler = proxy(one.address, two.address)
        async with serving(handler) as running:
            client = await holds(running)
            for _ in range(2):  # idempotent
                handler.drain(one.address)
            assert [state.drained for state in handler.targets()] == [True, False]
            assert handler.targets()[0].up
            assert [await talk(running) for _ in range(3)] == [two.address] * 3
            await client.send_all(b"y")
            assert await receive_exactly(client, 1) == b"y"
            assert handler.targets()[0].open == 1
            for _ in range(2):
                handler.revive(one.address)
            assert await talk(running) == one.address


@pytest.mark.parametrize("balance", ["first", "round-robin", "random", "source"])
async def test_every_balance_leaves_a_drained_target_out(
    balance: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with echoes(3) as there:
        handler = proxy(*(each.address for each in there), balance=balance)
        async with serving(handler) as running:
            handler.drain(there[0].address)
            handler.drain(there[2].address)
            turns = [await talk(running) for _ in range(6)]
    assert turns == [there[1].address] * 6


async def test_those_that_wait_for_room_get_another_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A backup helps out for one that is drained, but not for one that is full."""
    async with echoes(2) as (one, two):
        handler = proxy(one.address, f"{two.address}?backup", max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            await holds(running)
            client = await running.connect()
            await client.send_all(b"x")
            await trio.sleep(5)
            handler.drain(one.address)
            assert await receive_exactly(client, 1) == b"x"
            assert trio.current_time() == 5
            assert [state.open for state in handler.targets()] == [1, 1]


async def test_one_that_waits_for_the_last_target_hears_why_the_others_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: as soon as that is drained, because there is nothing to wait for."""
    async with echoes(1) as (good,):
        with refusing() as bad:
            handler = proxy(bad, good.address, max_per_target=1)
            async with serving(handler, timeouts=Timeouts(connect=60)) as running:
                await holds(running)
                client = await running.connect()
                await trio.sleep(5)
                handler.drain(good.address)
                assert await is_reset(client)
                assert trio.current_time() == 5
    assert running.reports[0].reason is Reason.CONNECT_REFUSED


async def test_if_all_are_drained_clients_wait_for_one_that_is_revived(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with echoes(2) as there:
        handler = proxy(*(each.address for each in there))
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            for each in there:
                handler.drain(each.address)
            clients = [await running.connect() for _ in range(3)]
            for client in clients:
                await client.send_all(b"x")
            await trio.sleep(50)
            assert not any(state.open for state in handler.targets())
            handler.revive(there[1].address)
            for client in clients:
                assert await receive_exactly(client, 1) == b"x"
            assert trio.current_time() == 50
            assert handler.targets()[1].open == 3


async def test_if_none_is_revived_in_time_the_client_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: the report says that all are drained; no target is blamed."""
    async with echoes(1) as (there,):
        handler = proxy(there.address)
        async with serving(handler, timeouts=Timeouts(connect=3)) as running:
            handler.drain(there.address)
            assert await is_reset(await running.connect())
            assert trio.current_time() == 3
    report = running.reports[0]
    assert (report.reason, report.limit) == (Reason.TARGET_FULL, None)
    assert report.error == (
        "NoRoomError: [Errno 110] no target had room within 3 s: all are drained"
    )
    assert handler.targets()[0].failed == 0


async def test_a_drained_target_that_is_down_is_not_tried(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not even if all others fail; and revived, it is as it was."""
    with refusing() as one, refusing() as two:
        handler = proxy(one, two)
        async with serving(handler) as running:
            for _ in range(3):
                assert await talk(running) is None
            handler.drain(one)
            assert await talk(running) is None
            attempts = [each.address for each in running.reports[-1].attempts]
            assert attempts == [str(two)]
            handler.revive(one)
            state = handler.targets()[0]
            assert (state.up, state.drained, state.failed) == (False, False, 3)


@pytest.mark.parametrize("how", ["text", "options", "address", "target"])
def test_a_target_is_named_as_it_was_given(how: str) -> None:
    """By its address, or whole."""

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        handler = proxy("127.0.0.1:1?weight=2", "127.0.0.1:2")
        target: Any = {
            "text": "127.0.0.1:1",
            "options": "127.0.0.1:1?weight=2",
            "address": parse_address("127.0.0.1:1"),
            "target": Target(TcpAddress("127.0.0.1", 1), 2),
        }[how]
        handler.drain(target)
        assert [state.drained for state in handler.targets()] == [True, False]
        handler.revive(target)
        assert [state.drained for state in handler.targets()] == [False, False]

    trio.run(main)


@pytest.mark.parametrize("method", ["drain", "revive"])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            "127.0.0.1:3",
            ValueError,
            r"target must be a target of this proxy \(.*=2, .*:2\), not '127.0.0.1:3'",
        ),
        ("127.0.0.1:2?weight=2", ValueError, "not '127.0.0.1:2.weight=2'"),
        ("nonsense", ValueError, "'nonsense'"),
        (5, TypeError, "target must be a text, an address or a Target, not 5"),
    ],
)
def test_a_target_that_it_does_not_have_is_an_error(
    method: str, target: Any, error: type[Exception], message: str
) -> None:
    handler = proxy("127.0.0.1:1?weight=2", "127.0.0.1:2")
    with pytest.raises(error, match=message):
        getattr(handler, method)(target)


@pytest.mark.untraced
def test_drained_and_revived_at_every_step() -> None:
    """Law 2: whoever waits, dials or relays then, every place is given back."""

    async def client(running: Running) -> None:
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            stream = await running.connect()
            try:
                await stream.send_all(b"hello")
                await stream.receive_some()
            finally:
                reset(stream)

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as one, serving(echo) as two:
            handler = proxy(one.address, two.address, max_per_target=1)
            async with serving(handler, timeouts=Timeouts(connect=2)) as running:
                begin(functools.partial(handler.drain, one.address))
                async with trio.open_nursery() as clients:
                    for _ in range(3):
                        clients.start_soon(client, running)
                handler.revive(one.address)
                # It may be drained again from here on.
                assert await talk(running) in (one.address, two.address)
                assert [state.open for state in handler.targets()] == [0, 0]
        assert {report.reason for report in running.reports} <= {
            Reason.CLIENT_RESET,
            Reason.CLIENT_CLOSED,
        }
        assert open_fds() == before

    assert sweep(scenario) > 20

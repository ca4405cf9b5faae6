"""A target whose name changes its addresses, or can't be looked up, while it serves."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from support import receive_exactly, serving
from targets import Resolver
from test_balancing import talk
from trioserve import Health, echo, proxy

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


async def test_a_changed_name_is_followed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """New connections go to the new address, those to the old one go on; none fails."""
    resolver = Resolver(["127.0.0.1"])
    trio.socket.set_custom_hostname_resolver(resolver)
    async with serving(echo) as old:
        port = old.port
        async with serving(echo, addresses=(f"127.0.0.2:{port}",)) as new:
            async with serving(proxy(f"db.test:{port}")) as running:
                client = await running.connect()
                await client.send_all(b"x")
                assert await receive_exactly(client, 1) == b"x"
                resolver.answer = ["127.0.0.2"]
                for _ in range(30):
                    assert await talk(running)
                    await trio.sleep(0.5)
                assert new.server.statistics().accepted == 13
                assert old.server.statistics().accepted == 18
                assert old.server.statistics().open == 1
                await client.send_all(b"y")
                assert await receive_exactly(client, 1) == b"y"


@pytest.mark.parametrize("check", [None, 1])
async def test_a_silent_name_server_harms_nobody(
    check: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: neither a name that was known, nor a numeric target.

    Clients wait a second at most, because the name was not used for so long; one gets
    the other target. With checks, the name is used all the time.
    """
    resolver = Resolver(["127.0.0.1"])
    trio.socket.set_custom_hostname_resolver(resolver)
    async with serving(echo) as there, serving(echo) as other:
        targets = f"db.test:{there.port}", other.address
        health = Health(check=check)
        handler = proxy(*targets, balance="round-robin", health=health)
        async with serving(handler) as running:
            for _ in range(10):
                await talk(running)
            resolver.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
            resolver.seconds = 30
            await trio.sleep(12)
            for _ in range(200):
                assert await talk(running)
                await trio.sleep(0.3)
        states = handler.targets()
    assert [state.connected for state in states] == (
        [105, 105] if check else [104, 106]
    )
    assert not any(state.checks_failed for state in states)
    waits = [report.connect or 0 for report in running.reports]
    slow = [round(wait, 2) for wait in waits if wait > 0.01]
    assert slow == ([] if check else [0.25, 0.15])


async def test_a_name_that_was_never_known_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its checks find that out, and no client has to."""
    resolver = Resolver(["127.0.0.1"], seconds=1e6)
    trio.socket.set_custom_hostname_resolver(resolver)
    async with serving(echo) as there:
        handler = proxy("unknown.test:80", there.address, health=Health(check=1))
        async with serving(handler) as running:
            await trio.sleep(5)
            for _ in range(100):
                assert await talk(running) == there.address
        assert not handler.targets()[0].up
    assert max(report.connect or 0 for report in running.reports) < 0.01

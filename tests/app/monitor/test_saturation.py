from __future__ import annotations

import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support import Running, receive_exactly, serving
from trioserve import Limits, UnixAddress, echo, parse_address
from trioserve.app.monitor._saturation import (
    LimitCleared,
    LimitReached,
    SaturationMonitor,
)


def _waits(address: str) -> socket.socket:
    # A client in the backlog, until the server's tasks run.
    found = parse_address(address)
    if isinstance(found, UnixAddress):
        client = socket.socket(socket.AF_UNIX)
        client.connect(found.path)
        return client
    return socket.create_connection((found.host, found.port), 10)


async def _served(running: Running) -> trio.SocketStream:
    client = await running.connect()
    await client.send_all(b"x")
    assert await receive_exactly(client, 1) == b"x"
    return client


async def _settled(*results: Awaitable[Any]) -> None:
    for result in results:
        await result
    await trio.testing.wait_all_tasks_blocked()


async def test_the_limit_is_reached_while_clients_wait_and_cleared_when_none_does(
    autojump_clock: object,
) -> None:
    async with serving(echo, limits=Limits(max_connections=2)) as running:
        saturation = SaturationMonitor(running.server)
        first, _ = await _served(running), await _served(running)
        assert saturation.check() is None  # the limit is reached, but no client waits
        waits = [_waits(running.address) for _ in range(7)]
        assert saturation.check() == LimitReached(limit=2, waiting=7)
        await trio.sleep(3)
        assert saturation.check() is None
        for client in waits:
            client.close()
        await _settled(first.aclose())
        assert saturation.check() == LimitCleared(tokens_used=1, limit=2, seconds=3)
        assert saturation.check() is None


async def test_the_limit_is_not_cleared_while_a_client_waits(
    autojump_clock: object,
) -> None:
    """A token may be free for a moment, until that client gets it."""
    async with serving(echo, limits=Limits(max_connections=1)) as running:
        saturation = SaturationMonitor(running.server)
        await _served(running)
        with _waits(running.address):
            assert saturation.check() == LimitReached(limit=1, waiting=1)
            running.server.limits = Limits(max_connections=2)
            assert saturation.check() is None
            await _settled()
        assert saturation.check() == LimitCleared(tokens_used=2, limit=2, seconds=0)


async def test_a_client_that_is_about_to_be_accepted_does_not_count(
    autojump_clock: object,
) -> None:
    async with serving(echo, limits=Limits(max_connections=2)) as running:
        with _waits(running.address):
            assert SaturationMonitor(running.server).check() is None


async def test_waiting_clients_of_a_unix_socket_are_not_counted(
    autojump_clock: object, tmp_path: Path
) -> None:
    addresses = (f"unix:{tmp_path}/socket",)
    limits = Limits(max_connections=1)
    async with serving(echo, addresses=addresses, limits=limits) as running:
        saturation = SaturationMonitor(running.server)
        with _waits(running.address):
            await _settled()
            with _waits(running.address):
                assert saturation.check() == LimitReached(limit=1, waiting=None)


@pytest.mark.parametrize("full", [False, True])
async def test_a_draining_server_is_not_saturated(
    autojump_clock: object, full: bool
) -> None:
    async with serving(echo, limits=Limits(max_connections=1)) as running:
        saturation = SaturationMonitor(running.server)
        await _served(running)
        with _waits(running.address):
            if full:
                assert saturation.check() == LimitReached(limit=1, waiting=1)
            running.server.start_draining()
            await running.server.draining.wait()
            assert saturation.check() is None

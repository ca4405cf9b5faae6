from __future__ import annotations

import trio
import trio.testing

from support import DeadNames
from trioserve import Address, TcpAddress, UnixAddress
from trioserve.app._lookup import look_up, unknown_hosts

UNKNOWN = TcpAddress("nobody.invalid", 80)


async def test_an_ip_address_is_its_own_answer() -> None:
    assert await look_up(TcpAddress("127.0.0.1", 80), within=5) == [("127.0.0.1", 80)]


async def test_a_host_that_cannot_be_found_has_no_address() -> None:
    assert await look_up(UNKNOWN, within=60) == []


async def test_unknown_hosts_are_named_once() -> None:
    targets: list[Address] = [
        TcpAddress("::1", 80),
        UNKNOWN,
        UnixAddress("app.sock"),
        UNKNOWN,
    ]
    assert await unknown_hosts(targets, within=60) == ["nobody.invalid"]


async def test_without_an_answer_a_host_is_not_unknown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    DeadNames()
    assert await look_up(TcpAddress("dead.test", 80), within=5) is None
    assert await unknown_hosts([TcpAddress("dead.test", 80)], within=5) == []
    assert trio.current_time() == 10

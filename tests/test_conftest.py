"""What each test relies on: no sleeps on the real clock, and a port of its own."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from shell import free_port


async def test_a_sleep_on_the_real_clock_fails() -> None:
    with pytest.raises(AssertionError, match="test_conftest"):
        await trio.sleep(0.001)


async def test_a_sleep_on_a_virtual_clock_is_fine(
    autojump_clock: trio.testing.MockClock,
) -> None:
    await trio.sleep(3600)
    assert trio.current_time() == 3600


def test_no_two_free_ports_are_equal() -> None:
    """A client with its target's port as its own would connect to itself."""
    count = 500
    assert len({free_port() for _ in range(count)}) == count

"""Tests must not sleep on the real clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing


async def test_a_sleep_on_the_real_clock_fails() -> None:
    with pytest.raises(AssertionError, match="test_conftest"):
        await trio.sleep(0.001)


async def test_a_sleep_on_a_virtual_clock_is_fine(
    autojump_clock: trio.testing.MockClock,
) -> None:
    await trio.sleep(3600)
    assert trio.current_time() == 3600

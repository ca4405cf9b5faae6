"""Guest runs: they end by themselves, or their host abandons them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trioserve.testing.runs._guest import GuestRun


def guest(main: Callable[[], Awaitable[object]]) -> GuestRun:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return GuestRun(main, seed=0, clock=clock, instruments=[])


def test_a_run_that_ends_has_an_outcome() -> None:
    async def main() -> str:
        await trio.sleep(1)
        return await trio.to_thread.run_sync(lambda: "done")

    run = guest(main)
    while run.outcome is None:
        run.tick()
    run.close()
    run.close()
    assert run.outcome.unwrap() == "done"


def test_no_line_of_an_abandoned_run_is_executed() -> None:
    lines = list[str]()
    hooks = sys.get_asyncgen_hooks()

    async def main() -> None:
        try:
            while True:
                lines.append("again")
                await trio.lowlevel.checkpoint()
        finally:
            lines.append("finally")

    run = guest(main)
    while len(lines) < 3:
        run.tick()
    run.close()
    assert lines == ["again"] * 3
    assert run.outcome is None
    assert sys.get_asyncgen_hooks() == hooks
    trio.run(trio.lowlevel.checkpoint)  # no other run is open


def test_a_run_that_cannot_begin_changes_nothing() -> None:
    hooks = sys.get_asyncgen_hooks()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="from inside a run"):
            guest(main)

    trio.run(main)
    assert sys.get_asyncgen_hooks() == hooks

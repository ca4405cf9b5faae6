"""Orders of tasks: the same seed gives the same order, and no task waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from testing.natural import ASK, within
from testing.zoo import Lines
from trioserve import Connection
from trioserve.testing import Case, HandlerFailure, run_conversation
from trioserve.testing._variations import EFFORTS, Variations

ORDERS: list[Any] = ["shuffled", "held_back", "priorities"]


def fails(steps: int, case: Case) -> bool:
    try:
        run_conversation(within(steps), ASK, seed=case.seed, order=case.order)
    except HandlerFailure:
        return True
    return False


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_several_steps_within_one_of_another_task_are_found(steps: int) -> None:
    """Trio's own order lets no task wait for more than one step of another."""
    plain = Case((ASK,))
    cases = list(Variations(plain, plain, rounds=1).schedules(EFFORTS["quick"]))
    assert len(cases) <= 20
    assert sum(fails(steps, case) for case in cases) >= 3


@pytest.mark.parametrize("order", ORDERS)
def test_a_seed_gives_the_same_order(order: Any) -> None:
    def run(seed: int) -> str:
        run = run_conversation(within(60), ASK, ASK, seed=seed, order=order)
        return str(run.timeline)

    assert [run(seed) for seed in range(5)] == [run(seed) for seed in range(5)]
    assert len({run(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("order", ORDERS)
def test_no_task_waits_for_ever(order: Any) -> None:
    """One spins until another one, however low its priority, has made its steps."""

    async def waits(stream: Connection) -> None:
        async for _ in Lines(stream):
            done: list[bool] = []

            async def work(done: list[bool]) -> None:
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                done.append(True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, done)
                while not done:
                    await trio.lowlevel.checkpoint()
            await stream.send_all(b"fine\n")

    for seed in range(10):
        run_conversation(waits, ASK, seed=seed, order=order)

"""Orders of tasks: the same seed gives the same order, and no task waits for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from support import one_of_each
from testing.natural import ASK, RARE, within
from testing.zoo import Entry, Lines
from trioserve import Connection, echo
from trioserve.testing import (
    Case,
    HandlerFailure,
    Peer,
    check_handler,
    run_conversation,
)
from trioserve.testing._blame import Blame, simpler
from trioserve.testing._case import Setting
from trioserve.testing._trial import Trial, try_case
from trioserve.testing._variations import (
    EFFORTS,
    Effort,
    Variations,
    pairs_of,
    preemptions,
)
from trioserve.testing.runs import (
    WAYS,
    GuestRun,
    Preemption,
    preemptions_of,
    seed_of,
)

ORDERS: list[Any] = ["shuffled", "held_back", "priorities", "preempted"]


def fails(steps: int, case: Case) -> bool:
    try:
        run_conversation(within(steps), ASK, seed=case.seed, order=case.order)
    except HandlerFailure:
        return True
    return False


@pytest.mark.untraced
@pytest.mark.parametrize("steps", one_of_each([(3,), (2,), (5,), (8,)]))
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

    seeds = range(0, 100, 20)
    assert [run(seed) for seed in seeds] == [run(seed) for seed in seeds]
    assert len({run(seed) for seed in seeds}) > 1


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


# -- preemptions


@given(st.lists(st.builds(Preemption, st.integers(0, 2400), st.integers(0, WAYS - 1))))
def test_a_seed_stands_for_preemptions(preemptions: list[Preemption]) -> None:
    assert preemptions_of(seed_of(preemptions)) == sorted(preemptions)


def test_seeds_that_no_check_draws_stand_for_preemptions_too() -> None:
    assert preemptions_of(0) == []
    assert preemptions_of(-1) == preemptions_of(1) == [Preemption(0, 0)]
    assert preemptions_of(20_000) == [Preemption(0, 1)]


def order_of(seed: int) -> str:
    """The order of the steps of three tasks; each waits once."""
    steps = list[str]()

    async def work(name: str) -> None:
        for number in range(4):
            steps.append(name)
            if number == 1:
                await trio.sleep(1)
            else:
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(work, name)

    clock = trio.testing.MockClock(autojump_threshold=0)
    run = GuestRun(main, seed=seed, order="preempted", clock=clock, instruments=[])
    with contextlib.closing(run):
        while run.outcome is None:
            run.tick()
        run.outcome.unwrap()
    return "".join(steps)


def test_a_task_runs_until_it_waits_unless_it_is_preempted() -> None:
    plain = order_of(0)
    assert plain == "aabbccccaabb"  # all three wait for the same second
    preempted = {order_of(seed_of([Preemption(place, 0)])) for place in range(8)}
    assert preempted > {plain, "bbaaccccaabb", "abbccaaabbcc"}
    assert order_of(seed_of([Preemption(2, 1)])).startswith("ccaa")


def test_all_pairs_of_places_are_tried_once() -> None:
    each = preemptions([1, 3, 9])
    assert [len([p for p in each if p.place == place]) for place in range(3)] == [
        1,
        3,
        4,
    ]
    pairs = list(pairs_of(each, range(math.comb(len(each), 2))))
    wanted = [[a, b] for a, b in itertools.combinations(each, 2) if a.place != b.place]
    assert sorted(pairs) == sorted(wanted)


#: A thorough check that tries little else.
PREEMPTS = Effort(
    cuts=3, schedules=0, steps=3, offsets=3, handshake=3, cost=math.inf, preemptions=300
)


@pytest.mark.parametrize("entry", one_of_each([(each,) for each in RARE]), ids=str)
def test_a_thorough_check_preempts_tasks(
    monkeypatch: pytest.MonkeyPatch, entry: Entry
) -> None:
    """A quick one does not, and the mistake is too rare for it."""
    assert not EFFORTS["quick"].preemptions
    monkeypatch.setitem(EFFORTS, "thorough", PREEMPTS)
    with pytest.raises(HandlerFailure) as failed:
        check_handler(entry.make(), ASK, explore="thorough")
    assert failed.value.law == "schedule"
    assert failed.value.case.order == "preempted"
    assert len(preemptions_of(failed.value.case.seed)) == 1


@pytest.mark.nightly("a quick check of each takes seconds")
@pytest.mark.parametrize("entry", RARE, ids=str)
def test_a_quick_check_misses_what_is_rare(entry: Entry) -> None:
    entry.check()


def test_a_thorough_check_tells_how_many_pairs_it_has_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = dataclasses.replace(PREEMPTS, preemptions=40)
    monkeypatch.setitem(EFFORTS, "thorough", few)
    checked = check_handler(echo, Peer().send(b"hi").expect(b"hi"), explore="thorough")
    tried, of = checked.sampled["preempted tasks"]
    assert tried == 42 < of  # two of the pairs in any case
    assert checked.runs["preempted tasks"] <= 43


def test_a_preemption_that_is_not_needed_is_left_out() -> None:
    handler = RARE[0].make()

    def attempt(case: Case) -> Trial:
        run, seen = try_case(handler, case, Setting())
        return Trial(seen, run.steps, run)

    plain = Case((ASK,), order="preempted")
    never = attempt(plain).run
    assert never is not None
    for one in preemptions(never.places):
        pair = [one, Preemption(one.place + 12, 0)]
        case = dataclasses.replace(plain, seed=seed_of(pair))
        if (seen := attempt(case).seen) is not None:
            smallest, _ = Blame(attempt).smallest(case, seen)
            assert preemptions_of(smallest.seed) == [one]
            return
    pytest.fail("no preemption shows the mistake")


def test_each_of_two_preemptions_is_left_out_in_turn() -> None:
    pair = [Preemption(3, 0), Preemption(9, 1)]
    case = Case((ASK,), order="preempted", seed=seed_of(pair))
    seeds = {smaller.seed for smaller in simpler(case)}
    assert seeds >= {seed_of([one]) for one in pair}

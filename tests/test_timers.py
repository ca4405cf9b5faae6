"""Timers: each holder is called at the time that it asked for, and not before."""

from __future__ import annotations

import math
import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import run
from trioserve._timers import Timers


class _Holder:
    """Records when it was called; watches again if ``again`` says when."""

    timer_due: float = math.inf

    def __init__(self, timers: Timers, again: list[float] | None = None) -> None:
        self.timers = timers
        self.again = again or []
        self.woken: list[float] = []

    def on_timer(self, now: float) -> None:
        self.woken.append(now)
        if self.again:
            self.timers.watch(self, self.again.pop(0))


@pytest.fixture
def timers(nursery: trio.Nursery) -> Timers:
    timers = Timers()
    nursery.start_soon(timers.run)
    return timers


@given(
    script=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.floats(0, 20) | st.just(math.inf),
            st.sampled_from(["watch", "watch", "watch", "forget"]),
            st.integers(0, 3),
        )
    ),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_each_holder_is_called_at_its_earliest_watch(
    script: list[tuple[int, float, str, int]], schedule: object
) -> None:
    """Law 12: at the exact second, once per watch, never if forgotten."""

    async def main() -> None:
        timers = Timers()
        sleepers = [_Holder(timers) for _ in range(4)]
        due = [math.inf] * 4
        expected: list[list[float]] = [[], [], [], []]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            for who, delay, what, pause in script:
                now = trio.current_time()
                if what == "watch":
                    timers.watch(sleepers[who], now + delay)
                    due[who] = min(due[who], now + delay)
                else:
                    timers.forget(sleepers[who])
                    due[who] = math.inf
                # Half a second off, so that it is never the moment of a deadline.
                await trio.sleep(pause + 1 / 7)
                for i, when in enumerate(due):
                    if when <= trio.current_time():
                        expected[i].append(when)
                        due[i] = math.inf
            nursery.cancel_scope.cancel()
        for sleeper, moments in zip(sleepers, expected, strict=True):
            assert sleeper.woken == pytest.approx(moments)

    run(main)


async def test_a_late_timer_is_told_of_though_its_holder_has_ended_meanwhile(
    autojump_clock: trio.testing.MockClock,
    timers: Timers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 15: after a stop, bytes that have come may end it before the timers run."""
    holder = _Holder(timers)
    timers.watch(holder, trio.current_time() + 1)
    await trio.testing.wait_all_tasks_blocked()
    autojump_clock.jump(5)
    timers.forget(holder)
    await trio.testing.wait_all_tasks_blocked()
    assert holder.woken == []
    assert "a timer is 4.0 s late" in caplog.text


async def test_a_later_watch_does_not_move_an_earlier_one(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """Activity is cheap: on_timer looks at the deadline again."""
    sleeper = _Holder(timers)
    for when in (math.inf, 5, 7, math.inf):
        timers.watch(sleeper, when)
    await trio.sleep(10)
    assert sleeper.woken == [5]


async def test_an_earlier_watch_replaces_a_later_one(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """Also while the task sleeps until the later one."""
    sleeper = _Holder(timers)
    timers.watch(sleeper, 7)
    await trio.sleep(1)
    timers.watch(sleeper, 5)
    await trio.sleep(10)
    assert sleeper.woken == [5]


async def test_a_replaced_watch_is_dropped(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """It does not come back with the next one."""
    sleeper = _Holder(timers, again=[9])
    timers.watch(sleeper, 7)
    timers.watch(sleeper, 5)
    await trio.sleep(10)
    assert sleeper.woken == [5, 9]


async def test_on_timer_may_watch_again(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """So a deadline that has moved is kept."""
    sleeper = _Holder(timers, again=[6, 9])
    timers.watch(sleeper, 5)
    await trio.sleep(10)
    assert sleeper.woken == [5, 6, 9]


@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_equal_deadlines_share_a_wake_up(
    timers: Timers, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    """And the two scheduler passes before it."""
    sleepers = [_Holder(timers) for _ in range(count)]
    steps: list[str] = []

    class Steps(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(task.name)

    for sleeper in sleepers:
        timers.watch(sleeper, 5)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(Steps())
    await trio.sleep_until(5)
    await trio.testing.wait_all_tasks_blocked()
    assert [sleeper.woken for sleeper in sleepers] == count * [[5]]
    assert sum("Timers.run" in name for name in steps) == 3


async def test_forgotten_entries_do_not_pile_up(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 9: a hundred thousand short connections leave nothing behind."""
    stays = _Holder(timers)
    timers.watch(stays, 5)
    for _ in range(10_000):
        passes = _Holder(timers)
        timers.watch(passes, 6)
        timers.forget(passes)
    assert len(timers._heap) < 100
    await trio.sleep(7)
    assert stays.woken == [5]


async def test_entries_are_in_order_after_stale_ones_were_dropped(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: each is called on time."""
    sleepers = [_Holder(timers) for _ in range(1000)]
    moments = random.Random(0).sample(range(1, 1001), 1000)
    for sleeper, moment in zip(sleepers, moments, strict=True):
        timers.watch(sleeper, moment)
    for sleeper in sleepers[::5] + sleepers[1::5] + sleepers[2::5]:
        timers.forget(sleeper)
    await trio.sleep(2000)
    for number, moment in enumerate(moments):
        assert sleepers[number].woken == ([moment] if number % 5 > 2 else [])


async def test_each_may_change_what_others_of_its_moment_wait_for(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """Forget them, delay them, or have them called once more at the same moment."""
    delayed, forgotten = _Holder(timers), _Holder(timers)

    class First(_Holder):
        def on_timer(self, now: float) -> None:
            super().on_timer(now)
            timers.forget(forgotten)
            timers.forget(delayed)
            timers.watch(delayed, 6)

    first, twice = First(timers), _Holder(timers, again=[5])
    for holder in (first, delayed, forgotten, twice):
        timers.watch(holder, 5)
    await trio.sleep(10)
    assert (first.woken, twice.woken) == ([5], [5, 5])
    assert (delayed.woken, forgotten.woken) == ([6], [])


async def test_one_may_forget_all_others_of_its_moment(
    timers: Timers, autojump_clock: trio.testing.MockClock
) -> None:
    """And the moment itself can be watched anew."""
    other = _Holder(timers)

    class First(_Holder):
        def on_timer(self, now: float) -> None:
            super().on_timer(now)
            timers.forget(other)
            if len(self.woken) == 1:
                timers.watch(self, 5)

    first = First(timers)
    timers.watch(first, 5)
    timers.watch(other, 5)
    await trio.sleep(10)
    assert (first.woken, other.woken) == ([5, 5], [])


def test_forgotten_entries_do_not_move_a_virtual_clock() -> None:
    """It must not jump to a deadline that no holder has."""

    async def main() -> None:
        timers = Timers()
        sleeper = _Holder(timers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            timers.watch(sleeper, 5)
            await trio.testing.wait_all_tasks_blocked()
            timers.forget(sleeper)
            timers.forget(sleeper)
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == (
                math.inf
            )
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())

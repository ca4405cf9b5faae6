"""The driver: a Trio run that pauses between two calls, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from trioserve.testing import Driver, StuckError


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No run, thread or hook is left, and no object that warns when it is collected."""
    threads, hooks = set(threading.enumerate()), sys.get_asyncgen_hooks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    # Threads of earlier tests may end at any time: Trio ends its idle threads.
    assert set(threading.enumerate()) <= threads
    assert sys.get_asyncgen_hooks() == hooks
    trio.run(trio.lowlevel.checkpoint)


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise KeyError("nobody")


async def spin() -> None:
    while True:
        await trio.lowlevel.checkpoint()


async def refuse_to_end(event: trio.Event) -> None:
    with trio.CancelScope(shield=True):
        await event.wait()


async def refuse_to_end_at_all() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await trio.lowlevel.checkpoint()


def test_a_call_returns_what_the_function_returns(driver: Driver) -> None:
    assert driver.call(double, 4) == 8


def test_a_call_raises_what_the_function_raises_and_the_run_goes_on(
    driver: Driver,
) -> None:
    with pytest.raises(KeyError, match="nobody") as caught:
        driver.call(fail)
    assert traceback.extract_tb(caught.tb)[-1].name == "fail"
    assert driver.call(double, 1) == 2


def test_when_a_call_returns_all_tasks_wait(driver: Driver) -> None:
    steps = list[int]()

    async def go_on() -> None:
        for step in range(10):
            steps.append(step)
            await trio.lowlevel.checkpoint()

    async def begin() -> None:
        driver.nursery.start_soon(go_on)

    driver.call(begin)
    assert steps == list(range(10))


def test_a_task_is_started_from_plain_code(driver: Driver) -> None:
    event = trio.Event()
    driver.nursery.start_soon(event.wait, name="waiter")
    driver.settle()
    assert [task.name for task in driver.tasks] == ["waiter"]
    event.set()
    driver.settle()
    assert driver.tasks == ()


def test_wait_all_tasks_blocked_works_in_a_call(driver: Driver) -> None:
    async def wait_twice() -> str:
        await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        return "done"

    assert driver.call(wait_twice) == "done"


def test_a_call_that_never_returns_is_cancelled_and_names_its_line(
    driver: Driver,
) -> None:
    async def wait_in_vain() -> None:
        await trio.Event().wait()

    with pytest.raises(StuckError, match=r"wait_in_vain waits at test_driver.py:\d+ "):
        driver.call(wait_in_vain)
    assert driver.tasks == ()
    assert driver.call(double, 1) == 2


def test_tasks_that_never_wait_are_found() -> None:
    driver = Driver()
    with pytest.raises(StuckError, match=r"run without end.*spin is at test_driver.py"):
        driver.call(spin)
    driver.close()


def test_time_passes_in_sleep_only(driver: Driver) -> None:
    driver.call(double, 1)
    assert driver.now == 0
    driver.sleep(1.5)
    assert driver.now == 1.5
    assert driver.call(trio.lowlevel.checkpoint) is None
    assert driver.now == 1.5


def test_a_sleep_stops_at_each_deadline(driver: Driver) -> None:
    seen = list[float]()

    async def tick() -> None:
        while True:
            await trio.sleep(0.1)
            seen.append(driver.now)

    driver.nursery.start_soon(tick)
    driver.sleep(1)
    assert seen == [pytest.approx(n / 10) for n in range(1, len(seen) + 1)]
    assert len(seen) >= 9
    assert driver.now == 1


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_a_sleep_takes_a_finite_time(driver: Driver, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be 0 or more and finite, not"):
        driver.sleep(seconds)


def test_a_task_that_fails_ends_the_run_and_says_why() -> None:
    driver = Driver()
    driver.nursery.start_soon(fail)
    with pytest.raises(KeyError, match="nobody") as caught:
        driver.call(double, 1)
    assert traceback.extract_tb(caught.tb)[-1].name == "fail"
    assert not driver.is_open
    with pytest.raises(RuntimeError, match="the run is over"):
        driver.call(double, 1)
    driver.close()


def test_tasks_that_fail_together_are_a_group() -> None:
    async def fail_at_once() -> None:
        raise KeyError

    driver = Driver()
    driver.nursery.start_soon(fail_at_once)
    driver.nursery.start_soon(fail_at_once)
    with pytest.raises(ExceptionGroup) as caught:
        driver.settle()
    assert [type(error) for error in caught.value.exceptions] == [KeyError, KeyError]


def test_after_a_task_fails_others_have_time_to_clean_up() -> None:
    driver = Driver()
    cleaned_up = list[float]()

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                await trio.sleep_forever()
            cleaned_up.append(driver.now)

    driver.nursery.start_soon(clean_up)
    driver.settle()
    driver.nursery.start_soon(fail)
    with pytest.raises(KeyError):
        driver.settle()
    assert cleaned_up == [2]


def test_a_run_that_was_cancelled_by_its_user_is_over() -> None:
    driver = Driver()
    driver.nursery.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="the run is over"):
        driver.settle()


def test_system_tasks_have_time_to_end() -> None:
    driver = Driver()
    ended = list[float]()

    async def linger() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            ended.append(driver.now)

    trio.lowlevel.spawn_system_task(linger)
    driver.settle()
    driver.close()
    assert ended == [3]


def test_closing_again_does_nothing() -> None:
    driver = Driver()
    driver.close()
    driver.close()
    with pytest.raises(RuntimeError, match="the run is over"):
        driver.settle()


def test_a_block_that_fails_leaves_no_run() -> None:
    with pytest.raises(ZeroDivisionError), Driver() as driver:
        driver.nursery.start_soon(trio.sleep_forever)
        driver.settle()
        raise ZeroDivisionError


def test_a_task_that_cannot_be_cancelled_is_named_and_abandoned() -> None:
    driver = Driver()
    driver.nursery.start_soon(refuse_to_end, trio.Event())
    driver.settle()
    with pytest.raises(
        StuckError, match=r"tasks can't be cancelled: .*refuse_to_end is at test_dr"
    ):
        driver.close()
    assert driver.tasks == ()


def test_a_task_that_swallows_everything_is_abandoned_with_the_run() -> None:
    driver = Driver()
    driver.nursery.start_soon(refuse_to_end_at_all)
    with pytest.raises(StuckError, match=r"can't be cancelled: .*refuse_to_end_at_all"):
        driver.close()


def test_a_task_that_sleeps_without_end_is_abandoned() -> None:
    driver = Driver()

    async def sleep_on() -> None:
        with trio.CancelScope(shield=True):
            while True:
                await trio.sleep(1)

    driver.nursery.start_soon(sleep_on)
    driver.settle()
    with pytest.raises(StuckError, match=r"can't be cancelled: .*sleep_on is at"):
        driver.close()


def test_there_is_one_run_at_a_time(driver: Driver) -> None:
    with pytest.raises(RuntimeError, match="from inside a run"):
        Driver()
    assert driver.call(double, 1) == 2


def orders(seed: int) -> list[int]:
    """The order in which tasks run that are ready at the same time."""
    order = list[int]()

    async def note(number: int) -> None:
        order.append(number)

    with Driver(seed=seed) as driver:
        for number in range(5):
            driver.nursery.start_soon(note, number)
        driver.settle()
    return order


def test_the_seed_decides_the_order_of_tasks() -> None:
    assert len({tuple(orders(seed)) for seed in range(10)}) > 3
    assert [orders(seed) for seed in range(10)] == [orders(seed) for seed in range(10)]

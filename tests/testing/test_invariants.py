"""What must hold always, and what must hold in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from testing.zoo import Lines, Stream
from trioserve.testing import HandlerFailure, Peer, check_handler, run_conversation

BUYS = Peer().send(b"buy\n").receive_until(b"\n")

stock = {"books": 0}
baskets = set[object]()


def fill() -> None:
    stock["books"] = 1
    baskets.clear()


def nothing_is_sold_twice() -> bool:
    return stock["books"] >= 0


def no_basket_is_left() -> None:
    assert not baskets


async def sells(stream: Stream) -> None:
    """Wrong: the stock is looked at before a wait, and changed after it."""
    async for _ in Lines(stream):
        if stock["books"] > 0:
            await trio.lowlevel.checkpoint()
            stock["books"] -= 1
            await stream.send_all(b"sold\n")
        else:
            await stream.send_all(b"sorry\n")


async def shops(stream: Stream) -> None:
    """Wrong: a basket stays if the handler is cancelled."""
    baskets.add(stream)
    async for _ in Lines(stream):
        await stream.send_all(b"sold\n")
    baskets.discard(stream)


def test_what_must_always_hold_is_checked_after_every_step() -> None:
    """The peers may receive anything here: only the invariant tells."""
    always = {"nothing is sold twice": nothing_is_sold_twice}
    with pytest.raises(HandlerFailure) as failed:
        check_handler(
            sells,
            BUYS,
            before_run=fill,
            always=always,
            without={"alone": "they buy the same", "nothing_left": "it is sold"},
        )
    failure = failed.value
    assert failure.law == "always"
    assert "sold twice' does not hold, after a step of handler " in failure.how
    assert ", now at test_invariants.py" in failure.how
    assert failure.case.copies == 3
    text = failure.as_test()
    assert "always={'nothing is sold twice': nothing_is_sold_twice}," in text
    assert "test_invariants import nothing_is_sold_twice" in text


@pytest.mark.long("a whole check")
def test_what_must_hold_in_the_end_is_checked_after_each_round() -> None:
    """A function that asserts it is one too."""
    with pytest.raises(HandlerFailure, match="'no basket is left' does not") as failed:
        check_handler(
            shops,
            BUYS,
            before_run=fill,
            eventually={"no basket is left": no_basket_is_left},
        )
    failure = failed.value
    assert failure.law == "eventually"
    assert failure.case.disturbance == "cancel"
    assert "1000 seconds after all handlers have ended: it raised Assert" in failure.how
    assert isinstance(failure.cause, AssertionError)
    assert "eventually={'no basket is left': no_basket_is_left}," in failure.as_test()


def test_a_step_of_a_task_of_a_handler_is_told_too() -> None:
    async def sells_later(stream: Stream) -> None:
        async def sell() -> None:
            await trio.sleep(1)
            stock["books"] -= 2
            await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sell, name="the shop")
            await stream.receive_some()

    fill()
    how = "after a step of the shop, now at test_invariants.py"
    with pytest.raises(HandlerFailure, match=how):
        run_conversation(sells_later, Peer(), always={"it": nothing_is_sold_twice})


def test_what_must_hold_in_the_end_is_waited_for() -> None:
    log = list[float]()

    async def cleans_up_later(stream: Stream) -> None:
        async for _ in stream:
            pass
        trio.lowlevel.spawn_system_task(clean_up)

    async def clean_up() -> None:
        await trio.sleep(40)
        log.append(trio.current_time())

    peer, eventually = Peer().close(), {"it is clean": lambda: bool(log)}
    assert run_conversation(cleans_up_later, peer, eventually=eventually).seconds >= 40
    log.clear()
    with pytest.raises(HandlerFailure, match="within 30 seconds"):
        run_conversation(cleans_up_later, peer, eventually=eventually, patience=30)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: 5, ": it returned 5, and must return True or False"),
        (lambda: 1 / 0, r": it raised ZeroDivisionError\(.*\), at test_invariants.py"),
    ],
)
def test_an_invariant_that_is_wrong_is_told(
    function: Callable[[], object], why: str
) -> None:
    """Once, and with the first step."""
    with pytest.raises(HandlerFailure, match=f"'it' does not hold{why}") as failed:
        run_conversation(shops, BUYS, always={"it": function})
    assert len(failed.value.run.violations) == 1
    assert "always={'it': holds}" in failed.value.again


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"always": no_basket_is_left}, "always must be a dict of names and functions"),
        ({"eventually": {5: no_basket_is_left}}, "eventually must be a dict whose"),
        ({"always": {"it": True}}, "always must map 'it' to a function"),
    ],
)
def test_wrong_invariants_are_explained(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        run_conversation(shops, BUYS, **options)


def test_invariants_that_hold_are_not_noticed() -> None:
    holds = {"it": lambda: True, "that": lambda: None}
    fill()
    run_conversation(shops, BUYS, always=holds, eventually=holds, copies=3)

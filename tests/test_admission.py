"""Admission: the limit holds while clients wait, give up and come back."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import run
from trioserve._admission import Token, Tokens


@given(
    total=st.integers(0, 4),
    script=st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "nowait", "release", "cancel", "total"]),
            st.integers(0, 5),
        ),
        max_size=30,
    ),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_the_limit_is_exact_after_any_churn(
    total: int, script: list[tuple[str, int]], schedule: object
) -> None:
    """Law 2: min(total, wanted) tokens are held."""

    async def main() -> None:
        tokens = Tokens(total)
        held: list[Token] = []
        waiting: list[trio.CancelScope] = []

        async def take(scope: trio.CancelScope) -> None:
            with scope:
                held.append(await tokens.take())
            waiting.remove(scope)

        async with trio.open_nursery() as nursery:
            for what, number in script:
                before = tokens.used
                match what:
                    case "take":
                        waiting.append(trio.CancelScope())
                        nursery.start_soon(take, waiting[-1])
                    case "nowait":
                        was_free = not waiting and before < tokens.total
                        token = tokens.take_nowait()
                        assert (token is not None) == was_free
                        if token is not None:
                            held.append(token)
                    case "release" if held:
                        token = held.pop(number % len(held))
                        token.release()
                        token.release()
                    case "cancel" if waiting:
                        waiting[number % len(waiting)].cancel()
                    case "total":
                        tokens.total = number
                        assert tokens.total == number
                    case _:
                        continue  # no token to release and no wait to cancel
                await trio.testing.wait_all_tasks_blocked()
                assert tokens.used == len(held)
                assert tokens.used <= max(tokens.total, before)
                assert not waiting or tokens.used >= tokens.total
            nursery.cancel_scope.cancel()

    run(main)


async def test_a_token_is_released_once() -> None:
    """Law 2: whatever asks for it twice, a place is free once."""
    tokens = Tokens(2)
    first, second = await tokens.take(), await tokens.take()
    first.release()
    first.release()
    assert tokens.used == 1
    second.release()
    assert tokens.used == 0


async def test_waiters_get_tokens_in_order() -> None:
    """Law 2: no waiter starves."""
    tokens = Tokens(1)
    first = await tokens.take()
    order: list[int] = []

    async def take(number: int) -> None:
        token = await tokens.take()
        order.append(number)
        token.release()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
        first.release()
    assert order == [0, 1, 2, 3, 4]

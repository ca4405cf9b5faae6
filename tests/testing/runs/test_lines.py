"""Lines: the user's own line is found in the stacks of tasks, errors and calls."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from trioserve.testing.runs._lines import (
    innermost_line,
    line_of_caller,
    line_of_error,
    line_of_task,
)

HERE = r"test_lines\.py:\d+ in "


async def test_the_line_of_a_task_is_the_innermost_line_of_the_user() -> None:
    async def wait_without_end() -> None:
        await trio.Event().wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_without_end)
        nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        lines = sorted(line_of_task(task) for task in nursery.child_tasks)
        nursery.cancel_scope.cancel()
    # A task without a line of the user has its outermost line.
    assert re.fullmatch(r"_timeouts\.py:\d+ in sleep_forever", lines[0])
    assert re.fullmatch(rf"{HERE}.*wait_without_end", lines[1])


def test_the_line_of_an_error_is_the_innermost_line_of_the_user() -> None:
    with pytest.raises(ValueError, match="negative") as caught:
        trio.run(trio.sleep, -1)
    line = line_of_error(caught.value)
    assert re.fullmatch(rf"{HERE}test_the_line_of_an_error.*", line)


def test_a_stack_without_frames_is_at_its_end() -> None:
    assert innermost_line([]) == "its end"


def test_the_caller_is_the_users_function() -> None:
    assert re.fullmatch(rf"{HERE}test_the_caller_is.*", line_of_caller())

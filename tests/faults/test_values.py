"""Values of faults: a wrong argument raises when the value is made."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from trioserve.faults import Faults, Impairment, Termination


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Termination("hang", bytes=1), "kind must be one of stall,"),  # type: ignore[arg-type]
        (lambda: Termination("reset"), "reset needs either bytes or seconds"),
        (lambda: Termination("reset", 1, 1.0), "reset needs either bytes or seconds"),
        (lambda: Termination("reset", -1), "bytes must be 0 or more, not -1"),
        (lambda: Termination("reset", 1.5), "bytes must be a number of bytes, not 1.5"),  # type: ignore[arg-type]
        (lambda: Termination("reset", seconds=math.inf), "must be finite, not inf"),
        (lambda: Impairment(latency=-1), "latency must be 0 or more"),
        (lambda: Impairment(latency="1s"), "latency must be a number of seconds"),  # type: ignore[arg-type]
        (lambda: Impairment(pause=1), "pause is the time between slices"),
        (lambda: Impairment(slice=5), "slice must be a tuple of int, not 5"),  # type: ignore[arg-type]
        (lambda: Impairment(slice=(1,)), "slice must be two numbers, not (1,)"),  # type: ignore[arg-type]
        (lambda: Impairment(cuts=3), "cuts must be a tuple of int, not 3"),  # type: ignore[arg-type]
        (
            lambda: Impairment(terminations=("reset",)),  # type: ignore[arg-type]
            "terminations must be a tuple of Termination, not ('reset',)",
        ),
        (lambda: Faults(up="reset"), "up must be an Impairment, not 'reset'"),  # type: ignore[arg-type]
        (lambda: Faults(down=None), "down must be an Impairment, not None"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_an_error(make: Any, message: str) -> None:
    """The message names the argument."""
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        make()

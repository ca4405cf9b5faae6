"""Durations and sizes: parsed, and written so that they read back as equal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.faults import parse_duration
from trioserve.faults._units import format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("3ms", 0.003),
        (" .5s ", 0.5),
        ("2.s", 2),
        ("1m", 60),
        ("1h30m", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("30m1h", 5400),
        ("0s", 0),
    ],
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    """Each unit, fractions, and sums."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a duration; use numbers with units, like 50ms, 2s or 1h30m"),
        ("5", "'5' is not a duration"),
        ("-1s", "'-1s' is not a duration"),
        ("1s 2ms", "'1s 2ms' is not a duration"),
        ("1S", "'1S' is not a duration"),
        ("1s2s", "'1s2s' has a unit twice; use each once, like 1h30m"),
        ("\u0661s", "is not a duration"),
    ],
)
def test_text_that_is_not_a_duration_is_an_error(text: str, message: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_duration(text)


@given(st.floats(0, allow_infinity=False))
def test_seconds_read_back_as_the_same_number(seconds: float) -> None:
    """To the last digit, from the smallest to the largest float."""
    assert parse_duration(format_seconds(seconds)) == seconds


@given(st.integers(0, 10**15 - 1))
def test_a_size_reads_back_as_the_same_number(count: int) -> None:
    """With the largest unit that divides it."""
    assert parse_size(format_size(count)) == count
    assert format_size(count).endswith("KiB") is (
        count % 1024 == 0 and count % 1024**2 != 0
    )

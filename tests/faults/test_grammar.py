"""The grammar: text is parsed as faults, and equal faults are written the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.strategies import faults
from trioserve.faults import Faults, Impairment, Termination, parse_faults


@given(faults)
def test_written_faults_read_back_as_equal(faults: Faults) -> None:
    """To the last digit."""
    assert parse_faults(str(faults)) == faults
    assert bool(faults) is bool(str(faults))


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", Faults()),
        ("refuse", Faults(refuse=True)),
        ("up:latency=50ms", Faults(up=Impairment(latency=0.05))),
        (" down : bandwidth = 1MiB / s ", Faults(down=Impairment(bandwidth=1024**2))),
        ("up:slice=5", Faults(up=Impairment(slice=(5, 5)))),
        ("up:slice=1..3/1.5s", Faults(up=Impairment(slice=(1, 3), pause=1.5))),
        ("up:cut@7,cut@5,cut@7", Faults(up=Impairment(cuts=(5, 7)))),
        ("up:slow_close=1m", Faults(up=Impairment(slow_close=60.0))),
        ("up:slow_close=1h30m", Faults(up=Impairment(slow_close=5400.0))),
        (
            "up:stall",
            Faults(up=Impairment(terminations=(Termination("stall", bytes=0),))),
        ),
        (
            "down:eof@2KiB;down:latency=1s+-.5s",
            Faults(
                down=Impairment(
                    latency=1,
                    jitter=0.5,
                    terminations=(Termination("eof", bytes=2048),),
                )
            ),
        ),
        (
            "both:reset@1h; up:vanish@2s",
            Faults(
                up=Impairment(
                    terminations=(
                        Termination("vanish", seconds=2),
                        Termination("reset", seconds=3600),
                    )
                ),
                down=Impairment(terminations=(Termination("reset", seconds=3600),)),
            ),
        ),
    ],
)
def test_each_item_of_the_grammar_is_parsed(text: str, faults: Faults) -> None:
    """Each item of the grammar in each of its forms."""
    assert parse_faults(text) == faults


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("latency=0.05s +- 5ms", "latency=50ms+-5ms"),
        ("up: bandwidth=65536/s", "up:bandwidth=64KiB/s"),
        ("down: bandwidth=1000/s", "down:bandwidth=1000/s"),
        ("slice=2..2/0.5s", "slice=2/500ms"),
        ("stall@0s; reset@4KiB", "reset@4096, stall@0s"),
        ("up:eof@2m; down:eof@120s", "eof@120s"),
        ("eof@1d1m; stall@2h", "stall@7200s, eof@86460s"),
        ("up:close; refuse; down:cut@1MiB", "refuse; up:close@0; down:cut@1048576"),
        ("latency=0ms", ""),
    ],
)
def test_equal_faults_are_written_the_same(text: str, written: str) -> None:
    """However they were written before."""
    assert str(parse_faults(text)) == written


_WORDS = ["latency=", "slice=", "bandwidth=", "cut@", "reset", "refuse", "up:", "/s"]
_SIGNS = ["=", "@", ",", ";", ":", "+-", "..", "/", "1", "50ms", "4KiB", " ", "s"]


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(_WORDS + _SIGNS), max_size=8).map("".join)
)
def test_any_text_is_faults_or_an_error_in_one_line(text: str) -> None:
    """And faults that were parsed can be written and parsed again."""
    try:
        faults = parse_faults(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert parse_faults(str(faults)) == faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lag=50ms", "'lag=50ms' in 'lag=50ms' is not a fault; use latency=,"),
        ("reset=5", "'reset=5' in 'reset=5' is not a fault; use latency=,"),
        ("cut", "'cut' in 'cut' is not a fault"),
        ("reset 5", "'reset 5' in 'reset 5' is not a fault"),
        ("in: reset", "'in' in 'in: reset' is not a direction; use up, down or both"),
        ("up: refuse", "'refuse' in 'up: refuse' has no direction"),
        ("reset,", "an item is missing in 'reset,'; use latency=,"),
        ("reset;", "an item is missing in 'reset;'"),
        ("latency=50", "'50' in 'latency=50' is not a time; use a number with a unit"),
        ("latency=-1s", "'-1s' in 'latency=-1s' is not a time"),
        ("latency=1s+-", "'' in 'latency=1s+-' is not a time"),
        ("latency=1s+-2s", "can't vary by more than itself: 1s +- 2s, in 'latency"),
        ("bandwidth=5", "'bandwidth=5' in 'bandwidth=5' is not a bandwidth; use byte"),
        ("bandwidth=5/m", "is not a bandwidth; use bytes per second, like"),
        ("bandwidth=5kB/s", "'5kB' in 'bandwidth=5kB/s' is not a number of bytes; use"),
        ("bandwidth=0/s", "bandwidth must be 1 or more, not 0, in 'bandwidth=0/s'"),
        ("slice=0", "slice must be 1 or more, not 0"),
        ("slice=3..2", "slice must be 3 or more, not 2"),
        ("slice=1..", "'' in 'slice=1..' is not a number of bytes"),
        ("cut@0", "cuts must be 1 or more, not 0"),
        ("reset@x", "'x' in 'reset@x' is not a number of bytes; use a number of bytes"),
        ("reset@" + "9" * 16, "is not a number of bytes"),
        ("reset@\u0661", "is not a number of bytes"),
        ("latency=1s,latency=2s", "'latency=2s' in 'latency=1s,latency=2s' is the sec"),
        ("slice=1; up:slice=2", "is the second slice of one direction; give it once"),
    ],
)
def test_an_error_says_what_to_write(text: str, message: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_faults(text)

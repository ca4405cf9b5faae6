"""A delay line: how many bytes it holds, and when it returns them."""

from __future__ import annotations

import math

import pytest
import trio

from trioserve.faults import Schedule, Termination, parse_faults
from trioserve.faults._delay_line import DelayLine, window

READ = 65536  #: bytes of one read


def _line(text: str, *, window: int = 100) -> DelayLine:
    return DelayLine(Schedule(parse_faults(text).up, 0), window, began=1000.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", READ),
        ("bandwidth=1KiB/s", READ),
        ("latency=2s, bandwidth=1KiB/s", READ + 2048),
        ("latency=2s+-1s, bandwidth=1KiB/s", READ + 3072),
        ("latency=2s, slice=1..10/100ms", READ + 200),
        ("latency=2s, slice=10", 16 * 1024**2),
        ("latency=1h", 16 * 1024**2),
    ],
)
def test_a_window_is_bandwidth_times_delay(text: str, size: int) -> None:
    """At least one read, and at most 16 MiB."""
    assert window(parse_faults(text).up) == size


def test_bytes_come_out_when_they_are_due() -> None:
    """And EOF after them."""
    line = _line("latency=5s")
    assert line.due == math.inf
    line.put(b"hello", 1001.0)
    assert line.due == 1006
    line.put(b"", 1002.0)
    assert line.take(1006.0) == b"hello"
    assert line.due == 1007
    assert line.take(1007.0) == b""
    assert line.termination is None


def test_after_a_boundary_there_is_a_gap() -> None:
    """So that a receiver that is waiting gets the first part alone."""
    line = _line("cut@2")
    line.put(b"hello", 1000.0)
    assert line.take(1000.0) == b"he"
    assert line.due == 1000.001
    assert line.take(1000.001) == b"llo"


def test_a_full_line_has_no_room() -> None:
    """Until something comes out; and never after EOF, a reset, or a termination."""
    line = _line("latency=5s", window=5)
    line.put(b"hell", 1000.0)
    assert line.has_room
    line.put(b"o", 1000.0)
    assert not line.has_room
    line.take(1005.0)
    assert line.has_room
    line.put(b"", 1005.0)
    assert not line.has_room
    assert not _line("eof@0").has_room


def test_a_reset_comes_after_the_bytes_before_it() -> None:
    """At once, when these have been taken."""
    line = _line("latency=5s")
    line.put(b"hello", 1000.0)
    line.is_broken = True
    assert not line.has_room
    assert line.due == 1005
    assert line.take(1005.0) == b"hello"
    assert line.due == -math.inf
    with pytest.raises(trio.BrokenResourceError):
        line.take(1005.0)


def test_a_termination_comes_after_the_bytes_before_it() -> None:
    """And is recorded for the report then."""
    line = _line("reset@2")
    line.put(b"hello", 1000.0)
    assert line.take(1000.0) == b"he"
    assert (line.due, line.schedule.applied) == (-math.inf, ())
    assert line.take(1000.0) == b""
    assert line.termination == Termination("reset", bytes=2)
    assert line.schedule.applied == ("reset@2",)

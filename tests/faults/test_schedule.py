"""The fault schedule: when each byte is delivered, and which bytes are lost."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.strategies import impairments
from trioserve.faults import (
    Impairment,
    Schedule,
    Segment,
    Termination,
    parse_faults,
)


def _schedule(text: str, seed: int | str = 0) -> Schedule:
    return Schedule(parse_faults(text).up, seed)


def _by_byte(segments: list[Segment]) -> list[tuple[int, float]]:
    return [(byte, segment.at) for segment in segments for byte in segment.data]


def _boundaries(segments: list[Segment]) -> list[int]:
    ends = itertools.accumulate(len(segment.data) for segment in segments)
    return [
        end for end, segment in zip(ends, segments, strict=True) if segment.boundary
    ]


_moments = st.sampled_from([0.0, 0.001, 0.3, 2.0])
_feeds = st.lists(st.tuples(_moments, st.binary(max_size=400)), max_size=6)


@given(impairments(_moments), st.integers(), _feeds, st.data())
def test_the_time_of_a_byte_does_not_depend_on_how_it_was_fed(
    impairment: Impairment,
    seed: int,
    feeds: list[tuple[float, bytes]],
    data: st.DataObject,
) -> None:
    """Nor do boundaries: both depend on offsets and on when the bytes were sent."""
    whole, parts = Schedule(impairment, seed), Schedule(impairment, seed)
    of_whole, of_parts = list[Segment](), list[Segment]()
    now = 0.0
    for gap, sent in feeds:
        now += gap
        fed = whole.feed(sent, now)
        assert all(segment.data for segment in fed)
        assert all(segment.at >= now for segment in fed)
        of_whole += fed
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            of_parts += parts.feed(sent[:size], now)
            sent = sent[size:]
    assert _by_byte(of_parts) == _by_byte(of_whole)
    assert _boundaries(of_parts) == _boundaries(of_whole)
    assert parts.termination == whole.termination
    assert set(parts.applied) == set(whole.applied)
    assert parts.feed_eof(now) == whole.feed_eof(now)
    assert parts.feed(b"after EOF", now) == []

    times = [at for _, at in _by_byte(of_whole)]
    assert times == sorted(times)
    everything = b"".join(sent for _, sent in feeds)
    assert everything.startswith(b"".join(segment.data for segment in of_whole))
    for termination in whole.timed[:1]:
        assert termination.seconds is not None
        assert all(at <= termination.seconds for at in times)


def test_without_faults_nothing_happens() -> None:
    """Bytes are delivered as they were sent, at once."""
    schedule = _schedule("")
    assert schedule.feed(b"abc", 1) == [Segment(b"abc", 1, False)]
    assert schedule.feed(b"", 2) == []
    assert schedule.feed_eof(3) == 3
    assert schedule.applied == ()


def test_latency_applies_to_each_byte() -> None:
    """And to EOF: bytes that are sent later are delivered later by the same time."""
    schedule = _schedule("latency=500ms")
    assert schedule.feed(b"ab", 0) == [Segment(b"ab", 0.5, False)]
    assert schedule.feed(b"c", 0.25) == [Segment(b"c", 0.75, False)]
    assert schedule.feed_eof(1) == 1.5
    assert schedule.applied == ("latency=500ms",)


def test_jitter_stays_in_its_bounds_and_keeps_order() -> None:
    """It varies within a connection, in both directions."""
    schedule = _schedule("latency=500ms+-250ms")
    times = [at for n in range(1000) for _, at in _by_byte(schedule.feed(b"-" * 64, n))]
    late = [at % 1 for at in times]
    assert 0.25 <= min(late) < 0.3
    assert 0.7 < max(late) <= 0.75
    assert len(set(late)) == 1000
    assert times == sorted(times)


@pytest.mark.parametrize("rate", [3, 1000, 1500, 100_000])
def test_bandwidth_is_exact(rate: int) -> None:
    """No byte is early, and none is more than a millisecond late."""
    schedule = Schedule(Impairment(bandwidth=rate), 0)
    for begin in (10.0, 1e6):
        sent = b"-" * 3 * rate
        times = [at for _, at in _by_byte(schedule.feed(sent, begin))]
        assert len(times) == 3 * rate
        for count, at in enumerate(times, 1):
            assert begin + count / rate <= at + 1e-9
            assert at <= begin + count / rate + 0.001 + 1e-9
        assert times[-1] == pytest.approx(begin + 3, abs=1e-9)


def test_latency_and_bandwidth_add_up() -> None:
    """As on a line that is both slow and long."""
    schedule = _schedule("latency=2s, bandwidth=1/s")
    segments = schedule.feed(b"abc", 0)
    assert segments == [
        Segment(b"a", 3, False),
        Segment(b"b", 4, False),
        Segment(b"c", 5, False),
    ]
    assert schedule.feed(b"d", 10) == [Segment(b"d", 13, False)]
    assert schedule.applied == ("latency=2s", "bandwidth=1/s")


def test_slices_are_drawn_from_the_seed() -> None:
    """Equal seeds give equal slices on every machine, other seeds other slices."""

    def edges(seed: int | str) -> list[int]:
        return _boundaries(_schedule("slice=1..9", seed).feed(b"-" * 40, 0))

    assert edges(7) == edges(7) == [6, 8, 15, 17, 24, 30, 31, 34, 37]
    assert edges(8) != edges(7)
    assert edges("7 up") != edges(7)


def test_slices_have_a_pause_between_them() -> None:
    """The bytes within a slice do not wait for each other."""
    schedule = _schedule("slice=2/1s")
    assert schedule.feed(b"abc", 0) == [
        Segment(b"ab", 0, True),
        Segment(b"c", 1, False),
    ]
    assert schedule.feed(b"de", 5) == [Segment(b"d", 5, True), Segment(b"e", 6, False)]
    assert schedule.applied == ("slice=2/1s",)


def test_a_cut_is_a_boundary_and_nothing_else() -> None:
    """It delays nothing, and it does not matter whether a feed ends there."""
    schedule = _schedule("cut@2, cut@4")
    assert schedule.feed(b"abc", 0) == [
        Segment(b"ab", 0, True),
        Segment(b"c", 0, False),
    ]
    assert list(schedule.applied) == ["cut@2"]
    assert schedule.feed(b"d", 0) == [Segment(b"d", 0, True)]
    assert schedule.feed(b"e", 0) == [Segment(b"e", 0, False)]
    assert list(schedule.applied) == ["cut@2", "cut@4"]


def test_a_termination_by_bytes_is_reached_with_the_last_byte_before_it() -> None:
    """Not with the first byte after it, which may never be sent."""
    schedule = _schedule("reset@3, stall@5")
    assert schedule.feed(b"ab", 0) == [Segment(b"ab", 0, False)]
    assert schedule.termination is None
    assert schedule.feed(b"cde", 1) == [Segment(b"c", 1, False)]
    assert schedule.termination == Termination("reset", bytes=3)
    assert schedule.feed(b"f", 2) == []
    assert schedule.feed_eof(2) == math.inf
    assert schedule.applied == ()
    schedule.mark_applied(Termination("reset", bytes=3))
    assert list(schedule.applied) == ["reset@3"]


def test_a_termination_at_byte_0_is_set_from_the_beginning() -> None:
    """It is reached before any byte."""
    assert _schedule("eof").termination == Termination("eof", bytes=0)
    assert _schedule("eof").feed(b"a", 0) == []


def test_bytes_due_after_a_termination_by_time_are_lost() -> None:
    """Bytes and EOF that are in flight then are lost."""
    schedule = _schedule("latency=2s, stall@3s, reset@5s, close@1m, eof@4s")
    assert [str(termination) for termination in schedule.timed] == [
        "stall@3s",
        "reset@5s",
    ]
    assert schedule.feed(b"a", 1) == [Segment(b"a", 3, False)]
    assert schedule.feed(b"b", 1.5) == []
    assert schedule.feed(b"c", 2) == []
    assert _schedule("latency=2s, stall@3s").feed_eof(2) == math.inf


def test_a_termination_by_bytes_after_one_by_time_is_not_reached() -> None:
    """A termination by time came before its last byte."""
    schedule = _schedule("bandwidth=1/s, close@3, vanish@2s")
    assert [segment.at for segment in schedule.feed(b"abc", 0)] == [1, 2]
    assert schedule.termination is None
    assert [str(termination) for termination in schedule.timed] == ["vanish@2s"]


def test_slow_close_is_added_to_the_time_of_the_last_byte() -> None:
    """The delay is added to the time of the last byte."""
    schedule = _schedule("slow_close=3s, latency=1s, slice=1/10s")
    schedule.feed(b"abc", 0)
    assert schedule.feed_eof(1) == 21 + 3
    assert schedule.applied == ("latency=1s", "slice=1/10s", "slow_close=3s")

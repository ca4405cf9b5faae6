"""Faults: one grammar, read and written; and what they do to which byte, when."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve import Course, Ending, Faults, Impairment, Piece, parse_faults
from trioserve._faults import EndingKind

_kinds = st.sampled_from(get_args(EndingKind))
_seconds = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.05, 1.0, 60.0])
_sizes = st.integers(0, 300) | st.sampled_from([1024, 65536, 1024**2, 10**9])
_at_least_one = _sizes.map(lambda size: size + 1)
_endings = st.builds(Ending, _kinds, bytes=_sizes) | st.builds(
    Ending, _kinds, seconds=_seconds
)


@st.composite
def _impairments(draw: st.DrawFn, seconds: st.SearchStrategy[float]) -> Impairment:
    latency, jitter = sorted([draw(seconds), draw(seconds)], reverse=True)
    fields: dict[str, Any] = {
        "latency": draw(st.sampled_from([0.0, latency])),
        "bandwidth": draw(st.none() | _at_least_one),
        "slow_close": draw(st.sampled_from([0.0, draw(seconds)])),
        "cuts": tuple(draw(st.lists(_at_least_one, max_size=4))),
        "endings": tuple(draw(st.lists(_endings, max_size=2))),
    }
    if fields["latency"]:
        fields["jitter"] = draw(st.sampled_from([0.0, jitter]))
    if draw(st.booleans()):
        least, most = sorted([draw(_at_least_one), draw(_at_least_one)])
        fields |= {"slice": (least, most), "pause": draw(seconds)}
    return Impairment(**fields)


_faults = st.builds(
    Faults,
    up=_impairments(_seconds),
    down=_impairments(_seconds),
    refuse=st.booleans(),
) | _impairments(_seconds).map(lambda both: Faults(up=both, down=both))


# -- the grammar


@given(_faults)
def test_what_is_written_is_read_back(faults: Faults) -> None:
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
        ("up:stall", Faults(up=Impairment(endings=(Ending("stall", bytes=0),)))),
        (
            "down:eof@2KiB;down:latency=1s+-.5s",
            Faults(
                down=Impairment(
                    latency=1, jitter=0.5, endings=(Ending("eof", bytes=2048),)
                )
            ),
        ),
        (
            "both:reset@1h; up:vanish@2s",
            Faults(
                up=Impairment(
                    endings=(Ending("vanish", seconds=2), Ending("reset", seconds=3600))
                ),
                down=Impairment(endings=(Ending("reset", seconds=3600),)),
            ),
        ),
    ],
)
def test_what_a_text_means(text: str, faults: Faults) -> None:
    """In every form that the grammar has."""
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
        ("up:close; refuse; down:cut@1MiB", "refuse; up:close@0; down:cut@1048576"),
        ("latency=0ms", ""),
    ],
)
def test_there_is_one_way_to_write_it(text: str, written: str) -> None:
    """Which does not depend on how it was written before."""
    assert str(parse_faults(text)) == written


_WORDS = ["latency=", "slice=", "bandwidth=", "cut@", "reset", "refuse", "up:", "/s"]
_SIGNS = ["=", "@", ",", ";", ":", "+-", "..", "/", "1", "50ms", "4KiB", " ", "s"]


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(_WORDS + _SIGNS), max_size=8).map("".join)
)
def test_any_text_is_faults_or_an_error_in_one_line(text: str) -> None:
    """And faults that were read can be written and read again."""
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
        ("bandwidth=5", "'bandwidth=5' in 'bandwidth=5' is no bandwidth; use bytes"),
        ("bandwidth=5/m", "is no bandwidth; use bytes per second, like"),
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
        ("slice=1; up:slice=2", "is the second slice of one direction; say it once"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_faults(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ending("hang", bytes=1), "kind must be one of stall,"),  # type: ignore[arg-type]
        (lambda: Ending("reset"), "reset needs either bytes or seconds"),
        (lambda: Ending("reset", 1, 1.0), "reset needs either bytes or seconds"),
        (lambda: Ending("reset", -1), "bytes must be 0 or more, not -1"),
        (lambda: Ending("reset", 1.5), "bytes must be a number of bytes, not 1.5"),  # type: ignore[arg-type]
        (lambda: Ending("reset", seconds=math.inf), "must be finite, not inf"),
        (lambda: Impairment(latency=-1), "latency must be 0 or more"),
        (lambda: Impairment(latency="1s"), "latency must be a number of seconds"),  # type: ignore[arg-type]
        (lambda: Impairment(pause=1), "a pause is between slices"),
        (lambda: Impairment(slice=5), "slice must be a tuple of int, not 5"),  # type: ignore[arg-type]
        (lambda: Impairment(cuts=3), "cuts must be a tuple of int, not 3"),  # type: ignore[arg-type]
        (
            lambda: Impairment(endings=("reset",)),  # type: ignore[arg-type]
            "endings must be a tuple of Ending, not ('reset',)",
        ),
        (lambda: Faults(up="reset"), "up must be an Impairment, not 'reset'"),  # type: ignore[arg-type]
        (lambda: Faults(down=None), "down must be an Impairment, not None"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_cannot_be(make: Any, message: str) -> None:
    """Is refused when it is made."""
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        make()


# -- the course


def _course(text: str, seed: int | str = 0) -> Course:
    return Course(parse_faults(text).up, seed)


def _by_byte(pieces: list[Piece]) -> list[tuple[int, float]]:
    return [(byte, piece.at) for piece in pieces for byte in piece.data]


def _boundaries(pieces: list[Piece]) -> list[int]:
    ends = itertools.accumulate(len(piece.data) for piece in pieces)
    return [end for end, piece in zip(ends, pieces, strict=True) if piece.boundary]


_moments = st.sampled_from([0.0, 0.001, 0.3, 2.0])
_feeds = st.lists(st.tuples(_moments, st.binary(max_size=400)), max_size=6)


@given(_impairments(_moments), st.integers(), _feeds, st.data())
def test_the_same_bytes_suffer_the_same_however_they_are_cut(
    impairment: Impairment,
    seed: int,
    feeds: list[tuple[float, bytes]],
    data: st.DataObject,
) -> None:
    """Each byte has its time, whatever came with it; and so have boundaries."""
    whole, parts = Course(impairment, seed), Course(impairment, seed)
    of_whole, of_parts = list[Piece](), list[Piece]()
    now = 0.0
    for gap, sent in feeds:
        now += gap
        fed = whole.feed(sent, now)
        assert all(piece.data for piece in fed)
        assert all(piece.at >= now for piece in fed)
        of_whole += fed
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            of_parts += parts.feed(sent[:size], now)
            sent = sent[size:]
    assert _by_byte(of_parts) == _by_byte(of_whole)
    assert _boundaries(of_parts) == _boundaries(of_whole)
    assert parts.ending == whole.ending
    assert set(parts.suffered) == set(whole.suffered)
    assert parts.feed_eof(now) == whole.feed_eof(now)
    assert parts.feed(b"after EOF", now) == []

    times = [at for _, at in _by_byte(of_whole)]
    assert times == sorted(times)
    everything = b"".join(sent for _, sent in feeds)
    assert everything.startswith(b"".join(piece.data for piece in of_whole))
    for ending in whole.timed[:1]:
        assert ending.seconds is not None
        assert all(at <= ending.seconds for at in times)


def test_without_faults_nothing_happens() -> None:
    """Bytes come as they were sent, at once."""
    course = _course("")
    assert course.feed(b"abc", 1) == [Piece(b"abc", 1, False)]
    assert course.feed(b"", 2) == []
    assert course.feed_eof(3) == 3
    assert course.suffered == ()


def test_latency_is_for_each_byte() -> None:
    """And for EOF; what is sent later comes so much later."""
    course = _course("latency=500ms")
    assert course.feed(b"ab", 0) == [Piece(b"ab", 0.5, False)]
    assert course.feed(b"c", 0.25) == [Piece(b"c", 0.75, False)]
    assert course.feed_eof(1) == 1.5
    assert course.suffered == ("latency=500ms",)


def test_jitter_stays_in_its_bounds_and_keeps_order() -> None:
    """It varies within a connection, in both directions."""
    course = _course("latency=500ms+-250ms")
    times = [at for n in range(1000) for _, at in _by_byte(course.feed(b"-" * 64, n))]
    late = [at % 1 for at in times]
    assert 0.25 <= min(late) < 0.3
    assert 0.7 < max(late) <= 0.75
    assert len(set(late)) == 1000
    assert times == sorted(times)


@pytest.mark.parametrize("rate", [3, 1000, 1500, 100_000])
def test_bandwidth_is_exact(rate: int) -> None:
    """Each byte comes when so many have had time, at most a millisecond later."""
    course = Course(Impairment(bandwidth=rate), 0)
    for begin in (10.0, 1e6):
        sent = b"-" * 3 * rate
        times = [at for _, at in _by_byte(course.feed(sent, begin))]
        assert len(times) == 3 * rate
        for count, at in enumerate(times, 1):
            assert begin + count / rate <= at + 1e-9
            assert at <= begin + count / rate + 0.001 + 1e-9
        assert times[-1] == pytest.approx(begin + 3, abs=1e-9)


def test_latency_and_bandwidth_add_up() -> None:
    """A line that is slow and long."""
    course = _course("latency=2s, bandwidth=1/s")
    pieces = course.feed(b"abc", 0)
    assert pieces == [
        Piece(b"a", 3, False),
        Piece(b"b", 4, False),
        Piece(b"c", 5, False),
    ]
    assert course.feed(b"d", 10) == [Piece(b"d", 13, False)]
    assert course.suffered == ("latency=2s", "bandwidth=1/s")


def test_slices_are_drawn_from_the_seed() -> None:
    """The same everywhere, and others with another seed."""

    def edges(seed: int | str) -> list[int]:
        return _boundaries(_course("slice=1..9", seed).feed(b"-" * 40, 0))

    assert edges(7) == edges(7) == [6, 8, 15, 17, 24, 30, 31, 34, 37]
    assert edges(8) != edges(7)
    assert edges("7 up") != edges(7)


def test_slices_have_a_pause_between_them() -> None:
    """Counted from one to the next; bytes of one slice do not wait for each other."""
    course = _course("slice=2/1s")
    assert course.feed(b"abc", 0) == [Piece(b"ab", 0, True), Piece(b"c", 1, False)]
    assert course.feed(b"de", 5) == [Piece(b"d", 5, True), Piece(b"e", 6, False)]
    assert course.suffered == ("slice=2/1s",)


def test_a_cut_is_a_boundary_and_nothing_else() -> None:
    """Whatever it cuts, and whether or not a feed ends there."""
    course = _course("cut@2, cut@4")
    assert course.feed(b"abc", 0) == [Piece(b"ab", 0, True), Piece(b"c", 0, False)]
    assert list(course.suffered) == ["cut@2"]
    assert course.feed(b"d", 0) == [Piece(b"d", 0, True)]
    assert course.feed(b"e", 0) == [Piece(b"e", 0, False)]
    assert list(course.suffered) == ["cut@2", "cut@4"]


def test_an_ending_by_bytes_is_reached_with_the_last_byte_before_it() -> None:
    """Not with the first one after it, which may never come."""
    course = _course("reset@3, stall@5")
    assert course.feed(b"ab", 0) == [Piece(b"ab", 0, False)]
    assert course.ending is None
    assert course.feed(b"cde", 1) == [Piece(b"c", 1, False)]
    assert course.ending == Ending("reset", bytes=3)
    assert course.feed(b"f", 2) == []
    assert course.feed_eof(2) == math.inf
    assert course.suffered == ()
    course.suffer(Ending("reset", bytes=3))
    assert list(course.suffered) == ["reset@3"]


def test_an_ending_at_once_is_there_from_the_beginning() -> None:
    """Before any byte."""
    assert _course("eof").ending == Ending("eof", bytes=0)
    assert _course("eof").feed(b"a", 0) == []


def test_what_would_come_after_an_ending_by_time_does_not_come() -> None:
    """It was under way when the line was cut, or EOF was."""
    course = _course("latency=2s, stall@3s, reset@5s, close@1m, eof@4s")
    assert [str(ending) for ending in course.timed] == ["stall@3s", "reset@5s"]
    assert course.feed(b"a", 1) == [Piece(b"a", 3, False)]
    assert course.feed(b"b", 1.5) == []
    assert course.feed(b"c", 2) == []
    assert _course("latency=2s, stall@3s").feed_eof(2) == math.inf


def test_an_ending_by_bytes_that_would_come_too_late_does_not_come() -> None:
    """Its bytes were not all delivered."""
    course = _course("bandwidth=1/s, close@3, vanish@2s")
    assert [piece.at for piece in course.feed(b"abc", 0)] == [1, 2]
    assert course.ending is None
    assert [str(ending) for ending in course.timed] == ["vanish@2s"]


def test_a_slow_close_is_slower_than_the_bytes() -> None:
    """By so much, whatever they had to wait."""
    course = _course("slow_close=3s, latency=1s, slice=1/10s")
    course.feed(b"abc", 0)
    assert course.feed_eof(1) == 21 + 3
    assert course.suffered == ("latency=1s", "slice=1/10s", "slow_close=3s")

"""Hypothesis strategies for values of faults, with a choice of times."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from trioserve.faults import Faults, Impairment, Termination
from trioserve.faults._values import TerminationKind

_kinds = st.sampled_from(get_args(TerminationKind))
_seconds = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.05, 1.0, 60.0])
_sizes = st.integers(0, 300) | st.sampled_from([1024, 65536, 1024**2, 10**9])
_at_least_one = _sizes.map(lambda size: size + 1)
_terminations = st.builds(Termination, _kinds, bytes=_sizes) | st.builds(
    Termination, _kinds, seconds=_seconds
)


@st.composite
def impairments(draw: st.DrawFn, seconds: st.SearchStrategy[float]) -> Impairment:
    latency, jitter = sorted([draw(seconds), draw(seconds)], reverse=True)
    fields: dict[str, Any] = {
        "latency": draw(st.sampled_from([0.0, latency])),
        "bandwidth": draw(st.none() | _at_least_one),
        "slow_close": draw(st.sampled_from([0.0, draw(seconds)])),
        "cuts": tuple(draw(st.lists(_at_least_one, max_size=4))),
        "terminations": tuple(draw(st.lists(_terminations, max_size=2))),
    }
    if fields["latency"]:
        fields["jitter"] = draw(st.sampled_from([0.0, jitter]))
    if draw(st.booleans()):
        least, most = sorted([draw(_at_least_one), draw(_at_least_one)])
        fields |= {"slice": (least, most), "pause": draw(seconds)}
    return Impairment(**fields)


faults = st.builds(
    Faults,
    up=impairments(_seconds),
    down=impairments(_seconds),
    refuse=st.booleans(),
) | impairments(_seconds).map(lambda both: Faults(up=both, down=both))

"""Results: the summary of a drain."""

from __future__ import annotations

import math

import pytest

from trioserve import DrainSummary


@pytest.mark.parametrize(
    ("cut", "stuck", "clean"),
    [(0, (), True), (1, (), False), (0, ("conn-1 in f at a.py:1",), False)],
)
def test_a_drain_is_clean_if_nothing_was_cut_or_stuck(
    cut: int, stuck: tuple[str, ...], clean: bool
) -> None:
    """Refusals and lost reports do not make it unclean."""
    summary = DrainSummary(
        reason="test",
        seconds=math.pi,
        open_at_start=1,
        backlog_drained=1,
        finished=1,
        refused=1,
        cut=cut,
        stuck=stuck,
        reports_lost=1,
    )
    assert summary.clean is clean

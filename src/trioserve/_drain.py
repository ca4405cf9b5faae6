"""Drain: its deadline, its reason and its summary.

Times and counts. This module does not know what is cancelled or closed at these times.
"""

from __future__ import annotations

import collections
import math

import trio

from ._reason import Outcome
from ._results import DrainSummary


class Drain:
    """The drain of one server.

    Attributes:
      reason: the reason of the drain; None before it begins.
      began_at, deadline: on Trio's clock; ``math.inf`` before it begins.
      cut_short: the reason of a later call that has brought the deadline forward;
        None if none did.
      outcomes: the number of connections that have ended so far, by outcome.
      stuck: tasks that were still alive after the cleanup, each with its line.
      summary: the summary; None before the end.
      over: set when there is a summary.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.began_at = math.inf
        self.deadline = math.inf
        self.cut_short: str | None = None
        self.outcomes = collections.Counter[Outcome]()
        self.stuck: tuple[str, ...] = ()
        self.summary: DrainSummary | None = None
        self.over = trio.Event()
        self._open_at_start = 0
        self._outcomes_before = collections.Counter[Outcome]()

    def begin(self, reason: str, now: float, open_now: int) -> None:
        """Note that the drain begins."""
        self.reason = reason
        self.began_at = now
        self._open_at_start = open_now
        self._outcomes_before = self.outcomes.copy()

    def bring_forward(self, deadline: float) -> bool:
        """Set the deadline unless it is earlier already; return whether it was set."""
        if deadline < self.deadline:
            self.deadline = deadline
            return True
        return False

    def limit(self) -> tuple[float | None, str | None]:
        """The ``limit`` and ``error`` in the report of a connection that is cut."""
        if self.cut_short is None:
            return self.deadline - self.began_at, None
        return None, f"cut short: {self.cut_short}"

    def sum_up(self, now: float, *, backlog_drained: int, reports_lost: int) -> None:
        """Make the summary, unless there is one already."""
        if self.summary is not None:
            return
        # All cut connections belong to the drain: if the server is cancelled, some are
        # finalized before the drain is marked as begun.
        ends = self.outcomes - self._outcomes_before
        cut, refused = self.outcomes[Outcome.CUT], ends[Outcome.REFUSED]
        self.summary = DrainSummary(
            reason=self.reason or "cancelled",
            seconds=now - self.began_at,
            open_at_start=self._open_at_start,
            backlog_drained=backlog_drained,
            finished=ends.total() - ends[Outcome.CUT] - refused,
            refused=refused,
            cut=cut,
            stuck=self.stuck,
            reports_lost=reports_lost,
        )
        self.over.set()

"""Drain: when a server stops, why, and how that went.

Times and counts. What is cancelled or closed at these times is decided elsewhere.
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
      reason: why it stops; None before that.
      began_at, deadline: on Trio's clock; ``math.inf`` before it has begun.
      cut_short: the later reason that has brought the deadline forward, if any did.
      outcomes: how many connections have ended in each way so far.
      stuck: tasks that were still alive after the cleanup, each with its line.
      summary: how it went, once it is over.
      over: an event: there is a summary.
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
        """It begins."""
        self.reason = reason
        self.began_at = now
        self._open_at_start = open_now
        self._outcomes_before = self.outcomes.copy()

    def bring_forward(self, deadline: float) -> bool:
        """Set the deadline, unless it is earlier already; whether it was set."""
        if deadline < self.deadline:
            self.deadline = deadline
            return True
        return False

    def limit(self) -> tuple[float | None, str | None]:
        """What the report says of a connection that is cut: seconds, or an error."""
        if self.cut_short is None:
            return self.deadline - self.began_at, None
        return None, f"cut short: {self.cut_short}"

    def sum_up(self, now: float, *, backlog_drained: int, reports_lost: int) -> None:
        """It is over; the first summary stays."""
        if self.summary is not None:
            return
        # No connection is cut before the drain begins, though a cancelled one may be
        # finalized before it is known that the server was.
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

"""Samples of a server's counters, taken at intervals, and how fast they grow.

A server in, snapshots out. Nothing here formats or shows them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from time import thread_time
from typing import Final, NoReturn

import trio

from trioserve import Server, Statistics

from ._backlog import backlog_length

#: The share of one processor that sampling may take: statistics() goes through
#: all open connections.
_SHARE: Final = 0.01

#: Rates are averages over this many seconds. Over a shorter time they jump, and
#: between two samples in a row they mean nothing.
_WINDOW: Final = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A server's counters now and at an earlier time.

    Args:
      elapsed: seconds since the first snapshot.
      now, before: the counters; the same in the first snapshot.
      seconds: between the two.
      waiting: clients in the accept queues, or None if the kernel can't tell.
      reports_lost: lost before they reached the collector, or after that.
      drain_left: None until the server drains; then the seconds until open
        connections are cut, at most.
    """

    elapsed: float
    now: Statistics
    before: Statistics
    seconds: float
    waiting: int | None
    reports_lost: int
    drain_left: float | None

    def rate(self, counter: str) -> float:
        """How much a counter has grown per second."""
        if not self.seconds:
            return 0.0
        grown: int = getattr(self.now, counter) - getattr(self.before, counter)
        return grown / self.seconds


class Sampler:
    """Takes snapshots of a server.

    Args:
      unwritten: returns how many reports were collected, and lost after that.
    """

    def __init__(self, server: Server, unwritten: Callable[[], int] = int) -> None:
        self._unwritten = unwritten
        self._server = server
        self._began = trio.current_time()
        self._samples = collections.deque([(self._began, server.statistics())])
        self._drained_since: float | None = None

    def sample(self) -> Snapshot:
        """The counters now, and those of a second ago.

        The latter are the newest that are at least a second old; in the first
        second, the first ones.
        """
        now, at = self._server.statistics(), trio.current_time()
        while len(self._samples) > 1 and at - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()
        before_at, before = self._samples[0]
        self._samples.append((at, now))
        return Snapshot(
            elapsed=at - self._began,
            now=now,
            before=before,
            seconds=at - before_at,
            waiting=backlog_length(self._server),
            reports_lost=now.lost + self._unwritten(),
            drain_left=self._drain_left(at),
        )

    def _drain_left(self, at: float) -> float | None:
        # A server doesn't publish the deadline of its drain, but a drain can only
        # be shortened, so Timeouts.drain is an upper bound. Tasks that do not end
        # by then get Timeouts.cleanup more.
        if not self._server.draining.is_set():
            return None
        if self._drained_since is None:
            self._drained_since = at
        return max(0.0, self._drained_since + self._server.timeouts.drain - at)

    async def run(
        self, show: Callable[[Snapshot], None], *, every: float = 0.5
    ) -> NoReturn:
        """Pass a snapshot to ``show`` at an interval of seconds, until cancelled.

        The interval is longer if this would take more than 1 % of a processor.
        """
        while True:
            # The CPU time of this thread, which leaves out the time in which the
            # process does not run, or is stopped.
            began = thread_time()
            show(self.sample())
            cost = thread_time() - began
            await trio.sleep(max(every, cost / _SHARE))

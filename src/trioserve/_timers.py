"""Timers: one task that waits for the earliest deadline of many.

A scope per wait would cost more than the wait. Instead whoever has timers says
when the earliest of them runs out, and says so again when asked at that time.
Nothing here knows what a timer is for.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import NoReturn, Protocol

import trio


class Timed(Protocol):
    """Something with timers."""

    def expire(self, now: float) -> None:
        """Do what is due at ``now``, and watch again if more will be.

        Called once per :meth:`Timers.watch`, perhaps for nothing: activity
        since then may have moved the deadline. Must not raise.
        """


class Timers:
    """Wakes what it watches at the time it asked for.

    Under a virtual clock nothing happens between deadlines: there is no sweep.
    """

    def __init__(self) -> None:
        # An entry is stale unless it is the one that _alarms has for its owner.
        self._heap: list[tuple[float, int, Timed]] = []
        self._alarms: dict[Timed, tuple[float, int, Timed]] = {}
        self._count = itertools.count()
        self._sleep = trio.CancelScope()

    def watch(self, timed: Timed, when: float) -> float:
        """Call ``timed.expire`` at ``when``, or before if that was asked already.

        Returns the time at which it will be called; ``math.inf`` if never.
        """
        alarm = self._alarms.get(timed)
        if alarm is not None and alarm[0] <= when:
            return alarm[0]
        if when == math.inf:
            return when
        alarm = self._alarms[timed] = (when, next(self._count), timed)
        heapq.heappush(self._heap, alarm)
        if when < self._sleep.deadline:
            self._sleep.deadline = when
        return when

    def forget(self, timed: Timed) -> None:
        """Never call ``timed.expire`` again, unless it is watched anew."""
        if self._alarms.pop(timed, None) is None:
            return
        if len(self._heap) > 2 * len(self._alarms) + 64:
            self._heap = [e for e in self._heap if self._alarms.get(e[2]) is e]
            heapq.heapify(self._heap)
        # A stale head would wake us, and move a virtual clock, for nothing.
        earliest = self._earliest()
        if earliest != self._sleep.deadline:
            self._sleep.deadline = earliest

    async def run(self) -> NoReturn:
        """Wait for deadlines until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._earliest()) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._earliest() <= now:
                _, _, timed = heapq.heappop(self._heap)
                del self._alarms[timed]
                timed.expire(now)

    def _earliest(self) -> float:
        while self._heap and self._alarms.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

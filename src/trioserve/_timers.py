"""Timers: one task that waits for the earliest deadline of many.

A scope per wait would cost more than the wait. Instead whoever has timers says
when the earliest of them runs out, and says so again when asked at that time.
Nothing here knows what a timer is for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from typing import Final, NoReturn, Protocol, TypeAlias

import trio

logger = logging.getLogger("trioserve")

#: Seconds after which it is said that a deadline was met late.
_LATE: Final = 1.0

#: When, a number that settles who is first, and whom it wakes.
Alarm: TypeAlias = "tuple[float, int, Timed]"


class Timed(Protocol):
    """Something with timers.

    Attributes:
      _alarm: for us to keep; None at first.
    """

    _alarm: Alarm | None

    def expire(self, now: float) -> None:
        """Do what is due at ``now``, and watch again if more will be.

        Called once per :meth:`Timers.watch`, perhaps for nothing: activity
        since then may have moved the deadline. Must not raise.
        """


def next_look(now: float) -> float:
    """When to look again: in more than half a second, and one at most.

    Twice a second for all, so that ten thousand looks cost one wait.
    """
    return math.floor(now * 2) / 2 + 1.0


class Timers:
    """Wakes what it watches at the time it asked for.

    Under a virtual clock nothing happens between deadlines: there is no sweep.
    """

    def __init__(self) -> None:
        # An entry is stale unless it is the one that its owner has.
        self._heap: list[Alarm] = []
        self._watched = 0
        self._count = itertools.count()
        self._sleep = trio.CancelScope()

    def watch(self, timed: Timed, when: float) -> None:
        """Call ``timed.expire`` at ``when``, or before if that was asked already."""
        alarm = timed._alarm
        if when == math.inf or (alarm is not None and alarm[0] <= when):
            return
        if alarm is None:
            self._watched += 1
        timed._alarm = (when, next(self._count), timed)
        heapq.heappush(self._heap, timed._alarm)
        self._drop_stale()
        if when < self._sleep.deadline:
            self._sleep.deadline = max(when, trio.current_time())

    def forget(self, timed: Timed) -> None:
        """Never call ``timed.expire`` again, unless it is watched anew."""
        alarm, timed._alarm = timed._alarm, None
        if alarm is None:
            return
        self._watched -= 1
        if alarm is self._heap[0]:
            # A stale head would wake us, and move a virtual clock, for nothing.
            self._sleep.deadline = self._earliest()
        else:
            self._drop_stale()

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * self._watched + 64:
            self._heap = [each for each in self._heap if each[2]._alarm is each]
            heapq.heapify(self._heap)

    async def run(self) -> NoReturn:
        """Wait for deadlines until cancelled."""
        while True:
            due = max(self._earliest(), trio.current_time())
            with trio.CancelScope(deadline=due) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            late = now - self._sleep.deadline
            if late > _LATE:
                logger.warning(
                    "a timer is %.1f s late: the process was stopped, or something"
                    " blocked its event loop",
                    late,
                )
            # Late or not, what has arrived by now is moved first, and an error that
            # has is told: then no timer takes it for silence.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            while self._earliest() <= now:
                _, _, timed = heapq.heappop(self._heap)
                timed._alarm = None
                self._watched -= 1
                timed.expire(now)

    def _earliest(self) -> float:
        while self._heap and self._heap[0][2]._alarm is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

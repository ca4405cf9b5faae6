"""Timers: one task that waits for the earliest of many deadlines.

A cancel scope per wait would cost more than the wait. Instead each object with
deadlines registers the earliest one; when it is called at that time, it registers the
next one. This module does not know what a timer is for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from typing import Final, NoReturn, Protocol, TypeAlias

import trio

logger = logging.getLogger("trioserve")

#: A deadline that is met so many seconds late is logged.
_LATE: Final = 1.0

#: The time, a number that orders equal times, and the holder to call.
TimerEntry: TypeAlias = "tuple[float, int, DeadlineHolder]"


class DeadlineHolder(Protocol):
    """An object with deadlines.

    Attributes:
      timer_entry: its entry in the heap; set by :class:`Timers`, at first None.
    """

    timer_entry: TimerEntry | None

    def on_timer(self, now: float) -> None:
        """Handle deadlines up to ``now``, and watch again if others remain.

        Called once per :meth:`Timers.watch`. Activity since then may have moved the
        deadline, so that nothing is due. Must not raise.
        """


def next_look(now: float) -> float:
    """The time of the next regular check: in more than 0.5 s and at most 1 s.

    It is a multiple of 0.5 s, so that ten thousand checks share one wait.
    """
    return math.floor(now * 2) / 2 + 1.0


class Timers:
    """Calls each holder at the time for which it has registered.

    Nothing runs between deadlines, so that a virtual clock can jump.
    """

    def __init__(self) -> None:
        # An entry is stale unless its holder still has it.
        self._heap: list[TimerEntry] = []
        self._watched = 0
        self._count = itertools.count()
        self._sleep = trio.CancelScope()

    def watch(self, holder: DeadlineHolder, when: float) -> None:
        """Call ``holder.on_timer`` at ``when``, or at an earlier time it has."""
        entry = holder.timer_entry
        if when == math.inf or (entry is not None and entry[0] <= when):
            return
        if entry is None:
            self._watched += 1
        holder.timer_entry = (when, next(self._count), holder)
        heapq.heappush(self._heap, holder.timer_entry)
        self._drop_stale()
        if when < self._sleep.deadline:
            self._sleep.deadline = max(when, trio.current_time())

    def forget(self, holder: DeadlineHolder) -> None:
        """Drop the entry of ``holder``: don't call it before the next :meth:`watch`."""
        entry, holder.timer_entry = holder.timer_entry, None
        if entry is None:
            return
        self._watched -= 1
        if entry is self._heap[0]:
            # A stale head would wake the task, and move a virtual clock, needlessly.
            self._sleep.deadline = self._earliest()
        else:
            self._drop_stale()

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * self._watched + 64:
            self._heap = [each for each in self._heap if each[2].timer_entry is each]
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
            # Two passes of the scheduler, so that bytes and errors that have arrived
            # are handled first. Else a late timer would take the peer for silent.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            while self._earliest() <= now:
                _, _, holder = heapq.heappop(self._heap)
                holder.timer_entry = None
                self._watched -= 1
                holder.on_timer(now)

    def _earliest(self) -> float:
        while self._heap and self._heap[0][2].timer_entry is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

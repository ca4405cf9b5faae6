"""Timers: one task that waits for the earliest of many deadlines.

A scope for each wait would cost more than the wait. Instead an object that has
deadlines says when the earliest of them runs out; when it is called at that time, it
says so again. This module does not know what a timer is for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from typing import Final, NoReturn, Protocol, TypeAlias

import trio

logger = logging.getLogger("trioserve")

#: Seconds after which the log says that a deadline was met late.
_LATE: Final = 1.0

#: When; a number that decides between equal times; and who is called.
TimerEntry: TypeAlias = "tuple[float, int, DeadlineHolder]"


class DeadlineHolder(Protocol):
    """An object with deadlines.

    Attributes:
      timer_entry: its entry in the heap of its :class:`Timers`, which sets it; None
        if it has none, as at first.
    """

    timer_entry: TimerEntry | None

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``, and watch again if more will be.

        Called once per :meth:`Timers.watch`. There may be nothing to do, for activity
        since then may have moved the deadline. Must not raise.
        """


def next_look(now: float) -> float:
    """When to look again: in more than half a second, and in at most one.

    It is a multiple of half a second, so that ten thousand looks cost one wait.
    """
    return math.floor(now * 2) / 2 + 1.0


class Timers:
    """Calls each holder at the time that it has asked for.

    Between deadlines nothing happens, so a virtual clock can jump: there is no sweep.
    """

    def __init__(self) -> None:
        # An entry is stale unless its holder still has it.
        self._heap: list[TimerEntry] = []
        self._watched = 0
        self._count = itertools.count()
        self._sleep = trio.CancelScope()

    def watch(self, holder: DeadlineHolder, when: float) -> None:
        """Call ``holder.on_timer`` at ``when``, or before if that was asked already."""
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
        """Don't call ``holder.on_timer`` any more, unless it is watched anew."""
        entry, holder.timer_entry = holder.timer_entry, None
        if entry is None:
            return
        self._watched -= 1
        if entry is self._heap[0]:
            # A stale head would wake the task, and move a virtual clock, for nothing.
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
            # Two passes of the scheduler, in which all that has arrived is moved, and
            # errors are found. Without them a late timer would take that for silence.
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

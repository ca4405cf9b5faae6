"""Timers: one task that waits for the earliest of many deadlines.

A cancel scope per wait would cost more than the wait. Instead each object with
deadlines registers the earliest one; when it is called at that time, it registers the
next one. This module does not know what a timer is for.
"""

from __future__ import annotations

import heapq
import logging
import math
from typing import Final, NoReturn, Protocol

import trio

logger = logging.getLogger("trioserve")

#: A deadline that is met this many seconds late is logged.
_LATE: Final = 1.0


class DeadlineHolder(Protocol):
    """An object with deadlines.

    Attributes:
      timer_due: when it is called; set by :class:`Timers`, at first ``math.inf``.
    """

    timer_due: float

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
        # The holders of each deadline, as the keys of a dict. Most are called at a
        # regular check, and share one of two deadlines; so to watch and to forget one
        # rarely touches the heap.
        self._holders: dict[float, dict[DeadlineHolder, None]] = {}
        # The deadlines. One without holders is stale.
        self._heap: list[float] = []
        self._sleep = trio.CancelScope()

    def watch(self, holder: DeadlineHolder, when: float) -> None:
        """Call ``holder.on_timer`` at ``when``, or at an earlier time it has."""
        before = holder.timer_due
        if when == math.inf or before <= when:
            return
        if before < math.inf:
            self._remove(holder, before)
        holder.timer_due = when
        if (holders := self._holders.get(when)) is not None:
            holders[holder] = None
        else:
            self._holders[when] = {holder: None}
            heapq.heappush(self._heap, when)
            self._drop_stale()
        if when < self._sleep.deadline:
            self._sleep.deadline = max(when, trio.current_time())

    def forget(self, holder: DeadlineHolder) -> None:
        """Don't call ``holder`` before the next :meth:`watch`."""
        when = holder.timer_due
        if when == math.inf:
            return
        holder.timer_due = math.inf
        if self._remove(holder, when):
            if when != self._heap[0]:
                self._drop_stale()
            elif when > trio.current_time():
                # A stale head would wake the task and move a virtual clock. A deadline
                # that has passed wakes it in any case, and tells how late it is.
                self._sleep.deadline = self._earliest()

    def _remove(self, holder: DeadlineHolder, when: float) -> bool:
        """Remove a holder of a deadline; whether that was the last one."""
        holders = self._holders[when]
        del holders[holder]
        if not holders:
            del self._holders[when]
        return not holders

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._holders) + 64:
            self._heap = list(self._holders)
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
            while (when := self._earliest()) <= now:
                self._call(when, now)

    def _call(self, when: float, now: float) -> None:
        """Call the holders of a deadline. Each may forget others, or watch again."""
        holders = self._holders[when]
        for holder in list(holders):
            if holder in holders:
                del holders[holder]
                holder.timer_due = math.inf
                holder.on_timer(now)
        if not holders and self._holders.get(when) is holders:
            del self._holders[when]

    def _earliest(self) -> float:
        while self._heap and self._heap[0] not in self._holders:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else math.inf

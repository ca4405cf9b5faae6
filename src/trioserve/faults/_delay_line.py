"""A delay line: holds the bytes of one direction until they are due.

The fault schedule says when that is, on Trio's clock. A delay line moves no bytes
itself and knows no relay.
"""

from __future__ import annotations

import collections
import math
from typing import Final

import trio

from trioserve._transport import CHUNK

from ._schedule import Schedule, Segment
from ._values import Impairment, Termination

#: The most bytes that one delay line holds.
_LARGEST_WINDOW: Final = 16 * 1024**2

#: Seconds between a boundary and the bytes after it: meanwhile a receiver that waits
#: gets the bytes before the boundary alone.
_GAP: Final = 0.001


def window(impairment: Impairment) -> int:
    """How many bytes a delay line must hold so that latency costs no throughput.

    That is bandwidth times delay, as for a TCP window.
    """
    rate = impairment.bandwidth or math.inf
    if impairment.slice is not None and impairment.pause:
        rate = min(rate, impairment.slice[1] / impairment.pause)
    if impairment.latency:
        delay = impairment.latency + impairment.jitter
        return int(min(_LARGEST_WINDOW, CHUNK + rate * delay))
    return CHUNK


class DelayLine:
    """The bytes of one direction between their source and their sink.

    Args:
      schedule: says when each byte is due.
      window: the most bytes that it holds, plus one read.
      began: when the connection began, on Trio's clock.

    Attributes:
      termination: the fault that has ended this direction, or None. EOF and a reset
        of the source are not faults.
      is_broken: whether the source was reset. Bytes received before that are
        delivered first.
      scope: a cancel scope around the pump of this direction.
    """

    __slots__ = (
        "_began", "_eof_at", "_held", "_not_before", "_segments", "_window",
        "is_broken", "schedule", "scope", "termination",
    )  # fmt: skip

    def __init__(self, schedule: Schedule, window: int, began: float) -> None:
        self.schedule = schedule
        self.termination: Termination | None = None
        self.is_broken = False
        self.scope = trio.CancelScope()
        self._began = began
        self._window = window
        self._segments = collections.deque[Segment]()
        self._held = 0
        self._not_before = -math.inf
        self._eof_at: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether the source may be read."""
        is_over = self._eof_at is not None or self.is_broken
        return not (is_over or self.schedule.termination) and self._held < self._window

    @property
    def due(self) -> float:
        """The next time at which :meth:`take` has something, on Trio's clock."""
        if self._segments:
            return max(self._began + self._segments[0].at, self._not_before)
        if self.is_broken or self.schedule.termination:
            return -math.inf
        return math.inf if self._eof_at is None else self._began + self._eof_at

    def put(self, data: bytes, now: float) -> None:
        """Add received bytes; ``b""`` is EOF."""
        if not data:
            self._eof_at = self.schedule.feed_eof(now - self._began)
            return
        for segment in self.schedule.feed(data, now - self._began):
            self._segments.append(segment)
            self._held += len(segment.data)

    def take(self, now: float) -> bytes:
        """Remove the bytes that are due.

        Returns:
          bytes; ``b""`` is EOF, or a termination if :attr:`termination` is set.

        Raises:
          trio.BrokenResourceError: the source was reset, and no byte from before
            that is left.
        """
        if self._segments:
            segment = self._segments.popleft()
            self._held -= len(segment.data)
            if segment.boundary:
                self._not_before = now + _GAP
            return segment.data
        if self.is_broken:
            raise trio.BrokenResourceError
        if self.schedule.termination:
            self.terminate(self.schedule.termination)
        return b""

    def terminate(self, termination: Termination) -> None:
        """Record that this direction was terminated, also for the report."""
        self.termination = termination
        self.schedule.mark_applied(termination)

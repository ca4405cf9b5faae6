"""The fault schedule of one direction: bytes in, segments with their times out.

It has no clock and does no I/O: its user says when bytes were sent, and delivers
the segments, over a network or in memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from trioserve._arguments import check_type

from ._values import (
    Impairment,
    Termination,
    bandwidth_text,
    check_impairment,
    cut_text,
    latency_text,
    slice_text,
    slow_close_text,
)

#: Bytes that share one draw of jitter.
_JITTER_BLOCK: Final = 64
#: Steps per second in which a bandwidth releases bytes: each takes 1 ms.
_STEPS: Final = 1000


class Segment(NamedTuple):
    """Some bytes, and the time from which they may be delivered.

    Attributes:
      data: at least one byte.
      at: seconds since the connection began from which they may be delivered.
      boundary: whether one receive must not return them together with the bytes
        after them.
    """

    data: bytes
    at: float
    boundary: bool


class Schedule:
    """When each byte of one direction of one connection is delivered.

    Its user feeds it the bytes that were sent, and it returns the segments to
    deliver and their times. The time of a byte depends on the seed, the byte's
    offset and the time at which it was sent, not on how the bytes were cut when they
    were fed. All times are in seconds since the connection began.

    Args:
      impairment: the faults of this direction.
      seed: decides what is random in them; equal seeds give equal schedules on
        every machine and Python.

    Attributes:
      termination: the termination by bytes, set when all bytes before it were fed;
        None until then. It takes effect when these bytes are delivered. Bytes after
        it are lost.
      timed: the terminations by time that can be reached, in their order. Each
        takes effect at its time. Bytes that are due after the first are lost.

    Raises:
      TypeError: an argument is wrong; the message names it.
    """

    __slots__ = (
        "_applied",
        "_block_end",
        "_bytes_of_line",
        "_cut",
        "_cutoff",
        "_cuts",
        "_impairment",
        "_is_over",
        "_jitter",
        "_jitters",
        "_last_at",
        "_limit",
        "_line_since",
        "_offset",
        "_slice_begins",
        "_slice_end",
        "_slice_ends",
        "termination",
        "timed",
    )  # fmt: skip

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        check_impairment("impairment", impairment)
        check_type("seed", seed, (int, str), "an int or a str")
        self.termination: Termination | None = None
        self.timed = _reachable(impairment)
        self._impairment = impairment
        self._limit = _first_by_bytes(impairment)
        self._cutoff = self.timed[0].seconds if self.timed else None
        # A dict, because a set does not keep the order.
        self._applied: dict[str, None] = {}
        self._offset = 0
        self._is_over = False
        self._last_at = 0.0
        # The next cut, and the end of the current slice.
        self._cuts = iter(impairment.cuts)
        self._cut = next(self._cuts, None)
        self._slice_ends = _slice_ends(impairment.slice, random.Random(f"{seed} slice"))
        self._slice_end = next(self._slice_ends, None)
        self._slice_begins = False
        self._jitters = random.Random(f"{seed} jitter")
        self._jitter = 0.0
        self._block_end = 0
        # The time since which the line of this bandwidth has been busy, and the
        # bytes that it has carried since then.
        self._line_since = 0.0
        self._bytes_of_line = 0
        self._check_limit()

    @property
    def applied(self) -> tuple[str, ...]:
        """The applied faults, as items of the grammar, in their order."""
        return tuple(self._applied)

    def mark_applied(self, termination: Termination) -> None:
        """Add a termination that has taken effect to :attr:`applied`.

        Raises:
          TypeError: it is not a :class:`Termination`.
        """
        check_type("termination", termination, Termination, "a Termination")
        self._applied[str(termination)] = None

    def feed(self, data: bytes, now: float) -> list[Segment]:
        """Schedule ``data``, which was sent at ``now``.

        Args:
          data: the bytes; if there are none, nothing is scheduled.
          now: not less than in the call before.

        Returns:
          segments in the order of their bytes and of their times. Bytes that are
          in none of them are lost.

        Raises:
          TypeError: an argument is wrong; the message names it.
        """
        check_type("data", data, bytes, "bytes")
        check_type("now", now, (int, float), "a number of seconds")
        if self._is_over:
            return []
        if self._limit is not None and self._limit.bytes is not None:
            data = data[: self._limit.bytes - self._offset]
        if data:
            self._begin(now)
        segments = list[Segment]()
        begin = position = 0
        at = self._last_at
        while position < len(data):
            size = self._uniform(len(data) - position)
            due = self._due(size, now)
            if self._cutoff is not None and due > self._cutoff:
                self._is_over = True
                break
            if position > begin and due != at:
                segments.append(Segment(data[begin:position], at, False))
                begin = position
            at = self._last_at = due
            position += size
            self._offset += size
            if self._pass_boundary():
                segments.append(Segment(data[begin:position], at, True))
                begin = position
        if position > begin:
            segments.append(Segment(data[begin:position], at, False))
        self._check_limit()
        return segments

    def feed_eof(self, now: float) -> float:
        """Schedule EOF, which was sent at ``now``. Bytes after it are lost.

        Returns:
          the time from which it may be delivered; ``math.inf`` if it is lost.

        Raises:
          TypeError: ``now`` is not a number.
        """
        check_type("now", now, (int, float), "a number of seconds")
        if self._is_over:
            return math.inf
        impairment = self._impairment
        at = max(self._last_at, now + impairment.latency)
        if impairment.slow_close:
            at += impairment.slow_close
            self._applied[slow_close_text(impairment.slow_close)] = None
        self._is_over = True
        return at if self._cutoff is None or at <= self._cutoff else math.inf

    def _check_limit(self) -> None:
        """Set the termination if all bytes before it were fed."""
        limit = self._limit
        if not self._is_over and limit is not None and limit.bytes == self._offset:
            self.termination = limit
            self._is_over = True

    def _uniform(self, most: int) -> int:
        """How many of the next bytes share one time, with no boundary between them."""
        impairment, offset = self._impairment, self._offset
        if self._slice_end is not None:
            most = min(most, self._slice_end - offset)
        if self._cut is not None:
            most = min(most, self._cut - offset)
        if impairment.jitter:
            if offset == self._block_end:
                self._block_end += _JITTER_BLOCK
                self._jitter = impairment.jitter * (2 * self._jitters.random() - 1)
            most = min(most, self._block_end - offset)
        if impairment.bandwidth is not None:
            step = _step(impairment.bandwidth)
            most = min(most, step - self._bytes_of_line % step)
        return most

    def _due(self, size: int, now: float) -> float:
        """When the next ``size`` bytes, which were sent at ``now``, arrive."""
        impairment, at = self._impairment, now
        if impairment.bandwidth is not None:
            self._bytes_of_line += size
            step = _step(impairment.bandwidth)
            steps = -(-self._bytes_of_line // step)  # rounded up
            at = self._line_since + steps * step / impairment.bandwidth
        if impairment.latency:
            at += impairment.latency + self._jitter
        if self._slice_begins:
            at = max(at, self._last_at + impairment.pause)
            self._slice_begins = False
        return max(at, self._last_at)

    def _begin(self, now: float) -> None:
        """Note the faults that delay bytes that were sent at ``now``."""
        impairment, rate = self._impairment, self._impairment.bandwidth
        if impairment.latency:
            self._applied[latency_text(impairment.latency, impairment.jitter)] = None
        if rate is not None:
            self._applied[bandwidth_text(rate)] = None
            if now > self._line_since + self._bytes_of_line / rate:
                self._line_since, self._bytes_of_line = now, 0

    def _pass_boundary(self) -> bool:
        """Whether a segment ends at this offset. If so, find the next boundary."""
        impairment = self._impairment
        ends_slice = self._offset == self._slice_end
        is_cut = self._offset == self._cut
        if impairment.slice is not None and ends_slice:
            self._applied[slice_text(impairment.slice, impairment.pause)] = None
            self._slice_end = next(self._slice_ends)
            self._slice_begins = True
        if self._cut is not None and is_cut:
            self._applied[cut_text(self._cut)] = None
            self._cut = next(self._cuts, None)
        return ends_slice or is_cut


def _first_by_bytes(impairment: Impairment) -> Termination | None:
    """The first termination by bytes. Later ones can't be reached."""
    by_bytes = (each for each in impairment.terminations if each.bytes is not None)
    return next(by_bytes, None)


def _reachable(impairment: Impairment) -> tuple[Termination, ...]:
    """The terminations by time that can be reached, in their order.

    These are the first one and, if it ends this direction only, the first one that
    ends both.
    """
    timed = [each for each in impairment.terminations if each.seconds is not None]
    of_one = [each for each in timed[:1] if not each.ends_both]
    of_both = [each for each in timed if each.ends_both]
    return (*of_one, *of_both[:1])


def _slice_ends(sizes: tuple[int, int] | None, draws: random.Random) -> Iterator[int]:
    """The offsets at which slices end."""
    offset = 0
    while sizes is not None:
        least, most = sizes
        # Only random() draws the same numbers in every version of Python.
        offset += least + int(draws.random() * (most - least + 1))
        yield offset


def _step(bandwidth: int) -> int:
    """How many bytes pass in one step: those of a millisecond, but at least one."""
    return max(1, bandwidth // _STEPS)

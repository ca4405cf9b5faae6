"""One direction of a connection in memory: bytes in flight and bytes that arrived.

A fault schedule decides when bytes arrive, and when the direction ends. This module
knows no tasks and no streams: its user asks what is due.
"""

from __future__ import annotations

import collections
import enum
import math
from typing import NamedTuple

import trio

from trioserve.faults import Impairment, Schedule, Termination


class Signal(enum.Enum):
    FIN = enum.auto()
    RST = enum.auto()


class Arrival(NamedTuple):
    """Something in flight, and the time at which it arrives.

    If ``boundary`` is true, no receive returns bytes of this one and of the next.
    """

    payload: bytes | Signal | Termination
    at: float
    boundary: bool = False


class Wire:
    """One direction of a connection.

    Args:
      buffer: how many bytes may be sent and not yet received.
      impairment: the faults of this direction.
      seed: decides what is random in them.

    Attributes:
      end: the kind of fault that has ended this direction, or None. After it nothing
        is in flight, and bytes that are sent are lost.
    """

    def __init__(self, buffer: int, impairment: Impairment, seed: str) -> None:
        self.end: str | None = None
        self._buffer = buffer
        self._unreceived = 0
        self._latency = impairment.latency
        self._schedule = Schedule(impairment, seed)
        self._begin = trio.current_time()
        self._in_flight = collections.deque[Arrival]()
        self._timed = collections.deque(
            Arrival(timed, self._begin + timed.seconds)
            for timed in self._schedule.timed
            if timed.seconds is not None
        )
        self._end_is_scheduled = False
        self._schedule_end(self._begin)
        # No receive returns bytes of two of these. New bytes go into the last one.
        self._arrived = collections.deque([bytearray()])
        self._is_held = False

    @property
    def applied_faults(self) -> tuple[str, ...]:
        """The faults applied so far, as items of the grammar."""
        return self._schedule.applied

    # -- the sender's side

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        discards = self.end in ("close", "eof")
        return self._buffer if discards else self._buffer - self._unreceived

    def send(self, data: bytes, now: float) -> None:
        """Send bytes. There must be room for them."""
        self._unreceived += len(data)
        if self.end is None:
            for segment in self._schedule.feed(data, now - self._begin):
                at = self._begin + segment.at
                self._in_flight.append(Arrival(segment.data, at, segment.boundary))
            self._schedule_end(now)

    def send_fin(self, now: float) -> None:
        if self.end is None:
            at = self._begin + self._schedule.feed_eof(now - self._begin)
            if at < math.inf:  # infinite if a termination comes first
                self._in_flight.append(Arrival(Signal.FIN, at))

    def send_rst(self, now: float) -> None:
        if self.end is None:
            self._in_flight.append(Arrival(Signal.RST, now + self._latency))

    def _schedule_end(self, now: float) -> None:
        """Put a termination in flight, right after the last bytes before it."""
        termination = self._schedule.termination
        if termination is not None and not self._end_is_scheduled:
            self._end_is_scheduled = True
            at = self._in_flight[-1].at if self._in_flight else now
            self._in_flight.append(Arrival(termination, at))

    # -- time

    @property
    def due(self) -> float:
        """The time of the next arrival."""
        queue = self._next_queue()
        return queue[0].at if queue else math.inf

    def pop_due(self) -> Arrival:
        """Take the next arrival off the wire."""
        arrival = self._next_queue().popleft()
        if isinstance(arrival.payload, Termination):
            self._schedule.mark_applied(arrival.payload)
        return arrival

    def _next_queue(self) -> collections.deque[Arrival]:
        queue, timed = self._in_flight, self._timed
        return timed if timed and (not queue or timed[0].at < queue[0].at) else queue

    def terminate(self, kind: str) -> None:
        """Lose what is in flight, and all that is sent from now on."""
        self.end = kind
        self._in_flight.clear()
        if kind not in ("stall", "eof"):
            self._timed.clear()

    # -- the receiver's side

    @property
    def has_unread(self) -> bool:
        return bool(self._arrived[0])

    def deliver(self, data: bytes, *, boundary: bool) -> None:
        """Add bytes that have arrived."""
        self._arrived[-1] += data
        if boundary:
            self._arrived.append(bytearray())

    def take(self, max_bytes: int) -> bytes:
        """Return at most ``max_bytes``; none if the receiver has to wait.

        After a boundary it has to wait once, even if more bytes have arrived, so
        that a receiver that collects all available bytes sees the boundary too.
        """
        if self._is_held:
            return b""
        first = self._arrived[0]
        data = bytes(first[:max_bytes])
        del first[:max_bytes]
        self._unreceived -= len(data)
        if not first and len(self._arrived) > 1:
            self._arrived.popleft()
            self._is_held = True
        return data

    def release(self) -> bool:
        """Note that the receiver waits. Return whether bytes were held back."""
        self._is_held = False
        return self.has_unread

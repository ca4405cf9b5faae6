"""One direction of a connection in memory: what is under way, and what has arrived.

A fault schedule decides when bytes arrive, and when the direction ends. This module
knows no tasks and no streams: its user asks for what is due.
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
    """Something under way, and the time at which it arrives.

    ``boundary`` says that no receive returns bytes of this one and of the next.
    """

    payload: bytes | Signal | Termination
    at: float
    boundary: bool = False


class Wire:
    """One direction of a connection.

    Args:
      buffer: bytes that may be sent and not yet received.
      impairment: the faults of this direction.
      seed: of what is random in them.

    Attributes:
      end: the kind of fault that has ended this direction, if one has. Nothing is
        under way any more, and what is sent is lost.
    """

    def __init__(self, buffer: int, impairment: Impairment, seed: str) -> None:
        self.end: str | None = None
        self._buffer = buffer
        self._unreceived = 0
        self._latency = impairment.latency
        self._schedule = Schedule(impairment, seed)
        self._begin = trio.current_time()
        self._under_way = collections.deque[Arrival]()
        self._timed = collections.deque(
            Arrival(timed, self._begin + timed.seconds)
            for timed in self._schedule.timed
            if timed.seconds is not None
        )
        self._foresees_end = False
        self._foresee_end(self._begin)
        # No receive returns bytes of two of these. The last one grows.
        self._arrived = collections.deque([bytearray()])
        self._is_held = False

    @property
    def applied_faults(self) -> tuple[str, ...]:
        """The faults that have happened so far, as they are written."""
        return self._schedule.applied

    # -- the sender's side

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        is_drain = self.end in ("close", "eof")
        return self._buffer if is_drain else self._buffer - self._unreceived

    def send(self, data: bytes, now: float) -> None:
        """Send bytes. There must be room for them."""
        self._unreceived += len(data)
        if self.end is None:
            for segment in self._schedule.feed(data, now - self._begin):
                at = self._begin + segment.at
                self._under_way.append(Arrival(segment.data, at, segment.boundary))
            self._foresee_end(now)

    def send_fin(self, now: float) -> None:
        if self.end is None:
            at = self._begin + self._schedule.feed_eof(now - self._begin)
            if at < math.inf:  # infinite if another ending comes first
                self._under_way.append(Arrival(Signal.FIN, at))

    def send_rst(self, now: float) -> None:
        if self.end is None:
            self._under_way.append(Arrival(Signal.RST, now + self._latency))

    def _foresee_end(self, now: float) -> None:
        """Let an ending arrive right after the last bytes that precede it."""
        termination = self._schedule.termination
        if termination is not None and not self._foresees_end:
            self._foresees_end = True
            at = self._under_way[-1].at if self._under_way else now
            self._under_way.append(Arrival(termination, at))

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
        way, timed = self._under_way, self._timed
        return timed if timed and (not way or timed[0].at < way[0].at) else way

    def come_to_end(self, kind: str) -> None:
        """Lose what is under way and whatever is sent from now on."""
        self.end = kind
        self._under_way.clear()
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
        """Receive at most so many bytes; none if the receiver has to wait.

        After a boundary it has to wait once, even if more bytes have arrived, so
        that a receiver that collects all it can get sees the boundary too.
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

"""Pumps: one direction of a relay, and its byte counts.

A pump holds the bytes that it has received and not delivered; at the end of the relay
these count as discarded. This module does not know how bytes move, or when a relay
ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ._results import Flow
from ._transport import Transport


class Pump:
    """One direction: from ``source`` to ``sink``.

    Args:
      already: the number of bytes that were received before, for this pump to deliver.

    Attributes:
      reading: whether it will receive again, and so find out how its source ends.
      done: whether it has received EOF and delivered all bytes before.
    """

    __slots__ = (
        "_received_before",
        "_sent_before",
        "done",
        "reading",
        "sink",
        "source",
    )

    def __init__(self, source: Transport, sink: Transport, already: int = 0) -> None:
        self.source = source
        self.sink = sink
        self.reading = True
        self.done = False
        self._received_before = source.received - already
        self._sent_before = sink.sent

    @property
    def received(self) -> int:
        """Bytes received for it, those from before the relay included."""
        return self.source.received - self._received_before

    @property
    def delivered(self) -> int:
        """Bytes that the sink has taken."""
        return self.sink.sent - self._sent_before

    @property
    def discarded(self) -> int:
        """Bytes received and not delivered. While the pump runs, it holds them."""
        brought = self.source.received - self._received_before
        return brought - (self.sink.sent - self._sent_before)

    def can_move(self) -> bool:
        """Whether it could move a byte now, as far as can be known."""
        if self.sink.sending_since < math.inf:
            return self.sink.writable()
        return self.source.receiving_since < math.inf and self.source.readable()

    def flow(self) -> Flow:
        """Its byte counts, for the relay's result."""
        return Flow(
            received=self.received,
            delivered=self.delivered,
            discarded=self.discarded,
        )


def hold_bytes(pumps: Iterable[Pump]) -> bool:
    """Whether a pump has received bytes that it or its sink has not delivered."""
    return any(pump.discarded or pump.sink.held for pump in pumps)


def will_find_end(pumps: Iterable[Pump], transport: Transport) -> bool:
    """Whether a pump will receive the error of ``transport``, which is broken."""
    reads = any(pump.source is transport and pump.reading for pump in pumps)
    return reads and transport.end_is_receivable()

"""Pumps: one direction of a relay, and its ledger.

What a pump has received and not delivered, it holds; when the relay is over, it has
discarded that. This module does not know how the bytes get from one side to the
other, and when that ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ._results import Flow
from ._transport import Transport


class Pump:
    """One direction: from ``source`` to ``sink``.

    Args:
      already: how many bytes were received before and are this pump's to deliver.

    Attributes:
      reading: whether it will receive again, and so find out how its source ends.
      done: whether it has received EOF, and delivered all that came before.
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
        """Bytes that were received for it, those before it included."""
        return self.source.received - self._received_before

    @property
    def delivered(self) -> int:
        """Bytes that the sink has taken from it."""
        return self.sink.sent - self._sent_before

    @property
    def discarded(self) -> int:
        """Bytes that were received and not delivered; while it runs, it holds them."""
        brought = self.source.received - self._received_before
        return brought - (self.sink.sent - self._sent_before)

    def can_move(self) -> bool:
        """Whether it could move a byte now, as far as can be known."""
        if self.sink.sending_since < math.inf:
            return self.sink.writable()
        return self.source.receiving_since < math.inf and self.source.readable()

    def flow(self) -> Flow:
        """What it has moved, for the relay's result."""
        return Flow(
            received=self.received,
            delivered=self.delivered,
            discarded=self.discarded,
        )


def hold_bytes(pumps: Iterable[Pump]) -> bool:
    """Whether one of them has received bytes that it has not delivered."""
    return any(pump.discarded for pump in pumps)


def will_find_end(pumps: Iterable[Pump], transport: Transport) -> bool:
    """Whether one of them will find out how ``transport``, which is broken, ended."""
    reads = any(pump.source is transport and pump.reading for pump in pumps)
    return reads and transport.end_is_receivable()

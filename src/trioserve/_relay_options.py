"""Relay options: what a relay is told beside its streams.

It holds values and decides nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._timers import Timers


class RelayOptions(NamedTuple):
    """What a relay is told beside its streams.

    Attributes:
      timeouts: ``idle``, ``half_closed``, ``write_stall`` and ``first_byte`` of them.
      drain_idle: seconds without a byte, while the server drains, until it ends.
      timers: what calls its ``on_timer``.
      began: when it began, on Trio's clock.
      closes_b: whether it closes ``b`` when it is over, which saves a system call; the
        caller closes ``a``.
      client, server: the connections that ``a`` and ``b`` are, if they are any.
    """

    timeouts: Timeouts
    drain_idle: float
    timers: Timers
    began: float
    closes_b: bool = False
    client: Lifecycle | None = None
    server: Lifecycle | None = None

    @property
    def accepted_at(self) -> float:
        """When the client was accepted; when the relay began, if it has none."""
        return self.client.accepted_at if self.client is not None else self.began

"""Relay options: the arguments of a relay beside its streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._tcp import Setting
from ._timers import Timers


class RelayOptions(NamedTuple):
    """The arguments of a relay beside its streams.

    Attributes:
      timeouts: of these, ``idle``, ``half_closed``, ``write_stall`` and
        ``first_byte``.
      drain_idle: the relay ends after this many seconds without a byte during a drain.
      timers: they call its ``on_timer``.
      began: when it began, on Trio's clock.
      closes_b: whether it closes ``b`` at its end, which saves a system call; the
        caller closes ``a``.
      later: options of the socket of ``b``, applied when the relay is a second old at
        most: a shorter one does not need them.
      client, server: the connections at ``a`` and ``b``; None for other streams.
    """

    timeouts: Timeouts
    drain_idle: float
    timers: Timers
    began: float
    closes_b: bool = False
    client: Lifecycle | None = None
    server: Lifecycle | None = None
    later: Sequence[Setting] = ()

    @property
    def accepted_at(self) -> float:
        """When the client was accepted; without a connection, when the relay began."""
        return self.client.accepted_at if self.client is not None else self.began

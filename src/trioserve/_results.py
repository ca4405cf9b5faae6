"""Results of a relay and of a drain, and the counters of a server.

Frozen values. This module does not know what makes them or what reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from ._reason import Reason, Side


class CloseReason(NamedTuple):
    """Why a connection or a relay was closed, in the fields of a report."""

    reason: Reason
    waited_for: Side | None = None
    limit: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One direction of a relay: ``received == delivered + discarded``, to the byte.

    Attributes:
      received: bytes read from the sender.
      delivered: bytes written to the receiver's socket or stream.
      discarded: bytes received and not delivered.
    """

    received: int
    delivered: int
    discarded: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelayResult:
    """The result of a relay.

    Attributes:
      reason: why it ended; ``a`` counts as the client and ``b`` as the target.
      a_to_b, b_to_a: the byte counts of each direction.
      waited_for: the side that a timer waited for; None if no timer ended it.
      limit: the value of that timer, in seconds.
      error: what went wrong, in one line of printable ASCII; None if nothing did.
    """

    reason: Reason
    a_to_b: Flow
    b_to_a: Flow
    waited_for: Side | None = None
    limit: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrainSummary:
    """The result of a server's drain.

    Attributes:
      reason: the ``reason`` given to ``drain``.
      seconds: from the start of the drain to its end, on Trio's clock.
      open_at_start: connections that were open when the drain began.
      backlog_drained: connections found in the kernel's queue when accepting ended.
      finished: connections that ended before the deadline, idle ones included.
      refused: refused connections that ended during the drain.
      cut: connections reset at the deadline or cancelled.
      stuck: tasks that were still alive after ``drain + cleanup`` seconds, each
        with the line on which it waits.
      reports_lost: reports that the collector did not take, since the server started.
    """

    reason: str
    seconds: float
    open_at_start: int
    backlog_drained: int
    finished: int
    refused: int
    cut: int
    stuck: tuple[str, ...]
    reports_lost: int

    @property
    def clean(self) -> bool:
        """Whether no connection was cut and no task is stuck."""
        return not self.cut and not self.stuck


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A server's counters at one moment.

    ``accepted == open + closed`` and ``closed == collected + buffered + lost`` hold
    at any moment.

    Attributes:
      accepted: connections that accept(2) returned.
      open, closed: how many of these are open, and how many are closed.
      refused: how many were refused; some of them may still be open, to let their
        clients read why.
      collected, buffered, lost: reports that the collector has taken, that wait for
        it, and that were dropped.
      bytes_received, bytes_sent, bytes_discarded: sums over all connections,
        open ones included.
      tokens_used, limit: how many connections hold a token, and how many may.
      accept_errors: how often accept(2) has failed, by the name of the error.
    """

    accepted: int
    open: int
    closed: int
    refused: int
    collected: int
    buffered: int
    lost: int
    bytes_received: int
    bytes_sent: int
    bytes_discarded: int
    tokens_used: int
    limit: int
    accept_errors: Mapping[str, int]

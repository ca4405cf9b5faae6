"""Deadlines: which timer of a connection runs out next.

This module compares times. It does not know what is done when a timer runs out.
"""

from __future__ import annotations

import math

from ._options import Timeouts
from ._reason import Reason
from ._transport import Transport


def next_deadline(
    timeouts: Timeouts, transport: Transport, accepted_at: float, *, only_total: bool
) -> tuple[float, Reason]:
    """When the earliest timer of a connection runs out, and which one it is.

    Args:
      only_total: leave out the timers of a receive and a send, because a relay, or a
        lingering close, has timers of its own.

    Returns:
      a time on Trio's clock, ``math.inf`` for never; and the reason for its report.
    """
    due = (accepted_at + timeouts.lifetime, Reason.LIFETIME)
    if only_total:
        return due
    if transport.receiving_since < math.inf:
        # A byte that the peer acknowledges counts as one that moves.
        since = max(transport.receiving_since, transport.moved_at, transport.acked_at)
        if transport.sent_eof:
            since = max(since, transport.sent_eof_at)
            due = min(due, (since + timeouts.half_closed, Reason.HALF_CLOSED))
        else:
            due = min(due, (since + timeouts.idle, Reason.IDLE))
        if not (transport.received or transport.sent):
            first_byte = accepted_at + timeouts.first_byte
            due = min(due, (first_byte, Reason.FIRST_BYTE))
    if transport.sending_since < math.inf:
        taken = max(transport.sending_since, transport.acked_at)
        due = min(due, (taken + timeouts.write_stall, Reason.WRITE_STALL))
    return due


def can_move_now(transport: Transport, reason: Reason) -> bool:
    """Whether the byte that a timer waited for can move at this moment.

    Args:
      reason: the timer that has run out. It may be late: if the process was stopped,
        the task that moves the byte has not run yet.
    """
    match reason:
        case Reason.LIFETIME:
            return False
        case Reason.WRITE_STALL:
            return transport.writable()
        case _:
            return transport.readable()

"""Relay deadlines: which timer of a relay runs out next, and which side it waits for.

This module compares times and asks sockets. It does not know what is done when a timer
runs out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ._pump import Pump, hold_bytes
from ._reason import Outcome, Reason, Side
from ._relay_options import RelayOptions
from ._transport import Transport


def next_relay_deadline(
    pumps: Sequence[Pump],
    options: RelayOptions,
    half_closed_at: float,
    drains_since: float,
) -> tuple[float, Reason, Side | None]:
    """When the earliest timer runs out, which one it is, and the side waited for.

    Args:
      half_closed_at: when the first EOF was passed on; ``math.inf`` before that.
      drains_since: when the server's drain began; ``math.inf`` before that.

    Returns:
      a time on Trio's clock, ``math.inf`` for never; the reason for the report; and
      the side that the timer waits for, None if it is not one side.
    """
    a, b, timeouts = pumps[0].source, pumps[0].sink, options.timeouts
    # A byte that a peer acknowledges counts as one that moves.
    moved = max(options.began, a.moved_at, b.moved_at, a.acked_at, b.acked_at)
    waited_for: Side | None
    if half_closed_at == math.inf:
        # A peer that stops reading counts as idle, and is the side waited for.
        waited_for = "target" if b.sending_since < a.sending_since else "client"
        due, reason = moved + timeouts.idle, Reason.IDLE
    else:
        waited_for = next(
            (_waits_for(pump, a) for pump in pumps if not pump.done), None
        )
        due = max(moved, half_closed_at) + timeouts.half_closed
        reason = Reason.HALF_CLOSED
    first_byte = options.accepted_at + timeouts.first_byte
    if first_byte < due and _awaits_first_byte(pumps[0]):
        due, reason, waited_for = first_byte, Reason.FIRST_BYTE, "client"
    for transport in (a, b):
        taken = max(transport.sending_since, transport.acked_at)
        stalled = taken + timeouts.write_stall
        if stalled < due and transport.sending_since < math.inf:
            due, reason = stalled, Reason.WRITE_STALL
            waited_for = _side_of(transport, a)
    drained = max(moved, drains_since) + options.drain_idle
    if drained < due and not hold_bytes(pumps):
        due, reason, waited_for = drained, Reason.DRAINED, None
    return due, reason, waited_for


def _awaits_first_byte(pump: Pump) -> bool:
    """Whether no byte has come from either side of ``pump``, the first one."""
    a, b = pump.source, pump.sink
    # The pump also counts bytes that were read before the relay.
    return not (a.received or b.received or pump.received or a.eof)


def _waits_for(pump: Pump, a: Transport) -> Side:
    """The side that a pump waits for: the sink if it is blocked, else the source."""
    is_blocked = pump.sink.sending_since < math.inf
    return _side_of(pump.sink if is_blocked else pump.source, a)


def _side_of(transport: Transport, a: Transport) -> Side:
    return "client" if transport is a else "target"


def limit_of(reason: Reason, options: RelayOptions) -> float | None:
    """The timeout behind ``reason``, in seconds; None if it is not a timer's."""
    if reason is Reason.DRAINED:
        return options.drain_idle
    if reason.outcome is Outcome.TIMEOUT:
        seconds: float = getattr(options.timeouts, reason)
        return seconds
    return None


def relay_can_move_now(
    pumps: Sequence[Pump], reason: Reason, waited_for: Side | None
) -> bool:
    """Whether the byte that a timer waited for can move at this moment.

    Args:
      reason: the timer that has run out. It may be late: if the process was stopped,
        the pump that moves the byte has not run yet.
      waited_for: the side that it waits for.
    """
    if reason is Reason.WRITE_STALL:
        first = pumps[0]
        return (first.source if waited_for == "client" else first.sink).writable()
    return any(pump.can_move() for pump in pumps if not pump.done)


def unread_resets(pumps: Sequence[Pump]) -> Iterator[Transport]:
    """The sides that were reset, unnoticed because their pump's sink is full."""
    for pump in pumps:
        source = pump.source
        is_unread = pump.sink.sending_since < math.inf
        # After both FINs the kernel may have forgotten the connection, which looks like
        # a reset.
        if is_unread and not source.sent_eof and source.is_reset():
            yield source

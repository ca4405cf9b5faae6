"""Record: make the report of one connection, at its last close.

This module reads a lifecycle and changes nothing.
"""

from __future__ import annotations

import trio

from ._describe import describe
from ._lifecycle import Lifecycle
from ._report import ConnectionReport, UnfinishedReport, Upstream


def report_of(life: Lifecycle, open_at_close: int) -> ConnectionReport:
    """Make the report of a connection whose transport is closed.

    Args:
      open_at_close: the number of connections of the server that are still open.
    """
    assert life.close_reason is not None
    reason, waited_for, limit, error = life.close_reason
    transport, accepted_at = life.transport, life.accepted_at
    first_byte, connected_at = transport.first_byte_at, life.connected_at
    upstream, dialer, faults = life.upstream, life.dialer, life.active_faults
    return UnfinishedReport(
        id=life.id,
        listener=life.listener,
        peer=life.peer,
        local=life.local,
        target=str(dialer.target) if dialer is not None else None,
        attempts=dialer.attempts if dialer is not None else (),
        accepted_at=life.wall_clock,
        queued=life.queued,
        connect=None if connected_at is None else connected_at - accepted_at,
        first_byte=None if first_byte is None else first_byte - accepted_at,
        duration=trio.current_time() - accepted_at,
        bytes_received=transport.received,
        bytes_sent=transport.sent,
        bytes_discarded=life.discarded,
        unacknowledged=transport.unacknowledged,
        upstream=None
        if upstream is None
        else Upstream(
            bytes_received=upstream.received,
            bytes_sent=upstream.sent,
            bytes_discarded=life.upstream_discarded,
            unacknowledged=upstream.unacknowledged,
        ),
        reason=reason,
        phase=life.phase,
        waited_for=waited_for,
        limit=limit,
        error=error if life.exception is None else describe(life.exception),
        exception=life.exception,
        faults=tuple(faults.applied) if faults else (),
        draining=life.draining.is_set(),
        open_at_close=open_at_close,
        result=life.result,
        notes=dict(life.notes or {}),
    ).finished()

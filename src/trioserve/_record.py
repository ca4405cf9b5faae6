"""Record: make the report of one connection, at its last close.

This module reads a lifecycle and changes nothing.
"""

from __future__ import annotations

import trio

from ._describe import describe
from ._lifecycle import Lifecycle
from ._proxy_facts import facts_declared
from ._report import ConnectionReport, unfinished_report, unfinished_upstream


def report_of(life: Lifecycle, open_at_close: int) -> ConnectionReport:
    """Make the report of a connection whose transport is closed.

    Args:
      open_at_close: the number of connections of the server that are still open.
    """
    report = unfinished_report.new()
    assert life.close_reason is not None
    report.reason, report.waited_for, report.limit, error = life.close_reason
    report.exception = exception = life.exception
    report.error = error if exception is None else describe(exception)
    report.id = life.id
    report.listener = life.listener
    report.peer = life.peer
    report.local = life.local
    report.direct_peer = None if life.direct is None else life.direct[0]
    report.declared = facts_declared(life.header)
    report.server_name = life.server_name
    report.phase = life.phase
    report.queued = life.queued
    report.accepted_at = life.wall_clock
    accepted_at = life.accepted_at
    report.duration = trio.current_time() - accepted_at
    dialer, connected_at = life.dialer, life.connected_at
    report.target = str(dialer.target) if dialer is not None else None
    report.attempts = dialer.attempts if dialer is not None else ()
    report.connect = None if connected_at is None else connected_at - accepted_at
    transport, upstream = life.transport, life.upstream
    first_byte = transport.first_byte_at
    report.first_byte = None if first_byte is None else first_byte - accepted_at
    report.tls = transport.tls_facts()
    report.bytes_received = transport.received
    report.bytes_sent = transport.sent
    report.bytes_discarded = life.discarded
    report.unacknowledged = transport.unacknowledged
    if upstream is None:
        report.upstream = None
    else:
        far = unfinished_upstream.new()
        far.bytes_received = upstream.received
        far.bytes_sent = upstream.sent
        far.bytes_discarded = life.upstream_discarded
        far.unacknowledged = upstream.unacknowledged
        far.tls = upstream.tls_facts()
        report.upstream = unfinished_upstream.finish(far)
    faults = life.active_faults
    report.faults = tuple(faults.applied) if faults is not None else ()
    report.draining = life.draining.is_set()
    report.open_at_close = open_at_close
    report.result = life.result
    report.notes = dict(life.notes) if life.notes else {}
    return unfinished_report.finish(report)

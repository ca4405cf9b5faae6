"""The demo's audit: what clients saw, compared with what servers reported.

Clients, reports and counters in, lines out. Nothing here does I/O.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from trioserve import ConnectionReport, DrainSummary, Statistics, Upstream

from ._clients import SimulatedClient


@dataclasses.dataclass(kw_only=True)
class ServerRecords:
    """What one server recorded: a report of each connection, and its counters."""

    reports: list[ConnectionReport]
    statistics: Statistics

    def sum(self, field: str) -> int:
        """The sum of a field over all reports."""
        return sum(getattr(report, field) for report in self.reports)

    def upstream_sum(self, field: str) -> int:
        """The same of a field of the target's side, where there was one."""
        sides = (report.upstream for report in self.reports)
        return sum(getattr(side, field) for side in sides if side is not None)


@dataclasses.dataclass(kw_only=True)
class Audit:
    """Everything that was recorded: by the clients, the proxy, and its target."""

    clients: Sequence[SimulatedClient]
    proxy: ServerRecords
    target: ServerRecords
    summary: DrainSummary


def audit_text(audit: Audit) -> Iterator[str]:
    """The totals, line by line."""
    summary, front, back = audit.summary, audit.proxy, audit.target
    yield (
        f"drained in {summary.seconds:.1f} s: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused"
    )
    for task in summary.stuck:
        yield f"stuck: {task}"
    outcomes = collections.Counter(str(report.outcome) for report in front.reports)
    yield "outcomes: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common())
    yield ""
    connected = sum(1 for client in audit.clients if client.address)
    yield f"connections  {connected} clients = {_records_text(front)}"
    yield f"  to target  {_dialed(front)} dialed = {_records_text(back)}"
    sent = sum(client.sent for client in audit.clients)
    received = sum(client.received for client in audit.clients)
    up, down = front.sum("bytes_received"), front.sum("bytes_sent")
    yield f"bytes up     {sent:,} sent = {up:,} received + {sent - up:,} cut off"
    yield (
        f"  relayed    {up:,} = {front.upstream_sum('bytes_sent'):,} to the target"
        f" + {front.sum('bytes_discarded'):,} discarded"
    )
    yield (
        f"bytes down   {front.upstream_sum('bytes_received'):,} ="
        f" {down:,} to clients"
        f" + {front.upstream_sum('bytes_discarded'):,} discarded"
    )
    yield f"  relayed    {down:,} = {received:,} received + {down - received:,} cut off"


def discrepancies(audit: Audit) -> list[str]:
    """Everything that does not add up, a line each; empty if everything does."""
    return [
        *_check_records("proxy", audit.proxy),
        *_check_records("target", audit.target),
        *_check_relay(audit.proxy, audit.target),
        *_check_clients(audit.clients, audit.proxy),
        *(f"stuck: {task}" for task in audit.summary.stuck),
    ]


def _check_records(name: str, records: ServerRecords) -> Iterator[str]:
    # A server's reports against its counters.
    counters = records.statistics
    if counters.open:
        yield f"{name}: {counters.open} connections are still open"
    if not counters.accepted == counters.closed == len(records.reports):
        yield f"{name}: {_records_text(records)}"
    for field in ("bytes_received", "bytes_sent", "bytes_discarded"):
        total, counter = records.sum(field), getattr(counters, field)
        if total != counter:
            yield f"{name}: {field} are {total} in reports, {counter} in statistics"


def _check_relay(front: ServerRecords, back: ServerRecords) -> Iterator[str]:
    # What the proxy received, against what it passed on and what its target saw.
    for report in front.reports:
        target = report.upstream or Upstream(
            bytes_received=0, bytes_sent=0, bytes_discarded=0
        )
        if report.bytes_received != target.bytes_sent + report.bytes_discarded:
            yield f"connection {report.id}: received is not relayed + discarded"
        if target.bytes_received != report.bytes_sent + target.bytes_discarded:
            yield f"connection {report.id}: target bytes are not sent + discarded"
    if _dialed(front) != len(back.reports):
        yield f"{_dialed(front)} dialed, but {len(back.reports)} reports of the target"
    if front.upstream_sum("bytes_sent") < back.sum("bytes_received"):
        yield "the target received more than the proxy sent"
    if front.upstream_sum("bytes_received") > back.sum("bytes_sent"):
        yield "the proxy received more than the target sent"


def _check_clients(
    clients: Sequence[SimulatedClient], records: ServerRecords
) -> Iterator[str]:
    # What each client saw, against the report of its connection. Bytes in flight
    # may be missing after a reset, and only then.
    by_peer: dict[str, list[ConnectionReport]] = {}
    for report in sorted(records.reports, key=lambda report: report.id):
        by_peer.setdefault(report.peer, []).append(report)
    for client in clients:
        name = f"{client.behaviour} client {client.address}"
        if client.end is None:
            yield f"{name} is still waiting"
        if not client.address:
            continue
        # The kernel reuses a port only after its connection has ended, so clients
        # and reports of one port are in the same order.
        reports = by_peer.get(client.address)
        if not reports:
            yield f"{name} has no report"
            continue
        report = reports.pop(0)
        missing = client.sent - report.bytes_received
        surplus = report.bytes_sent - client.received
        if missing < 0 or surplus < 0:
            yield f"{name} sent or got bytes that its report does not have"
        if client.end == "done" and (missing or surplus):
            yield f"{name} was done, but {missing} bytes up, {surplus} down are missing"
        if client.end == "done" and client.sent_sum != client.received_sum:
            yield f"{name} got back other bytes than it sent"
    left = sum(len(reports) for reports in by_peer.values())
    if left:
        yield f"{left} reports have no client"


def _records_text(records: ServerRecords) -> str:
    counters = records.statistics
    return (
        f"{counters.accepted} accepted = {counters.closed} closed"
        f" = {len(records.reports)} reports"
    )


def _dialed(records: ServerRecords) -> int:
    return sum(1 for report in records.reports if report.connect is not None)

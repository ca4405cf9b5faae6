"""The demo's accounts: what clients saw against what servers reported.

Clients, reports and counters in, lines out. Nothing here does I/O.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from trioserve import ConnectionReport, DrainSummary, Statistics

from ._crowd import Client


@dataclasses.dataclass(kw_only=True)
class Books:
    """What one server says: a report of each connection, and its counters."""

    reports: list[ConnectionReport]
    statistics: Statistics

    def sum(self, field: str) -> int:
        """The sum of a field over all reports; None counts as 0."""
        return sum(getattr(report, field) or 0 for report in self.reports)


@dataclasses.dataclass(kw_only=True)
class Accounts:
    """Everything that was seen: by the clients, the proxy, and its target."""

    clients: Sequence[Client]
    proxy: Books
    target: Books
    summary: DrainSummary


def accounts_text(accounts: Accounts) -> Iterator[str]:
    """The accounts, line by line."""
    summary, front, back = accounts.summary, accounts.proxy, accounts.target
    yield (
        f"drained in {summary.seconds:.1f} s: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused"
    )
    for task in summary.stuck:
        yield f"stuck: {task}"
    outcomes = collections.Counter(str(report.outcome) for report in front.reports)
    yield "outcomes: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common())
    yield ""
    connected = sum(1 for client in accounts.clients if client.address)
    yield f"connections  {connected} clients = {_books_text(front)}"
    yield f"  to target  {_dialed(front)} dialed = {_books_text(back)}"
    sent = sum(client.sent for client in accounts.clients)
    received = sum(client.received for client in accounts.clients)
    there, back_again = front.sum("bytes_received"), front.sum("bytes_sent")
    yield f"bytes there  {sent:,} sent = {there:,} + {sent - there:,} cut off"
    yield (
        f"  and on     {there:,} = {front.sum('upstream_bytes_sent'):,} to the target"
        f" + {front.sum('bytes_discarded'):,} discarded"
    )
    yield (
        f"bytes back   {front.sum('upstream_bytes_received'):,} ="
        f" {back_again:,} to clients"
        f" + {front.sum('upstream_bytes_discarded'):,} discarded"
    )
    yield (
        f"  and on     {back_again:,} = {received:,} received"
        f" + {back_again - received:,} cut off"
    )


def mistakes(accounts: Accounts) -> list[str]:
    """What does not add up, a line each; nothing if all is well."""
    return [
        *_books_mistakes("proxy", accounts.proxy),
        *_books_mistakes("target", accounts.target),
        *_relay_mistakes(accounts.proxy, accounts.target),
        *_client_mistakes(accounts.clients, accounts.proxy),
        *(f"stuck: {task}" for task in accounts.summary.stuck),
    ]


def _books_mistakes(name: str, books: Books) -> Iterator[str]:
    # A server's reports against its counters.
    counters = books.statistics
    if counters.open:
        yield f"{name}: {counters.open} connections are still open"
    if not counters.accepted == counters.closed == len(books.reports):
        yield f"{name}: {_books_text(books)}"
    for field in ("bytes_received", "bytes_sent", "bytes_discarded"):
        total, counter = books.sum(field), getattr(counters, field)
        if total != counter:
            yield f"{name}: {field} are {total} in reports, {counter} in statistics"


def _relay_mistakes(front: Books, back: Books) -> Iterator[str]:
    # What the proxy took against what it passed on, and what its target saw.
    for report in front.reports:
        if report.bytes_received != report.bytes_discarded + (
            report.upstream_bytes_sent or 0
        ):
            yield f"connection {report.id}: received is not passed on + discarded"
        if (report.upstream_bytes_received or 0) != report.bytes_sent + (
            report.upstream_bytes_discarded or 0
        ):
            yield f"connection {report.id}: sent is not what the target sent"
    if _dialed(front) != len(back.reports):
        yield f"{_dialed(front)} dialed, but {len(back.reports)} reports of the target"
    if front.sum("upstream_bytes_sent") < back.sum("bytes_received"):
        yield "the target received more than the proxy sent"
    if front.sum("upstream_bytes_received") > back.sum("bytes_sent"):
        yield "the proxy received more than the target sent"


def _client_mistakes(clients: Sequence[Client], books: Books) -> Iterator[str]:
    # What each client saw against the report of its connection. After a reset
    # bytes may be missing that were on the way, and only then.
    by_peer: dict[str, list[ConnectionReport]] = {}
    for report in sorted(books.reports, key=lambda report: report.id):
        by_peer.setdefault(report.peer, []).append(report)
    for client in clients:
        name = f"{client.temper} client {client.address}"
        if client.end is None:
            yield f"{name} still waits"
        if not client.address:
            continue
        # The system gives a port out again only after its connection is over,
        # so clients and reports of one port have the same order.
        reports = by_peer.get(client.address)
        if not reports:
            yield f"{name} has no report"
            continue
        report = reports.pop(0)
        missing = client.sent - report.bytes_received
        surplus = report.bytes_sent - client.received
        if missing < 0 or surplus < 0:
            yield f"{name} got or gave what its report does not have"
        if client.end == "done" and (missing or surplus):
            yield f"{name} was done, but {missing} and {surplus} bytes are missing"
        if client.end == "done" and client.sent_sum != client.received_sum:
            yield f"{name} got back other bytes than it sent"
    left = sum(len(reports) for reports in by_peer.values())
    if left:
        yield f"{left} reports belong to no client"


def _books_text(books: Books) -> str:
    counters = books.statistics
    return (
        f"{counters.accepted} accepted = {counters.closed} closed"
        f" = {len(books.reports)} reports"
    )


def _dialed(books: Books) -> int:
    return sum(1 for report in books.reports if report.connect is not None)

"""The live view of a server: a few lines for people, fields for machines.

A snapshot and the reasons so far in, text and fields out. Nothing here takes
the snapshot, or knows where it is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click

from trioserve import Outcome, Reason
from trioserve.app._values import format_bytes, format_duration
from trioserve.app.monitor._sampler import Snapshot

_BAR: Final = 15
#: Fixed columns, so that numbers can be read while they change.
_ROW: Final = "  {:<6}{:>11} accepted {:>9} {:7} {:>11} in {:>11} out"

_COLOURS: Final = {Outcome.OK: "green", Outcome.REFUSED: "yellow"}


def view_lines(
    snapshot: Snapshot, reasons: Counter[Reason], *, colour: bool = False
) -> Iterator[str]:
    """The view for a terminal of 80 columns: five lines, or six if there are errors.

    Only the last one may be longer than 80 columns.
    """
    now = snapshot.now
    full = now.tokens_used / now.limit if now.limit else 1.0
    bar = "#" * min(_BAR, round(full * _BAR))
    draining = f"{_draining(snapshot)}{_drain_left(snapshot)}"
    yield f"  up      {_clock(snapshot.elapsed)}{draining}"
    yield (
        f"  open    [{bar.ljust(_BAR, '.')}] {now.open:,} open,"
        f" {now.tokens_used:,} of {now.limit:,} tokens{_waiting(snapshot)}"
    )
    yield _ROW.format(
        "rate",
        f"{snapshot.rate('accepted'):,.0f}/s",
        f"{snapshot.rate('closed'):,.0f}/s",
        "closed",
        f"{format_bytes(round(snapshot.rate('bytes_received')))}/s",
        f"{format_bytes(round(snapshot.rate('bytes_sent')))}/s",
    )
    yield _ROW.format(
        "total",
        f"{now.accepted:,}",
        f"{now.refused:,}",
        "refused",
        format_bytes(now.bytes_received),
        format_bytes(now.bytes_sent),
    )
    if troubles := ", ".join(_troubles(snapshot)):
        yield f"  errors  {troubles}"
    ends = (
        f"{_coloured(reason, colour)} {count:,}"
        for reason, count in reasons.most_common()
    )
    yield f"  reasons {'  '.join(ends) or 'none yet'}"


def view_line(snapshot: Snapshot) -> str:
    """The view as one line of a log."""
    now = snapshot.now
    line = (
        f"up {_clock(snapshot.elapsed)}{_draining(snapshot)}:"
        f" {now.open} open of {now.limit}{_waiting(snapshot)},"
        f" {snapshot.rate('accepted'):.0f}/s accepted,"
        f" {format_bytes(round(snapshot.rate('bytes_received')))}/s in,"
        f" {format_bytes(round(snapshot.rate('bytes_sent')))}/s out,"
        f" {now.accepted} accepted, {now.refused} refused"
    )
    return ", ".join([line, *_troubles(snapshot)])


def view_fields(snapshot: Snapshot, reasons: Counter[Reason]) -> dict[str, Any]:
    """The view for machines. Unknown values are None."""
    now = snapshot.now
    left = snapshot.drain_left
    return {
        "elapsed": round(snapshot.elapsed, 3),
        "draining": left is not None,
        "drain_left": round(left, 3) if left is not None and left < math.inf else None,
        "open": now.open,
        "tokens_used": now.tokens_used,
        "limit": now.limit,
        "waiting": snapshot.waiting,
        "accepted": now.accepted,
        "closed": now.closed,
        "refused": now.refused,
        "bytes_received": now.bytes_received,
        "bytes_sent": now.bytes_sent,
        "reports_lost": snapshot.reports_lost,
        "accept_errors": dict(now.accept_errors),
        "accepted_per_second": round(snapshot.rate("accepted"), 3),
        "closed_per_second": round(snapshot.rate("closed"), 3),
        "bytes_received_per_second": round(snapshot.rate("bytes_received")),
        "bytes_sent_per_second": round(snapshot.rate("bytes_sent")),
        "reasons": {str(reason): count for reason, count in reasons.most_common()},
    }


def _clock(seconds: float) -> str:
    return format_duration(float(round(seconds)))


def _draining(snapshot: Snapshot) -> str:
    return "" if snapshot.drain_left is None else ", draining"


def _drain_left(snapshot: Snapshot) -> str:
    left = snapshot.drain_left
    if left is None or left == math.inf or not snapshot.now.open:
        return ""
    return f", open connections are cut in {_clock(math.ceil(left))} at most"


def _waiting(snapshot: Snapshot) -> str:
    return f", {snapshot.waiting:,} waiting" if snapshot.waiting else ""


def _troubles(snapshot: Snapshot) -> Iterator[str]:
    # Errors and losses, shown only if there are any.
    if snapshot.reports_lost:
        yield f"{snapshot.reports_lost:,} reports lost"
    for name, count in snapshot.now.accept_errors.items():
        yield f"{name} {count:,} times"


def _coloured(reason: Reason, colour: bool) -> str:
    if not colour:
        return str(reason)
    return click.style(reason, fg=_COLOURS.get(reason.outcome, "red"))

"""Made-up reports of connections."""

from __future__ import annotations

from typing import Any

from trioserve import ConnectionReport, Phase, Reason


def make_report(**changes: Any) -> ConnectionReport:
    """The report of a plain connection, with some fields changed."""
    fields: dict[str, Any] = {
        "id": 7,
        "listener": "0.0.0.0:8080",
        "peer": "10.0.0.9:4242",
        "local": "10.0.0.1:8080",
        "accepted_at": 1_760_000_000.25,
        "duration": 0.25,
        "reason": Reason.CLIENT_CLOSED,
        "phase": Phase.DATA,
    }
    return ConnectionReport(**(fields | changes))

"""A connection as HAProxy's ``option tcplog`` writes it.

A report in, a line out, for programs that read HAProxy's logs (HAProxy 2.6,
configuration.txt, section 8.2.2). Nothing here knows where it is written.
"""

from __future__ import annotations

import datetime as dt

from trioserve import ConnectionReport
from trioserve.app._values import printable

_NO_SERVER = "<NOSRV>"


def tcplog(report: ConnectionReport, name: str) -> str:
    """The line, without its newline.

    The frontend is the address of the listener, the backend is ``name``, and the
    server is the target. Times are in milliseconds, or -1 for a phase that was not
    reached. The bytes are those sent to the client. The connection counts are those
    of this server: the first two include this connection, the others do not, as in
    HAProxy. Queue positions are unknown: 0/0.
    """
    accepted = dt.datetime.fromtimestamp(report.accepted_at).astimezone()
    date = f"{accepted:%d/%b/%Y:%H:%M:%S}.{accepted.microsecond // 1000:03}"
    frontend, others = _word(report.listener), report.open_at_close
    if report.target is None:
        server, waited, behind = f"{frontend}/{_NO_SERVER}", None, 0
    else:
        server = f"{name}/{_word(report.target)}"
        waited, behind = report.queued or 0.0, others
    connect = report.connect
    if connect is not None:
        connect -= report.queued or 0.0
    times = [_milliseconds(t) for t in (waited, connect, report.duration)]
    retries = max(len(report.attempts) - 1, 0)
    counts = [others + 1, others + 1, behind, behind, retries]
    return (
        f"{_client(report.peer)} [{date}] {frontend} {server}"
        f" {_joined(times)} {report.bytes_sent} {report.termination_state}"
        f" {_joined(counts)} 0/0"
    )


def _client(peer: str) -> str:
    # HAProxy writes no brackets: the port follows the last colon. For a Unix
    # socket it writes the number of the listener.
    if peer == "unix:":
        return "unix:1"
    return _word(peer.replace("[", "").replace("]", ""))


def _word(text: str) -> str:
    # A space would shift the fields.
    return printable(text).replace(" ", "_")


def _milliseconds(seconds: float | None) -> int:
    return -1 if seconds is None else round(seconds * 1000)


def _joined(numbers: list[int]) -> str:
    return "/".join(str(number) for number in numbers)

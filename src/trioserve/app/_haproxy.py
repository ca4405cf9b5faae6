"""A connection as HAProxy's ``option tcplog`` writes it.

A report in, a line out (HAProxy 2.6, configuration.txt, section 8.2.2). What
reads HAProxy's logs reads these: halog, or a pattern somebody has.
"""

from __future__ import annotations

import datetime as dt

from trioserve import ConnectionReport

_NO_SERVER = "<NOSRV>"


def tcplog(report: ConnectionReport, backend: str) -> str:
    """The line, without its newline.

    The frontend is the address of the listener and the backend ``backend``, with
    the target as its server. Times are milliseconds since accept, -1 if it never
    came to that; the bytes are those sent to the client. The connections counted
    are those of this server: open with this one, open without it. There is no
    queue that we could count, so the last field is 0/0.
    """
    accepted = dt.datetime.fromtimestamp(report.accepted_at).astimezone()
    date = f"{accepted:%d/%b/%Y:%H:%M:%S}.{accepted.microsecond // 1000:03}"
    server = report.target if report.connect is not None else None
    tried = len(report.attempts)
    others = report.open_at_close
    return (
        f"{_client(report.peer)} [{date}] {_word(report.listener)}"
        f" {backend}/{_word(server or _NO_SERVER)}"
        f" {_waited(report)}/{_milliseconds(report.connect)}"
        f"/{_milliseconds(report.duration)} {report.bytes_sent}"
        f" {report.termination_state}"
        f" {others + 1}/{others + 1}/{others}/{others}/{max(tried - 1, 0)} 0/0"
    )

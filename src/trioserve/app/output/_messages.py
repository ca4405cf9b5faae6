"""What is logged while a server runs, while it drains, and when it has ended.

Values in, events of a log out. Nothing here decides when to log.
"""

from __future__ import annotations

import errno

from trioserve import Certificate, DrainSummary, Server, TargetState
from trioserve.app._values import (
    finite,
    format_at_most,
    format_bytes,
    format_count,
    format_days,
    format_duration,
    format_time,
)
from trioserve.app.monitor._saturation import LimitCleared, LimitReached
from trioserve.app.monitor._target_health import TargetChange

from ._log import Level, Log
from ._suppression import Kind

#: How many stuck tasks are named; there may be ten thousand.
_MOST_STUCK = 50


def log_target(log: Log, change: TargetChange) -> None:
    """Log that an address of a target does not answer, or answers again."""
    if change.error is None:
        text = f"{change.address} answers again"
        log.say("target-up", text, address=change.address)
    else:
        text = f"{change.address} does not answer: {change.error}"
        log.say(
            "target-down",
            text,
            level="warning",
            address=change.address,
            error=change.error,
        )


def log_left_out(log: Log, state: TargetState) -> None:
    """Log that a target is down, and when it is tried again."""
    retry = state.retry
    until = (
        "until its checks pass" if retry is None else f"for {format_duration(retry)}"
    )
    log.say(
        "target-left-out",
        f"{state.target} is left out {until} while another target is up: {state.error}",
        level="warning",
        target=str(state.target),
        seconds=None if retry is None else round(retry, 3),
        error=state.error,
    )


def left_out_kind(state: TargetState) -> Kind:
    """Events of one target are equal."""
    words = f"{state.target} is left out"
    fields = (("target", str(state.target)),)
    return Kind("target-left-out", "warning", words, fields)


def target_kind(change: TargetChange) -> Kind:
    """Changes of one address to the same state are equal."""
    if change.error is None:
        words = f"{change.address} answers again"
        return Kind("target-up", "info", words, (("address", change.address),))
    words = f"{change.address} does not answer"
    return Kind("target-down", "warning", words, (("address", change.address),))


def log_suppressed(log: Log, kind: Kind, count: int) -> None:
    """Log how many equal events of the last second were suppressed."""
    log.say(
        "suppressed",
        f"{count:,} more within 1s: {kind.words}",
        level=kind.level,
        of=kind.event,
        count=count,
        **dict(kind.fields),
    )


def log_saturation(log: Log, change: LimitReached | LimitCleared) -> None:
    """Log that clients wait because the limit is reached, or that none does now."""
    limit = format_count(change.limit, "connection")
    if isinstance(change, LimitReached):
        count = change.waiting
        waiting = "clients" if count is None else format_count(count, "client")
        log.say(
            "limit-reached",
            f"limit reached: {limit}, {waiting} waiting",
            level="warning",
            limit=change.limit,
            waiting=change.waiting,
        )
    else:
        log.say(
            "limit-cleared",
            f"limit cleared after {format_duration(change.seconds)}:"
            f" {change.tokens_used} of {limit}, no clients waiting",
            tokens_used=change.tokens_used,
            limit=change.limit,
            seconds=round(change.seconds, 3),
        )


def log_reports_lost(log: Log, lost: int) -> None:
    """Log how many reports were lost since the last time this was logged."""
    log.say("reports-lost", f"reports lost: {lost}", level="warning", lost=lost)


def log_reports_failed(log: Log, where: str, error: OSError) -> None:
    """Log that reports can't be written now."""
    level: Level = "error"
    text = (
        f"can't write to {where}: {error.strerror}; reports are lost, but serving"
        " goes on"
    )
    if error.errno == errno.ENXIO:
        level = "warning"
        text = f"nobody reads {where}; reports are lost until somebody does"
    log.say("reports-failed", text, level=level, message=text)


def log_reports_reopened(log: Log, where: str, error: OSError | None) -> None:
    """Log that the file of reports was reopened, or why it could not be."""
    level: Level = "info"
    text = f"SIGHUP: reopened {where}"
    if error is not None:
        level = "error"
        text = f"SIGHUP: can't reopen {where}: {error.strerror}"
    log.say("sighup", text, level=level, message=text)


def log_expiry(log: Log, certificate: Certificate, left: float) -> None:
    """Log that a certificate expires in ``left`` seconds, or has expired."""
    at, cert = format_time(certificate.expires), certificate.cert
    fields = {
        "cert": cert,
        "names": ",".join(certificate.names) or None,
        "expires": at,
        "days": round(left / 86_400, 2),
    }
    use = "within a minute, without a restart"
    if left > 0:
        text = f"{cert} expires in {format_days(left)}, at {at}"
        text += f": renew it; new files are used {use}"
        log.say("certificate-expires", text, level="warning", **fields)
    else:
        text = f"{cert} expired {format_days(-left)} ago, at {at}"
        text += f", and clients refuse it: renew it; new files are used {use}"
        log.say("certificate-expired", text, level="error", **fields)


def log_nothing_to_reopen(log: Log) -> None:
    """Log that SIGHUP came, and that there is nothing for it to do."""
    text = "SIGHUP: no reports to reopen, and no certificates or targets to read"
    log.say("sighup", text)


def log_draining(log: Log, server: Server, reason: str) -> None:
    """Log what is open, how long the drain may take, and how to shorten it."""
    count = server.statistics().open
    most = server.timeouts.lame_duck + server.timeouts.drain
    wait = "nothing to wait for"
    if count:
        wait = f"{format_at_most(most)}; a second signal cuts"
    log.say(
        "draining",
        f"draining: {format_count(count, 'connection')}, {wait}",
        reason=reason,
        open=count,
        seconds=finite(most),
    )


def log_cutting(log: Log, server: Server) -> None:
    """Log how many connections are being cut."""
    count = server.statistics().open
    log.say("cutting", f"cutting {format_count(count, 'connection')}", open=count)


def log_drained(
    log: Log, summary: DrainSummary, server: Server, reports_lost: int
) -> None:
    """Log how the drain went, which tasks are stuck, and the totals."""
    missing = f", {format_count(reports_lost, 'report')} lost" if reports_lost else ""
    totals = server.statistics()
    served = totals.accepted - totals.refused
    refused = f", refused {totals.refused}" if totals.refused else ""
    log.say(
        "drained",
        f"{'drained' if summary.clean else 'stopped'} in"
        f" {format_duration(summary.seconds)}: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused",
        f"served {format_count(served, 'connection')}{refused}:"
        f" {format_bytes(totals.bytes_received)} in,"
        f" {format_bytes(totals.bytes_sent)} out{missing}",
        reason=summary.reason,
        seconds=round(summary.seconds, 3),
        backlog_drained=summary.backlog_drained,
        finished=summary.finished,
        cut=summary.cut,
        refused=summary.refused,
        accepted=totals.accepted,
        bytes_received=totals.bytes_received,
        bytes_sent=totals.bytes_sent,
        reports_lost=reports_lost,
    )
    for task in summary.stuck[:_MOST_STUCK]:
        log.say("stuck", f"stuck: {task}", level="error", task=task)
    if (others := len(summary.stuck) - _MOST_STUCK) > 0:
        log.say("stuck", f"stuck: {others} others", level="error", others=others)

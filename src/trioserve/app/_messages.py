"""What is said when a server starts, drains, ends, or can't start.

Values in, events of a log out. Nothing here decides when.
"""

from __future__ import annotations

import errno
import socket

from trioserve import Address, DrainSummary, Limits, Server

from ._job import Job
from ._log import Log
from ._values import format_bytes, format_duration

_ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})
_RULES = ("first_byte", "idle", "half_closed", "write_stall", "lifetime")


def say_ready(log: Log, job: Job, server: Server) -> None:
    """Say what is bound, what the limits are, how to stop it, what to try."""
    addresses = ", ".join(server.addresses)
    route = f"{addresses} -> {job.target}" if job.target else addresses
    drain = server.timeouts.lame_duck + server.timeouts.drain
    first = Address.parse(server.addresses[0])
    host = "127.0.0.1" if first.host in _ALL_INTERFACES else first.host
    rules = {name: format_duration(getattr(job.timeouts, name)) for name in _RULES}
    log.say(
        "listening",
        f"trioserve {job.name}: {route}",
        f"limits: {_limits_text(job.limits, rules)}",
        f"stop:   Ctrl-C drains, {_up_to(drain)}; again cuts",
        f"try:    nc {host} {first.port}",
        command=job.name,
        addresses=",".join(server.addresses),
        target=job.target and str(job.target),
        max_connections=job.limits.max_connections,
        when_full=job.limits.when_full,
        drain=format_duration(drain),
        timeouts=rules,
    )
    if job.listen.host in _ALL_INTERFACES:
        log.say(
            "exposed",
            "listening on all interfaces: everybody who reaches this machine can"
            f" connect; 127.0.0.1:{first.port} is for this machine only",
            level="warning",
        )


def _limits_text(limits: Limits, rules: dict[str, str]) -> str:
    full = "others wait" if limits.when_full == "backlog" else "others are refused"
    timers = ", ".join(
        f"{name.replace('_', ' ')} {duration}"
        for name, duration in rules.items()
        if duration != "never"
    )
    return f"{_count(limits.max_connections, 'connection')}, {full}; {timers}"


def say_draining(log: Log, server: Server, reason: str) -> None:
    """Say what is open, how long it may take, and what to do about it."""
    count = server.statistics().open
    most = server.timeouts.lame_duck + server.timeouts.drain
    log.say(
        "draining",
        f"draining: {_count(count, 'connection')}, {_up_to(most)}; again to cut",
        reason=reason,
        open=count,
        seconds=format_duration(most),
    )


def say_cutting(log: Log, server: Server) -> None:
    """Say how many connections are cut now."""
    count = server.statistics().open
    log.say("cutting", f"cutting {_count(count, 'connection')}", open=count)


def say_drained(log: Log, summary: DrainSummary, server: Server) -> None:
    """Say how the drain went, what hangs, and what was served in all."""
    totals = server.statistics()
    log.say(
        "drained",
        f"{'drained' if summary.clean else 'stopped'} in"
        f" {format_duration(summary.seconds)}: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused",
        f"served {_count(totals.accepted, 'connection')}:"
        f" {format_bytes(totals.bytes_received)} in,"
        f" {format_bytes(totals.bytes_sent)} out",
        reason=summary.reason,
        seconds=round(summary.seconds, 3),
        swept=summary.swept,
        finished=summary.finished,
        cut=summary.cut,
        refused=summary.refused,
        accepted=totals.accepted,
        bytes_received=totals.bytes_received,
        bytes_sent=totals.bytes_sent,
        reports_lost=summary.reports_lost,
    )
    for task in summary.stuck:
        log.say("stuck", f"stuck: {task}", level="error", task=task)
    if summary.reports_lost:
        log.say(
            "reports-lost",
            f"reports lost: {summary.reports_lost}",
            level="warning",
            lost=summary.reports_lost,
        )


def why_not(address: Address, error: OSError) -> str:
    """Why ``address`` can't be listened on, and what else to try."""
    if isinstance(error.__cause__, socket.gaierror):
        return f"can't find {address.host!r}: {error.strerror}; is it spelt right?"
    where = error.filename or address
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{where} is in use already; stop what listens there, or use another"
                " port (0 picks a free one)"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"{where} is not an address of this machine; 127.0.0.1 is for this"
                " machine only, no host for all interfaces"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"no right to listen on {where}: ports below 1024 need root or"
                " CAP_NET_BIND_SERVICE, higher ones don't"
            )
        case _:
            return f"can't listen on {where}: {error.strerror or error}"


def _up_to(seconds: float) -> str:
    text = format_duration(seconds)
    return "for as long as it takes" if text == "never" else f"up to {text}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

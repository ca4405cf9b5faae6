"""What is said when a server starts, drains, ends, or can't start.

Values in, events of a log out. Nothing here decides when.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import pwd
import resource
import shlex
import socket
from collections.abc import Iterable
from pathlib import Path

from trioserve import (
    Address,
    DrainSummary,
    Server,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from trioserve.app._job import Job
from trioserve.app._values import format_bytes, format_duration
from trioserve.app.monitor._fullness import Full, Room
from trioserve.app.monitor._targets import Change

from ._folding import Kind
from ._log import Log

_ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})
#: Fewer connections at once than this are not what a server is for.
_FEW = 100
#: Tasks that hang and are named; there may be ten thousand.
_MOST_STUCK = 50
_RULES = ("first_byte", "idle", "half_closed", "write_stall", "lifetime")


def say_ready(log: Log, job: Job, server: Server) -> None:
    """Say what is bound, what the limits are, how to stop it, what to try."""
    addresses = ", ".join(server.addresses)
    route = f"{addresses} -> {job.route}" if job.targets else addresses
    drain = server.timeouts.lame_duck + server.timeouts.drain
    log.say(
        "listening",
        f"trioserve {job.name}: {route}",
        f"limits: {_limits_text(job)}",
        f"stop:   Ctrl-C drains, {_up_to(drain)}; again cuts",
        f"try:    nc {_nc_words(parse_address(server.addresses[0]))}",
        command=job.name,
        addresses=",".join(server.addresses),
        target=job.route or None,
        max_connections=job.limits.max_connections,
        max_per_peer=job.limits.max_per_peer,
        when_full=job.limits.when_full,
        timeouts={
            name: _seconds(value)
            for name, value in dataclasses.asdict(job.timeouts).items()
        },
    )
    _say_faults(log, job)
    _say_exposed(log, server)
    _say_files(log, job)


def _say_faults(log: Log, job: Job) -> None:
    if job.faults:
        log.say(
            "faults",
            f"this proxy breaks connections on purpose: {job.faults} (seed {job.seed})",
            level="warning",
            faults=str(job.faults),
            seed=job.seed,
        )


def _say_exposed(log: Log, server: Server) -> None:
    exposed = [
        address
        for address in server.addresses
        if _is_everybodys(parse_address(address))
    ]
    if exposed:
        log.say(
            "exposed",
            f"{' and '.join(exposed)} is all interfaces: everybody who reaches this"
            " machine can connect; 127.0.0.1 is for this machine only",
            level="warning",
            addresses=",".join(exposed),
        )


def _say_files(log: Log, job: Job) -> None:
    # A connection of a proxy has two ends.
    most = job.limits.max_connections
    needed = most * (2 if job.targets else 1)
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        log.say(
            "files",
            f"{_count(most, 'connection')} would need {needed} open files, of which"
            f" {allowed} are allowed (ulimit -Hn); who comes when they are used up"
            " is refused",
            level="warning",
            needed=needed,
            allowed=allowed,
        )


def say_few_files(log: Log, job: Job) -> None:
    """Say so if the default limit is low because few open files are allowed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = job.limits.max_connections
    if most < _FEW:
        log.say(
            "files",
            f"only {_count(most, 'connection')} at once, because only {allowed} open"
            " files are allowed (ulimit -Hn); raise that, or say --max-connections",
            level="warning",
            max_connections=most,
            allowed=allowed,
        )


def _nc_words(address: Address) -> str:
    if isinstance(address, UnixAddress):
        return f"-U {shlex.quote(address.path)}"
    host = "127.0.0.1" if address.host in _ALL_INTERFACES else address.host
    return f"{host} {address.port}"


def _is_everybodys(address: Address) -> bool:
    return isinstance(address, TcpAddress) and address.host in _ALL_INTERFACES


def _limits_text(job: Job) -> str:
    limits = job.limits
    full = "others wait" if limits.when_full == "wait" else "others are refused"
    if limits.max_per_peer is not None:
        full = f"at most {limits.max_per_peer} from one peer, {full}"
    timers = ", ".join(
        f"{name.replace('_', ' ')} {format_duration(seconds)}"
        for name in _RULES
        if (seconds := getattr(job.timeouts, name)) < math.inf
    )
    return f"{_count(limits.max_connections, 'connection')}, {full}; {timers}"


def say_target(log: Log, change: Change) -> None:
    """Say that an address of a target does not answer, or does again."""
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


def target_kind(change: Change) -> Kind:
    """What changes of one address have in common."""
    if change.error is None:
        words = f"{change.address} answers again"
        return Kind("target-up", "info", words, (("address", change.address),))
    words = f"{change.address} does not answer"
    return Kind("target-down", "warning", words, (("address", change.address),))


def say_folded(log: Log, kind: Kind, count: int) -> None:
    """Say how often something was not said again within a second."""
    log.say(
        "folded",
        f"{count:,} more within 1s: {kind.words}",
        level=kind.level,
        of=kind.event,
        count=count,
        **dict(kind.fields),
    )


def say_fullness(log: Log, change: Full | Room) -> None:
    """Say that all slots are taken and somebody waits, or that this is over."""
    slots = _count(change.slots, "connection")
    if isinstance(change, Full):
        waiting = change.waiting
        who = "others wait" if waiting is None else f"{waiting} waiting"
        log.say(
            "full",
            f"full: {change.slots} of {slots}, {who}",
            level="warning",
            slots=change.slots,
            waiting=waiting,
        )
    else:
        log.say(
            "room",
            f"room again: {change.slots_used} of {slots}; it was full for"
            f" {format_duration(change.seconds)}",
            slots_used=change.slots_used,
            slots=change.slots,
            seconds=round(change.seconds, 3),
        )


def say_lost(log: Log, lost: int) -> None:
    """Say how many reports were lost, since it was said the last time."""
    log.say("reports-lost", f"reports lost: {lost}", level="warning", lost=lost)


def say_unknown_names(log: Log, names: Iterable[str]) -> None:
    """Say which targets' names can't be looked up, which may change."""
    for name in names:
        text = f"can't find {name} now; it is looked up again for each connection"
        log.say("unknown-name", text, level="warning", name=name)


def say_draining(log: Log, server: Server, reason: str) -> None:
    """Say what is open, how long it may take, and what to do about it."""
    count = server.statistics().open
    most = server.timeouts.lame_duck + server.timeouts.drain
    patience = f"{_up_to(most)}; again to cut" if count else "nothing to wait for"
    log.say(
        "draining",
        f"draining: {_count(count, 'connection')}, {patience}",
        reason=reason,
        open=count,
        seconds=_seconds(most),
    )


def say_cutting(log: Log, server: Server) -> None:
    """Say how many connections are cut now."""
    count = server.statistics().open
    log.say("cutting", f"cutting {_count(count, 'connection')}", open=count)


def say_drained(
    log: Log, summary: DrainSummary, server: Server, reports_lost: int
) -> None:
    """Say how the drain went, what hangs, and what was served in all."""
    missing = f", {_count(reports_lost, 'report')} lost" if reports_lost else ""
    totals = server.statistics()
    log.say(
        "drained",
        f"{'drained' if summary.clean else 'stopped'} in"
        f" {format_duration(summary.seconds)}: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused",
        f"served {_count(totals.accepted, 'connection')}:"
        f" {format_bytes(totals.bytes_received)} in,"
        f" {format_bytes(totals.bytes_sent)} out{missing}",
        reason=summary.reason,
        seconds=round(summary.seconds, 3),
        swept=summary.swept,
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


def why_not(error: OSError) -> str:
    """Why it can't listen on ``error.filename``, and what else to try."""
    where = error.filename
    if isinstance(error.__cause__, socket.gaierror):
        return f"can't find the host of {where}: {error.strerror}; is it spelt right?"
    if error.errno == errno.EAGAIN:
        return (
            f"can't look up the host of {where}: no more processes and threads are"
            " allowed (ulimit -u, TasksMax= in systemd, the pids limit of a container)"
        )
    if error.filename2 is not None:
        return (
            f"can't listen on both {where} and {error.filename2}: one of them is all"
            " interfaces and includes the other; leave the other one out"
        )
    address = parse_address(where)
    if isinstance(address, UnixAddress):
        return _why_not_unix(address, error)
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


def _why_not_unix(address: UnixAddress, error: OSError) -> str:
    folder = Path(address.path).parent
    match error.errno:
        case errno.EADDRINUSE if _is_somebody_elses(address):
            return (
                f"{address} is a socket of user {_owner(address.path)}, which you may"
                " neither connect to nor replace; use another path"
            )
        case errno.EADDRINUSE if address.is_abstract or Path(address.path).is_socket():
            return f"{address} is in use already; stop what listens there"
        case errno.EADDRINUSE:
            return f"{address.path} exists, and is no socket; use another path"
        case errno.ENOENT:
            return f"can't listen on {address}: there is no folder {folder}"
        case errno.EACCES | errno.EPERM if Path(address.path).is_socket():
            return (
                f"{address} was left over by user {_owner(address.path)}, and you may"
                " not replace it; use another path"
            )
        case errno.EACCES | errno.EPERM:
            return f"no right to listen on {address}: can you write to {folder}?"
        case _:
            return f"can't listen on {address}: {error.strerror or error}"


def _is_somebody_elses(address: UnixAddress) -> bool:
    # To connect to a socket takes the right to write to it.
    path = Path(address.path)
    if address.is_abstract or not path.is_socket():
        return False
    return not os.access(path, os.W_OK, effective_ids=True)


def _owner(path: str) -> str:
    number = Path(path).stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _seconds(seconds: float) -> float | None:
    # JSON has no infinity.
    return None if seconds == math.inf else seconds


def _up_to(seconds: float) -> str:
    text = format_duration(seconds)
    return "for as long as it takes" if text == "never" else f"up to {text}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

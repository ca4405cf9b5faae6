"""The status of a server: counters, certificates, open connections, Trio's tasks.

A running server and Trio's task tree in, lines and fields out. Nothing here
knows why the status is asked for, or where it is printed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import trio

from trioserve import Certificate, Connection, Server, TargetState
from trioserve.app._values import (
    format_bytes,
    format_days,
    format_duration,
    format_time,
)

#: How many connections and tasks are listed; there may be ten thousand.
_MOST = 50
#: How many names of a certificate are listed.
_MOST_NAMES = 5
#: With the slash, because trioserve may be installed beside trio.
_TRIO = f"{Path(trio.__file__).parent}/"


def status_text(
    server: Server, unwritten: int = 0, targets: Sequence[TargetState] = ()
) -> Iterator[str]:
    """Line by line: counters, targets, certificates, connections, tasks.

    The connections are those that hold tokens.

    Args:
      unwritten: how many reports were collected, and lost after that.
    """
    now = server.statistics()
    yield (
        f"status: {now.open} open, {now.tokens_used} of {now.limit} tokens,"
        f" {now.accepted} accepted, {now.refused} refused,"
        f" {format_bytes(now.bytes_received)} in, {format_bytes(now.bytes_sent)} out,"
        f" {now.lost + unwritten} reports lost"
    )
    for name, count in now.accept_errors.items():
        yield f"  accept: {count} times {name}"
    if targets:
        yield "targets:"
    for state in targets:
        yield f"  {_target_text(state)}"
    if certificates := server.certificates():
        yield "certificates:"
    for certificate in certificates:
        yield f"  {_certificate_text(certificate)}"
    yield from _holders_text(server.connections)
    yield "tasks:"
    yield from _tree_text()


def status_fields(
    server: Server, unwritten: int = 0, targets: Sequence[TargetState] = ()
) -> dict[str, Any]:
    """The same for machines, with the tasks as a flat list."""
    now = server.statistics()
    return {
        "open": now.open,
        "tokens_used": now.tokens_used,
        "limit": now.limit,
        "accepted": now.accepted,
        "refused": now.refused,
        "bytes_received": now.bytes_received,
        "bytes_sent": now.bytes_sent,
        "reports_lost": now.lost + unwritten,
        "accept_errors": dict(now.accept_errors),
        "targets": [_target_fields(state) for state in targets],
        "certificates": [_certificate_fields(c) for c in server.certificates()],
        "connections": [_holder_fields(c) for c in server.connections[:_MOST]],
        "tasks": [line.strip() for line in _tree_text()],
    }


def _target_text(state: TargetState) -> str:
    since = "" if state.seconds is None else f" for {format_duration(state.seconds)}"
    word = "up" if state.up else "down"
    drained = ", drained" if state.drained else ""
    drained += ", gone from its list" if state.gone else ""
    text = f"{state.target}: {word}{since}{drained}, {state.open} open"
    text += f", {state.connected} connected, {state.failed} failed"
    if state.connect is not None:
        text += f", usually in {format_duration(state.connect)}"
    for name, seconds in (("p50", state.connect_p50), ("p99", state.connect_p99)):
        text += "" if seconds is None else f", {name} {format_duration(seconds)}"
    if state.retry is not None:
        text += f"; tried again in {format_duration(state.retry)}"
    if state.checks:
        text += f"; {state.checks} checks, {state.checks_failed} failed"
    return f"{text}; last error: {state.error}" if state.error else text


def _target_fields(state: TargetState) -> dict[str, Any]:
    return {
        "target": str(state.target),
        "up": state.up,
        "drained": state.drained,
        "gone": state.gone,
        "seconds": _rounded(state.seconds),
        "open": state.open,
        "connected": state.connected,
        "failed": state.failed,
        "connect": _rounded(state.connect),
        "connect_p50": _rounded(state.connect_p50),
        "connect_p99": _rounded(state.connect_p99),
        "error": state.error,
        "retry": _rounded(state.retry),
        "checks": state.checks,
        "checks_failed": state.checks_failed,
    }


def _certificate_text(certificate: Certificate) -> str:
    left = certificate.expires - time.time()
    names = list(certificate.names[:_MOST_NAMES]) or ["no name"]
    if (others := len(certificate.names) - _MOST_NAMES) > 0:
        names.append(f"{others} others")
    when = f"expires in {format_days(left)}"
    if left <= 0:
        when = f"expired {format_days(-left)} ago"
    text = f"{certificate.cert} for {', '.join(names)}: {when}"
    text += f", at {format_time(certificate.expires)}"
    return text + (f"; last error: {error}" if (error := certificate.error) else "")


def _certificate_fields(certificate: Certificate) -> dict[str, Any]:
    left = certificate.expires - time.time()
    return {
        "cert": certificate.cert,
        "names": list(certificate.names),
        "expires": format_time(certificate.expires),
        "days": round(left / 86_400, 2),
        "error": certificate.error,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _holders_text(connections: tuple[Connection, ...]) -> Iterator[str]:
    if connections:
        yield "tokens are held by (oldest first):"
    for connection in connections[:_MOST]:
        route = str(connection.peer)
        if connection.server_name is not None:
            route += f" for {connection.server_name}"
        if connection.target is not None:
            route += f" > {connection.target}"
        yield (
            f"  conn-{connection.id} {route}: {connection.phase},"
            f" {format_duration(connection.age)},"
            f" {format_bytes(connection.bytes_received)} in,"
            f" {format_bytes(connection.bytes_sent)} out"
        )
    if len(connections) > _MOST:
        yield f"  and {len(connections) - _MOST} others"


def _holder_fields(connection: Connection) -> dict[str, Any]:
    return {
        "id": connection.id,
        "peer": str(connection.peer),
        "direct_peer": str(direct) if (direct := connection.direct_peer) else None,
        "server_name": connection.server_name,
        "target": connection.target,
        "phase": str(connection.phase),
        "age": round(connection.age, 3),
        "bytes_received": connection.bytes_received,
        "bytes_sent": connection.bytes_sent,
    }


def _tree_text() -> Iterator[str]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    for task in _children(root):
        if not task.name.startswith("<"):  # Trio's own
            yield from _task_text(task, "  ")


def _children(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    # conn-2 before conn-10.
    children = [t for nursery in task.child_nurseries for t in nursery.child_tasks]
    return sorted(children, key=lambda t: (len(t.name.split(" ")[0]), t.name))


def _task_text(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}{task.name}: {_position(task)}"
    children = _children(task)
    for child in children[:_MOST]:
        yield from _task_text(child, indent + "  ")
    if len(children) > _MOST:
        yield f"{indent}  and {len(children) - _MOST} others"


def _position(task: trio.lowlevel.Task) -> str:
    # The innermost frame that is not Trio's own, or else the innermost one.
    frames = list(task.iter_await_frames())
    own = [f for f in frames if not f[0].f_code.co_filename.startswith(_TRIO)]
    for frame, line in (own or frames)[-1:]:
        file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        return f"{frame.f_code.co_qualname} at {file}:{line}"
    return "about to start or end"

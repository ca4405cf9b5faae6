"""Serve until a signal says stop: what of the command runs under Trio.

A job in, an exit code out. Nothing here knows how the command line was
written, and nothing here writes except through what it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import os
import signal
import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator

import click
import trio

from trioserve import (
    Address,
    Connection,
    DrainSummary,
    Limits,
    Server,
    Timeouts,
    open_listeners,
    serve,
)

from ._log import Log
from ._output import Output
from ._values import format_bytes, format_duration

#: Served until told to stop, and nothing was cut.
EXIT_DRAINED = 0
#: Connections were cut, tasks hung, or a second signal asked for it.
EXIT_CUT = 3

_ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_RULES = ("first_byte", "idle", "half_closed", "write_stall", "lifetime")

Handler = Callable[[Connection], Awaitable[object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one run of the command serves.

    Args:
      name: the command, ``"echo"`` or ``"proxy"``.
      listen: where, as it was asked for; the port may be 0.
      target: where a proxy dials, else None.
      handler: what serves a connection.
    """

    name: str
    listen: Address
    target: Address | None = None
    handler: Handler
    limits: Limits
    timeouts: Timeouts


async def main(job: Job, output: Output) -> int:
    """Listen and serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises:
      click.ClickException: saying why it can't listen, or no longer can.
    """
    listeners = await listen_or_say(job.listen)
    with stop_signals() as signals:
        try:
            return await run(job, listeners, output, signals)
        except ExceptionGroup as group:
            # What `serve` raises when its last listener is gone.
            match group.exceptions:
                case [OSError() as error]:
                    raise click.ClickException(f"can't go on: {error}") from group
                case _:
                    raise


async def listen_or_say(address: Address) -> list[trio.SocketListener]:
    """`open_listeners`, with what it raises as a line for a person.

    Raises:
      click.ClickException: saying why not, and what else to try.
    """
    try:
        return await open_listeners(address)
    except OSError as error:
        raise click.ClickException(_why_not(address, error)) from error


async def run(
    job: Job,
    listeners: list[trio.SocketListener],
    output: Output,
    signals: AsyncIterable[int],
    *,
    leave: Callable[[int], None] = os._exit,
) -> int:
    """Serve until the first of ``signals``, drain, say how it went.

    ``leave`` ends the process without unwinding: at a third signal, and when a
    task hangs, because a nursery can't be left while a task in it is alive.

    Returns:
      `EXIT_DRAINED` or `EXIT_CUT`.
    """
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(
                serve,
                job.handler,
                listeners,
                limits=job.limits,
                timeouts=job.timeouts,
                collector=output.collect,
            )
        )
        _say_ready(output.log, job, server)
        stop = _Stop(server, output.log, leave)
        nursery.start_soon(stop.obey, signals)
        await stop.asked.wait()
        # Without a deadline of its own: it would bring the one that is set forward.
        summary = await server.drain(math.inf)
        _say_drained(output.log, summary, server)
        code = EXIT_DRAINED if summary.clean and not stop.hurried else EXIT_CUT
        if summary.stuck:
            output.flush()
            leave(code)
        # Only the task that obeys signals is left: it has to be there until the
        # very end, because Trio raises again whatever it has not taken.
        nursery.cancel_scope.cancel()
    return code


class _Stop:
    # What signals ask for: the first drains, the second cuts, the third leaves.

    def __init__(self, server: Server, log: Log, leave: Callable[[int], None]) -> None:
        self.asked = trio.Event()
        self.hurried = False
        self._server = server
        self._log = log
        self._leave = leave

    async def obey(self, signals: AsyncIterable[int]) -> None:
        async for number in signals:
            if not self.asked.is_set():
                self._drain(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._log.say("draining", "already draining", reason="SIGHUP")
            elif not self.hurried:
                self._cut()
            else:
                self._leave(EXIT_CUT)

    def _drain(self, name: str) -> None:
        # Said before anything is done: draining may take long.
        count = self._server.statistics().open
        most = self._server.timeouts.lame_duck + self._server.timeouts.drain
        self._log.say(
            "draining",
            f"draining: {_count(count, 'connection')}, {_up_to(most)}; again to cut",
            reason=name,
            open=count,
            seconds=format_duration(most),
        )
        self._server.start_draining(reason=name)
        self.asked.set()

    def _cut(self) -> None:
        count = self._server.statistics().open
        self._log.say("cutting", f"cutting {_count(count, 'connection')}", open=count)
        self.hurried = True
        self._server.start_draining(0)


@contextlib.contextmanager
def stop_signals() -> Generator[AsyncIterator[int]]:
    """Receive SIGTERM, SIGINT and SIGHUP; after the block they are ignored.

    A program that was started with SIGHUP ignored (``nohup``) keeps it so.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def too_early_or_late(number: int, frame: object) -> None:
        # Trio puts this back when its block ends. By then the process is on its
        # way out with an exit code of its own, which a signal may not replace.
        if not over:
            raise SystemExit(128 + number)

    over = False
    for number in numbers:
        signal.signal(number, too_early_or_late)
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            try:
                yield signals
            finally:
                over = True
    finally:
        # A Python function would become "kill me" while the interpreter ends.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def is_loop(listen: Address, target: Address) -> bool:
    """Whether a proxy from ``listen`` to ``target`` would dial itself."""
    if listen.port == 0 or listen.port != target.port:
        return False
    here, there = listen.host.lower(), target.host.lower()
    local = _LOOPBACK | _ALL_INTERFACES
    return here == there or (here in local and there in local)


def _say_ready(log: Log, job: Job, server: Server) -> None:
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
        addresses=addresses,
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


def _say_drained(log: Log, summary: DrainSummary, server: Server) -> None:
    totals = server.statistics()
    log.say(
        "drained",
        f"{'drained' if summary.clean else 'stopped'} in"
        f" {format_duration(summary.seconds)}: {summary.finished} finished,"
        f" {summary.cut} cut, {summary.refused} refused",
        f"served {_count(totals.accepted, 'connection')}:"
        f" {format_bytes(totals.bytes_received)} in,"
        f" {format_bytes(totals.bytes_sent)} out",
        level="info",
        reason=summary.reason,
        seconds=round(summary.seconds, 3),
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
            f"{summary.reports_lost} reports were lost",
            level="warning",
            lost=summary.reports_lost,
        )


def _why_not(address: Address, error: OSError) -> str:
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

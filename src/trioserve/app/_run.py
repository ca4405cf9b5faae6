"""Serve until a signal says stop: what of the command runs under Trio.

A job in, an exit code out. Nothing here knows how the command line was
written, and nothing here writes except through what it is given.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
from collections.abc import AsyncIterable, Callable, Generator, Sequence

import click
import trio

from trioserve import (
    Address,
    Server,
    TcpAddress,
    UnixListener,
    open_listeners,
    serve,
)

from ._job import Job
from ._loops import find_loop
from ._port_file import PortFile
from ._program import WrongUsage
from ._signals import Signals
from .output._log import Log
from .output._messages import (
    say_cutting,
    say_drained,
    say_draining,
    say_ready,
    say_unknown_names,
    why_not,
)
from .output._output import Output
from .output._status import status_fields, status_text

Listeners = Sequence[trio.SocketListener | UnixListener]

#: Served until told to stop, and nothing was cut.
EXIT_DRAINED = 0
#: Connections were cut, tasks hung, or a second signal asked for it.
EXIT_CUT = 3

#: Seconds within which a second signal that stops is the same one.
_SAME = 0.3


async def main(job: Job, output: Output, signals: Signals) -> int:
    """Listen and serve until SIGTERM, SIGINT or SIGQUIT; return the exit code.

    Raises:
      SystemExit: one of them came before it served; nothing is left behind.
      click.ClickException: saying why it can't listen, or no longer can; or that
        a target is a listener of its own.
    """
    listeners = await signals.unless_stopped(listen_or_say, *job.listen)
    try:
        await signals.unless_stopped(refuse_loop, job, listeners)
        with announced_ports(job, listeners) as port_file:
            return await run(job, listeners, output, signals, port_file=port_file)
    except ExceptionGroup as group:
        # What `serve` raises when its last listener is gone.
        match group.exceptions:
            case [OSError() as error]:
                raise click.ClickException(f"can't go on: {error}") from group
            case _:
                raise
    finally:
        # Unless they were served from, and that has closed them.
        for listener in listeners:
            with trio.CancelScope(shield=True):
                await listener.aclose()


async def listen_or_say(*addresses: Address) -> Listeners:
    """`open_listeners`, with what it raises as a line for a person.

    Raises:
      click.ClickException: saying why not, and what else to try.
    """
    try:
        return await open_listeners(*addresses)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    except OSError as error:
        raise click.ClickException(why_not(error)) from error


async def refuse_loop(job: Job, listeners: Listeners) -> None:
    """See that no target is one of the listeners.

    Raises:
      click.UsageError: naming the target that is.
    """
    bound = [listener.socket for listener in listeners]
    target = await find_loop(bound, job.targets, within=job.timeouts.connect)
    if target is not None:
        raise WrongUsage(
            f"TARGET {target} is where this proxy itself listens, a loop; give the"
            " address of another server"
        )


async def say_whom_nobody_knows(job: Job, log: Log) -> None:
    """Say which targets' names can't be looked up now."""
    unknown: list[str] = []
    for target in job.targets:
        if isinstance(target, TcpAddress):
            with trio.move_on_after(job.timeouts.connect):
                try:
                    await trio.socket.getaddrinfo(target.host_bytes, target.port)
                except (OSError, RuntimeError):  # the last one: without a thread
                    unknown.append(target.host)
    say_unknown_names(log, dict.fromkeys(unknown))


@contextlib.contextmanager
def announced_ports(job: Job, listeners: Listeners) -> Generator[PortFile | None]:
    """Write the port file, if one is asked for, and remove it at the end.

    Raises:
      click.ClickException: saying why it can't be written.
    """
    if job.port_file is None:
        yield None
        return
    names = [listener.socket.getsockname() for listener in listeners]
    try:
        file = PortFile(job.port_file, [n[1] for n in names if isinstance(n, tuple)])
    except OSError as error:
        raise click.ClickException(
            f"can't write the port to {job.port_file}: {error.strerror}"
        ) from error
    try:
        yield file
    finally:
        file.remove()


async def run(
    job: Job,
    listeners: Listeners,
    output: Output,
    signals: AsyncIterable[int],
    *,
    port_file: PortFile | None = None,
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
        say_ready(output.log, job, server)
        stop = _Stop(server, output, leave)
        nursery.start_soon(stop.obey, signals)
        nursery.start_soon(output.watch, server)
        if port_file is not None:
            nursery.start_soon(remove_when_closed, port_file, server)
        nursery.start_soon(say_whom_nobody_knows, job, output.log)
        if job.live:
            nursery.start_soon(output.show, server)
        await stop.asked.wait()
        # Without a deadline of its own: it would bring the one that is set forward.
        summary = await server.drain()
        output.end_show()
        lost = output.end_reports(server.statistics().lost)
        say_drained(output.log, summary, server, lost)
        code = EXIT_DRAINED if summary.clean and not stop.hurried else EXIT_CUT
        if summary.stuck:
            output.flush()
            leave(code)
        nursery.cancel_scope.cancel()
    return code


async def remove_when_closed(port_file: PortFile, server: Server) -> None:
    """Remove the port file as soon as nobody can connect to the port any more."""
    await server.draining.wait()
    port_file.remove()


class _Stop:
    # What signals ask for: the first drains, the second cuts, the third leaves.

    def __init__(
        self, server: Server, output: Output, leave: Callable[[int], None]
    ) -> None:
        self.asked = trio.Event()
        self.hurried = False
        self._server = server
        self._output = output
        self._log = output.log
        self._leave = leave
        self._last: tuple[int, float] = (0, -math.inf)

    async def obey(self, signals: AsyncIterable[int]) -> None:
        async for number in signals:
            match number:
                case signal.SIGUSR1:
                    self._say_status()
                case signal.SIGHUP:
                    self._output.reopen()
                case _:
                    self._stop(signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        # What runs us may pass on what the terminal has sent us already, as
        # timeout(1) does, or send its own: then it is the same one. QUIT is not,
        # for it asks for more.
        last, at = self._last
        asks_for_more = number == signal.SIGQUIT and last != signal.SIGQUIT
        if trio.current_time() - at < _SAME and not asks_for_more:
            return
        self._last = number, trio.current_time()
        if self.hurried:
            self._leave(EXIT_CUT)
        elif number == signal.SIGQUIT:
            self._say_status()
            self._cut(number.name)
        elif self.asked.is_set():
            self._cut(f"a second signal, {number.name}")
        else:
            self._drain(number.name)

    def _say_status(self) -> None:
        lost = self._output.unwritten
        fields = status_fields(self._server, lost)
        self._log.say("status", *status_text(self._server, lost), **fields)

    def _drain(self, reason: str) -> None:
        # Said before anything is done: draining may take long.
        say_draining(self._log, self._server, reason)
        self._server.start_draining(reason=reason)
        self.asked.set()

    def _cut(self, reason: str) -> None:
        say_cutting(self._log, self._server)
        self.hurried = True
        # The first time that would still wait for the lame duck.
        self._server.start_draining(reason=reason)
        self._server.start_draining(0, reason=reason)
        self.asked.set()

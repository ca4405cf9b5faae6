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
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Sequence,
)

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
from ._log import Log
from ._loops import find_loop
from ._messages import (
    say_cutting,
    say_drained,
    say_draining,
    say_ready,
    say_unknown_names,
    why_not,
)
from ._output import Output
from ._port_file import PortFile
from ._program import WrongUsage
from ._status import status_fields, status_text

Listeners = Sequence[trio.SocketListener | UnixListener]

#: Served until told to stop, and nothing was cut.
EXIT_DRAINED = 0
#: Connections were cut, tasks hung, or a second signal asked for it.
EXIT_CUT = 3

#: Seconds within which a signal that comes again is the same one.
_SAME = 0.3


async def main(job: Job, output: Output) -> int:
    """Listen and serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises:
      click.ClickException: saying why it can't listen, or no longer can; or that
        a target is a listener of its own.
    """
    listeners = await listen_or_say(*job.listen)
    try:
        await refuse_loop(job, listeners)
        with announced_ports(job, listeners) as port_file, stop_signals() as signals:
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
                    await trio.socket.getaddrinfo(target.host, target.port)
                except (OSError, UnicodeError):
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
        stop = _Stop(server, output, port_file, leave)
        nursery.start_soon(stop.obey, signals)
        nursery.start_soon(output.watch, server)
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
        # The task that obeys signals has to be there until the very end, because
        # Trio raises again whatever it has not taken.
        nursery.cancel_scope.cancel()
    return code


class _Stop:
    # What signals ask for: the first drains, the second cuts, the third leaves.

    def __init__(
        self,
        server: Server,
        output: Output,
        port_file: PortFile | None,
        leave: Callable[[int], None],
    ) -> None:
        self.asked = trio.Event()
        self.hurried = False
        self._server = server
        self._output = output
        self._log = output.log
        self._port_file = port_file
        self._leave = leave
        self._last: tuple[int, float] = (0, -math.inf)

    async def obey(self, signals: AsyncIterable[int]) -> None:
        async for number in signals:
            if number == signal.SIGUSR1:
                lost = self._output.unwritten
                fields = status_fields(self._server, lost)
                self._log.say("status", *status_text(self._server, lost), **fields)
            elif not self.asked.is_set():
                self._drain(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._log.say("draining", "already draining", reason="SIGHUP")
            elif self._is_same(number):
                continue
            elif not self.hurried:
                self._cut(signal.Signals(number).name)
            else:
                self._leave(EXIT_CUT)
            self._last = (number, trio.current_time())

    def _is_same(self, number: int) -> bool:
        # What runs us may pass on what the terminal has sent us already:
        # timeout(1) does.
        last, at = self._last
        return number == last and trio.current_time() - at < _SAME

    def _drain(self, name: str) -> None:
        if self._port_file is not None:
            self._port_file.remove()
        # Said before anything is done: draining may take long.
        say_draining(self._log, self._server, name)
        self._server.start_draining(reason=name)
        self.asked.set()

    def _cut(self, name: str) -> None:
        say_cutting(self._log, self._server)
        self.hurried = True
        self._server.start_draining(0, reason=f"a second signal, {name}")


@contextlib.contextmanager
def stop_signals() -> Generator[AsyncIterator[int]]:
    """Receive SIGTERM, SIGINT, SIGHUP, SIGUSR1; after the block they are ignored.

    A program that was started with SIGHUP ignored (``nohup``) keeps it so.
    """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def too_early_or_late(number: int, frame: object) -> None:
        # Trio puts this back when its block ends. By then the process is on its
        # way out with an exit code of its own, which a signal may not replace.
        if not over and number != signal.SIGUSR1:
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

"""Serve until a signal says stop: the part of the command that runs under Trio.

A service in, an exit code out. Nothing here knows the command line, or writes
except through an `Output`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterable, Callable, Sequence

import click
import trio

from trioserve import Listener, Server, serve

from ._listening import announced_ports, listen, refuse_loop
from ._lookup import unknown_hosts
from ._port_file import PortFile
from ._service import Service
from ._signals import Signals
from ._stop import EXIT_CUT, EXIT_DRAINED, Stop
from .output._log import Log
from .output._messages import log_drained
from .output._output import Output
from .output._startup import log_ready, log_unknown_names


async def main(service: Service, output: Output, signals: Signals) -> int:
    """Listen and serve until SIGTERM, SIGINT or SIGQUIT; return the exit code.

    Raises:
      SystemExit: a signal came before it served; nothing is left behind.
      click.ClickException: it can't listen, its last listener has failed, or a
        target is one of its own listeners.
    """
    listeners = await signals.unless_stopped(listen, service)
    try:
        await signals.unless_stopped(refuse_loop, service, listeners)
        with announced_ports(service, listeners) as port_file:
            return await run(service, listeners, output, signals, port_file=port_file)
    except ExceptionGroup as group:
        # `serve` raises this when its last listener has failed.
        match group.exceptions:
            case [OSError() as error]:
                raise click.ClickException(f"can't accept any more: {error}") from group
            case _:
                raise
    finally:
        # `serve` closes the listeners; closing them again does nothing. They are
        # still open if it was never called.
        for listener in listeners:
            with trio.CancelScope(shield=True):
                await listener.aclose()


async def run(
    service: Service,
    listeners: Sequence[Listener],
    output: Output,
    signals: AsyncIterable[int],
    *,
    port_file: PortFile | None = None,
    leave: Callable[[int], None] = os._exit,
) -> int:
    """Serve until the first of ``signals``, drain, and log how the drain went.

    ``leave`` ends the process without unwinding: at a third signal, and when a
    task hangs, because a nursery can't be left while one of its tasks runs.

    Returns:
      `EXIT_DRAINED` or `EXIT_CUT`.
    """
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(
                serve,
                service.handler,
                listeners,
                limits=service.limits,
                timeouts=service.timeouts,
                layers=service.layers,
                sockets=service.sockets,
                collector=output.collect,
            )
        )
        log_ready(output.log, service, server)
        stop = Stop(server, output, leave, service.states, service.reload)
        nursery.start_soon(stop.obey, signals)
        nursery.start_soon(output.watch, server)
        if port_file is not None:
            nursery.start_soon(_remove_when_closed, port_file, server)
        nursery.start_soon(_warn_of_unknown_hosts, service, output.log)
        if service.live:
            nursery.start_soon(output.show, server)
        await stop.asked.wait()
        # Not with `within`: that deadline would shorten the drain.
        summary = await server.drain()
        output.end_show()
        lost = output.end_reports(server.statistics().lost)
        log_drained(output.log, summary, server, lost)
        code = EXIT_DRAINED if summary.clean and not stop.cutting else EXIT_CUT
        if summary.stuck:
            output.flush()
            leave(code)
        nursery.cancel_scope.cancel()
    return code


async def _remove_when_closed(port_file: PortFile, server: Server) -> None:
    # As long as the port file is there, a script may rely on connecting.
    await server.draining.wait()
    port_file.remove()


async def _warn_of_unknown_hosts(service: Service, log: Log) -> None:
    within = service.timeouts.connect
    log_unknown_names(log, await unknown_hosts(service.target_addresses, within=within))

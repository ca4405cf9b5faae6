"""Turn the options of `echo` and `proxy` into a service, and run it.

Values of options in, an exit code out. Nothing here parses text, or runs under
Trio.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import Any

import click

from trioserve import Address, Attempt, Handler, Layers, Timeouts, echo, proxy
from trioserve.faults import Faults

from . import _run
from ._environment import misspelt_variables
from ._fault_options import SeededFaults
from ._options import limits_of
from ._program import WrongUsage
from ._service import Service
from ._signals import Signals
from .output._opening import open_output
from .output._startup import log_low_default

#: Thresholds of Python's garbage collector; the default is (700, 10, 10).
_GARBAGE = (50_000, 20, 20)


def serve_command(
    signals: Signals,
    commands: Iterable[click.Command],
    name: str,
    first: Address | None,
    targets: tuple[Address, ...],
    *,
    listen: tuple[Address, ...],
    max_connections: int | None,
    per_peer: int | None,
    per_peer_prefix: int,
    when_full: str,
    access: tuple[str, ...],
    log: Any,
    log_connections: Any,
    live: bool,
    reports: str | None,
    port_file: str | None,
    fault: SeededFaults | None = None,
    seed: int | None = None,
    **durations: float,
) -> int:
    """Run echo, or a proxy if there are targets, until a signal stops it.

    Args:
      commands: all of the program's, to warn of variables in the environment that
        look like misspelt options.
      first: the address given as an argument; it comes before those of ``listen``.

    Returns:
      the exit code.

    Raises:
      click.ClickException: it can't serve.
    """

    def on_attempt(target: Address, attempt: Attempt) -> None:
        # Called while serving, when ``output`` is bound.
        output.attempt(target, attempt)

    timeouts = Timeouts(**durations)
    faults = fault.faults if fault else Faults()
    if seed is None:
        seed = fault.seed if fault and fault.seed else 0
    handler: Handler = echo
    try:
        if targets:
            handler = proxy(
                *targets,
                timeouts=timeouts,
                faults=faults,
                seed=seed,
                on_attempt=on_attempt,
            )
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    service = Service(
        name=name,
        listen=(first, *listen) if first is not None else listen,
        targets=targets,
        handler=handler,
        limits=limits_of(max_connections, per_peer, per_peer_prefix, when_full),
        timeouts=timeouts,
        layers=Layers(access=access),
        port_file=port_file,
        live=live,
        faults=faults,
        seed=seed,
    )
    # Modules stay, and connections leave no cycles behind: a collection takes half
    # a second when thousands are open, and finds nothing.
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    with open_output(name, log, reports, connections=log_connections) as output:
        for text in misspelt_variables(commands, os.environ):
            output.log.say("unknown-setting", text, level="warning")
        if max_connections is None:
            log_low_default(output.log, service)
        return signals.run(_run.main, service, output, signals)

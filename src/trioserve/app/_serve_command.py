"""Turn the options of `echo` and `proxy` into a service, and run it.

Values of options in, an exit code out. Nothing here parses text, or runs under
Trio.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import Any, Literal

import click

from trioserve import (
    Address,
    Attempt,
    Handler,
    Layers,
    Proxy,
    SocketOptions,
    Target,
    TargetState,
    Timeouts,
    echo,
    proxy,
)
from trioserve.faults import Faults

from . import _run
from ._environment import misspelt_variables
from ._fault_options import SeededFaults
from ._options import limits_of
from ._program import WrongUsage
from ._service import Given, Service
from ._signals import Signals
from ._sni_options import NamedTarget, by_name
from ._target_options import take_health
from ._tls_options import take_tls_options
from ._values import Rate
from .output._opening import open_output
from .output._startup import log_low_default

#: Thresholds of Python's garbage collector; the default is (700, 10, 10).
_GARBAGE = (50_000, 20, 20)


def serve_command(
    signals: Signals,
    commands: Iterable[click.Command],
    name: str,
    first: Address | None,
    targets: tuple[Given, ...],
    *,
    listen: tuple[Address, ...],
    max_connections: int | None,
    per_peer: int | None,
    per_peer_prefix: int,
    rate: Rate | None,
    max_handshakes: int | None,
    when_full: str,
    access: tuple[str, ...],
    direct_access: tuple[str, ...],
    accept_proxy: tuple[str, ...],
    keepalive: float,
    user_timeout: float,
    backlog: int | None,
    reuse_port: bool,
    log: Any,
    log_connections: Any,
    live: bool,
    reports: str | None,
    port_file: str | None,
    sni: tuple[NamedTarget, ...] = (),
    send_proxy: Literal["v1", "v2"] | None = None,
    source: str | None = None,
    balance: Any = "first",
    max_per_target: int | None = None,
    fault: SeededFaults | None = None,
    seed: int | None = None,
    **others: Any,
) -> int:
    """Run echo, or a proxy if there are targets, until a signal stops it.

    Args:
      commands: all of the program's, to warn of variables in the environment that
        look like misspelt options.
      first: the address given as an argument; it comes before those of ``listen``.
      others: the options for TLS, those for the health of targets, and the timeouts.

    Returns:
      the exit code.

    Raises:
      click.ClickException: it can't serve.
    """

    def on_attempt(target: Address, attempt: Attempt) -> None:
        # Called while serving, when ``output`` is bound.
        output.attempt(target, attempt)

    def on_target(state: TargetState) -> None:
        output.target_changed(state)

    tls = take_tls_options(others)
    if tls is not None and sni:
        raise WrongUsage(
            "--sni passes TLS on, and --tls-cert ends it; leave one of them out"
        )
    health = take_health(others)
    timeouts = Timeouts(**others)
    faults = fault.faults if fault else Faults()
    if seed is None:
        seed = fault.seed if fault and fault.seed else 0
    sockets = SocketOptions(keepalive=keepalive, user_timeout=user_timeout)
    handler: Handler = echo
    proxies: list[Proxy] = []

    def proxy_to(*several: Given) -> Handler:
        match several:
            case [Target(each_address=False)]:
                # It is never left out, but a check may say that it is down.
                tells = health.check is not None
            case _:
                tells = True
        made = proxy(
            *several,
            balance=balance,
            health=health,
            max_per_target=max_per_target,
            timeouts=timeouts,
            faults=faults,
            seed=seed,
            on_attempt=on_attempt,
            on_target=on_target if tells else None,
            send_proxy=send_proxy,
            sockets=sockets,
            source=source,
        )
        proxies.append(made)
        return made

    try:
        if sni:
            handler = by_name(sni, proxy_to, targets)
        elif targets:
            handler = proxy_to(*targets)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    service = Service(
        name=name,
        listen=(first, *listen) if first is not None else listen,
        targets=targets,
        named_targets=tuple((each.name, each.target) for each in sni),
        balance=balance,
        handler=handler,
        states=lambda: [state for each in proxies for state in each.targets()],
        reload=lambda: sum(each.reload_targets() for each in proxies) > 0,
        limits=limits_of(
            max_connections, per_peer, per_peer_prefix, rate, max_handshakes, when_full
        ),
        timeouts=timeouts,
        layers=Layers(
            access=access,
            direct_access=direct_access,
            accept_proxy=accept_proxy,
            tls=tls,
        ),
        sockets=sockets,
        backlog=backlog,
        reuse_port=reuse_port,
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

"""The command line: words and options in, a job and an exit code out.

Nothing here serves. What does, and everything slow to import, is loaded by the
command that needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeVar

import click

from trioserve import Address, Limits, Timeouts

from ._log import Format
from ._program import Program, WrongUsage
from ._values import format_duration, parse_duration

Command = TypeVar("Command", bound=Callable[..., Any])

# Hosts that are this machine, with the versions of IP that they stand for.
_LOCAL = {
    "": frozenset({4, 6}),
    "0.0.0.0": frozenset({4}),
    "::": frozenset({6}),
    "localhost": frozenset({4, 6}),
    "127.0.0.1": frozenset({4}),
    "::1": frozenset({6}),
}
_TIMEOUT_HELP = {
    "connect": "Dialing TARGET, its name look-up included.",
    "first_byte": "From accept to the client's first byte.",
    "idle": "Silence while both directions are open.",
    "half_closed": "Silence once one direction has ended.",
    "write_stall": "A receiver that takes no bytes.",
    "lifetime": "The whole of a connection.",
    "drain": "After a signal, how long connections may go on.",
    "drain_idle": "Silence after which a draining connection is closed.",
    "lame_duck": "After a signal, how long new connections are still accepted.",
    "cleanup": "After the cut, how long to wait for what still runs.",
    "linger": "For a client to close after its connection was served.",
}
_EPILOG = (
    "TIME is 500ms, 10s, 2m, 1h, a number of seconds, or 'never'. Every option can"
    " be given in the environment, like TRIOSERVE_PROXY_IDLE=10m. Signals: TERM, INT"
    " and HUP drain; a second TERM or INT cuts. Exit codes: 0 drained, 1 failed, 2"
    " wrong usage, 3 connections were cut."
)


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    click.echo(f"trioserve {metadata.version('trioserve')}")
    ctx.exit()


@click.group(
    "trioserve",
    cls=Program,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "TRIOSERVE",
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Serve TCP: limits, timeouts, draining, and a report on every connection.

    \b
    Examples:
      trioserve echo
      trioserve proxy 127.0.0.1:8080 example.org:80
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command with the arguments of this process."""
    cli.main()


def _check_timeout(ctx: click.Context, param: click.Parameter, seconds: float) -> float:
    try:
        Timeouts(**{param.name or "": seconds})
    except ValueError:
        raise click.BadParameter(
            "must be more than 0; 'never' means no limit", ctx, param
        ) from None
    return seconds


def _serving_options(*, without: frozenset[str]) -> Callable[[Command], Command]:
    # Limits, an option for each timeout that applies, output.
    defaults = dataclasses.asdict(Timeouts())
    options = [
        click.option(
            "--max-connections",
            type=click.IntRange(min=1),
            metavar="N",
            show_default="a quarter of the files that may be open, at most 10000",
            help="Connections served at once.",
        ),
        click.option(
            "--when-full",
            type=click.Choice(["backlog", "refuse"]),
            default="backlog",
            show_default=True,
            help="Leave others in the kernel's queue, or refuse them.",
        ),
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                type=_duration,
                default=format_duration(defaults[name]),
                show_default=True,
                metavar="TIME",
                callback=_check_timeout,
                help=text,
            )
            for name, text in _TIMEOUT_HELP.items()
            if name not in without
        ),
        click.option(
            "--log",
            type=click.Choice(["text", "logfmt", "json"]),
            show_default="text on a terminal, else logfmt",
            help="How to write messages, on stderr.",
        ),
        click.option(
            "--reports",
            metavar="FILE",
            help="Append a line of JSON per connection; '-' is stdout.",
        ),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@cli.command("echo", epilog=_EPILOG)
@click.argument("listen", type=_address, default="127.0.0.1:7000")
@_serving_options(without=frozenset({"connect"}))
def echo_command(listen: Address, **options: Any) -> int:
    """Send everything back that arrives on LISTEN (127.0.0.1:7000).

    \b
    Examples:
      trioserve echo
      trioserve echo :7000 --max-connections 100 --idle 1m
    """
    return _serve(listen, None, **options)


@cli.command("proxy", epilog=_EPILOG)
@click.argument("listen", type=_address)
@click.argument("target", type=_address)
@_serving_options(without=frozenset())
@click.pass_context
def proxy_command(
    ctx: click.Context, /, listen: Address, target: Address, **options: Any
) -> int:
    """Accept connections on LISTEN and relay each to TARGET.

    \b
    Examples:
      trioserve proxy 127.0.0.1:8080 example.org:80
      trioserve proxy :5432 db:5432 --drain 2m --reports connections.jsonl
    """
    if not target.host or not target.port:
        raise WrongUsage(
            f"TARGET {target} needs a host and a port, like 127.0.0.1:9000", ctx
        )
    if _is_loop(listen, target):
        raise WrongUsage(
            f"TARGET {target} is LISTEN {listen} itself, a loop; give the address"
            " of another server",
            ctx,
        )
    return _serve(listen, target, **options)


@cli.command("demo")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="S",
    help="How long clients keep coming.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="N",
    help="How many clients there are.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Decides which client does what, and when.",
)
def demo_command(seconds: float, clients: int, seed: int) -> int:
    """See it at work: a proxy, its target, and clients of every temper.

    \b
    Examples:
      trioserve demo
      trioserve demo --clients 1000 --seconds 10

    Needs no other machine. At the end every byte and every connection is
    accounted for; the exit code is 1 if something does not add up.
    """
    import trio

    from . import _demo
    from ._writer import LineWriter

    _raise_open_files_limit()
    writer = LineWriter(1)
    try:
        return trio.run(_demo.main, seconds, clients, seed, writer.write)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None
    finally:
        writer.close(2.0)


def _is_loop(listen: Address, target: Address) -> bool:
    # Whether a proxy would dial itself, as far as the text tells.
    if listen.port == 0 or listen.port != target.port:
        return False
    here, there = listen.host.lower(), target.host.lower()
    families = _LOCAL.get(here, frozenset()) & _LOCAL.get(there, frozenset())
    return here == there or bool(families)


def _serve(
    listen: Address,
    target: Address | None,
    *,
    max_connections: int | None,
    when_full: Literal["backlog", "refuse"],
    log: Format | None,
    reports: str | None,
    **durations: float,
) -> int:
    # Run echo, or a proxy when there is a target; return the exit code.
    import trio

    from trioserve import echo, proxy

    from ._job import Job
    from ._output import open_output
    from ._run import main

    _raise_open_files_limit()
    limits = Limits(when_full=when_full)
    if max_connections is not None:
        limits = dataclasses.replace(limits, max_connections=max_connections)
    timeouts = Timeouts(**durations)
    job = Job(
        name="proxy" if target else "echo",
        listen=listen,
        target=target,
        handler=proxy(target, timeouts=timeouts) if target else echo,
        limits=limits,
        timeouts=timeouts,
    )
    with open_output(log, reports) as output:
        return trio.run(main, job, output)


def _raise_open_files_limit() -> None:
    # The soft limit is there for programs that still call select(2).
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""The command line: words and options in, a job and an exit code out.

Nothing here serves. What does, and everything slow to import, is loaded by the
command that needs it.
"""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Sequence
from typing import Any

import click

from trioserve import Address, Attempt, TcpAddress, Timeouts

from ._faults import Case, fault_options
from ._options import (
    address,
    count,
    limits_of,
    misspelt_variables,
    raise_open_files_limit,
    serving_options,
    settings_text,
)
from ._program import Program, WrongUsage, no_such, say
from ._topics import TOPICS
from ._values import DURATIONS

_EPILOG = (
    f"TIME is {DURATIONS}. Every option can be given in the environment, like"
    f" TRIOSERVE_IDLE=10m. More: trioserve help {'|'.join(TOPICS)}"
)
#: When Python looks for garbage cycles; the default is (700, 10, 10).
_GARBAGE = (50_000, 20, 20)
#: Where echo listens if it is not told where.
_ECHO = TcpAddress("127.0.0.1", 7000)
_SHELLS = ("bash", "zsh", "fish")


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    say(f"trioserve {metadata.version('trioserve')}")
    ctx.exit()


@click.group(
    "trioserve",
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Topics: {', '.join(TOPICS)}",
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
        say(ctx.get_help())


@cli.command("proxy", short_help="Relay connections to a target.", epilog=_EPILOG)
@click.argument("first", type=address, metavar="LISTEN")
@click.argument("targets", type=address, metavar="TARGET...", nargs=-1, required=True)
@serving_options()
@fault_options()
def proxy_command(first: Address, targets: tuple[Address, ...], **options: Any) -> int:
    """Accept connections on LISTEN and relay each to the first TARGET that answers.

    \b
    Examples:
      trioserve proxy 127.0.0.1:8080 example.org:80
      trioserve proxy :5432 db1:5432 db2:5432 --drain 2m --reports db.jsonl
    """
    return _serve("proxy", first, targets, **options)


@cli.command("echo", short_help="Send back what arrives.", epilog=_EPILOG)
@click.argument("first", type=address, metavar="[LISTEN]", required=False)
@serving_options(without=frozenset({"connect"}))
def echo_command(first: Address | None, **options: Any) -> int:
    """Send everything back that arrives on LISTEN, or else on 127.0.0.1:7000.

    \b
    Examples:
      trioserve echo
      trioserve echo :7000 --max-connections 100 --idle 1m
    """
    if first is None and not options["listen"]:
        first = _ECHO
    return _serve("echo", first, (), **options)


@cli.command("demo", short_help="See it at work, and the accounts add up.")
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
    from . import _demo
    from ._screen import open_screen
    from ._signals import Signals
    from ._standard_files import STDOUT
    from ._writer import LineWriter

    signals = Signals()
    raise_open_files_limit()
    errors: list[OSError] = []
    writer = LineWriter(STDOUT, on_error=errors.append)
    screen = open_screen(STDOUT, writer.write)
    write = writer.write if screen is None else screen.line

    async def main() -> int:
        return await signals.unless_stopped(
            _demo.main, seconds, clients, seed, write, screen
        )

    try:
        code = signals.run(main)
    finally:
        writer.close(2.0)
    for error in errors:
        if error.errno != errno.EPIPE:  # whoever has seen enough may leave
            raise click.ClickException(f"can't write to stdout: {error.strerror}")
    return code


@cli.command("explain", short_help="Say what happened to connections, and why.")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--id", type=count, metavar="N", help="Explain this connection.")
def explain_command(file: str, id: int | None) -> None:
    """Say in sentences what happened to connections that did not end well.

    \b
    Examples:
      trioserve explain connections.jsonl
      trioserve explain connections.jsonl --id 7

    FILE was written by --reports; '-' is stdin.
    """
    from ._explain import explain
    from ._records import read_records

    for line in explain(read_records(file), id):
        say(line)


@cli.command("reports", short_help="Sum up how connections went.")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def reports_command(file: str, as_json: bool) -> None:
    """Sum a file of reports up: how many ended how, how long it took, who came.

    \b
    Examples:
      trioserve reports connections.jsonl
      trioserve reports connections.jsonl --json | jq .seconds.connect.p99

    FILE was written by --reports; '-' is stdin. Percentiles are by nearest rank.
    """
    from ._records import read_records
    from ._summary import Summary, summary_json, summary_text

    summary = Summary(read_records(file))
    for line in [summary_json(summary)] if as_json else summary_text(summary):
        say(line)


@cli.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL")
def completion_command(shell: str) -> None:
    """Print what makes a SHELL complete commands and options.

    \b
    Examples:
      eval "$(trioserve completion bash)"
      trioserve completion fish | source
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    made = completion(cli, {}, "trioserve", "_TRIOSERVE_COMPLETE")
    say(made.source())


def _complete_topic(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str]:
    return [w for w in (*TOPICS, *cli.commands) if w.startswith(incomplete)]


@cli.command(
    "help",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument(
    "words",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[COMMAND|TOPIC]",
    shell_complete=_complete_topic,
)
@click.pass_context
def help_command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Say more about a command or a topic.

    \b
    Examples:
      trioserve help addresses
      trioserve help settings proxy 127.0.0.1:8080 example.org:80 --idle 10m
    """
    assert ctx.parent is not None
    word, *others = words or ("",)
    if word == "settings":
        _print_settings(ctx.parent, others)
    elif others:
        raise WrongUsage(f"got unexpected extra argument ({others[0]})", ctx)
    elif not word:
        say(ctx.parent.get_help())
    elif word in TOPICS:
        say(TOPICS[word])
    elif word in cli.commands:
        command = cli.commands[word]
        with click.Context(command, ctx.parent, word) as about:
            say(command.get_help(about))
    else:
        raise WrongUsage(no_such("topic", word, [*TOPICS, *cli.commands]), ctx)


def _print_settings(parent: click.Context, command_line: Sequence[str]) -> None:
    some_addresses = {"proxy": ["127.0.0.1:0", "127.0.0.1:1"], "echo": []}
    name, *args = command_line or ("proxy",)
    if name not in some_addresses:
        raise WrongUsage(no_such("serving command", name, some_addresses))
    if not args or args[0].startswith("-"):
        # Addresses are no settings, and need not be there.
        args = [*some_addresses[name], *args]
    with cli.commands[name].make_context(name, args, parent) as read:
        lines = list(settings_text(read))
    if not command_line:
        say(TOPICS["settings"] + "\n")
    for line in lines:
        say(line)


def _serve(
    name: str,
    first: Address | None,
    targets: tuple[Address, ...],
    *,
    listen: tuple[Address, ...],
    max_connections: int | None,
    per_peer: int | None,
    per_peer_prefix: int,
    when_full: str,
    log: Any,
    log_connections: Any,
    live: bool,
    reports: str | None,
    port_file: str | None,
    fault: Case | None = None,
    seed: int | None = None,
    **durations: float,
) -> int:
    # Run echo, or a proxy when there are targets; return the exit code.
    from ._signals import Signals

    signals = Signals()

    from trioserve import echo, proxy
    from trioserve.faults import Faults

    from ._job import Handler, Job
    from ._messages import say_few_files
    from ._output import open_output
    from ._run import main

    def on_attempt(target: Address, attempt: Attempt) -> None:
        # While it serves; then there is an output.
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
    job = Job(
        name=name,
        listen=(first, *listen) if first is not None else listen,
        targets=targets,
        handler=handler,
        limits=limits_of(max_connections, per_peer, per_peer_prefix, when_full),
        timeouts=timeouts,
        port_file=port_file,
        live=live,
        faults=faults,
        seed=seed,
    )
    # What is imported stays, and what connections leave behind makes no cycles:
    # with thousands that are open, to look for some takes half a second.
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    with open_output(name, log, reports, connections=log_connections) as output:
        for text in misspelt_variables(cli.commands.values(), os.environ):
            output.log.say("misspelt", text, level="warning")
        if max_connections is None:
            say_few_files(output.log, job)
        return signals.run(main, job, output, signals)

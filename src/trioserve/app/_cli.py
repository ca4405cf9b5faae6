"""The command line: arguments and options in, an exit code out.

Nothing here serves. Each command imports what it needs when it runs, so that
help and completion are fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from trioserve import Address, TcpAddress

from ._access_options import ServingCommand
from ._environment import settings_text
from ._fault_options import fault_options
from ._network_options import count, dialing_options
from ._options import address, serving_options
from ._program import Program, WrongUsage, no_such, say
from ._service import Given
from ._sni_options import RoutingCommand, sni_option
from ._target_options import balancing_options, target
from ._topics import TOPICS
from ._values import DURATIONS

_EPILOG = (
    f"TIME is {DURATIONS}. Every option can also be set in the environment, like"
    f" TRIOSERVE_IDLE=10m. More: trioserve help {'|'.join(TOPICS)}"
)
#: Where echo listens by default.
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


@cli.command(
    "proxy",
    cls=RoutingCommand,
    short_help="Relay connections to a target.",
    epilog=_EPILOG,
)
@click.argument("first", type=address, metavar="LISTEN")
@click.argument("targets", type=target, metavar="TARGET...", nargs=-1)
@serving_options()
@sni_option()
@balancing_options()
@dialing_options()
@fault_options()
def proxy_command(first: Address, targets: tuple[Given, ...], **options: Any) -> int:
    """Accept connections on LISTEN and relay each to a TARGET that answers.

    \b
    Examples:
      trioserve proxy 127.0.0.1:8080 example.org:80
      trioserve proxy :5432 db1:5432 db2:5432 --drain 2m --reports db.jsonl
    """
    return _serve("proxy", first, targets, **options)


@cli.command(
    "echo",
    cls=ServingCommand,
    short_help="Send back everything that arrives.",
    epilog=_EPILOG,
)
@click.argument("first", type=address, metavar="[LISTEN]", required=False)
@serving_options(without=frozenset({"connect"}))
def echo_command(first: Address | None, **options: Any) -> int:
    """Send back everything that arrives on LISTEN, by default 127.0.0.1:7000.

    \b
    Examples:
      trioserve echo
      trioserve echo :7000 --max-connections 100 --idle 1m
    """
    if first is None and not options["listen"]:
        first = _ECHO
    return _serve("echo", first, (), **options)


@cli.command("demo", short_help="Run a proxy with simulated clients, and an audit.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Clients keep connecting for S seconds.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="N",
    help="The number of clients.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Seed for what clients do, and when.",
)
def demo_command(seconds: float, clients: int, seed: int) -> int:
    """Run a proxy, its target and simulated clients; check that everything adds up.

    \b
    Examples:
      trioserve demo
      trioserve demo --clients 1000 --seconds 10

    Everything runs on this machine. At the end every byte and every connection
    is accounted for; the exit code is 1 if something does not add up.
    """
    from .demo._command import run_demo

    return run_demo(seconds, clients, seed)


@cli.command("explain", short_help="Explain why connections failed.")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option(
    "--id", type=count, metavar="N", help="Explain this connection, however it ended."
)
def explain_command(file: str, id: int | None) -> None:
    """Explain, in sentences, why connections did not end well.

    \b
    Examples:
      trioserve explain connections.jsonl
      trioserve explain connections.jsonl --id 7

    FILE is a file that --reports wrote; '-' is stdin.
    """
    from .reports._explain import explain
    from .reports._records import read_records

    for line in explain(read_records(file), id):
        say(line)


@cli.command("reports", short_help="Sum up a file of reports.")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def reports_command(file: str, as_json: bool) -> None:
    """Sum up a file of reports: outcomes, times, bytes, peers and targets.

    \b
    Examples:
      trioserve reports connections.jsonl
      trioserve reports connections.jsonl --json | jq .seconds.connect.p99

    FILE is a file that --reports wrote; '-' is stdin. Percentiles are by nearest
    rank.
    """
    from .reports._records import read_records
    from .reports._summary import Summary
    from .reports._tables import summary_json, summary_text

    summary = Summary(read_records(file))
    for line in [summary_json(summary)] if as_json else summary_text(summary):
        say(line)


@cli.command("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL")
def completion_command(shell: str) -> None:
    """Print the completion script for SHELL: bash, zsh or fish.

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
    """Explain a command or a topic.

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
    addresses = {"proxy": ["127.0.0.1:0", "127.0.0.1:1"], "echo": []}
    name, *args = command_line or ("proxy",)
    if name not in addresses:
        raise WrongUsage(no_such("serving command", name, addresses))
    if not args or args[0].startswith("-"):
        # Addresses are not settings: the command line may leave them out.
        args = [*addresses[name], *args]
    with cli.commands[name].make_context(name, args, parent) as read:
        lines = list(settings_text(read))
    if not command_line:
        say(TOPICS["settings"] + "\n")
    for line in lines:
        say(line)


def _serve(
    name: str,
    first: Address | None,
    targets: tuple[Given, ...],
    **options: Any,
) -> int:
    # Handle signals before the slow imports below.
    from ._signals import Signals

    signals = Signals()

    from ._serve_command import serve_command

    commands = cli.commands.values()
    return serve_command(signals, commands, name, first, targets, **options)

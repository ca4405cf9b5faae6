"""The options that every serving command has, and what becomes of them.

Words of the command line or the environment in, limits and timeouts out.
Nothing here serves, and nothing here knows which command it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import click

from trioserve import Address, Limits, TcpAddress, Timeouts, parse_address

from ._program import WrongUsage, closest, origin_of
from ._values import format_duration, parse_duration
from .output._folding import CHOICES

_PREFIX = "TRIOSERVE_"
#: An address of fe80::/10 without its interface.
_LINK_LOCAL = re.compile(r"fe[89ab][0-9a-f]:[^%]*$", re.IGNORECASE)

Command = TypeVar("Command", bound=Callable[..., Any])

_TIMEOUT_HELP = {
    "connect": "Reset the client if no TARGET has answered by then.",
    "first_byte": "Close one over which nothing has come from either side by then.",
    "idle": "Close a connection after so much silence.",
    "half_closed": "Reset a half-closed one after so much silence.",
    "write_stall": "Reset a connection if a receiver takes no byte for so long.",
    "lifetime": "Reset a connection then, whatever it does.",
    "drain": "After a signal, reset what is still open by then.",
    "drain_idle": "After a signal, close what is silent for so long.",
    "lame_duck": "After a signal, accept for so long yet.",
    "cleanup": "After that reset, wait so long for what still runs.",
    "linger": "Wait so long for a served client to close.",
}


#: Where the command does not do what the library does unless it is told.
_DEFAULTS = {"first_byte": 60.0}


def address(text: str) -> Address:
    """The type of an argument or option that is an address."""
    try:
        found = parse_address(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    if isinstance(found, TcpAddress) and _LINK_LOCAL.match(found.host):
        raise WrongUsage(
            f"{text!r} is a link-local address, which each interface has its own of;"
            f" say which, like [{found.host}%eth0]:{found.port}"
        )
    return found


def file_name(text: str) -> str:
    """The type of an option that is the name of a file to be written."""
    if not text:
        raise click.BadParameter("is empty; give the name of a file")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise click.BadParameter(
            f"{text!r} has a control character in it; give the name of a file"
        )
    return text


def count(text: str) -> int:
    """The type of an option that is a number of things, at least 1."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise click.BadParameter(f"{text!r} is not a number of 1 or more")
    return int(text)


def serving_options(
    *, without: frozenset[str] = frozenset()
) -> Callable[[Command], Command]:
    """Add them to a command: limits, an option for each timeout, output.

    Args:
      without: timeouts that the command does not have.
    """
    defaults = dataclasses.asdict(Timeouts()) | _DEFAULTS
    options = [
        option(
            "--listen",
            type=address,
            multiple=True,
            metavar="ADDRESS",
            help="Listen here too; may be given several times.",
        ),
        option(
            "--max-connections",
            type=count,
            metavar="N",
            show_default="from ulimit -n",
            help="Serve so many connections at once.",
        ),
        option(
            "--per-peer",
            type=count,
            metavar="N",
            show_default="any number",
            help="Of these, so many from one peer; refuse others.",
        ),
        option(
            "--per-peer-prefix",
            type=click.IntRange(1, 128),
            default=64,
            show_default=True,
            metavar="BITS",
            help="So much of an IPv6 address says which peer it is.",
        ),
        option(
            "--when-full",
            type=click.Choice(["wait", "refuse"]),
            default="wait",
            show_default=True,
            help="At the limit: leave a client in the kernel's queue, or close it at once.",
        ),
        *(
            option(
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
        option(
            "--log",
            type=click.Choice(["text", "logfmt", "json", "haproxy"]),
            show_default="text on a terminal, else logfmt",
            help="How to write messages, on stderr.",
        ),
        option(
            "--log-connections",
            type=click.Choice(CHOICES),
            default="active",
            show_default=True,
            help="Which to log: 'active' leaves out those that came and went without"
            " a byte, 'failed' also those that ended well.",
        ),
        option(
            "--live",
            is_flag=True,
            help="Show all the time how it stands, on stderr.",
        ),
        option(
            "--reports",
            type=file_name,
            metavar="FILE",
            help="Append a line of JSON per connection; '-' is stdout.",
        ),
        option(
            "--port-file",
            type=file_name,
            metavar="FILE",
            help="Write the port here, as long as it is listened on.",
        ),
    ]

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


def misspelt_variables(
    commands: Iterable[click.Command], environ: Mapping[str, str]
) -> Iterator[str]:
    """Say of each variable that looks like one of the commands' what was meant.

    Others that begin with ``TRIOSERVE_`` are passed over, and so are those that
    Kubernetes makes for a service of that name.
    """
    options = (option for command in commands for option in command.params)
    known = {str(o.envvar).removeprefix(_PREFIX) for o in options if o.envvar}
    for name in environ:
        word = name.removeprefix(_PREFIX)
        if word == name or word in known:
            continue
        if word.startswith(("PORT", "SERVICE_")):
            continue
        if (meant := closest(word, sorted(known))) is not None:
            yield f"{name} is no setting; did you mean {_PREFIX}{meant}?"


def raise_open_files_limit() -> None:
    """Raise this process's soft limit to the hard one.

    The soft one is there for programs that still call select(2).
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limits_of(
    max_connections: int | None,
    per_peer: int | None = None,
    per_peer_prefix: int = 64,
    when_full: Any = "wait",
) -> Limits:
    """The limits that these options ask for; the default is from the open files."""
    raise_open_files_limit()
    limits = Limits(
        max_per_peer=per_peer,
        per_peer_ipv6_prefix=per_peer_prefix,
        when_full=when_full,
    )
    if max_connections is not None:
        limits = dataclasses.replace(limits, max_connections=max_connections)
    return limits


def settings_text(ctx: click.Context) -> Iterator[str]:
    """Every option of a command that was read, its value, and where it came from."""
    rows = [("setting", "value", "from", "in the environment")]
    rows += [
        (option.opts[0], _value_text(ctx, option), origin_of(ctx, option), str(env))
        for option in ctx.command.params
        if isinstance(option, click.Option) and (env := option.envvar)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, last in rows:
        aligned = (c.ljust(width) for c, width in zip(cells, widths, strict=True))
        yield "  ".join((*aligned, last))


def _value_text(ctx: click.Context, option: click.Option) -> str:
    match ctx.params[option.name or ""]:
        case None if option.opts[0] == "--max-connections":
            return str(limits_of(None).max_connections)
        case None:
            default = option.show_default
            return default if isinstance(default, str) else "none"
        case bool(flag):
            return "yes" if flag else "no"
        case float(seconds):
            return format_duration(seconds)
        case tuple(values):
            return " ".join(str(value) for value in values) or "none"
        case value:
            return str(value)


def option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """`click.option`, which can be given in the environment too."""
    envvar = _PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, cls=_Option, envvar=envvar, **attributes)


class _Option(click.Option):
    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        # A file of settings that was written on Windows leaves a CR behind each.
        value = super().resolve_envvar_value(ctx)
        return value.rstrip("\r\n") or None if value else value


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _check_timeout(ctx: click.Context, param: click.Parameter, seconds: float) -> float:
    try:
        Timeouts(**{param.name or "": seconds})
    except ValueError:
        raise click.BadParameter(
            "must be more than 0; 'never' means no limit", ctx, param
        ) from None
    return seconds

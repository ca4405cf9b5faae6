"""The options of every command that serves, and the limits they set.

Text of the command line or the environment in, values out. Nothing here serves,
or knows which command it is.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import click

from trioserve import Address, Limits, TcpAddress, Timeouts, parse_address

from ._access_options import access_options
from ._environment import Command, option
from ._network_options import count, duration, listening_options, rate
from ._open_files import raise_open_files_limit
from ._program import WrongUsage
from ._tls_options import tls_options
from ._values import Rate, format_duration
from .output._suppression import CHOICES

#: A host in fe80::/10 without its interface.
_LINK_LOCAL = re.compile(r"fe[89ab][0-9a-f]:[^%]*$", re.IGNORECASE)

_TIMEOUT_HELP = {
    "connect": "Reset the client if no TARGET answers within this time.",
    "handshake": "Reset a connection whose PROXY header, ClientHello for --sni, or TLS"
    " handshake is not there within this time.",
    "first_byte": "Close a connection if neither side sends a byte within this time.",
    "idle": "Close a connection after this time without a byte.",
    "half_closed": "Reset a half-closed connection after this time without a byte.",
    "write_stall": "Reset a connection if a receiver accepts no byte for this long.",
    "lifetime": "Reset a connection after this time, busy or not.",
    "drain": "Reset connections that are still open this long after the stop signal and"
    " --lame-duck.",
    "drain_idle": "While draining, close a connection after this time without a byte.",
    "lame_duck": "Keep accepting for this long after the stop signal.",
    "cleanup": "At the end of a drain, wait at most this long for tasks to end.",
    "linger": "After serving a client, wait at most this long for it to close.",
}


#: Defaults of the command that differ from the library's.
_DEFAULTS = {"first_byte": 60.0}


def address(text: str) -> Address:
    """The type of an argument or option that is an address."""
    try:
        found = parse_address(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    check_zone(found, text)
    return found


def check_zone(address: Address, text: str) -> None:
    """Check that a link-local address, given as ``text``, has its interface.

    Raises:
      WrongUsage: it has none.
    """
    if isinstance(address, TcpAddress) and _LINK_LOCAL.match(address.host):
        raise WrongUsage(
            f"{text!r} is a link-local address, and needs the name of an interface,"
            f" like [{address.host}%eth0]:{address.port}"
        )


def file_name(text: str) -> str:
    """The type of an option that is the name of a file to write."""
    if not text:
        raise click.BadParameter("is empty; give the name of a file")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise click.BadParameter(
            f"{text!r} has a control character; give the name of a file without one"
        )
    return text


def serving_options(
    *, without: frozenset[str] = frozenset()
) -> Callable[[Command], Command]:
    """A decorator that adds the options for limits, timeouts and output.

    Args:
      without: the timeouts that the command does not have.
    """
    defaults = dataclasses.asdict(Timeouts()) | _DEFAULTS
    options = [
        option(
            "--listen",
            type=address,
            multiple=True,
            metavar="ADDRESS",
            help="Listen on this address too; may be repeated.",
        ),
        option(
            "--max-connections",
            type=count,
            metavar="N",
            show_default="from ulimit -n",
            help="At most N connections at a time.",
        ),
        option(
            "--per-peer",
            type=count,
            metavar="N",
            show_default="no limit",
            help="At most N connections from one peer; more are refused.",
        ),
        option(
            "--per-peer-prefix",
            type=click.IntRange(1, 128),
            default=64,
            show_default=True,
            metavar="BITS",
            help="Count IPv6 addresses with the same first BITS as one peer.",
        ),
        option(
            "--rate",
            type=rate,
            metavar="N/TIME",
            show_default="no limit",
            help="At most N new connections from one peer in this time, like 100/1m;"
            " more are refused.",
        ),
        option(
            "--max-handshakes",
            type=count,
            metavar="N",
            show_default="no limit",
            help="At most N connections of a listener that have not ended their TLS"
            " handshake, or sent their PROXY header, or ClientHello for --sni; the"
            " oldest makes room for a new one.",
        ),
        option(
            "--when-full",
            type=click.Choice(["wait", "refuse"]),
            default="wait",
            show_default=True,
            help="At the limit, let clients wait in the kernel's backlog, or refuse"
            " them.",
        ),
        *access_options(),
        *listening_options(),
        *tls_options(),
        *(
            option(
                f"--{name.replace('_', '-')}",
                type=duration,
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
            help="Format of the log, which goes to stderr.",
        ),
        option(
            "--log-connections",
            type=click.Choice(CHOICES),
            default="active",
            show_default=True,
            help="Which connections to log: 'active' leaves out those that the client"
            " ended without a byte, 'failed' also those that ended well.",
        ),
        option(
            "--live",
            is_flag=True,
            help="Show a live view of the server on stderr.",
        ),
        option(
            "--reports",
            type=file_name,
            metavar="FILE",
            help="Append a line of JSON to FILE for each connection; '-' is stdout.",
        ),
        option(
            "--port-file",
            type=file_name,
            metavar="FILE",
            help="Write the port to FILE; remove it when the server stops accepting.",
        ),
    ]

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


def limits_of(
    max_connections: int | None,
    per_peer: int | None = None,
    per_peer_prefix: int = 64,
    rate: Rate | None = None,
    max_handshakes: int | None = None,
    when_full: Any = "wait",
) -> Limits:
    """The limits that these options set.

    Raises the limit of open files first: the default is computed from it.
    """
    raise_open_files_limit()
    limits = Limits(
        max_per_peer=per_peer,
        rate_per_peer=None if rate is None else (rate.count, rate.seconds),
        per_peer_ipv6_prefix=per_peer_prefix,
        max_handshakes=max_handshakes,
        when_full=when_full,
    )
    if max_connections is not None:
        limits = dataclasses.replace(limits, max_connections=max_connections)
    return limits


def _check_timeout(ctx: click.Context, param: click.Parameter, seconds: float) -> float:
    try:
        Timeouts(**{param.name or "": seconds})
    except ValueError:
        raise click.BadParameter(
            "must be more than 0; 'never' means no limit", ctx, param
        ) from None
    return seconds

"""The options of sockets and of the PROXY protocol.

Text of the command line or the environment in, values out. Nothing here opens a
socket.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any

import click

from trioserve import SocketOptions

from ._access_options import network
from ._environment import Command, option
from ._values import Rate, format_duration, parse_duration

_UNITS = frozenset({"ms", "s", "m", "h", "d"})


def count(text: str) -> int:
    """The type of an option that is a number of things, at least 1."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise click.BadParameter(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def duration(text: str) -> float:
    """The type of an option that is a time: seconds, ``math.inf`` for never."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def rate(text: str) -> Rate:
    """The type of an option that is a number of things in a time."""
    number, slash, time = text.partition("/")
    if not slash:
        raise click.BadParameter(f"{text!r} has no time; use N/TIME, like 100/1m")
    seconds = duration(f"1{time}" if time in _UNITS else time)
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"the time in {text!r} is not more than 0 and finite")
    return Rate(count(number), seconds)


def ip_address(text: str) -> str:
    """The type of an option that is an IP address of this machine."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not an IP address; use one of this machine, like 10.0.0.5"
        ) from None
    if "%" in text:
        raise click.BadParameter(f"{text!r} has a zone; leave it out")
    return str(address)


def listening_options() -> list[Callable[[Command], Command]]:
    """A decorator for each option of all commands that serve."""
    return [
        option(
            "--accept-proxy",
            type=network,
            multiple=True,
            metavar="NETWORK",
            help="Each connection from this network begins with a PROXY header, v1 or"
            " v2, which declares its client; may be repeated.",
        ),
        *(
            option(
                f"--{name.replace('_', '-')}",
                type=duration,
                default=format_duration(getattr(SocketOptions(), name)),
                show_default=True,
                metavar="TIME",
                callback=_check_socket_option,
                help=text,
            )
            for name, text in _SOCKET_HELP.items()
        ),
        option(
            "--backlog",
            type=count,
            metavar="N",
            show_default="as many as the system allows",
            help="Let the kernel queue at most N connections that are not accepted.",
        ),
        option(
            "--reuse-port",
            is_flag=True,
            help="Share the ports with other processes that have this option too.",
        ),
    ]


_SOCKET_HELP = {
    "keepalive": "Ask a peer that is silent for this time for a sign of life (TCP"
    " keepalive); after the same time again, it is gone.",
    "user_timeout": "Give up a peer that does not acknowledge bytes for this time"
    " (TCP_USER_TIMEOUT).",
}


def dialing_options() -> Callable[[Command], Command]:
    """A decorator that adds the options of a command that dials."""

    def decorate(command: Command) -> Command:
        command = option(
            "--source",
            type=ip_address,
            metavar="ADDRESS",
            show_default="the system chooses",
            help="Connect to each TARGET from this address of this machine.",
        )(command)
        return option(
            "--send-proxy",
            type=click.Choice(["v1", "v2"]),
            help="Send TARGET a PROXY header of this version first, which declares the"
            " client, and in v2 its TLS.",
        )(command)

    return decorate


def _check_socket_option(
    ctx: click.Context, param: click.Parameter, seconds: float
) -> float:
    name = param.name or ""
    options: dict[str, Any] = {name: seconds}
    try:
        SocketOptions(**options)
    except ValueError as error:
        text = str(error).removeprefix(f"{name} ").replace("math.inf", "'never'")
        raise click.BadParameter(text, ctx, param) from None
    return seconds

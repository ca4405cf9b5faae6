"""The targets of a proxy, and the options of balancing.

Text of the command line or the environment in, values out. Nothing here dials.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import click

from trioserve import Health, Target, TargetFile, parse_target

from ._environment import Command, option
from ._network_options import count, duration
from ._options import check_zone
from ._program import WrongUsage
from ._service import Given
from ._values import ByteText, format_duration, parse_bytes


def target(text: str) -> Given:
    """The type of an argument that is a target, or a file that lists targets."""
    try:
        found = parse_target(text)
        targets = found.read() if isinstance(found, TargetFile) else ()
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    for each in (found,) if isinstance(found, Target) else targets:
        check_zone(each.address, str(each))
    return found


def balancing_options() -> Callable[[Command], Command]:
    """A decorator that adds the options of a command with targets."""
    options = [
        option(
            "--balance",
            type=click.Choice(
                ["first", "round-robin", "least-connections", "random", "source"]
            ),
            default="first",
            show_default=True,
            help="How a connection gets one of the TARGETs that are up: the first, in"
            " turn, the one with the fewest connections, the better one of two drawn at"
            " random, or by the client's address.",
        ),
        option(
            "--fall",
            type=count,
            default=str(Health().fall),
            show_default=True,
            metavar="N",
            help="Leave out a TARGET when N attempts in a row have failed.",
        ),
        option(
            "--pause",
            type=duration,
            default=format_duration(Health().pause),
            show_default=True,
            metavar="TIME",
            callback=_check_pause,
            help="Try a TARGET that was left out after this time; after twice the time"
            " when that fails again, up to 30s. 0s leaves none out.",
        ),
        option(
            "--check",
            type=duration,
            metavar="TIME",
            show_default="no checks",
            callback=_check_check,
            help="Connect to each TARGET every TIME, without a client. It is left out"
            " after --fall checks in a row that fail too, or its first one, and until"
            " --rise checks in a row have passed.",
        ),
        option(
            "--rise",
            type=count,
            default=str(Health().rise),
            show_default=True,
            metavar="N",
            help="Use a TARGET again when N checks in a row have passed.",
        ),
        option(
            "--slow-start",
            type=duration,
            default=format_duration(Health().slow_start),
            show_default=True,
            metavar="TIME",
            callback=_check_slow_start,
            help="Let the share of a TARGET that has come up grow in this time.",
        ),
        option(
            "--check-send",
            type=byte_text,
            metavar="BYTES",
            show_default="nothing",
            help=r"Send these bytes in each check, like 'PING\r\n'.",
        ),
        option(
            "--check-expect",
            type=byte_text,
            metavar="BYTES",
            show_default="nothing",
            help="A check passes if the answer begins with these bytes, like '+PONG'.",
        ),
        option(
            "--max-per-target",
            type=count,
            metavar="N",
            show_default="no limit",
            help="At most N connections to each TARGET; more wait until --connect.",
        ),
    ]

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


def byte_text(text: str) -> ByteText:
    """The type of an option that is bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def take_health(options: dict[str, Any]) -> Health:
    """Take the options out that set the health, and return it.

    Raises:
      WrongUsage: one of them needs another one.
    """
    names = [field.name for field in dataclasses.fields(Health)]
    given = {name: options.pop(name) for name in names if name in options}
    for name in ("check_send", "check_expect"):
        text = given.pop(name, None)
        given[name] = b"" if text is None else text.data
    if given.get("check") is None and (given["check_send"] or given["check_expect"]):
        raise WrongUsage("--check-send and --check-expect need --check TIME")
    if given["check_send"] and not given["check_expect"]:
        raise WrongUsage("--check-send needs --check-expect: an answer to wait for")
    longest = max(Health().max_pause, given.get("pause", 0.0))
    return Health(max_pause=longest, **given)


def _check_slow_start(
    ctx: click.Context, param: click.Parameter, seconds: float
) -> Any:
    if seconds == math.inf:
        raise click.BadParameter("must not be 'never'", ctx, param)
    return seconds


def _check_check(
    ctx: click.Context, param: click.Parameter, seconds: float | None
) -> Any:
    if seconds is not None and not 0 < seconds < math.inf:
        text = "must be more than 0, and not 'never'; leave it out for no checks"
        raise click.BadParameter(text, ctx, param)
    return seconds


def _check_pause(ctx: click.Context, param: click.Parameter, seconds: float) -> Any:
    if seconds == math.inf:
        text = "must not be 'never': a target has to be tried again"
        raise click.BadParameter(text, ctx, param)
    return seconds

"""The targets of a proxy, and the options of balancing.

Text of the command line or the environment in, values out. Nothing here dials.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import click

from trioserve import Health, Target, parse_target

from ._environment import Command, option
from ._network_options import count, duration
from ._options import check_zone
from ._program import WrongUsage
from ._values import format_duration


def target(text: str) -> Target:
    """The type of an argument that is a target."""
    try:
        found = parse_target(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    check_zone(found.address, text)
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


def health_of(fall: int, pause: float) -> Health:
    """The health that these options set."""
    longest = max(Health().max_pause, pause)
    return dataclasses.replace(Health(), fall=fall, max_pause=longest, pause=pause)


def _check_pause(ctx: click.Context, param: click.Parameter, seconds: float) -> Any:
    if seconds == math.inf:
        text = "must not be 'never': a target has to be tried again"
        raise click.BadParameter(text, ctx, param)
    return seconds

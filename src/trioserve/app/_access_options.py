"""The options ``--allow`` and ``--deny``: access rules, in order.

Text in, rules out. Click groups the values by option; the order of all of them, on
which the result depends, is read from its parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from trioserve import Layers

from ._environment import Command, option
from ._program import HelpfulCommand

_HELP: Final = {
    "allow": "Serve only clients of this network, like 10.0.0.0/8; may be repeated.",
    "deny": "Refuse clients of this network; may be repeated. The first --allow or"
    " --deny that matches decides.",
}


def access_options() -> list[Callable[[Command], Command]]:
    """A decorator for each option; the command must be a :class:`ServingCommand`."""
    return [
        option(f"--{word}", type=_network, multiple=True, metavar="NETWORK", help=text)
        for word, text in _HELP.items()
    ]


class ServingCommand(HelpfulCommand):
    """A command with access rules: its function gets them as ``access``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)  # parsing empties ``args``
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(words)
        ctx.meta[__name__] = [param.name for param in order]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        values = {word: ctx.params.pop(word) for word in _HELP}
        ctx.params["access"] = tuple(_in_order(ctx.meta[__name__], values))
        return super().invoke(ctx)


def _in_order(order: Sequence[str], values: dict[str, Sequence[str]]) -> Iterator[str]:
    """Rules from the environment come first, and ``deny`` first among them."""
    for word in ("deny", "allow"):
        if word not in order:
            yield from (f"{word} {network}" for network in values[word])
    rest = {word: iter(networks) for word, networks in values.items()}
    for word in order:
        if word in rest:
            yield f"{word} {next(rest[word])}"


def _network(text: str) -> str:
    try:
        Layers(access=[f"allow {text}"])
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("access: ")) from None
    return text

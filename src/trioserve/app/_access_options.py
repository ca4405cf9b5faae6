"""The options ``--allow`` and ``--deny``: access rules, in order.

Text in, rules out. Click groups the values by option; the order of all of them, on
which the result depends, is read from its parser.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from trioserve import Layers

from ._environment import Command, option
from ._program import HelpfulCommand, WrongUsage

#: In the order in which rules of the environment are taken.
_HELP: Final = {
    "deny": "Refuse clients of this network; may be repeated. The first --deny or"
    " --allow that matches a client decides.",
    "allow": "Serve clients of this network, and of no other but those of further"
    " --allow; may be repeated.",
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
        order: list[str | None] = ctx.meta[__name__]
        rules = list(_in_order(order, {word: ctx.params[word] for word in _HELP}))
        for param in self.params:
            if param.name in _HELP:
                del ctx.params[param.name]
                rules += _of_environment(ctx, param)
        try:
            ctx.params["access"] = Layers(access=rules).access
        except ValueError as error:
            raise WrongUsage(str(error).removeprefix("access: ")) from None
        return super().invoke(ctx)


def _in_order(
    order: Sequence[str | None], values: dict[str, Sequence[str]]
) -> Iterator[str]:
    """The rules of the command line."""
    rest = {word: iter(networks) for word, networks in values.items()}
    for word in order:
        if word in rest:
            yield f"{word} {next(rest[word])}"


def _of_environment(ctx: click.Context, param: click.Parameter) -> Iterator[str]:
    """The rules of a variable; they come after those of the command line."""
    value = os.environ.get(str(param.envvar))
    if value is not None and not value.strip():
        # An empty list of those who are allowed would let in everyone.
        raise click.BadParameter(f"{param.envvar} is empty; unset it", ctx, param)
    for network in (value or "").split():
        try:
            yield f"{param.name} {_network(network)}"
        except click.BadParameter as error:
            text = f"{error.message} (from {param.envvar})"
            raise click.BadParameter(text, ctx, param) from None


def _network(text: str) -> str:
    if len(text.split()) != 1:
        what = "more than one network" if text.strip() else "empty"
        raise click.BadParameter(f"{text!r} is {what}; repeat the option for each")
    try:
        (rule,) = Layers(access=[f"allow {text}"]).access
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("access: ")) from None
    return rule.removeprefix("allow ")

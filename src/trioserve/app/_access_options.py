"""The options that say which clients are served: access rules, in order.

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

#: By the list of rules: its options, in the order in which rules of the environment are
#: taken. The first word of each is that of its rules.
_HELP: Final = {
    "access": {
        "deny": "Refuse clients of this network; may be repeated. The first --deny or"
        " --allow that matches a client decides.",
        "allow": "Serve clients of this network, and of no other but those of further"
        " --allow; may be repeated.",
    },
    "direct_access": {
        "deny_direct": "Refuse connections from this network, whatever client a PROXY"
        " header declares; may be repeated.",
        "allow_direct": "Accept connections from this network, and from no other but"
        " those of further --allow-direct; may be repeated.",
    },
}


def access_options() -> list[Callable[[Command], Command]]:
    """A decorator for each option; the command must be a :class:`ServingCommand`."""
    return [
        option(
            f"--{name.replace('_', '-')}",
            type=network,
            multiple=True,
            metavar="NETWORK",
            help=text,
        )
        for options in _HELP.values()
        for name, text in options.items()
    ]


class ServingCommand(HelpfulCommand):
    """A command with access rules, which its function gets by the lists' names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)  # parsing empties ``args``
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(words)
        ctx.meta[__name__] = [param.name for param in order]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        params = {param.name: param for param in self.params}
        for name, options in _HELP.items():
            values = {each: ctx.params.pop(each) for each in options}
            rules = list(_in_order(ctx.meta[__name__], values))
            for each in options:
                rules += _of_environment(ctx, params[each])
            try:
                layers: dict[str, Any] = {name: rules}
                checked = Layers(**layers)
            except ValueError as error:
                raise WrongUsage(str(error).removeprefix(f"{name}: ")) from None
            ctx.params[name] = getattr(checked, name)
        return super().invoke(ctx)


def _in_order(
    order: Sequence[str | None], values: dict[str, Sequence[str]]
) -> Iterator[str]:
    """The rules of the command line."""
    rest = {name: iter(networks) for name, networks in values.items()}
    for name in order:
        if name in rest:
            yield f"{_word(name)} {next(rest[name])}"


def _of_environment(ctx: click.Context, param: click.Parameter) -> Iterator[str]:
    """The rules of a variable; they come after those of the command line."""
    value = os.environ.get(str(param.envvar))
    if value is not None and not value.strip():
        # An empty list of those who are allowed would let in everyone.
        raise click.BadParameter(f"{param.envvar} is empty; unset it", ctx, param)
    for each in (value or "").split():
        try:
            yield f"{_word(param.name or '')} {network(each)}"
        except click.BadParameter as error:
            text = f"{error.message} (from {param.envvar})"
            raise click.BadParameter(text, ctx, param) from None


def _word(name: str) -> str:
    """The word of the rules of an option: ``allow`` or ``deny``."""
    return name.partition("_")[0]


def network(text: str) -> str:
    """The type of an option that is a network, as in an access rule."""
    if len(text.split()) != 1:
        what = "more than one network" if text.strip() else "empty"
        raise click.BadParameter(f"{text!r} is {what}; repeat the option for each")
    try:
        (found,) = Layers(accept_proxy=[text]).accept_proxy
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("accept_proxy: ")) from None
    return found

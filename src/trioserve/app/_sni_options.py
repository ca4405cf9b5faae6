"""The option for targets of server names, and the handler of a proxy.

Text of the command line or the environment in, values out. Nothing here serves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import click

from trioserve import Handler, by_server_name, echo

from ._access_options import ServingCommand
from ._environment import Command, option
from ._service import Given
from ._target_options import target


@dataclasses.dataclass(frozen=True)
class NamedTarget:
    """A target of the clients that ask for a server name.

    Args:
      name: a host name, or a wildcard like ``*.example.org``.
    """

    name: str
    target: Given

    def __str__(self) -> str:
        return f"{self.name}={self.target}"


def named_target(text: str) -> NamedTarget:
    """The type of an option that is a server name and a target."""
    name, equals, place = text.partition("=")
    if not equals:
        raise click.BadParameter(
            f"{text!r} has no '='; use NAME=TARGET, like git.example.org=10.0.0.1:443"
        )
    if name == "*":
        raise click.BadParameter(
            f"'*' is not a server name; for all other names, give {place} as TARGET"
        )
    try:
        by_server_name({name: echo})
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("handlers: ")) from None
    return NamedTarget(name.lower(), target(place))


def sni_option() -> Callable[[Command], Command]:
    """A decorator that adds the option."""
    return option(
        "--sni",
        type=named_target,
        multiple=True,
        metavar="NAME=TARGET",
        help="Relay TLS clients that ask for the server NAME to this TARGET, without"
        " terminating TLS; may be repeated. '*.example.org' is for names with one"
        " label in place of '*'. The other TARGETs are for all other names.",
    )


class RoutingCommand(ServingCommand):
    """A command with targets, which it needs unless each has a name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = ctx.params["targets"] or ctx.params["sni"]
        if not (given or ctx.resilient_parsing):
            params = {param.name: param for param in self.params}
            raise click.MissingParameter(ctx=ctx, param=params["targets"])
        return rest


def by_name(
    named: Iterable[NamedTarget],
    proxy_to: Callable[..., Handler],
    others: Iterable[Given],
) -> Handler:
    """The handler of a proxy that relays by server name.

    Args:
      proxy_to: makes the handler that relays to these targets.
      others: the targets for all other names; empty to refuse these.

    Raises:
      ValueError: a target can't be dialed, or two spellings of a name have targets.
    """
    targets: dict[str, list[Given]] = {}
    for each in named:
        targets.setdefault(each.name, []).append(each.target)
    handlers = {name: proxy_to(*here) for name, here in targets.items()}
    default = [*others]
    rest = proxy_to(*default) if default else None
    try:
        return by_server_name(handlers, default=rest)
    except ValueError as error:
        raise ValueError(str(error).replace("handlers", "--sni")) from None

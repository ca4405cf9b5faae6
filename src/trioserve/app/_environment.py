"""Options that the environment can set, and where a value came from.

Options and variables in, texts out. Nothing here knows what an option is for,
except that the default of the limit is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import click

from trioserve import Limits

from ._open_files import raise_open_files_limit
from ._program import closest, origin_of
from ._values import format_duration

_PREFIX = "TRIOSERVE_"

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """`click.option` that a variable can set too: ``--idle`` is TRIOSERVE_IDLE."""
    envvar = _PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, cls=_Option, envvar=envvar, **attributes)


class _Option(click.Option):
    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        # Values from a settings file that was written on Windows end with a CR.
        value = super().resolve_envvar_value(ctx)
        return value.rstrip("\r\n") or None if value else value

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        # Click takes what follows an option for its value, also the next option.
        for text in value if isinstance(value, tuple | list) else (value,):
            name = text.partition("=")[0] if isinstance(text, str) else ""
            if self.metavar and name.startswith("--") and _is_option(name, ctx):
                said = f"needs {self.metavar}; {text!r} is the next option"
                raise click.BadParameter(said, ctx, self)
        return super().type_cast_value(ctx, value)


def _is_option(name: str, ctx: click.Context) -> bool:
    return any(name in each.opts for each in ctx.command.get_params(ctx))


def misspelt_variables(
    commands: Iterable[click.Command], environ: Mapping[str, str]
) -> Iterator[str]:
    """A line for each variable that looks like a misspelt option of a command.

    Other variables that begin with ``TRIOSERVE_`` are ignored, such as those that
    Kubernetes sets for a service of that name.
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
            yield f"{name} is not a setting; did you mean {_PREFIX}{meant}?"


def settings_text(ctx: click.Context) -> Iterator[str]:
    """A table of a command's options: their values, and where they came from."""
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
            raise_open_files_limit()
            return str(Limits().max_connections)
        case None | ():
            default = option.show_default
            return default if isinstance(default, str) else "none"
        case bool(flag):
            return "yes" if flag else "no"
        case float(seconds):
            return format_duration(seconds)
        case tuple(values):
            return " ".join(str(value) for value in values)
        case value:
            return str(value)

"""A click program whose errors are one line.

Exceptions of click in, a line on stderr and an exit code out. Nothing here
knows which commands there are.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource


class WrongUsage(click.UsageError):
    """What is wrong, in a line that says what to do instead."""


class Program(click.Group):
    """A group of commands whose errors are one line that says what to do instead.

    Args:
      name: what it is called, in help and in errors.
    """

    def main(
        self, args: Sequence[str] | None = None, *_: object, **extra: Any
    ) -> NoReturn:
        extra |= {"prog_name": self.name, "standalone_mode": False}
        try:
            code = super().main(args, **extra)
        except click.ClickException as error:
            click.echo(f"{self.name}: error: {_error_text(error)}", err=True)
            code = error.exit_code
        except click.Abort:
            code = 130
        sys.exit(code)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known:
            close = difflib.get_close_matches(args[0], known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"use {_or(known)}"
            raise WrongUsage(f"no such command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _error_text(error: click.ClickException) -> str:
    words = error.format_message().split()
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None or isinstance(error, WrongUsage):
        return " ".join(words)
    if isinstance(error, click.BadParameter) and error.param:
        name = error.param.name or ""
        if ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
            words.append(f"(from {ctx.auto_envvar_prefix}_{name.upper()})")
    if isinstance(error, click.MissingParameter) or not isinstance(
        error, click.BadParameter
    ):
        words += ctx.get_usage().split()
    return " ".join(words)


def _or(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1]))

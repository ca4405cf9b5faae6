"""A click program whose errors are one line.

Exceptions of click in, a line on stderr and an exit code out. Nothing here
knows which commands there are.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from ._standard_files import STDERR, STDOUT, give_up

#: The text of the RuntimeError, which has no type or code of its own.
_NO_THREAD: Final = "can't start new thread"


class WrongUsage(click.UsageError):
    """Wrong usage, in one line that says what to do instead."""


def say(text: str) -> None:
    """Print a line to stdout.

    Raises:
      click.ClickException: it can't be written.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # the reader has left: click ends without a message
    except OSError as error:
        # The interpreter would flush it again when it ends, and print an error.
        give_up(STDOUT)
        text = f"can't write to stdout: {error.strerror}"
        raise click.ClickException(text) from error


def _say_help(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        say(ctx.get_help())
        ctx.exit()


class HelpfulCommand(click.Command):
    """A command whose help is printed with `say`, like everything else."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        assert option is not None  # it is not switched off for any command
        option.callback = _say_help
        return option


class Program(HelpfulCommand, click.Group):
    """A group of commands whose errors are one line that says what to do instead.

    Its help lists the commands in the order of their definitions.

    Args:
      name: the name in help and in errors.
    """

    command_class = HelpfulCommand

    def main(
        self, args: Sequence[str] | None = None, *_: object, **extra: Any
    ) -> NoReturn:
        extra |= {"prog_name": self.name, "standalone_mode": False}
        try:
            try:
                code = super().main(args, **extra)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                text = f"can't start: {error.strerror} (ulimit -n)"
                raise click.ClickException(text) from error
            except RuntimeError as error:
                if str(error) != _NO_THREAD:
                    raise
                raise click.ClickException(
                    "can't start a thread: the limit of threads is reached (ulimit -u,"
                    " TasksMax= in systemd, the pids limit of a container)"
                ) from error
        except click.ClickException as error:
            self._say_error(_error_text(error), sys.argv[1:] if args is None else args)
            code = error.exit_code
        except click.Abort:
            code = 130
        sys.exit(code)

    def _say_error(self, text: str, args: Sequence[str]) -> None:
        from .output._log import Format, Log

        if sys.stderr is None:  # it was closed: only the exit code remains
            return
        forms: dict[str | None, Format] = {"logfmt": "logfmt", "json": "json"}
        form = forms.get(self._form_asked_for(args))
        try:
            if form is None:
                click.echo(f"{self.name}: error: {text}", err=True)
            else:
                log = Log(lambda line: click.echo(line, err=True), form)
                log.say("error", text, level="error", message=text)
        except OSError:  # only the exit code remains
            give_up(STDERR)

    def _form_asked_for(self, args: Sequence[str]) -> str | None:
        # The value of --log, found without parsing, because it may be the command
        # line that could not be parsed.
        command = self.commands.get(next(iter(args), ""))
        if command is None or "--log" not in _options_of(command):
            return None
        form = os.environ.get("TRIOSERVE_LOG")
        for word, after in itertools.pairwise((*args, "")):
            if word == "--log":
                form = after
            elif word.startswith("--log="):
                form = word.removeprefix("--log=")
        return form

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in self.commands:
            known = self.list_commands(ctx)
            text = no_such("command", word, known)
            if ":" in word:  # an address: 'proxy' was probably left out
                meant = " ".join([known[0], *args])
                text = f"{word!r} is not a command; did you mean {meant!r}?"
            raise WrongUsage(text, ctx)
        return super().resolve_command(ctx, args)


def no_such(kind: str, word: str, known: Iterable[str]) -> str:
    """An error about an unknown word, with what to write instead."""
    known = list(known)
    close = closest(word, known)
    hint = f"did you mean {close!r}?" if close else f"use {_or(known)}"
    return f"no such {kind} {word!r}; {hint}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is closest to a misspelt one, or None."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.7)), None)


def origin_of(ctx: click.Context, param: click.Parameter) -> str:
    """Where the value of a parameter came from, in words."""
    match ctx.get_parameter_source(param.name or ""):
        case ParameterSource.ENVIRONMENT:
            return str(param.envvar)
        case ParameterSource.COMMANDLINE:
            return "command line"
        case _:
            return "default"


def _error_text(error: click.ClickException) -> str:
    # Worded here, because click's texts differ between its releases.
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    text = " ".join(error.message.split())
    if isinstance(error, click.BadOptionUsage):
        name = error.option_name
        return text.replace(f"Option {name!r}", name).removesuffix(".")
    if ctx is None or isinstance(error, WrongUsage):
        return text
    match error:
        case click.NoSuchOption(option_name=name):
            if known_to := _subcommand_with(ctx.command, name):
                example = f"{ctx.command_path} {known_to} ... {name}"
                return f"{name} goes after the command: {example}"
            close = closest(name, _options_of(ctx.command))
            hint = f"did you mean {close!r}?" if close else _see_help(ctx)
            return f"no such option {name!r}; {hint}"
        case click.MissingParameter(param=click.Parameter() as param):
            return f"{_name_of(param, ctx)} is missing; {_usage(ctx)}"
        case click.BadParameter(param=click.Parameter() as param):
            origin = origin_of(ctx, param)
            text = f"{_name_of(param, ctx)}: {text.removesuffix('.')}"
            return f"{text} (from {origin})" if origin == param.envvar else text
        case _:
            return f"{text[0].lower()}{text[1:].removesuffix('.')}; {_usage(ctx)}"


def _options_of(command: click.Command) -> list[str]:
    return [option for param in command.params for option in param.opts]


def _subcommand_with(command: click.Command, option: str) -> str | None:
    commands = command.commands if isinstance(command, click.Group) else {}
    having = (name for name, c in commands.items() if option in _options_of(c))
    return next(having, None)


def _name_of(param: click.Parameter, ctx: click.Context) -> str:
    if isinstance(param, click.Option):
        return param.opts[0]
    return (param.metavar or "").strip("[]").removesuffix("...")


def _usage(ctx: click.Context) -> str:
    return " ".join(ctx.get_usage().split()).replace("Usage", "usage", 1)


def _see_help(ctx: click.Context) -> str:
    return f"'{ctx.command_path} --help' lists them"


def _or(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1]))

"""docs/reference.md says what the code says.

Run as a program, this file writes what is made from the code into the page: the tables
below a comment with their name, and what a `trioserve help` prints below the command.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import click
import pytest
import trio

import trioserve
import trioserve.testing
from test_docs import ROOT, table_of_reasons
from trioserve import faults
from trioserve.app._cli import cli
from trioserve.app._topics import TOPICS

PAGE = ROOT / "docs" / "reference.md"

Row = tuple[str, ...]


def commands() -> Iterator[Row]:
    yield "command", "what it does"
    for name, command in cli.commands.items():
        with click.Context(command, info_name=name) as ctx:
            arguments = [p for p in command.params if isinstance(p, click.Argument)]
            words = [str(p.make_metavar(ctx)) for p in arguments]
            yield code(" ".join([name, *words])), command.get_short_help_str(200)


def options() -> Iterator[Row]:
    yield "option", "of", "default", "what it does"
    found = dict[tuple[str, str, str], list[str]]()
    for name, command in cli.commands.items():
        with click.Context(command) as ctx:
            for option in command.params:
                said = option.get_help_record(ctx)
                if said is None or not isinstance(option, click.Option):
                    continue
                text, _, default = said[1].partition("  [default: ")
                # Without the bounds of a number, which are in errors.
                default = re.sub(r"\)?\]$|; .*", "", default).removeprefix("(")
                found.setdefault((said[0], default, text), []).append(name)
    for (option_and_value, default, text), names in found.items():
        of = "both" if names == ["proxy", "echo"] else ", ".join(names)
        yield code(option_and_value), of, default, text


def reasons() -> Iterator[Row]:
    yield "reason", "outcome", "HAProxy", "in words"
    yield from table_of_reasons()


def fields() -> Iterator[Row]:
    yield "field", "type", "what it says"
    yield from fields_of(trioserve.ConnectionReport)
    yield from fields_of(trioserve.Upstream, "upstream.")


def fields_of(cls: Any, prefix: str = "") -> Iterator[Row]:
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    if hasattr(cls, "outcome"):  # a property
        types["outcome"] = "Outcome"
    for names, text in described(cls):
        kinds = dict.fromkeys(types.pop(name) for name in names)
        named = ", ".join(code(prefix + name) for name in names)
        yield named, ", ".join(map(code, kinds)), text
    assert not types


def described(cls: type) -> Iterator[tuple[list[str], str]]:
    """The names, and what is said of them, in the Attributes of a docstring."""
    docstring = inspect.getdoc(cls) or ""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    items = re.split(r"\n(?=\S)", textwrap.dedent(section))
    for item in items:
        names, text = re.sub(r"\s+", " ", item).split(": ", 1)
        yield names.split(", "), re.sub(r":\w+:`~?(.+?)`|``(.+?)``", r"`\1\2`", text)


def code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "commands": commands,
    "options": options,
    "reasons": reasons,
    "fields": fields,
}


def written(name: str) -> str:
    """A table as Markdown."""
    head, *rows = [f"| {' | '.join(cells)} |\n" for cells in TABLES[name]()]
    ruler = "---|" * (len(re.findall(r" \|", head)))
    return "".join([head, f"|{ruler}\n", *rows]).replace("|  |", "| |")


def from_the_code(page: str) -> str:
    """The page, with what is made from the code made anew."""
    for name in TABLES:
        above, comment, below = page.partition(f"<!-- {name} -->\n\n")
        page = above + comment + written(name) + re.sub(r"^(\|.*\n)*", "", below)
    for name, text in TOPICS.items():
        command = f"$ trioserve help {name}\n```\n\n```text\n"
        above, command, below = page.partition(command)
        if command:
            page = f"{above}{command}{text}\n```{below.partition('```')[2]}"
    return page


def test_the_reference_is_made_from_the_code() -> None:
    page = PAGE.read_text()
    assert all(f"<!-- {name} -->" in page for name in TABLES)
    assert page == from_the_code(page), "python tests/test_reference.py writes it anew"


# -- what is written by hand


def entry(module: ModuleType, name: str) -> str:
    """What the reference says of a public name."""
    sections = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    text = sections[sections.index(module.__name__) + 1]
    [said] = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
    return str(said)


MODULES = [trioserve, faults, trioserve.testing]
FUNCTIONS = [
    (module, name)
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
    and inspect.signature(getattr(module, name)).parameters
]


def arguments(function: Callable[..., Any]) -> list[str]:
    """The names of its arguments, with a star before those that need theirs."""
    names, by_name = list[str](), False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names.append(f"*{name}")
            by_name = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not by_name:
            names += ["*", name]
            by_name = True
        else:
            names.append(name)
    return [name for name in names if name != "task_status"]


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_the_arguments_of_a_function(module: ModuleType, name: str) -> None:
    said = re.match(r"`(async )?\((.*?)\)`", entry(module, name))
    assert said, "it has no arguments"
    function = getattr(module, name)
    assert bool(said[1]) == inspect.iscoroutinefunction(function)
    known = said[2].split(", ")
    if known[-1] == "...":
        known.pop()
        assert known == arguments(function)[: len(known)]
    else:
        assert known == arguments(function)


@pytest.mark.parametrize("cls", [trioserve.Server, trioserve.Connection])
def test_the_attributes_of_a_class(cls: type) -> None:
    said = set(re.findall(r"`(\w+)(?:\(.*?\))?`", entry(trioserve, cls.__name__)))
    own = {name for name in vars(cls) if name[0] != "_"}
    assert own - set(dir(trio.SocketStream)) <= said
    assert all(hasattr(cls, name) for name in said - {"nursery"})


if __name__ == "__main__":
    PAGE.write_text(from_the_code(PAGE.read_text()))

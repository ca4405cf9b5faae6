"""The laws: each has a test that proves it, and docs/laws.md names them all.

A test says which law it proves at the start of its docstring: "Law 5: ...".
Run as a program, this file writes the names into the page.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "laws.md"
LAWS = range(1, 17)


@functools.cache
def proofs() -> dict[int, list[str]]:
    """The tests that prove each law, as pytest names them."""
    found: dict[int, list[str]] = {law: [] for law in LAWS}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            said = re.match(r"Laws? ([\d, and]+):", ast.get_docstring(node) or "")
            for law in re.findall(r"\d+", said[1]) if said else ():
                name = f"{file.relative_to(TESTS).as_posix()}::{node.name}"
                found[int(law)].append(name)
    return found


def with_names(page: str) -> str:
    """The page, with the tests that prove each law under it."""
    names = proofs()

    def entry(law: re.Match[str]) -> str:
        indent = " " * len(f"{law['number']}. ")
        tests = [f"{indent}- `{name}`\n" for name in names[int(law["number"])]]
        return law["text"] + "".join(tests)

    item = r"^(?P<text>(?P<number>\d+)\. .*\n(?: +[^ -].*\n)*)(?: +- .*\n)*"
    return re.sub(item, entry, page, flags=re.MULTILINE)


@pytest.mark.parametrize("law", LAWS)
def test_every_law_is_proved(law: int) -> None:
    assert proofs()[law], f'no docstring of a test begins with "Law {law}:"'


def test_the_page_names_the_tests() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^(\d+)\. ", page, re.MULTILINE) == [str(law) for law in LAWS]
    assert page == with_names(page), "python tests/test_laws.py writes the names anew"


if __name__ == "__main__":
    PAGE.write_text(with_names(PAGE.read_text()))

"""The mutations are those of this package and of these tests, and are run as told.

All of them are made by ``python tests/mutations.py``, which takes minutes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path

import pytest

import mutations
from mutations import MUTATIONS, PACKAGE, PAGE, TESTS, Mutation

_ADMISSION = next(each for each in MUTATIONS if each.file == "_admission.py")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_another_program(mutation: Mutation) -> None:
    before = (PACKAGE / mutation.file).read_text()
    assert ast.dump(ast.parse(mutation.source())) != ast.dump(ast.parse(before))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_knows_the_names_that_it_uses(mutation: Mutation) -> None:
    assert not mutation.unknown_names()


def test_an_unknown_name_is_found() -> None:
    wrong = dataclasses.replace(_ADMISSION, new="            self._limiter = nothing\n")
    assert wrong.unknown_names() == {"nothing"}


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_tests_that_have_to_notice_it_exist(mutation: Mutation) -> None:
    file, *names = mutation.tests
    tree = tree_of(TESTS / file)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    known = {node.name for node in tree.body if isinstance(node, functions)}
    assert names
    assert set(names) <= known


def test_each_law_is_broken() -> None:
    assert {mutation.law for mutation in MUTATIONS} == set(range(1, 17))


def test_the_page_has_all_of_them() -> None:
    written = "python tests/mutations.py --table writes it anew"
    assert PAGE.read_text() == mutations.page(), written


@pytest.mark.parametrize("old", ["there is no such text", "self"])
def test_what_is_not_there_exactly_once_is_said(old: str) -> None:
    with pytest.raises(ValueError, match=r"_admission\.py has it \d+ times, not once"):
        dataclasses.replace(_ADMISSION, old=old).source()


@pytest.mark.long
def test_a_mutation_that_is_noticed_was_killed() -> None:
    good, line = mutations.verdict(_ADMISSION)
    assert good
    assert line.startswith("killed ")


@pytest.mark.long
def test_a_mutation_that_changes_nothing_survives() -> None:
    name = "test_waiters_get_tokens_in_order"
    nothing = dataclasses.replace(
        _ADMISSION, new=_ADMISSION.old, tests=(*_ADMISSION.tests, name)
    )
    good, said = mutations.verdict(nothing)
    assert not good
    first, *passed = said.splitlines()
    assert first.startswith("SURVIVED ")
    assert [line.split()[-1] for line in passed] == nothing.names


def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "PATIENCE", 0.01)
    good, line = mutations.verdict(_ADMISSION)
    assert good
    assert line.startswith("hung ")


def test_a_test_that_is_not_there_is_an_error_and_no_failure() -> None:
    with pytest.raises(RuntimeError, match="no_such_test"):
        mutations.run(["test_admission.py::no_such_test"])

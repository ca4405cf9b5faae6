"""The zoo: every mistake is found, by its law and in a small case, and nobody who
is right is accused.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest

from test_docs import ROOT, table
from testing.zoo import CORRECT, MISTAKES, Animal, found, row
from trioserve.testing import Case, HandlerFailure, Peer, run_conversation


def variations(case: Case) -> list[str]:
    """In what a case is not the plain conversation."""
    plain = Case(case.peers)
    names = [field.name for field in dataclasses.fields(case)]
    return [name for name in names if getattr(case, name) != getattr(plain, name)]


@functools.cache
def failure_of(name: str) -> HandlerFailure:
    (animal,) = (animal for animal in MISTAKES if animal.name == name)
    failure = found(animal)
    assert failure is not None
    # What is said is kept, and not all that happened, which may be much.
    del failure.run
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("animal", MISTAKES, ids=str)
def test_a_mistake_is_found_by_its_law_in_a_small_case(animal: Animal) -> None:
    failure = failure_of(animal.name)
    assert failure.law == animal.law, failure
    assert len(variations(failure.case)) <= 3
    assert str(failure.case.faults).count("@") <= 1
    assert len(str(failure).splitlines()) <= 80


#: In these, what is left behind has to pile up before it shows.
PILES_UP = {"counts_who_is_gone"}


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "animal", [animal for animal in MISTAKES if animal.name not in PILES_UP], ids=str
)
def test_the_case_that_is_printed_fails_again(animal: Animal) -> None:
    names = {
        "handler": animal.make(),
        "Peer": Peer,
        "run_conversation": functools.partial(run_conversation, without=animal.without),
    }
    with pytest.raises(HandlerFailure):
        eval(repr(failure_of(animal.name).case), names)


@pytest.mark.long
@pytest.mark.parametrize("animal", CORRECT, ids=str)
def test_who_is_right_is_not_accused(animal: Animal) -> None:
    animal.check()


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
def test_the_page_has_the_table_of_mistakes() -> None:
    """``python tests/testing/zoo.py`` prints it. Seconds may differ."""
    page = table(ROOT / "docs" / "testing.md", "mistake")
    real = [row(animal, failure_of(animal.name)) for animal in MISTAKES]
    assert [cells[:3] for cells in page] == real

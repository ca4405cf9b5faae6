"""The zoo of handlers: each mistake is found by its law in a small case, and no
correct handler is accused.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest

from test_docs import ROOT, table
from testing.zoo import CORRECT, MISTAKES, Entry, found, row
from trioserve.testing import Case, HandlerFailure, Peer, run_conversation


def variations(case: Case) -> list[str]:
    """The fields in which a case differs from the plain conversation."""
    plain = Case(case.peers)
    names = [field.name for field in dataclasses.fields(case)]
    return [name for name in names if getattr(case, name) != getattr(plain, name)]


@functools.cache
def failure_of(name: str) -> HandlerFailure:
    (entry,) = (entry for entry in MISTAKES if entry.name == name)
    failure = found(entry)
    assert failure is not None
    # Keep the message, but not the run, which may be large.
    del failure.run
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("entry", MISTAKES, ids=str)
def test_a_mistake_is_found_by_its_law_in_a_small_case(entry: Entry) -> None:
    failure = failure_of(entry.name)
    assert failure.law == entry.law, failure
    assert len(variations(failure.case)) <= 3
    assert str(failure.case.faults).count("@") <= 1
    assert len(str(failure).splitlines()) <= 80


#: These fail only after several runs have left something behind.
PILES_UP = {"never_uncounts_a_reset_client"}


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "entry", [entry for entry in MISTAKES if entry.name not in PILES_UP], ids=str
)
def test_the_case_that_is_printed_fails_again(entry: Entry) -> None:
    names = {
        "handler": entry.make(),
        "Peer": Peer,
        "run_conversation": functools.partial(run_conversation, without=entry.without),
    }
    with pytest.raises(HandlerFailure):
        eval(repr(failure_of(entry.name).case), names)


@pytest.mark.long
@pytest.mark.parametrize("entry", CORRECT, ids=str)
def test_a_correct_handler_is_not_accused(entry: Entry) -> None:
    entry.check()


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
def test_the_page_has_the_table_of_mistakes() -> None:
    """``python tests/testing/zoo.py`` prints the table. Its seconds may differ."""
    page = table(ROOT / "docs" / "testing-evidence.md", "mistake")
    real = [row(entry, failure_of(entry.name)) for entry in MISTAKES]
    assert [cells[:3] for cells in page] == real

"""The zoo of handlers: each mistake is found by its law in a small case, and no
correct handler is accused.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest

from support import one_in
from test_docs import ROOT, table
from testing.zoo import CORRECT, MISTAKES, Entry, found, row
from trioserve.testing import Case, HandlerFailure, Peer, run_conversation

#: Fields that say when or how often something happens that another field names.
PART_OF = {"at_step": "disturbance", "disturbed": "rounds"}


def variations(case: Case) -> set[str]:
    """What a case has that the plain conversation has not."""
    plain = Case(case.peers)
    names = [field.name for field in dataclasses.fields(case)]
    differ = [name for name in names if getattr(case, name) != getattr(plain, name)]
    return {PART_OF.get(name, name) for name in differ}


#: These fail only after several runs have left something behind.
PILES_UP = {"never_uncounts_a_reset_client"}


#: They run lines of the kit that no other test runs.
QUICK = {
    "a_default_argument",
    "catches_base_exception",
    "idle_with_half_a_line",
    "the_reader_cancels_the_writer",
}


def shared_out(entries: list[Entry]) -> list[object]:
    """Some stay in each run; of the others, the first of each law is `long`.

    But for the law of memory: a flood is tried for half a minute.
    """
    quick = [pytest.param(entry) for entry in entries if entry.name in QUICK]
    first = {entry.law: entry for entry in entries[::-1] if entry.name not in QUICK}
    long = [entry for law, entry in first.items() if law != "memory"]
    others = [e for e in entries if e.name not in QUICK and e not in long]
    return [
        *quick,
        *(pytest.param(entry, marks=pytest.mark.long) for entry in long),
        *(pytest.param(entry, marks=pytest.mark.nightly) for entry in others),
    ]


# A check plays the conversation hundreds of times, which takes seconds.
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("entry", shared_out(MISTAKES), ids=str)
def test_a_mistake_is_found_by_its_law_in_a_small_case(entry: Entry) -> None:
    """The page has what is printed, and the case that is printed fails again."""
    failure = found(entry)
    assert failure is not None
    assert failure.law == entry.law, failure
    assert len(variations(failure.case)) <= 2
    assert str(failure.case.faults).count("@") <= 1
    assert len(str(failure).splitlines()) <= 40
    page = table(ROOT / "docs" / "testing-evidence.md", "mistake")
    assert row(entry, failure) in [cells[:3] for cells in page]
    if entry.name in PILES_UP:
        return
    with pytest.raises(HandlerFailure) as repeated:
        entry.check(repeat=failure.repeat)
    assert str(repeated.value) == str(failure)
    names = {
        "handler": entry.make(),
        "Peer": Peer,
        "run_conversation": functools.partial(run_conversation, without=entry.without),
    }
    with pytest.raises(HandlerFailure):
        eval(repr(failure.case), names)


# Of a correct handler, all of them.
@pytest.mark.parametrize("entry", one_in(16, [(e,) for e in CORRECT]), ids=str)
def test_a_correct_handler_is_not_accused(entry: Entry) -> None:
    entry.check()


def test_the_page_has_the_table_of_mistakes() -> None:
    """``python tests/testing/zoo.py`` prints the table. Its seconds may differ."""
    page = table(ROOT / "docs" / "testing-evidence.md", "mistake")
    assert [cells[0] for cells in page] == [entry.title for entry in MISTAKES]

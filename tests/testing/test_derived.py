"""Derived conversations: messages of other sizes, and peers that think."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support import one_in
from test_docs import ROOT, table
from testing.hostile import Entry, found
from testing.natural import SHOUTS
from testing.sized import ENTRIES, a_timeout_within_a_message, frames, shouts
from trioserve import Connection, echo
from trioserve.testing import Case, HandlerFailure, Peer, check_handler
from trioserve.testing._derived import AnyPeer, derived, numbered
from trioserve.testing._peer import brief, literal
from trioserve.testing._plays import hesitating, thinking, without_waits

MISTAKES = [entry for entry in ENTRIES if entry.law]
CORRECT = [entry for entry in ENTRIES if not entry.law]


# A check plays the conversation hundreds of times, which takes seconds.
@pytest.mark.parametrize("entry", one_in(9, [(e,) for e in MISTAKES]), ids=str)
def test_a_mistake_with_sizes_or_time_is_found_by_its_law(entry: Entry) -> None:
    failure = found(entry)
    assert failure is not None
    assert failure.law == entry.law, failure
    assert len(str(failure).splitlines()) <= 40, failure
    with pytest.raises(HandlerFailure) as repeated:
        entry.check(repeat=failure.repeat)
    assert str(repeated.value) == str(failure)


@pytest.mark.parametrize("entry", one_in(6, [(e,) for e in CORRECT]), ids=str)
def test_a_correct_handler_is_not_accused(entry: Entry) -> None:
    entry.check()


def test_the_page_has_the_table_of_these_mistakes() -> None:
    page = table(ROOT / "docs" / "testing-evidence.md", "mistake with sizes or time")
    mistakes = [(entry.title, f"`{entry.law}`") for entry in MISTAKES]
    assert [cells[:2] for cells in page] == mistakes
    assert len(CORRECT) == 6


# -- sizes


def cases(*peers: AnyPeer, **options: Any) -> dict[str, list[Case]]:
    none = {"think": None, "deadline": None, "longest": None}
    return derived(peers, **{**none, **options})


def sizes(peer: AnyPeer, **options: Any) -> set[int]:
    """The numbers of bytes that its messages have."""
    (drawn,) = cases(peer, **options).values()
    return {len(case.peers[0].steps[0].value) for case in drawn}


@pytest.mark.parametrize("buffer", [4096, 16384, 65536])
@pytest.mark.parametrize(("peer", "others"), [(shouts, 1), (frames, 4)])
def test_messages_are_about_as_long_as_a_buffer_with_and_without_their_ends(
    peer: AnyPeer, others: int, buffer: int
) -> None:
    near = {buffer - 1, buffer, buffer + 1}
    assert near | {size + others for size in near} <= sizes(peer)
    assert len(sizes(peer)) <= 18


def test_a_message_may_have_no_other_bytes_or_many() -> None:
    def bare(size: int = 5) -> Peer:
        return Peer().send(b"x" * size)

    def hexadecimal(size: int = 5) -> Peer:
        return Peer().send(b"0f" * size)

    def silent(size: int = 5) -> Peer:
        return Peer().receive(size)

    assert len(sizes(bare)) == len(sizes(hexadecimal)) == 9
    assert 65536 in sizes(bare)
    assert len(cases(silent)["messages of other sizes"]) == 18


def test_a_message_is_no_longer_than_the_longest() -> None:
    assert max(sizes(shouts, longest=5000)) == 5000
    assert {4096, 4097, 4999} <= sizes(shouts, longest=5000)
    assert sizes(shouts, longest=1) == set()


def _shouts_of(number: int) -> Peer:
    return SHOUTS


def test_a_size_may_go_with_the_number_of_a_copy() -> None:
    def asks(number: int, size: int = 2) -> Peer:
        return Peer().send(b"%d" % number * size)

    assert numbered((asks, SHOUTS), 1) == (Peer().send(b"11"), SHOUTS)
    assert numbered((asks,), 0, 3) == (Peer().send(b"000"),)
    assert cases(SHOUTS) == cases(_shouts_of) == {}


def test_a_size_needs_a_default() -> None:
    def asks(size: int) -> Peer:
        return Peer().send(b"x" * size)

    with pytest.raises(TypeError, match="size must have a default in asks, such as"):
        check_handler(echo, asks)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.integers(1, 200))))
@example([(b"x", 64), (b"y", 63), (b"z", 1000)])
@example([(b"\n", 70), (b"'", 70)])
def test_many_equal_bytes_are_written_as_a_product(parts: list[Any]) -> None:
    data = b"".join(part * count for part, count in parts)
    assert eval(literal(data)) == data
    assert eval(repr(Peer().send(data + b"x"))) == Peer().send(data + b"x")


def test_a_long_message_is_written_in_short() -> None:
    peer = shouts(65536)
    assert str(peer.steps[0]) == r"send(b'x' * 65536 + b'\n')"
    assert peer.steps[0].brief == r"send(b'x' * 65536 + b'\n')"
    assert brief(bytes(range(256))).endswith("… (256 bytes)")


# -- time to think


def test_a_peer_thinks_before_each_message_and_within_it() -> None:
    peer = Peer().send(b"a").expect(b"A").send(b"long").half_close()
    assert thinking(peer, 5) == (
        Peer()
        .wait(5)
        .send(b"a")
        .expect(b"A")
        .wait(5)
        .send(b"long")
        .wait(5)
        .half_close()
    )
    begin = Peer().send(b"a").expect(b"A")
    assert hesitating(peer, 5, 0.0) == (
        begin.send(b"l").wait(5).send(b"ong").half_close()
    )
    assert hesitating(peer, 5, 0.5) == (
        begin.send(b"lo").wait(5).send(b"ng").half_close()
    )
    assert without_waits(thinking(peer, 5)) == peer


@pytest.mark.parametrize(("deadline", "number"), [(None, 3), (6, 3), (5, 1)])
def test_a_peer_does_not_think_for_longer_than_a_message_may_take(
    deadline: float | None, number: int
) -> None:
    drawn = cases(SHOUTS, think=5, deadline=deadline)["peers that think"]
    assert len(drawn) == number


def test_only_the_thinking_that_is_needed_is_printed() -> None:
    """The message before it is left out, too, which is sent in two parts."""
    with pytest.raises(HandlerFailure) as failed:
        check_handler(a_timeout_within_a_message(), SHOUTS, think=5)
    (peer,) = failed.value.case.peers
    assert peer == Peer().send(b"t").wait(5).send(b"wo\n").expect(b"TWO\n")
    assert "a run that passed, without waits" in str(failed.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"think": "long"}, "think must be"),
        ({"think": -1}, "think must be"),
        ({"think": 1, "client": echo}, "think must be None if the client is code"),
    ],
)
def test_a_wrong_time_to_think_is_refused(options: dict[str, Any], told: str) -> None:
    async def handler(stream: Connection) -> None:
        raise AssertionError

    peers = () if "client" in options else (SHOUTS,)
    with pytest.raises((TypeError, ValueError), match=told):
        check_handler(handler, *peers, **options)

"""Laws about hostile peers: they trickle, never end a message, or never leave."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from support import one_in, one_of_each
from test_docs import ROOT, table
from testing.hostile import ENTRIES, QUIT, Entry, found
from testing.natural import SHOUTS
from testing.zoo import FRAME, frame
from trioserve import Connection, echo
from trioserve.testing import (
    Case,
    HandlerFailure,
    Peer,
    _hostile,
    check_handler,
    run_conversation,
)
from trioserve.testing._case import Setting
from trioserve.testing._checker import Checker
from trioserve.testing._hostile import unending
from trioserve.testing._variations import EFFORTS, Variations

#: The play that each law is about.
PLAYS: dict[str, Any] = {
    "deadline": "trickled",
    "longest": "endless",
    "growth": "repeated",
}

#: These need as many rounds as a check has.
NEEDS_ALL_ROUNDS = {"the_last_thousand", "a_long_job_for_each", "an_hour_for_each_line"}


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that show what grows with each message, if nothing else does."""
    monkeypatch.setattr(_hostile, "_EARLY", range(150, 171, 20))
    monkeypatch.setattr(_hostile, "_LATE", range(230, 251, 20))


def asked(entry: Entry) -> list[str]:
    return [PLAYS[name] for name in entry.bounds] or ["repeated"]


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize(
    ("law", "entry"),
    one_of_each(
        [(each.law, each) for each in ENTRIES if str(each) not in NEEDS_ALL_ROUNDS],
        by=0,
        then_one_in=3,
    ),
    ids=str,
)
def test_a_hostile_peer_finds_the_mistake_and_accuses_no_other(
    law: str | None, entry: Entry
) -> None:
    peer = SHOUTS if entry.peer == QUIT else entry.peer
    broken = set[str]()
    for play in asked(entry):
        case: Any = {"play": play, **entry.bounds}
        try:
            run_conversation(entry.make(), peer, **case)
        except HandlerFailure as failure:
            broken.add(failure.law)
            assert f"play={play!r}" in failure.again
    assert broken == ({law} if law else set())


def test_the_page_has_the_mistakes_and_their_laws() -> None:
    page = table(ROOT / "docs" / "testing-evidence.md", "mistake with hostile peers")
    mistakes = [(each.title, f"`{each.law}`") for each in ENTRIES if each.law]
    assert [cells[:2] for cells in page] == mistakes


@pytest.mark.parametrize(
    "entry", one_in(12, [(each,) for each in ENTRIES if each.bounds]), ids=str
)
def test_a_check_finds_the_mistake_by_its_law(entry: Entry) -> None:
    failure = found(entry)
    assert (failure and failure.law) == entry.law, failure
    if failure is not None:
        assert len(str(failure).splitlines()) <= 40
        with pytest.raises(HandlerFailure) as repeated:
            entry.check(repeat=failure.repeat)
        assert repeated.value.law == entry.law


@pytest.mark.usefixtures("few_rounds")
def test_a_check_has_the_plays_that_are_asked_for() -> None:
    (quick,) = [each for each in ENTRIES if str(each) == "refuses_a_long_line"]
    entry = Variations(Case((QUIT,)), Case((QUIT,)), rounds=1)
    base = run_conversation(quick.make(), SHOUTS)
    cases = list(entry.hostile(base, ["endless", "trickled", "repeated"]))
    assert [case.play for case in cases] == ["endless", "trickled", "repeated"]
    assert not any(case.is_undisturbed for case in cases)
    for peers in ((SHOUTS, SHOUTS), (Peer().receive(1),), (SHOUTS.meet("here"),)):
        alone = Variations(Case(peers), Case(peers), rounds=1)
        assert not list(alone.hostile(base, ["endless"]))


def test_what_is_off_or_not_asked_for_is_not_played() -> None:
    quick, thorough = EFFORTS["quick"], EFFORTS["thorough"]
    for setting, effort, plays in (
        (Setting(), quick, []),
        (Setting(), thorough, ["repeated"]),
        (Setting(servers={"db:5432": None}), thorough, []),
        (Setting(without={"growth": "a guest book"}), thorough, []),
        (Setting(deadline=1, longest=1), quick, ["trickled", "endless"]),
    ):
        checker = Checker(echo, Case((SHOUTS,)), Case((SHOUTS,)), setting)
        assert checker._harm(effort) == plays
    with pytest.raises(ValueError, match="'repeated' can't be with servers"):
        run_conversation(echo, SHOUTS, play="repeated", servers={"db:5432": None})


def test_a_handler_that_answers_at_eof_is_not_asked_what_it_keeps() -> None:
    async def collects(stream: Connection) -> None:
        text = b"".join([bytes(data) async for data in stream])
        await stream.send_all(text)

    run_conversation(collects, Peer().send(b"a" * 100), play="repeated")


@pytest.mark.parametrize("buffer", [1000, 16_384, 60_000])
def test_a_handler_that_takes_no_more_is_not_waited_for(buffer: int) -> None:
    """Nor does it keep what the network holds for it, which used to count."""

    async def takes_one(stream: Connection) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"thanks")
        with trio.move_on_after(500):
            await trio.sleep_forever()

    for play in ("endless", "repeated"):
        case: Any = {"play": play, "longest": 10, "buffer": buffer}
        run_conversation(takes_one, Peer().send(b"a" * 10_000).receive(6), **case)


@pytest.mark.parametrize("buffer", [1000, 16_384, 60_000])
def test_a_handler_that_takes_all_keeps_it_whatever_the_network_holds(
    buffer: int,
) -> None:
    async def takes_all(stream: Connection) -> None:
        data = bytearray()
        async for each in stream:
            data += each

    peer, case = Peer().send(b"a"), {"play": "endless", "longest": 10}
    with pytest.raises(HandlerFailure, match="it keeps over 32788 bytes"):
        run_conversation(takes_all, peer, buffer=buffer, **cast(Any, case))


def test_a_play_needs_its_bound() -> None:
    for play, name in (("trickled", "deadline"), ("endless", "longest")):
        case: Any = {"play": play}
        with pytest.raises(ValueError, match=f"play='{play}' needs {name}"):
            run_conversation(echo, Peer().send(b"a").receive(1), **case)
        run_conversation(echo, Peer().half_close(), deadline=1, longest=1, **case)


def test_memory_that_was_traced_before_is_traced_after() -> None:
    tracemalloc.start()
    try:
        run_conversation(echo, Peer().send(b"a").receive(1), play="repeated")
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    run_conversation(echo, Peer().send(b"a").receive(1), play="repeated")
    assert not tracemalloc.is_tracing()


def test_a_process_that_collects_no_garbage_still_collects_none() -> None:
    gc.disable()
    try:
        run_conversation(echo, Peer().send(b"a").receive(1), play="repeated")
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.untraced
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("threshold", one_of_each([(100,), (400,)]))
def test_garbage_that_is_collected_meanwhile_hides_nothing(threshold: int) -> None:
    seen: list[bytes] = []

    async def keeps_all(stream: Connection) -> None:
        async for data in stream:
            cycle: list[Any] = [bytes(500)]
            cycle.append(cycle)
            seen.append(bytes(data))
            await stream.send_all(data)

    before = gc.get_threshold()
    gc.set_threshold(threshold, 1, 1)
    try:
        with pytest.raises(HandlerFailure) as failed:
            run_conversation(keeps_all, Peer().send(b"a").receive(1), play="repeated")
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
    assert failed.value.law == "growth"


@given(st.binary(min_size=1, max_size=40), st.integers(1, 1000))
def test_an_unending_message_is_long_enough_and_begins_alike(
    message: bytes, size: int
) -> None:
    assert len(unending(message, size)) >= size


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_length_in_front_is_found(width: int, order: Any) -> None:
    message = (5).to_bytes(width, order) + b"hello"
    made = unending(message, 200)
    assert int.from_bytes(made[:width], order) == 200
    assert made[width:] == b"h" * 200


def test_a_line_has_no_end() -> None:
    assert unending(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 30).endswith(b": aaaaaaaa")
    assert unending(b"\n", 3) == b"xxx"
    assert unending(frame(b"hi"), 9)[:4] == (9).to_bytes(4, "big")


def test_the_bounds_must_be_bounds() -> None:
    for wrong, said in (
        ({"deadline": 0}, "deadline must be more than 0 seconds, or None"),
        ({"deadline": -1}, "deadline must be 0 or more and finite, not -1"),
        ({"longest": 0}, "longest must be 1 or more, not 0"),
        ({"longest": "1k"}, "longest must be an int, not '1k'"),
    ):
        options: Any = wrong
        with pytest.raises((TypeError, ValueError)) as refused:
            check_handler(echo, FRAME, **options)
        assert str(refused.value) == said

"""Plays: what a script becomes when it is played in another way."""

from __future__ import annotations

from typing import Any

import pytest

from trioserve import Connection
from trioserve.testing import HandlerFailure, Peer, run_conversation
from trioserve.testing._plays import played, without_closing_message

ONE = Peer().send(b"a").expect(b"A")
TWO = ONE.send(b"b").receive_until(b"B")


@pytest.mark.parametrize(
    ("play", "peer", "becomes"),
    [
        (None, TWO, TWO),
        ("pipelined", TWO, Peer().send(b"ab").expect(b"A").receive_until(b"B")),
        (
            "pipelined",
            Peer().expect(b"hi").send(b"a").wait(1).send(b"b").expect(b"AB").close(),
            Peer().expect(b"hi").send(b"ab").expect(b"AB").close(),
        ),
        ("pipelined", ONE, ONE),
        ("pipelined", Peer().expect(b"hi"), Peer().expect(b"hi")),
        (
            "pipelined",
            ONE.meet("x").send(b"b").expect(b"B"),
            ONE.meet("x").send(b"b").expect(b"B"),
        ),
        (
            "pipelined",
            Peer().send(b"1 a").expect(b"1 A").send(b"2 b").expect(b"2 B").half_close(),
            Peer().send(b"1 a2 b").expect_in_any_order(b"1 A", b"2 B").half_close(),
        ),
        (
            "pipelined",
            Peer().send(b"1 a").expect(b"1 A").send(b"1 b").expect(b"1 B"),
            Peer().send(b"1 a1 b").expect(b"1 A").expect(b"1 B"),
        ),
        (
            "half_closed",
            TWO.half_close().expect_eof(),
            ONE.send(b"b").half_close().receive_until(b"B").expect_eof(),
        ),
        ("half_closed", Peer().send(b"a").close(), Peer().send(b"a").close()),
        (
            "half_closed",
            Peer().send(b"a").expect(b"b").meet("both").expect(b"c"),
            Peer().send(b"a").expect(b"b").meet("both").expect(b"c"),
        ),
        ("half_closed", Peer().expect(b"hi"), Peer().expect(b"hi")),
        (
            "all_at_once",
            TWO,
            Peer().send(b"ab").half_close().expect(b"A").receive_until(b"B"),
        ),
        (
            "writes_first",
            Peer().send(b"a").send(b"b").expect(b"AB").send(b"c"),
            Peer()
            .pause_reading()
            .send(b"a")
            .send(b"b")
            .resume_reading()
            .expect(b"AB")
            .pause_reading()
            .send(b"c")
            .resume_reading(),
        ),
        (
            "writes_first",
            Peer().pause_reading().send(b"a"),
            Peer().pause_reading().send(b"a"),
        ),
    ],
)
def test_a_script_is_played_in_another_way(
    play: Any, peer: Peer, becomes: Peer
) -> None:
    assert played(peer, play) == becomes


def test_a_closing_message_is_left_out() -> None:
    assert without_closing_message(TWO) == Peer().send(b"a")
    assert without_closing_message(ONE) == Peer()
    assert without_closing_message(Peer()) == Peer()


def test_the_end_of_a_peer_with_one_message_may_be_its_eof() -> None:
    assert without_closing_message(ONE.half_close()) == Peer().send(b"a")
    assert without_closing_message(TWO.half_close()) == Peer().send(b"a")


async def says_b_before_a(stream: Connection) -> None:
    await stream.receive_some()
    await stream.send_all(b"B\n")
    await stream.send_all(b"A\n")


def test_messages_are_expected_in_any_order() -> None:
    asks = Peer().send(b"?")
    run = run_conversation(
        says_b_before_a, asks.expect_in_any_order(b"A\n", b"B\n"), faults="down:slice=1"
    )
    assert run.received[0][0].data == b"B\nA\n"
    assert repr(asks.expect_in_any_order(b"A\n", b"B\n")) == (
        "Peer().send(b'?').expect_in_any_order(b'A\\n', b'B\\n')"
    )
    with pytest.raises(HandlerFailure, match=r"expected .*, got b'B\\n"):
        run_conversation(says_b_before_a, asks.expect_in_any_order(b"A\n", b"C\n"))
    with pytest.raises(HandlerFailure, match=r"expected b'A\\n', got EOF"):
        run_conversation(
            says_b_before_a, asks.expect_in_any_order(b"A\n", b"B\n", b"A\n")
        )


@pytest.mark.parametrize(("field", "word"), [("play", "loudly"), ("order", "any")])
def test_a_wrong_word_is_refused(field: str, word: str) -> None:
    wrong: Any = {field: word}
    with pytest.raises(ValueError, match=rf"{field} must be one of .*, not '{word}'"):
        run_conversation(says_b_before_a, Peer(), **wrong)


def test_a_run_is_compared_with_the_plain_conversation() -> None:
    async def counts(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(b"%d" % len(data) * len(data))

    asks = Peer().send(b"ab").receive(2)
    run_conversation(counts, asks, faults="up:slice=1")
    with pytest.raises(HandlerFailure, match="received b'11', but b'22' when nothing"):
        run_conversation(counts, asks, faults="up:slice=1", compare=True)

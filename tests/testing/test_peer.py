"""Peers: scripts that read like the conversation, and how they are played."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from support import run
from trioserve import Connection
from trioserve.testing import MemoryStream, Peer, run_conversation, stream_pair
from trioserve.testing._player import Meetings, MismatchError, Player


def test_a_script_prints_as_the_python_that_makes_it() -> None:
    script = (
        Peer().send(b"GET k\n").expect(b"v\n").receive(2).receive_until(b"\n")
        .wait(0.5).pause_reading().resume_reading().meet("both").half_close().expect_eof()
    )  # fmt: skip
    assert eval(repr(script)) == script
    assert repr(Peer().send(b"a").close()) == "Peer().send(b'a').close()"


def test_a_script_is_a_value() -> None:
    begun = Peer().send(b"a")
    assert begun.send(b"b") != begun == Peer().send(b"a")
    assert hash(begun) == hash(Peer().send(b"a"))
    assert begun.send(b"b").sends == b"ab"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Peer().close().send(b"x"), r"nothing after close\(\)"),
        (lambda: Peer().reset().close(), r"nothing after reset\(\)"),
        (lambda: Peer().half_close().send(b"x"), r"can't send after half_close\(\)"),
        (lambda: Peer().half_close().half_close(), "can't half_close after"),
        (lambda: Peer().send(b""), "data must be one byte or more, not b''"),
        (lambda: Peer().expect("v"), "data must be bytes, such as b\"hello\", not 'v'"),  # type: ignore[arg-type]
        (lambda: Peer().receive(0), "count must be an int of 1 or more, not 0"),
        (lambda: Peer().receive(True), "count must be an int of 1 or more, not True"),
        (lambda: Peer().receive_until(b""), "end must be one byte or more"),
        (lambda: Peer().expect_in_any_order(b"v"), "messages must be two or more"),
        (lambda: Peer().wait(-1), "seconds must be 0 or more and finite, not -1"),
        (lambda: Peer().wait(float("inf")), "seconds must be 0 or more and finite"),
    ],
)
def test_a_script_that_cannot_be_played_is_refused(
    make: Callable[[], Peer], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


def play(script: Peer, other: Callable[[MemoryStream], Any]) -> str:
    """Play a script against ``other`` at the other end; return the mismatch."""

    async def main() -> str:
        client, server = stream_pair(buffer=8)
        player = Player(script, client, Meetings((script,)))
        mismatch = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other, server)
            try:
                await player.play()
            except MismatchError as error:
                mismatch = str(error)
            nursery.cancel_scope.cancel()
        assert player.is_over
        return mismatch

    return str(run(main))


async def echoes(stream: MemoryStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)
        await stream.aclose()


async def resets(stream: MemoryStream) -> None:
    await stream.receive_some()
    stream.reset()


async def leaves(stream: MemoryStream) -> None:
    await stream.aclose()


@pytest.mark.parametrize(
    "script",
    [
        Peer(),
        Peer().send(b"ab").expect(b"a").expect(b"b"),
        Peer().send(b"a\nb\n").receive_until(b"\n").receive(2),
        Peer().send(b"a" * 100).expect(b"a" * 100).half_close().expect_eof(),
        Peer().send(b"a").half_close().receive_until_eof(),
        Peer()
        .pause_reading()
        .send(b"ab")
        .wait(3)
        .resume_reading()
        .expect(b"ab")
        .close(),
        Peer().send(b"a").reset(),
        Peer().meet("nobody else").close(),
    ],
    ids=repr,
)
def test_an_echo_fulfils_a_script(script: Peer) -> None:
    assert play(script, echoes) == ""


@pytest.mark.parametrize(
    ("script", "other", "mismatch"),
    [
        (Peer().send(b"ab").expect(b"ax"), echoes, "expected b'ax', got b'ab'"),
        (
            Peer().send(b"ab").half_close().expect(b"abc"),
            echoes,
            "expected b'abc', got b'ab' and then EOF",
        ),
        (Peer().send(b"a"), echoes, "expected EOF, got b'a'"),
        (Peer().pause_reading().send(b"a"), echoes, "expected EOF, got b'a'"),
        (Peer().half_close().receive(3), echoes, "expected 3 bytes, got EOF"),
        (
            Peer().half_close().receive_until(b"."),
            echoes,
            "expected bytes up to b'.', got EOF",
        ),
        (Peer().half_close().expect_reset(), echoes, "expected a reset, got EOF"),
        (Peer().send(b"a").expect(b"a"), resets, "expected b'a', got a reset"),
        (Peer().send(b"a").expect_eof(), resets, "expected EOF, got a reset"),
        (Peer().send(b"a").receive_until_eof(), resets, "expected EOF, got a reset"),
        (Peer().send(b"a").expect_reset(), resets, ""),
        (
            Peer().wait(1).send(b"a").wait(1).send(b"b").half_close().expect_reset(),
            leaves,
            "expected a reset, got EOF",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_mismatch_says_what_was_expected_and_received(
    script: Peer, other: Callable[[MemoryStream], Any], mismatch: str
) -> None:
    assert play(script, other) == mismatch


@pytest.mark.parametrize("seed", range(5))
def test_a_peer_that_pauses_reading_receives_nothing_more(seed: int) -> None:
    """The network holds eight bytes, and the peer has no receive under way."""
    sent = 0

    async def floods(stream: Connection) -> None:
        nonlocal sent
        await stream.send_all(await stream.receive_some())
        await stream.receive_some()
        with trio.move_on_after(5):
            while True:
                await stream.send_all(b"x")
                sent += 1

    stops = Peer().send(b"a").expect(b"a").pause_reading().send(b"b").wait(10).reset()
    run_conversation(floods, stops, buffer=8, seed=seed)
    assert sent == 8


def test_meet_waits_for_all_peers() -> None:
    said = list[str]()

    async def main() -> None:
        scripts = (Peer().meet("a").close(), Peer().wait(5).meet("a").close())
        meetings = Meetings(scripts)

        async def one(script: Peer) -> None:
            client, _server = stream_pair()
            await Player(script, client, meetings).play()
            said.append(f"{trio.current_time():g}")

        async with trio.open_nursery() as nursery:
            for script in scripts:
                nursery.start_soon(one, script)

    run(main)
    assert said == ["5", "5"]


def test_meet_does_not_wait_for_a_peer_with_a_mismatch() -> None:
    async def main() -> None:
        scripts = (Peer().meet("a").close(), Peer().expect(b"x").meet("a"))
        meetings = Meetings(scripts)
        async with trio.open_nursery() as nursery:
            for script in scripts:
                client, server = stream_pair()
                nursery.start_soon(plays, Player(script, client, meetings))
                await server.aclose()

    async def plays(player: Player) -> None:
        with contextlib.suppress(MismatchError):
            await player.play()

    run(main)


def test_closing_the_stream_ends_the_script() -> None:
    async def main() -> None:
        client, _server = stream_pair()
        player = Player(Peer().wait(1).send(b"x"), client, Meetings(()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(player.play)
            await trio.testing.wait_all_tasks_blocked()
            client.reset()
        assert player.is_over

    run(main)


def test_a_player_prints_as_its_current_step() -> None:
    async def main() -> None:
        client, _server = stream_pair()
        player = Player(Peer().send(b"x"), client, Meetings(()))
        assert str(player) == "peer 1, at .send(b'x')"
        player.at = 1
        assert str(player) == "peer 1, at its end"

    run(main)

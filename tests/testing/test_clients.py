"""Clients that are code, instead of scripts; and clients that are checked."""

from __future__ import annotations

from typing import Any

import h11
import pytest
import trio

from testing import protocols
from testing.zoo import Lines, Stream
from trioserve import Connection, Reason
from trioserve.testing import (
    HandlerFailure,
    Law,
    MemoryStream,
    Peer,
    check_client,
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)


async def shout(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


SPEECH = b"a line that is longer than a small network holds\n"


async def says_hello(stream: MemoryStream) -> None:
    await stream.send_all(b"hello\n")
    async for line in Lines(stream):
        assert line == b"HELLO"
        break


# -- a client


def test_a_run_has_what_a_client_has_received_and_sent() -> None:
    run = run_conversation(shout, client=says_hello)
    ((heard,),) = run.received
    assert (heard.data, heard.tail, heard.sent) == (b"HELLO\n", "open", 6)
    assert heard.mismatch is None
    assert run.reports[0].reason is Reason.CLIENT_CLOSED
    assert "test_clients.py" in str(run.timeline)


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (protocols.http_server, protocols.http_client),
        (protocols.http2_server, protocols.http2_client),
    ],
)
def test_real_protocol_code_talks_in_pieces(server: Any, client: Any) -> None:
    run_conversation(server, client=client, faults="slice=1..2000", buffer=3000)


@pytest.mark.nightly("whole checks")
@pytest.mark.parametrize(
    ("server", "client", "raises"),
    [
        (protocols.http_server, protocols.http_client, h11.RemoteProtocolError),
        (protocols.http2_server, protocols.http2_client, AssertionError),
    ],
)
def test_real_protocol_code_keeps_all_laws(
    server: Any, client: Any, raises: type[Exception]
) -> None:
    """The clients raise these errors if the server leaves too early."""
    checked = check_handler(server, client=client)
    assert checked.runs["a drain"] > 5
    checked = check_client(client, server, raises=[raises])
    assert "a drain" not in checked.runs


async def speaks_first(stream: trio.abc.HalfCloseableStream) -> None:
    """Most clients receive nothing while they send."""
    await stream.send_all(SPEECH)
    await stream.send_eof()
    heard = b""
    while data := await stream.receive_some():
        heard += data
    assert heard == SPEECH.upper()


@pytest.mark.parametrize("options", [{"buffer": 2}, {"buffer": 24, "tls": True}])
def test_a_client_may_send_all_before_it_receives(options: dict[str, Any]) -> None:
    """In a small network, only what the handler sends waits for room."""
    run = run_conversation(shout, client=speaks_first, **options)
    sends = [row for row in run.timeline.rows if row.what.startswith("sends")]
    assert sum(row.who == "handler 1" for row in sends) > 2


@pytest.mark.long("a whole check")
def test_a_client_that_sends_all_before_it_receives_keeps_all_laws() -> None:
    check_client(speaks_first, shout, raises=[AssertionError])


def test_a_client_that_sends_more_than_a_network_holds_must_receive_meanwhile() -> None:
    async def sends_much(stream: MemoryStream) -> None:
        await stream.send_all(bytes(60_000))

    with pytest.raises(HandlerFailure, match="deadlock"):
        run_conversation(shout, client=sends_much)
    run_conversation(shout, client=sends_much, buffer=60_000)


def test_a_client_that_raises_is_a_broken_expectation() -> None:
    async def expects_too_much(stream: MemoryStream) -> None:
        await stream.send_all(b"hello\n")
        assert await stream.receive_some() == b"GOODBYE\n"

    with pytest.raises(HandlerFailure, match=r"peer 1: it raised Assertion") as failed:
        check_handler(shout, client=expects_too_much)
    assert failed.value.law == "answer"
    assert isinstance(failed.value.cause, AssertionError)
    text = failed.value.as_test()
    assert "from trioserve.testing import run_conversation\n" in text
    assert "expects_too_much is test_a_client_that_raises_is_a_broken" in text
    assert "run_conversation(shout, client=expects_too_much)" in text


def test_an_interrupt_in_a_client_is_raised() -> None:
    """It used to be a broken law, so Ctrl-C went on with the next test."""

    async def interrupted(stream: MemoryStream) -> None:
        raise KeyboardInterrupt

    with pytest.raises(BaseExceptionGroup) as raised:
        run_conversation(shout, client=interrupted)
    assert raised.group_contains(KeyboardInterrupt)


def test_a_law_is_named_by_what_the_case_needs_with_a_client_too() -> None:
    async def answers_each_chunk(stream: Connection) -> None:
        async for _ in stream:
            await stream.send_all(b"HELLO\n")

    async def says_hello_twice(stream: MemoryStream) -> None:
        lines = aiter(Lines(stream))
        for _ in range(2):
            await stream.send_all(b"hello\n")
            assert await anext(lines) == b"HELLO"
        await stream.send_eof()
        assert not [line async for line in lines]

    with pytest.raises(HandlerFailure) as failed:
        check_handler(answers_each_chunk, client=says_hello_twice)
    assert failed.value.law == "chunking"
    assert "up:" in str(failed.value.case.faults)


def test_a_client_that_waits_without_end_is_named() -> None:
    async def waits(stream: MemoryStream) -> None:
        await stream.receive_some()

    with pytest.raises(HandlerFailure, match="deadlock") as failed:
        run_conversation(shout, client=waits)
    assert failed.value.law == "answer"
    assert "peer 1, at test_clients.py" in failed.value.how


NEVER_ENDS = (
    r"^peer 1 never ends, at test_clients.py:\d+ in [\w.<>]+: at EOF, and after an"
    " error, a client or a server that is code has to return or to raise$"
)


async def reads_on(stream: MemoryStream) -> None:
    """It takes EOF for nothing."""
    await stream.send_all(b"hello\n")
    data = b""
    while len(data) < 6:
        data += await stream.receive_some()


async def reads_on_whatever_happens(stream: MemoryStream) -> None:
    while True:
        try:
            await reads_on(stream)
            return
        except BaseException:  # noqa: ASYNC103 - as users do it
            pass


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("client", "tls"),
    [
        (reads_on, False),
        (reads_on_whatever_happens, False),
        (reads_on_whatever_happens, True),
    ],
)
def test_no_handler_is_accused_if_a_client_never_ends(client: Any, tls: bool) -> None:
    """It used to be the handler that broke ``ends``, although it only waited."""
    run = run_conversation(shout, client=says_hello, tls=tls)
    at = run.received[0][0].handshake[1] + 3
    with pytest.raises(ValueError, match=NEVER_ENDS):
        run_conversation(shout, client=client, tls=tls, faults=f"down:eof@{at}")


@pytest.mark.long("a check until the first such case")
def test_a_check_ends_if_a_client_never_ends() -> None:
    with pytest.raises(ValueError, match=NEVER_ENDS):
        check_handler(shout, client=reads_on)


async def has_a_task_that_reads_on(stream: MemoryStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads_on, stream)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "client", [reads_on, reads_on_whatever_happens, has_a_task_that_reads_on]
)
def test_a_client_that_never_ends_is_named_if_nothing_is_disturbed(client: Any) -> None:
    async def leaves(stream: Connection) -> None:
        await stream.receive_some()

    with pytest.raises(ValueError, match=NEVER_ENDS):
        run_conversation(leaves, client=client)


@pytest.mark.usefixtures("impatient")
def test_a_client_that_polls_for_its_answer_gets_none() -> None:
    async def polls(stream: MemoryStream) -> None:
        answers = list[bytes]()

        async def receive() -> None:
            answers.append(await stream.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await stream.send_all(b"hello\n")
            while not answers:
                await trio.lowlevel.checkpoint()

    async def swallows(stream: Connection) -> None:
        async for _ in stream:
            pass

    run_conversation(shout, client=polls)
    with pytest.raises(HandlerFailure, match="it gets no answer") as failed:
        run_conversation(swallows, client=polls)
    assert failed.value.law == "answer"
    assert "handler 1 is at" in failed.value.how
    assert "peer 1, at" in failed.value.how


def test_the_end_of_a_connection_is_seen() -> None:
    async def sees_eof(stream: MemoryStream) -> None:
        assert await stream.receive_some() == b""

    async def sees_a_reset(stream: MemoryStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    async def ends(stream: Connection) -> None:
        pass

    async def aborts(stream: Connection) -> None:
        stream.abort()

    for handler, client, tail in (
        (ends, sees_eof, "eof"),
        (aborts, sees_a_reset, "reset"),
    ):
        run = run_conversation(handler, client=client)
        assert run.received[0][0].tail == tail


@pytest.mark.long("a whole check")
def test_what_a_client_raises_does_not_count_if_its_connection_breaks() -> None:
    sweep_faults(shout, client=says_hello)
    sweep_cancellations(shout, client=says_hello)
    run = run_conversation(shout, client=says_hello, faults="down:eof@3")
    assert run.received[0][0].mismatch is None
    run = run_conversation(shout, client=says_hello, faults="down:reset@3")
    assert "it raised BrokenResourceError" in str(run.received[0][0].mismatch)


def test_a_client_may_begin_late() -> None:
    assert run_conversation(shout, client=says_hello, read_delay=5).seconds == 5


def test_a_drain_does_not_know_the_messages_of_a_client() -> None:
    async def takes(stream: Connection) -> None:
        data = b"?"
        while data:
            data = b""
            with stream.idle():
                data = await stream.receive_some()

    async def sends(stream: MemoryStream) -> None:
        for _ in range(3):
            await stream.send_all(b"he")
            await trio.lowlevel.checkpoint()
        await trio.sleep(5)

    reasons = set[Reason]()
    for step in range(0, 20, 3):
        run = run_conversation(takes, client=sends, disturbance="drain", at_step=step)
        reasons |= {report.reason for report in run.reports}
    assert Reason.DRAINED in reasons


@pytest.mark.parametrize(
    ("peers", "client", "complaint"),
    [
        ((), 5, "client must be an async function or None, not 5"),
        ((Peer(),), says_hello, "client must be None if there are peers"),
    ],
)
def test_a_wrong_client_is_explained(peers: Any, client: Any, complaint: str) -> None:
    for call in (run_conversation, check_handler, sweep_faults):
        with pytest.raises((TypeError, ValueError), match=complaint):
            call(shout, *peers, client=client)


# -- a client that is checked


async def upper(stream: Stream) -> None:
    async for line in Lines(stream):
        await stream.send_all(line.upper() + b"\n")


def test_a_mistake_of_a_client_is_found() -> None:
    async def receives_once(stream: Stream) -> None:
        await stream.send_all(b"hello\n")
        if await stream.receive_some() != b"HELLO\n":
            raise ValueError("what is that?")

    with pytest.raises(HandlerFailure, match="receives_once breaks law") as failed:
        check_client(receives_once, upper)
    assert failed.value.law == "chunking"
    assert "without={'drain': 'a client is not drained'}" in failed.value.again


def test_a_client_that_passes_is_neither_drained_nor_flooded() -> None:
    async def leaves(stream: Stream) -> None:
        await stream.aclose()

    async def waits(stream: Stream) -> None:
        await stream.receive_some()

    off: dict[Law, str] = {"nothing_left": "this test has no time"}
    checked = check_client(leaves, waits, without=off)
    assert checked.runs["a cancel"] > 2
    assert not {"a drain", "a flood", "many broken ones in a row"} & set(checked.runs)


@pytest.mark.long("a whole check")
def test_a_client_that_swallows_a_cancel_is_found() -> None:
    async def swallows(stream: Stream) -> None:
        try:
            await stream.send_all(b"hello\n")
            await stream.receive_some()
        except BaseException:  # noqa: ASYNC103 - as users do it
            pass

    with pytest.raises(HandlerFailure, match="swallows breaks law 'cancelled'"):
        check_client(swallows, upper)

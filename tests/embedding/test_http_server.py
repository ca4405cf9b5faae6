"""The HTTP server of the examples, over loopback sockets, and by all laws."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from examples.embedding.http_server import MAX_BODY, handler
from support import receive_all, receive_exactly, reset, send_received, serving
from trioserve import Reason, Timeouts
from trioserve.testing import Peer, check_handler

pytestmark = pytest.mark.long

_GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_HEAD = b"HTTP/1.1 200 \r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_HELLO = _HEAD + _CHUNKED + b"6\r\nhello\n\r\n0\r\n\r\n"
_CLOSE = b"Connection: close\r\n"
_LAST_HELLO = _HEAD + _CLOSE + _HELLO.removeprefix(_HEAD)


def post(body: bytes) -> bytes:
    return (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


async def test_a_connection_is_kept_alive_between_requests(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        for _ in range(3):
            await client.send_all(_GET)
            assert await receive_exactly(client, len(_HELLO)) == _HELLO
        await client.send_all(_GET.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        assert await receive_all(client) == _HEAD + _CHUNKED[
            :-2
        ] + _CLOSE + b"\r\n" + chunked(b"hello\n")
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.result) == (Reason.SERVER_CLOSED, 4)


async def test_pipelined_requests_are_answered_in_order(
    autojump_clock: MockClock,
) -> None:
    count = b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n"
    numbers = chunked(*(b"%d\n" % number for number in range(10)))
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(_GET + count + post(b"one") + post(b"two") + _GET)
        await client.send_eof()
        answers = [b"hello\n", None, b"one", b"two", b"hello\n"]
        assert await receive_all(client) == b"".join(
            _HEAD + _CHUNKED + (numbers if text is None else chunked(text))
            for text in answers
        )
    assert running.reports[0].reason is Reason.CLIENT_CLOSED


async def test_a_chunked_body_is_put_together(autojump_clock: MockClock) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + _CHUNKED
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(head + chunked(b"to be", b" or not", b" to be"))
        await client.send_eof()
        answer = _HEAD + _CHUNKED + chunked(b"to be or not to be")
        assert await receive_all(client) == answer


async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        assert await receive_all(client) == _HEAD + _CLOSE + b"\r\nhello\n"


async def test_expect_100_continue_is_answered(
    autojump_clock: MockClock,
) -> None:
    head = (
        post(b"abc").removesuffix(b"\r\n\r\nabc") + b"\r\nExpect: 100-continue\r\n\r\n"
    )
    go_on = b"HTTP/1.1 100 \r\n\r\n"
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(head)
        assert await receive_exactly(client, len(go_on)) == go_on
        await client.send_all(b"abc")
        answer = _HEAD + _CHUNKED + chunked(b"abc")
        assert await receive_exactly(client, len(answer)) == answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + bytes([65]) * 20_000, 431),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1 << 30), 413),
        (b"PUT / HTTP/1.1\r\nHost: x\r\n" + _CHUNKED + b"zz\r\n", 400),
        (post(b"abc")[:-1], 400),  # and then EOF
    ],
    ids=["nonsense", "host", "head", "body", "chunk", "eof"],
)
async def test_a_bad_request_gets_an_error_and_a_close(
    request_: bytes, status: int, autojump_clock: MockClock
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(_GET + request_)
        await client.send_eof()
        answer = b"HTTP/1.1 %d \r\n" % status + _CLOSE + _CHUNKED + chunked()
        assert await receive_all(client) == _HELLO + answer
    (report,) = running.reports
    assert report.result == 1
    assert report.notes.keys() == {"error"}


async def test_the_size_of_a_chunked_body_is_limited_too(
    autojump_clock: MockClock,
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + _CHUNKED
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(
            head + chunked(bytes(MAX_BODY + 1)).removesuffix(b"0\r\n\r\n")
        )
        assert (await receive_all(client)).startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(
    autojump_clock: MockClock,
) -> None:
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: "
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(head + b"%d\r\n\r\n" % (MAX_BODY + 1))
        assert (await receive_all(client)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [(b"HEAD", b"/", 200), (b"GET", b"/x", 404), (b"DELETE", b"/", 404)],
)
async def test_methods_and_targets(
    method: bytes, target: bytes, status: int, autojump_clock: MockClock
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(method + b" " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.send_eof()
        assert (await receive_all(client)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("half", [_GET[:10], post(b"abc")[:-1]], ids=["head", "body"])
async def test_a_drain_waits_for_half_a_request_and_answers_it(
    half: bytes, autojump_clock: MockClock
) -> None:
    whole = _GET if _GET.startswith(half) else post(b"abc")
    async with serving(handler) as running:
        busy, idle = await running.connect(), await running.connect()
        for client, part in ((busy, half), (idle, b"")):
            await client.send_all(_GET + part)
            assert await receive_exactly(client, len(_HELLO)) == _HELLO
        running.server.start_draining()
        assert await receive_all(idle) == b""
        await busy.send_all(whole[len(half) :])
        answer = (await receive_all(busy)).replace(_CLOSE, b"")
        assert answer in (_HELLO, _HEAD + _CHUNKED + chunked(b"abc"))
        summary = await running.server.drain()
    assert summary.clean
    assert sorted((report.id, report.result) for report in running.reports) == [
        (1, 2),
        (2, 1),
    ]


async def test_a_drain_answers_what_was_pipelined(autojump_clock: MockClock) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await send_received(running, client, post(b"abc")[:-1])
        running.server.start_draining()
        await client.send_all(b"c" + _GET + _GET)
        answer = _HEAD + _CHUNKED + chunked(b"abc")
        assert await receive_all(client) == answer + _HELLO + _LAST_HELLO


async def test_a_slow_request_gets_408_even_if_bytes_keep_coming(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await trio.sleep(60)  # waiting for a request is not slow
        for byte in post(b"x" * 100)[:-1]:
            if running.reports:
                break
            await client.send_all(bytes([byte]))
            await trio.sleep(1)
        assert (await receive_all(client)).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() < 80
    assert running.reports[0].notes == {"error": "it took too long"}


async def test_half_a_request_that_is_not_finished_during_a_drain_gets_408(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler) as running:
        client = await running.connect()
        await send_received(running, client, _GET[:-1])
        running.server.start_draining()
        assert (await receive_all(client)).startswith(b"HTTP/1.1 408 ")
        assert (await running.server.drain()).clean


async def test_a_client_that_does_not_read_is_ended_and_affects_no_other(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler, timeouts=Timeouts(write_stall=5)) as running:
        slow, other = await running.connect(), await running.connect()
        body = bytes(MAX_BODY)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await slow.send_all(post(body))
                await other.send_all(_GET)
                assert await receive_exactly(other, len(_HELLO)) == _HELLO
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.WRITE_STALL


async def test_a_client_that_vanishes_is_reported_and_affects_no_other(
    autojump_clock: MockClock,
) -> None:
    async with serving(handler) as running:
        gone, other = await running.connect(), await running.connect()
        await gone.send_all(post(b"abc")[:-1])
        await other.send_all(_GET)
        assert await receive_exactly(other, len(_HELLO)) == _HELLO
        reset(gone)
        await other.send_all(_GET)
        assert await receive_exactly(other, len(_HELLO)) == _HELLO
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.CLIENT_RESET


@pytest.mark.nightly("every law, with a long conversation")
def test_it_keeps_every_law() -> None:
    answers = _HELLO + _HEAD + _CHUNKED + chunked(b"abc")
    pipelined = Peer().send(_GET + post(b"abc")).expect(answers)
    check_handler(
        handler, pipelined.send(_GET).expect(_HELLO).half_close().expect_eof()
    )

"""A zoo of handlers: some with one mistake each, of the kind that people make, and
some that are correct, even if they are ugly.

Each mistake has the shortest conversation that is natural for it, and the law that
finds it; no conversation is made to provoke the mistake. Run as a program, this file
prints the table of docs/testing-evidence.md.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import inspect
import math
import re
import secrets
import struct
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import Any, Self, TypeAlias, cast

import trio

from trioserve import Connection, relay
from trioserve.testing import Checked, HandlerFailure, Peer, check_handler

Handler: TypeAlias = Callable[[Any], Coroutine[Any, Any, object]]
Stream: TypeAlias = trio.abc.HalfCloseableStream
Registered: TypeAlias = "Handler | Callable[[], Handler]"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A handler and its conversation.

    Args:
      make: returns the handler, with fresh state.
      title: what it does, in words.
      peers: the conversation.
      law: the law that it breaks; None if it is correct.
      without: laws that do not apply to it, each with the reason.
    """

    name: str
    make: Callable[[], Handler]
    title: str
    peers: tuple[Peer, ...]
    law: str | None = None
    without: dict[Any, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def check(self, repeat: str | None = None) -> None:
        self.check_of(self.make(), repeat=repeat)

    def check_of(self, handler: Handler, **options: Any) -> Checked:
        return check_handler(handler, *self.peers, without=self.without, **options)


MISTAKES: list[Entry] = []
CORRECT: list[Entry] = []


def mistake(
    title: str, law: str, *peers: Peer, without: dict[Any, str] | None = None
) -> Callable[[Registered], Registered]:
    """Register a handler, or a function that makes one with state, and its mistake."""
    return _register(MISTAKES, title, peers, law, without)


def correct(
    title: str, *peers: Peer, without: dict[Any, str] | None = None
) -> Callable[[Registered], Registered]:
    """Register a correct handler, or a function that makes one with state."""
    return _register(CORRECT, title, peers, None, without)


def _register(
    where: list[Entry],
    title: str,
    peers: tuple[Peer, ...],
    law: str | None,
    without: dict[Any, str] | None,
) -> Callable[[Registered], Registered]:
    def register(registered: Registered) -> Registered:
        def make() -> Handler:
            if inspect.iscoroutinefunction(registered):
                return cast("Handler", registered)
            return cast("Callable[[], Handler]", registered)()

        name = registered.__name__
        where.append(Entry(name, make, title, peers, law, without or {}))
        return registered

    return register


# -- correct parts that several handlers use


class Lines:
    """The lines of a stream, without line ends; half a line at EOF is dropped."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            data = await self._stream.receive_some()
            if not data:
                raise StopAsyncIteration
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


async def receive_up_to(stream: Stream, count: int) -> bytes:
    """Receive ``count`` bytes, or fewer if EOF comes first."""
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            break
        data += more
    return data


def frame(text: bytes) -> bytes:
    """A message with a length prefix."""
    return struct.pack(">I", len(text)) + text


SHOUT = Peer().send(b"hello\n").expect(b"HELLO\n").half_close().expect_eof()
SHOUT_TWICE = Peer().send(b"one\ntwo\n").expect(b"ONE\nTWO\n").half_close().expect_eof()
SHOUT_SLOWLY = (
    Peer().send(b"one\n").expect(b"ONE\n").send(b"two\n").expect(b"TWO\n").half_close()
)
SHOUT_TO_THE_END = (
    Peer().send(b"one\ntwo\n").half_close().expect(b"ONE\nTWO\n").expect_eof()
)
ECHO = Peer().send(b"hello").half_close().expect(b"hello").expect_eof()
FRAME = Peer().send(frame(b"hi")).expect(frame(b"HI")).half_close().expect_eof()


# -- one receive is not one message


@mistake(
    "it takes each receive for one command",
    "chunking",
    Peer().send(b"PING\n").expect(b"PONG\n").half_close().expect_eof(),
)
async def one_receive_is_one_command(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(b"PONG\n" if data == b"PING\n" else b"ERROR\n")


@mistake("it drops what comes after the first line of a receive", "answer", SHOUT_TWICE)
async def the_rest_of_a_receive_is_dropped(stream: Stream) -> None:
    buffer = b""
    async for data in stream:
        buffer += data
        if b"\n" in buffer:
            line, _, _ = buffer.partition(b"\n")
            await stream.send_all(line.upper() + b"\n")
            buffer = b""


@mistake("it expects a length prefix in one receive", "chunking", FRAME)
async def a_header_is_one_receive(stream: Stream) -> None:
    while header := await stream.receive_some(4):
        (count,) = struct.unpack(">I", header)
        body = await receive_up_to(stream, count)
        await stream.send_all(header + body.upper())


@mistake("it expects as many bytes as it asked for", "chunking", FRAME)
async def a_body_is_one_receive(stream: Stream) -> None:
    while len(header := await receive_up_to(stream, 4)) == 4:
        (count,) = struct.unpack(">I", header)
        body = await stream.receive_some(count)
        await stream.send_all(header + body.upper())


@mistake(
    "it takes a short receive for the end of the message",
    "chunking",
    Peer().send(b"how long is this?\n").expect(b"18\n").half_close().expect_eof(),
)
async def a_short_receive_is_the_last(stream: Stream) -> None:
    request = await stream.receive_some(4096)
    while request and len(request) % 4096 == 0:
        request += await stream.receive_some(4096)
    if request:
        await stream.send_all(b"%d\n" % len(request))


@mistake(
    "it looks for the end of a line in the last receive only",
    "chunking",
    Peer().send(b"hello\r\n").expect(b"HELLO\r\n").half_close().expect_eof(),
)
async def a_delimiter_is_never_cut(stream: Stream) -> None:
    line = b""
    async for data in stream:
        line += data
        if b"\r\n" in data:
            await stream.send_all(line.upper())
            line = b""


@mistake(
    "it translates line endings receive by receive",
    "chunking",
    Peer().send(b"a\r\nb\r\n").half_close().expect(b"a\nb\n").expect_eof(),
)
async def translated_by_receive(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(data.replace(b"\r\n", b"\n"))


@mistake(
    "it decodes UTF-8 receive by receive",
    "chunking",
    Peer().send("é".encode()).half_close().expect("É".encode()).expect_eof(),
)
async def decoded_by_receive(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(data.decode(errors="replace").upper().encode())


@mistake(
    "it encodes base64 receive by receive",
    "chunking",
    Peer().send(b"hello").half_close().expect(b"aGVsbG8=").expect_eof(),
)
async def encoded_by_receive(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(base64.b64encode(data))


@mistake(
    "it loses bytes that come right after an upgrade",
    "answer",
    Peer().send(b"UPGRADE\nhello").expect(b"OK\nhello").half_close().expect_eof(),
)
async def loses_bytes_after_an_upgrade(stream: Stream) -> None:
    request = b""
    while b"\n" not in request:
        data = await stream.receive_some()
        if not data:
            return
        request += data
    await stream.send_all(b"OK\n")
    async for data in stream:
        await stream.send_all(data)


# -- EOF


@mistake("it continues to read after EOF", "ends", SHOUT)
async def reads_on_after_eof(stream: Stream) -> None:
    buffer = b""
    while True:
        while b"\n" not in buffer:
            buffer += await stream.receive_some()
        line, _, buffer = buffer.partition(b"\n")
        await stream.send_all(line.upper() + b"\n")


@mistake(
    "it takes EOF for an empty message",
    "answer",
    Peer().send(b"abc").receive_until(b"\n").half_close().expect_eof(),
)
async def eof_is_an_empty_message(stream: Stream) -> None:
    total = 0
    while True:
        data = await stream.receive_some()
        total += len(data)
        await stream.send_all(b"%d so far\n" % total)
        if not data:
            return


@mistake(
    "it loses a last line without a line end",
    "answer",
    Peer().send(b"one\ntwo").half_close().expect(b"ONE\nTWO\n").expect_eof(),
)
async def the_last_line_is_lost(stream: Stream) -> None:
    async for line in Lines(stream):
        await stream.send_all(line.upper() + b"\n")


@mistake("it waits for EOF before it answers", "answer", SHOUT)
async def waits_for_eof_to_answer(stream: Stream) -> None:
    request = b""
    async for data in stream:
        request += data
    await stream.send_all(request.upper())


@mistake("at EOF, the reader cancels the writer", "schedule", SHOUT_TO_THE_END)
async def the_reader_cancels_the_writer(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](10)

    async def write() -> None:
        async for answer in answers:
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        async for line in Lines(stream):
            await to_writer.send(line.upper() + b"\n")
        nursery.cancel_scope.cancel()


@mistake("at EOF, the reader does not tell the writer", "ends", SHOUT)
async def the_reader_does_not_tell_the_writer(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](10)

    async def write() -> None:
        async for answer in answers:
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        async for line in Lines(stream):
            await to_writer.send(line.upper() + b"\n")


@mistake("at EOF, the reader closes the writer's stream", "schedule", SHOUT_TO_THE_END)
async def the_reader_closes_the_stream(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](10)

    async def write() -> None:
        async for answer in answers:
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        async with to_writer:
            async for line in Lines(stream):
                await to_writer.send(line.upper() + b"\n")
        await stream.aclose()


@mistake("it sends after it has closed", "errors", SHOUT)
async def sends_after_it_has_closed(stream: Stream) -> None:
    async with stream:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    await stream.send_all(b"bye\n")


@mistake("it closes with a reset", "answer", SHOUT)
async def closes_by_force(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    finally:
        await trio.aclose_forcefully(stream)


# -- cancellation


@mistake("`except BaseException`", "cancelled", SHOUT)
async def catches_base_exception(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    except BaseException as error:  # noqa: ASYNC103
        log(f"the connection ended: {error!r}")


@mistake("it returns on `Cancelled`", "cancelled", SHOUT)
async def returns_when_cancelled(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    except trio.Cancelled:  # noqa: ASYNC103
        return  # noqa: ASYNC104


@mistake("on any error, it continues with the next line", "ends", SHOUT)
async def continues_after_any_error(stream: Stream) -> None:
    lines = Lines(stream)
    while True:
        try:
            line = await anext(lines)
            await stream.send_all(line.upper() + b"\n")
        except StopAsyncIteration:
            return
        except:  # noqa: E722, ASYNC103
            log("a line was lost")


@mistake("`finally` returns", "cancelled", SHOUT)
async def finally_returns(stream: Stream) -> int:
    count = 0
    try:
        async for line in Lines(stream):
            count += 1
            await stream.send_all(line.upper() + b"\n")
    finally:
        return count  # noqa: B012, ASYNC104


@mistake("it takes every `Cancelled` for its own timeout", "cancelled", SHOUT)
async def any_cancel_is_its_own_timeout(stream: Stream) -> None:
    try:
        with trio.fail_after(30):
            async for line in Lines(stream):
                await stream.send_all(line.upper() + b"\n")
    except (trio.TooSlowError, trio.Cancelled):  # noqa: ASYNC103
        log("the client was too slow")


@mistake("it turns `Cancelled` into an error of its own", "errors", SHOUT)
async def cancelled_becomes_an_error(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    except trio.Cancelled as error:  # noqa: ASYNC103
        raise ConnectionAbortedError("the server stops") from error  # noqa: ASYNC104


@mistake("it raises the error of its own timeout", "errors", SHOUT)
async def raises_its_own_timeout(stream: Stream) -> None:
    lines = Lines(stream)
    with contextlib.suppress(StopAsyncIteration):
        while True:
            with trio.fail_after(30):
                line = await anext(lines)
            await stream.send_all(line.upper() + b"\n")


@mistake("it shields the whole conversation", "ends", SHOUT)
async def shields_a_conversation(stream: Stream) -> None:
    with trio.CancelScope(shield=True):
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")


@mistake("it shields a last wait that has no timeout", "ends", SHOUT)
async def shields_a_wait_without_a_timeout(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    finally:
        with trio.CancelScope(shield=True):
            await stream.send_eof()
            async for _ in stream:  # until the client has closed as well
                pass


@mistake("it does not shield an await in `finally`", "nothing_left", SHOUT)
def cleans_up_unshielded() -> Handler:
    give_back, pool = trio.open_memory_channel[Translator](1)
    give_back.send_nowait(Translator())

    async def handle(stream: Stream) -> None:
        translator = await pool.receive()
        try:
            async for line in Lines(stream):
                await stream.send_all(translator.capitals(line) + b"\n")
        finally:
            await give_back.send(translator)  # noqa: ASYNC102

    return handle


class Translator:
    """Something that a pool holds."""

    def capitals(self, line: bytes) -> bytes:
        return line.upper()


@mistake("it receives again at once when the server drains", "drain", SHOUT)
async def receives_again_while_draining(stream: Connection) -> None:
    buffer = b""
    while True:
        data = None
        with stream.idle(held=buffer):
            data = await stream.receive_some()
        if data is None:  # pyright: ignore[reportUnnecessaryComparison]
            continue  # nothing came, so wait for more
        if not data:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            await stream.send_all(line.upper() + b"\n")


@mistake("it lets a drain end its wait with half a line in its buffer", "drain", SHOUT)
async def idle_with_half_a_line(stream: Connection) -> None:
    buffer = b""
    while True:
        data = b""
        with stream.idle():
            data = await stream.receive_some()
        if not data:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            await stream.send_all(line.upper() + b"\n")


# -- resets, and EOF within a message


@mistake("it tries again after a reset", "ends", SHOUT)
async def tries_again_after_a_reset(stream: Stream) -> None:
    buffer = b""
    while True:
        try:
            data = await stream.receive_some()
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                await stream.send_all(line.upper() + b"\n")
        except trio.BrokenResourceError as error:
            log(f"trying again: {error}")


@mistake(
    "its writer gives up, and its reader waits for it",
    "ends",
    Peer().send(b"a\nb\nc\n").expect(b"A\nB\nC\n").half_close().expect_eof(),
)
async def the_writer_gives_up(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](0)

    async def write() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for answer in answers:
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery, to_writer:
        nursery.start_soon(write)
        async for line in Lines(stream):
            await to_writer.send(line.upper() + b"\n")


@mistake(
    "it continues to send to a client that has left",
    "ends",
    Peer().receive_until(b"\n").receive_until(b"\n").close(),
)
async def sends_to_a_client_that_has_left(stream: Stream) -> None:
    number = 0
    while True:
        number += 1
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"tick %d\n" % number)
        await trio.sleep(1)


@mistake("at EOF in a header, unpack fails", "errors", FRAME)
async def unpacks_a_short_header(stream: Stream) -> None:
    while header := await receive_up_to(stream, 4):
        (count,) = struct.unpack(">I", header)
        body = await receive_up_to(stream, count)
        await stream.send_all(frame(body.upper()))


@mistake("at EOF in a body, an assertion fails", "errors", FRAME)
async def asserts_a_whole_body(stream: Stream) -> None:
    while len(header := await receive_up_to(stream, 4)) == 4:
        (count,) = struct.unpack(">I", header)
        body = await receive_up_to(stream, count)
        assert len(body) == count
        await stream.send_all(frame(body.upper()))


@mistake(
    "it parses a line that was cut short",
    "errors",
    Peer().send(b"add 2 3\n").expect(b"5\n").half_close().expect_eof(),
)
async def parses_half_a_line(stream: Stream) -> None:
    buffer = b""
    async for data in stream:
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            await stream.send_all(added(line))
    if buffer:
        await stream.send_all(added(buffer))


def added(line: bytes) -> bytes:
    words = line.split()
    return b"%d\n" % (int(words[1]) + int(words[2]))


# -- tasks that outlive the handler, and handlers that never end


@mistake("a task in another nursery outlives it", "nothing_left", SHOUT)
async def a_task_in_the_nursery_above(stream: Stream) -> None:
    async def audit(line: bytes) -> None:
        await trio.sleep_until(trio.current_time() + 3600)
        log(f"an hour ago a client sent {line!r}")

    above = trio.lowlevel.current_task().parent_nursery
    assert above is not None
    async for line in Lines(stream):
        above.start_soon(audit, line)
        await stream.send_all(line.upper() + b"\n")


@mistake("a system task outlives it", "nothing_left", SHOUT)
async def a_system_task(stream: Stream) -> None:
    async def measure() -> None:
        while True:
            await trio.sleep_until(trio.current_time() + 600)
            log("still there")

    trio.lowlevel.spawn_system_task(measure)
    async for line in Lines(stream):
        await stream.send_all(line.upper() + b"\n")


@mistake(
    "it does not notice that the client has left", "ends", Peer().expect(b"hello\n")
)
async def waits_for_news(stream: Stream) -> None:
    news = trio.Event()
    await stream.send_all(b"hello\n")
    await news.wait()
    await stream.send_all(b"news\n")


@mistake(
    "it sends heartbeats after the conversation",
    "ends",
    Peer().send(b"hello\n").expect(b"HELLO\n").half_close().receive_until_eof(),
)
async def heartbeats_go_on(stream: Stream) -> None:
    async def beat() -> None:
        while True:
            await trio.sleep(10)
            await stream.send_all(b".")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")


@mistake(
    "it polls",
    "ends",
    Peer().send(b"a\n").expect(b"A\n").wait(1).send(b"b\n").expect(b"B\n"),
)
async def polls(stream: Stream) -> None:
    inbox: list[bytes | None] = []

    async def read() -> None:
        async for line in Lines(stream):
            inbox.append(line)  # noqa: PERF401
        inbox.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while True:
            while not inbox:
                await trio.lowlevel.checkpoint()
            line = inbox.pop(0)
            if line is None:
                return  # noqa: ASYNC121
            await stream.send_all(line.upper() + b"\n")


@mistake(
    "it sends a long banner before it reads",
    "ends",
    Peer()
    .pause_reading()
    .send(b"a name that is rather long\n")
    .resume_reading()
    .receive_until(b"\n")
    .expect(b"thank you\n"),
)
async def sends_all_before_it_reads(stream: Stream) -> None:
    await stream.send_all(b"Welcome. What is your name?\n")
    async for _ in Lines(stream):
        await stream.send_all(b"thank you\n")


# -- memory


@mistake("it queues lines without a limit", "memory", SHOUT)
async def queues_without_a_limit(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](math.inf)

    async def read() -> None:
        async with to_writer:
            async for line in Lines(stream):
                to_writer.send_nowait(line.upper() + b"\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for answer in answers:
            await stream.send_all(answer)


@mistake(
    "it starts a task for each line, without a limit",
    "memory",
    Peer()
    .send(b"a line of more than a few words, as people write them\n")
    .expect(b"A LINE OF MORE THAN A FEW WORDS, AS PEOPLE WRITE THEM\n")
    .half_close()
    .expect_eof(),
)
async def a_task_for_every_line(stream: Stream) -> None:
    turn = trio.StrictFIFOLock()

    async def answer(
        line: bytes, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        async with turn:
            await stream.send_all(line.upper() + b"\n")

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            await nursery.start(answer, line)


# -- tasks that run in another order


@mistake(
    "it sends answers in the order in which tasks finish",
    "schedule",
    SHOUT_TWICE,
)
async def answers_in_any_order(stream: Stream) -> None:
    turn = trio.Lock()

    async def answer(line: bytes) -> None:
        async with turn:
            await stream.send_all(line.upper() + b"\n")

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            nursery.start_soon(answer, line)


@mistake("two tasks send at once", "schedule", SHOUT_TO_THE_END)
async def two_send_at_once(stream: Stream) -> None:
    to_workers, lines = trio.open_memory_channel[bytes](0)

    async def work() -> None:
        async for line in lines.clone():
            await stream.send_all(line.upper() + b"\n")

    async with trio.open_nursery() as nursery, to_workers:
        nursery.start_soon(work)
        nursery.start_soon(work)
        async for line in Lines(stream):
            await to_workers.send(line)


@mistake(
    "it loses lines that come while it sends",
    "chunking",
    Peer()
    .send(b"one\n")
    .send(b"two\n")
    .half_close()
    .expect(b"ONE\nTWO\n")
    .expect_eof(),
)
async def clears_after_sending(stream: Stream) -> None:
    answers: list[bytes] = []
    ring, rings = trio.open_memory_channel[None](1)

    async def read() -> None:
        with ring:
            async for line in Lines(stream):
                answers.append(line.upper() + b"\n")
                with contextlib.suppress(trio.WouldBlock):
                    ring.send_nowait(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for _ in rings:
            await stream.send_all(b"".join(answers))
            answers.clear()


# -- slow peers


@mistake(
    "it sends an answer again after a timeout",
    "answer",
    Peer()
    .send(b"hello, is anybody there?\n")
    .expect(b"HELLO, IS ANYBODY THERE?\n")
    .half_close()
    .expect_eof(),
)
async def answers_again(stream: Stream) -> None:
    async for line in Lines(stream):
        for _ in range(3):
            with trio.move_on_after(0.5):
                await stream.send_all(line.upper() + b"\n")
                break


@mistake(
    "at a timeout, it loses the bytes received before",
    "answer",
    Peer().send(b"hel").wait(2).send(b"lo\n").expect(b"HELLO\n"),
)
async def a_timeout_forgets(stream: Stream) -> None:
    while True:
        line = b""
        with trio.move_on_after(1):
            while not line.endswith(b"\n"):
                byte = await stream.receive_some(1)
                if not byte:
                    return
                line += byte
            await stream.send_all(line.upper())


@mistake("at EOF, it loses answers that are not flushed", "answer", SHOUT_TO_THE_END)
async def loses_unflushed_answers(stream: Stream) -> None:
    answers: list[bytes] = []

    async def flush() -> None:
        while True:
            await trio.sleep(0.1)
            taken = b"".join(answers)
            answers.clear()
            await stream.send_all(taken)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        async for line in Lines(stream):
            answers.append(line.upper() + b"\n")  # noqa: PERF401
        nursery.cancel_scope.cancel()


# -- state that connections share


@mistake(
    "connections share a default argument",
    "nothing_left",
    Peer().send(b"a\n").expect(b"1 line\n").half_close().expect_eof(),
)
def a_default_argument() -> Handler:
    async def handle(stream: Stream, lines: list[bytes] = []) -> None:  # noqa: B006
        async for line in Lines(stream):
            lines.append(line)
            await stream.send_all(b"%d line\n" % len(lines))

    return handle


@mistake("connections share a buffer", "alone", SHOUT)
def a_shared_buffer() -> Handler:
    buffer = bytearray()

    async def handle(stream: Stream) -> None:
        async for data in stream:
            buffer.extend(data)
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                await stream.send_all(line.upper() + b"\n")

    return handle


@mistake("a lock stays locked after an error", "nothing_left", SHOUT)
def a_lock_stays_locked() -> Handler:
    lock = trio.Semaphore(1)

    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            await lock.acquire()
            await stream.send_all(line.upper() + b"\n")
            lock.release()

    return handle


@mistake(
    "a client that resets is never uncounted",
    "nothing_left",
    Peer().expect(b"welcome\n").half_close().expect_eof(),
)
def never_uncounts_a_reset_client() -> Handler:
    guests = 0

    async def handle(stream: Stream) -> None:
        nonlocal guests
        if guests == 3:
            await stream.send_all(b"full\n")
            return
        guests += 1
        await stream.send_all(b"welcome\n")
        async for _ in stream:
            pass
        guests -= 1

    return handle


@mistake("connections share a variable", "alone", SHOUT)
def one_variable_for_all() -> Handler:
    current: Stream

    async def handle(stream: Stream) -> None:
        nonlocal current
        current = stream
        async for line in Lines(stream):
            await current.send_all(line.upper() + b"\n")

    return handle


ROOM = Peer().expect(b"welcome\n").meet("all are here")


@mistake(
    "a client leaves while it iterates over all clients",
    "schedule",
    ROOM.send(b"hello\n").expect(b"hello\n"),
    ROOM.expect(b"hello\n"),
    ROOM.close(),
    without={"alone": "each client receives what the others send"},
)
def iterates_over_a_changing_dict() -> Handler:
    room: dict[int, Connection] = {}

    async def handle(stream: Connection) -> None:
        room[stream.id] = stream
        try:
            await stream.send_all(b"welcome\n")
            async for line in Lines(stream):
                for other in room.values():
                    with contextlib.suppress(
                        trio.BrokenResourceError, trio.ClosedResourceError
                    ):
                        await other.send_all(line + b"\n")
        finally:
            del room[stream.id]

    return handle


@mistake(
    "the reset of one client is raised in the handler of another",
    "errors",
    Peer().meet("both are here").reset(),
    Peer()
    .meet("both are here")
    .wait(1)
    .send(b"hello\n")
    .expect(b"hello\n")
    .half_close()
    .expect_eof(),
    without={"alone": "each client receives what the others send"},
)
def one_reset_ends_all() -> Handler:
    room: list[Stream] = []

    async def handle(stream: Stream) -> None:
        room.append(stream)
        async for line in Lines(stream):
            for other in room:
                await other.send_all(line + b"\n")
        room.remove(stream)

    return handle


@mistake(
    "a client that does not read blocks the others",
    "ends",
    Peer()
    .pause_reading()
    .meet("both are here")
    .meet("sent")
    .resume_reading()
    .receive_until_eof(),
    Peer()
    .meet("both are here")
    .send(b"hello\n" * 4)
    .expect(b"hello\n" * 4)
    .meet("sent"),
    without={"alone": "each client receives what the others send"},
)
def one_blocks_the_others() -> Handler:
    room: list[Stream] = []
    turn = trio.Lock()

    async def handle(stream: Stream) -> None:
        room.append(stream)
        try:
            async for line in Lines(stream):
                async with turn:
                    for other in room:
                        await other.send_all(line + b"\n")
        finally:
            room.remove(stream)

    return handle


# -- correct handlers


@correct("an echo in two lines", ECHO)
async def echo(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(data)


@correct("a relay of a connection with itself", ECHO)
async def relay_with_itself(stream: Connection) -> None:
    await relay(stream, stream)


@correct("a byte at a time", SHOUT_TWICE)
async def a_byte_at_a_time(stream: Stream) -> None:
    line = b""
    while byte := await stream.receive_some(1):
        line += byte
        if byte == b"\n":
            await stream.send_all(line.upper())
            line = b""


@correct("a reader and a writer, with a short queue between them", SHOUT_TO_THE_END)
async def reader_and_writer(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](4)

    async def read() -> None:
        async with to_writer:
            async for line in Lines(stream):
                await to_writer.send(line.upper() + b"\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for answer in answers:
            await stream.send_all(answer)


@correct("a last wait in `finally`, shielded for two seconds", SHOUT)
async def a_short_shielded_wait(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    finally:
        with trio.move_on_after(2, shield=True):
            with contextlib.suppress(
                trio.BrokenResourceError, trio.ClosedResourceError
            ):
                await stream.send_eof()
                async for _ in stream:
                    pass


@correct("timeouts of its own, for a line and for an answer", SHOUT_TWICE)
async def timeouts_of_its_own(stream: Stream) -> None:
    lines = Lines(stream)
    while True:
        line = None
        with trio.move_on_after(30), contextlib.suppress(StopAsyncIteration):
            line = await anext(lines)
        if line is None:
            return
        with trio.move_on_after(30) as answering:
            await stream.send_all(line.upper() + b"\n")
        if answering.cancelled_caught:
            return


@correct("it treats a reset as EOF", SHOUT)
async def a_reset_is_treated_as_eof(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        log(f"the client left: {error}")


@correct("a nursery for every message", SHOUT_TWICE)
async def a_nursery_for_every_message(stream: Stream) -> None:
    async for line in Lines(stream):
        halves = [line[: len(line) // 2], line[len(line) // 2 :]]

        async def work(index: int, halves: list[bytes]) -> None:
            await trio.lowlevel.checkpoint()
            halves[index] = halves[index].upper()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, 0, halves)
            nursery.start_soon(work, 1, halves)
        await stream.send_all(b"".join(halves) + b"\n")


@correct("`Cancelled` is caught, noted, and raised again", SHOUT)
async def cancelled_is_raised_again(stream: Connection) -> None:
    lines = 0
    try:
        async for line in Lines(stream):
            lines += 1
            await stream.send_all(line.upper() + b"\n")
    except trio.Cancelled:
        stream.note(lines=lines)
        raise


@correct("a drain may end its waits", SHOUT_TWICE)
async def idle_between_lines(stream: Connection) -> None:
    buffer = b""
    while True:
        data = b""
        with stream.idle(held=buffer):
            data = await stream.receive_some()
        if not data:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            await stream.send_all(line.upper() + b"\n")


Parser: TypeAlias = Generator[bytes, bytes, None]


def frames_in_capitals() -> Parser:
    """A parser that does no I/O: bytes in, answers out."""
    data, answers = b"", b""
    while True:
        data += yield answers
        answers = b""
        while len(data) >= 4 and len(data) - 4 >= (
            n := int.from_bytes(data[:4], "big")
        ):
            answers += frame(data[4 : 4 + n].upper())
            data = data[4 + n :]


@correct("a parser without I/O, fed by hand", FRAME)
async def a_parser_without_io(stream: Stream) -> None:
    parser = frames_in_capitals()
    next(parser)
    async for data in stream:
        if answers := parser.send(bytes(data)):
            await stream.send_all(answers)


@correct("two tasks, and their exceptions in groups", SHOUT_TO_THE_END)
async def groups_are_split(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](0)

    async def read() -> None:
        async with to_writer:
            async for line in Lines(stream):
                await to_writer.send(line.upper() + b"\n")

    async def write() -> None:
        async with answers:
            async for answer in answers:
                await stream.send_all(answer)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
    except* (trio.BrokenResourceError, trio.ClosedResourceError) as gone:
        log(f"the client left: {gone.exceptions}")


@correct(
    "heartbeats that stop with the conversation",
    Peer().send(b"hello\n").expect(b"HELLO\n").half_close().expect_eof(),
)
async def heartbeats_that_stop(stream: Stream) -> None:
    turn = trio.Lock()

    async def beat() -> None:
        while True:
            await trio.sleep(600)
            async with turn:
                await stream.send_all(b".\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        async for line in Lines(stream):
            async with turn:
                await stream.send_all(line.upper() + b"\n")
        nursery.cancel_scope.cancel()


@correct(
    "an answer after EOF",
    Peer().send(b"to be or not").half_close().expect(b"4\n"),
)
async def counts_words(stream: Stream) -> None:
    text = b"".join([data async for data in stream])
    await stream.send_all(b"%d\n" % len(text.split()))


@correct(
    "one question, one answer, and a close",
    Peer().send(b"hello\n").expect(b"HELLO\n").expect_eof(),
)
async def one_question(stream: Stream) -> None:
    async with stream:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
            return


@correct(
    "two tokens, released in any case",
    Peer().expect(b"welcome\n").half_close().expect_eof(),
)
def tokens_are_released() -> Handler:
    limiter = trio.CapacityLimiter(2)

    async def handle(stream: Stream) -> None:
        async with limiter:
            await stream.send_all(b"welcome\n")
            async for _ in stream:
                pass

    return handle


COUNT = Peer().send(b"one\ntwo\n").half_close().expect(b"2\n").expect_eof()


@correct("a checkpoint for every line, and one answer for all", COUNT)
async def counts_lines(stream: Stream) -> None:
    count = 0
    async for _ in Lines(stream):
        count += 1
        await trio.lowlevel.checkpoint()
    await stream.send_all(b"%d\n" % count)


@correct("it takes a second for every line", SHOUT_TWICE)
async def a_second_for_every_line(stream: Stream) -> None:
    async for line in Lines(stream):
        await trio.sleep(1)
        await stream.send_all(line.upper() + b"\n")


@correct("work in a thread", SHOUT)
async def works_in_a_thread(stream: Stream) -> None:
    async for line in Lines(stream):
        answer = await trio.to_thread.run_sync(line.upper)
        await stream.send_all(answer + b"\n")


@correct("a timeout of three seconds", SHOUT_SLOWLY)
async def a_timeout_of_three_seconds(stream: Stream) -> None:
    lines = Lines(stream)
    while True:
        line = None
        with trio.move_on_after(3), contextlib.suppress(StopAsyncIteration):
            line = await anext(lines)
        if line is None:
            return
        await stream.send_all(line.upper() + b"\n")


@correct(
    "a random answer",
    Peer().receive_until(b"\n").half_close().expect_eof(),
)
async def sends_a_random_name(stream: Stream) -> None:
    await stream.send_all(secrets.token_hex().encode() + b"\n")
    async for _ in stream:
        pass


@correct(
    "it sends everything, and then reads until EOF",
    Peer().expect(b"hello\n").expect_eof().send(b"thank you").half_close(),
)
async def sends_everything_and_reads(stream: Stream) -> None:
    await stream.send_all(b"hello\n")
    await stream.send_eof()
    async for _ in stream:
        pass


@correct(
    "news, until the client leaves",
    Peer().receive_until(b"\n").receive_until(b"\n").half_close().receive_until_eof(),
)
async def news_until_it_leaves(stream: Stream) -> None:
    async def tell() -> None:
        number = 0
        while True:
            number += 1
            await stream.send_all(b"%d: %s\n" % (number, b"news " * 200))
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        async for _ in stream:
            pass
        nursery.cancel_scope.cancel()


@correct("eight receives in a queue", ECHO)
async def eight_receives_in_a_queue(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](8)

    async def read() -> None:
        async with to_writer:
            async for data in stream:
                await to_writer.send(bytes(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for answer in answers:
            await stream.send_all(answer)


@correct(
    "it resets a client that sends an unknown command",
    Peer().send(b"PLEASE\n").expect_reset(),
)
async def resets_on_an_unknown_command(stream: Connection) -> None:
    async for line in Lines(stream):
        if line != b"PING":
            stream.abort()
            return
        await stream.send_all(b"PONG\n")


@correct("it catches its own timeout, and tells the client", SHOUT)
async def tells_the_client_about_a_timeout(stream: Stream) -> None:
    lines = Lines(stream)
    while True:
        try:
            with trio.fail_after(30):
                line = await anext(lines)
        except StopAsyncIteration:
            return
        except trio.TooSlowError:
            line = b"too slow"
        await stream.send_all(line.upper() + b"\n")
        if line == b"too slow":
            return


@trio.as_safe_channel
async def lines_of(stream: Stream) -> AsyncGenerator[bytes, None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        async for line in Lines(stream):
            yield line  # noqa: ASYNC101, ASYNC119


@correct("lines from a generator with a nursery in it, as a channel", SHOUT_TWICE)
async def a_generator_as_a_channel(stream: Stream) -> None:
    async with lines_of(stream) as lines:
        async for line in lines:
            await stream.send_all(line.upper() + b"\n")


@correct("an await in `finally`, shielded for a second", SHOUT)
def cleans_up_shielded() -> Handler:
    give_back, pool = trio.open_memory_channel[Translator](1)
    give_back.send_nowait(Translator())

    async def handle(stream: Stream) -> None:
        translator = await pool.receive()
        try:
            async for line in Lines(stream):
                await stream.send_all(translator.capitals(line) + b"\n")
        finally:
            with trio.move_on_after(1, shield=True):
                await give_back.send(translator)

    return handle


def log(what: str) -> None:
    """A program would log this."""


# -- the table


def found(entry: Entry) -> HandlerFailure | None:
    """The failure of a check of this handler, or None."""
    try:
        entry.check()
    except HandlerFailure as failure:
        return failure
    return None


def row(entry: Entry, failure: HandlerFailure | None) -> tuple[str, str, str]:
    """A mistake, the law that finds it, and the first line of the failure.

    Line numbers are left out, because they change, and so is the name of this
    module, because it has two.
    """
    if failure is None:
        return entry.title, "not found", ""
    first, second, *_ = str(failure).splitlines()
    said = f"{first} {second.strip()}" if first.endswith(":") else first
    said = re.sub(r"(?<=zoo\.py):\d+|(__main__|testing\.zoo)\.", "", said)
    said = re.sub(r"^\w+ breaks law '\w+': ", "", said)
    return entry.title, f"`{failure.law}`", f"`{said}`"


def table() -> Iterator[str]:
    """The lines of the table of docs/testing-evidence.md, in Markdown."""
    yield "| mistake | law | it says | seconds |"
    yield "|---|---|---|---|"
    for entry in MISTAKES:
        began = time.perf_counter()
        cells = row(entry, found(entry))
        yield f"| {' | '.join(cells)} | {time.perf_counter() - began:.1f} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)

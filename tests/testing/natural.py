"""More handlers, each with the conversation that a user would write first.

Such a conversation waits for each answer before it sends the next message, and does
not half-close. What it does not provoke by itself, the kit must derive from it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from collections.abc import Callable
from typing import Any

import trio

from testing.zoo import Entry, Handler, Lines, Registered, Stream, log, receive_up_to
from testing.zoo import _register as register
from trioserve import Connection
from trioserve.testing import Peer

MISTAKES: list[Entry] = []
CORRECT: list[Entry] = []

#: Mistakes that are too rare for a quick check.
RARE: list[Entry] = []


def mistake(
    title: str, law: str, *peers: Any, without: dict[Any, str] | None = None
) -> Callable[[Registered], Registered]:
    return register(MISTAKES, title, peers, law, without)


def rare(title: str, law: str, *peers: Any) -> Callable[[Registered], Registered]:
    return register(RARE, title, peers, law, None)


def correct(
    title: str, *peers: Any, without: dict[Any, str] | None = None
) -> Callable[[Registered], Registered]:
    return register(CORRECT, title, peers, None, without)


PINGS = Peer().send(b"PING\n").expect(b"PONG\n").send(b"PING\n").expect(b"PONG\n")
SHOUTS = Peer().send(b"one\n").expect(b"ONE\n").send(b"two\n").expect(b"TWO\n")
QUIT = SHOUTS.send(b"quit\n").expect(b"bye\n").expect_eof()


# -- a client that does not wait for answers


@mistake("it answers once for each receive", "pipelining", PINGS)
async def one_answer_for_each_receive(stream: Stream) -> None:
    buffer = b""
    async for data in stream:
        buffer += data
        if buffer.endswith(b"\n"):
            buffer = b""
            await stream.send_all(b"PONG\n")


@mistake(
    "quick requests overtake slow ones",
    "pipelining",
    Peer().send(b"slow\n").expect(b"slow it is\n").send(b"quick\n").expect(b"quick\n"),
)
async def quick_ones_overtake(stream: Stream) -> None:
    turn = trio.Lock()

    async def answer(line: bytes) -> None:
        reply = b"quick\n"
        if line == b"slow":
            await trio.sleep(1)
            reply = b"slow it is\n"
        async with turn:
            await stream.send_all(reply)

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            nursery.start_soon(answer, line)


@mistake(
    "after an upgrade it begins with an empty buffer",
    "pipelining",
    Peer().send(b"UPGRADE\n").expect(b"OK\n").send(b"hello").expect(b"hello"),
)
async def begins_again_after_an_upgrade(stream: Stream) -> None:
    await upgrade(stream)


async def upgrade(stream: Stream) -> None:
    async for _ in Lines(stream):
        await stream.send_all(b"OK\n")
        break
    async for data in stream:
        await stream.send_all(data)


@mistake(
    "it throws away what comes before its go-ahead",
    "pipelining",
    Peer().send(b"PUT 6\n").expect(b"go on\n").send(b"secret").expect(b"stored\n"),
)
async def waits_with_an_empty_buffer(stream: Stream) -> None:
    async for line in Lines(stream):
        count = int(line.split()[1])
        await stream.send_all(b"go on\n")
        await receive_up_to(stream, count)
        await stream.send_all(b"stored\n")


@mistake(
    "an answer in two sends, from two tasks",
    "pipelining",
    Peer()
    .send(b"3 fox\n")
    .expect(b"answer 3\nfox\n")
    .send(b"3 owl\n")
    .expect(b"answer 3\nowl\n"),
)
async def answers_in_two_sends(stream: Stream) -> None:
    async def answer(line: bytes) -> None:
        await trio.sleep(0.1)
        size, word = line.split()
        await stream.send_all(b"answer %s\n" % size)
        await trio.sleep(0.1)
        await stream.send_all(word + b"\n")

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            nursery.start_soon(answer, line)


@mistake("one event for all requests", "pipelining", SHOUTS)
async def one_event_for_all(stream: Stream) -> None:
    done = trio.Event()
    waiting: list[bytes] = []

    async def work() -> None:
        nonlocal done
        while True:
            await trio.sleep(0.01)
            if waiting:
                line = waiting.pop()
                waiting.clear()
                await stream.send_all(line.upper() + b"\n")
                done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async for line in Lines(stream):
            done = trio.Event()
            waiting.append(line)
            if len(waiting) < 2:
                nursery.start_soon(done.wait)
        while waiting:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@mistake(
    "it watches for a cancel of the request with a second receive",
    "pipelining",
    Peer().send(b"job\n").expect(b"done\n").send(b"job\n").expect(b"done\n"),
)
async def a_second_receive(stream: Stream) -> None:
    lines = Lines(stream)

    async def watch(scope: trio.CancelScope) -> None:
        async for line in lines:
            if line == b"stop":
                scope.cancel()

    async for _ in lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await stream.send_all(b"done\n")


# -- EOF right after the last message


def queued(on_eof: Callable[[Stream, trio.Nursery], object]) -> Handler:
    """Answers go through a queue; the mistake is what happens at EOF."""

    async def handle(stream: Stream) -> None:
        to_writer, answers = trio.open_memory_channel[bytes](10)

        async def write() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                async for answer in answers:
                    await trio.sleep(0.1)
                    await stream.send_all(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            async with to_writer:
                async for line in Lines(stream):
                    await to_writer.send(line.upper() + b"\n")
            done = on_eof(stream, nursery)
            if done is not None:
                await done  # type: ignore[misc]

    return handle


@mistake("at EOF, it cancels the task that answers", "half_close", SHOUTS)
def eof_cancels_the_answers() -> Handler:
    return queued(lambda stream, nursery: nursery.cancel_scope.cancel())


@mistake("at EOF, it closes, and swallows the error of that", "half_close", SHOUTS)
def eof_closes_the_stream() -> Handler:
    return queued(lambda stream, nursery: stream.aclose())


@mistake("at EOF, it does not send what it has collected", "half_close", SHOUTS)
async def collects_for_a_moment(stream: Stream) -> None:
    out = bytearray()
    async with trio.open_nursery() as nursery:

        async def flush() -> None:
            while True:
                await trio.sleep(0.05)
                data = bytes(out)
                out.clear()
                await stream.send_all(data)

        nursery.start_soon(flush)
        async for line in Lines(stream):
            out.extend(line.upper() + b"\n")
        nursery.cancel_scope.cancel()


@mistake(
    "a client that has nothing more to say is taken for one that has left",
    "half_close",
    Peer().send(b"report\n").receive_until(b"end\n"),
)
async def nobody_is_there(stream: Stream) -> None:
    await report(stream)


async def report(stream: Stream) -> None:
    async def watch(scope: trio.CancelScope, lines: Lines) -> None:
        async for _ in lines:
            pass
        scope.cancel()

    lines = Lines(stream)
    async for _ in lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope, lines)
            for number in range(3):
                await stream.send_all(b"%d\n" % number)
                await trio.sleep(1)
            await stream.send_all(b"end\n")
            return  # noqa: ASYNC121 - as users do it


# -- both ends have much to say


@mistake(
    "it sends a long list before it reads",
    "ends",
    Peer().send(b"x" * 40_000 + b"\n").expect(b"y" * 40_000 + b"thank you\n"),
)
async def sends_a_list_first(stream: Stream) -> None:
    await stream.send_all(b"y" * 40_000)
    async for _ in Lines(stream):
        await stream.send_all(b"thank you\n")


@mistake("a queue without bound, and a closing message", "memory", QUIT)
async def reads_ahead_without_bound(stream: Stream) -> None:
    to_writer, answers = trio.open_memory_channel[bytes](math.inf)

    async def read() -> None:
        async with to_writer:
            async for line in Lines(stream):
                to_writer.send_nowait(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for line in answers:
            if line == b"quit":
                await stream.send_all(b"bye\n")
                nursery.cancel_scope.cancel()
                return  # noqa: ASYNC121 - as users do it
            await stream.send_all(line.upper() + b"\n")


# -- orders of tasks


@mistake(
    "a total is read before a wait and written after it",
    "schedule",
    Peer().send(b"1 2\n").expect(b"3\n").send(b"5 6\n").expect(b"11\n"),
)
async def a_lost_update(stream: Stream) -> None:
    async def pause(times: int) -> None:
        for _ in range(times):
            await trio.lowlevel.checkpoint()

    async def add(number: int, totals: list[int], late: int) -> None:
        await pause(late)
        total = totals[0]
        await pause(1)
        totals[0] = total + number

    async for line in Lines(stream):
        totals = [0]
        async with trio.open_nursery() as nursery:
            for place, word in enumerate(line.split()):
                nursery.start_soon(add, int(word), totals, 4 * place)
        await stream.send_all(b"%d\n" % totals[0])


def within(steps: int) -> Handler:
    """Fails if one task makes this many steps while another makes one."""

    async def handle(stream: Stream) -> None:
        async for _ in Lines(stream):
            ticks = [0]

            async def tick(ticks: list[int]) -> None:
                for _ in range(3 * steps):
                    await trio.lowlevel.checkpoint()
                    ticks[0] += 1

            async def look(ticks: list[int]) -> None:
                for _ in range(3 * steps):
                    before = ticks[0]
                    await trio.lowlevel.checkpoint()
                    assert ticks[0] - before < steps

            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick, ticks)
                nursery.start_soon(look, ticks)
            await stream.send_all(b"fine\n")

    return handle


ASK = Peer().send(b"how are you?\n").expect(b"fine\n")


@mistake("it fails if a task makes two steps within one of another", "schedule", ASK)
def two_steps_within_one() -> Handler:
    return within(2)


@mistake("it fails if a task makes three steps within one of another", "schedule", ASK)
def three_steps_within_one() -> Handler:
    return within(3)


@mistake("it fails if a task makes five steps within one of another", "schedule", ASK)
def five_steps_within_one() -> Handler:
    return within(5)


@mistake("it fails if a task makes eight steps within one of another", "schedule", ASK)
def eight_steps_within_one() -> Handler:
    return within(8)


def at_one_place(first: int, second: int) -> Handler:
    """Fails if two tasks are at one place each, in the same moment."""

    async def handle(stream: Stream) -> None:
        async for _ in Lines(stream):
            moments = [0, 0]

            async def work(which: int, moments: list[int]) -> None:
                for _ in range(40):
                    moments[which] += 1
                    assert moments != [first, second]
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, 0, moments)
                nursery.start_soon(work, 1, moments)
            await stream.send_all(b"fine\n")

    return handle


@rare(
    "it fails if one task is at its 30th step and another at its 5th", "schedule", ASK
)
def the_30th_and_the_5th_step() -> Handler:
    return at_one_place(30, 5)


@rare(
    "it fails if one task is at its 7th step and another at its 38th", "schedule", ASK
)
def the_7th_and_the_38th_step() -> Handler:
    return at_one_place(7, 38)


@mistake(
    "the last dot comes after the answer",
    "schedule",
    Peer().send(b"job\n").receive_until(b"done\n").send(b"job\n").receive_until(b"e\n"),
)
async def a_dot_after_the_answer(stream: Stream) -> None:
    turn = trio.Lock()

    async def dots() -> None:
        while True:
            await trio.sleep(1)
            async with turn:
                await stream.send_all(b".")

    async for _ in Lines(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dots)
            await trio.sleep(3)
            async with turn:
                await stream.send_all(b"done\n")
            nursery.cancel_scope.cancel()


@mistake(
    "the id of the last request is in a variable of all",
    "pipelining",
    Peer().send(b"7 a\n").expect(b"7 A\n").send(b"8 b\n").expect(b"8 B\n"),
)
async def the_last_id(stream: Stream) -> None:
    turn = trio.Lock()
    last = b""

    async def answer(word: bytes) -> None:
        await trio.sleep(0.1)
        async with turn:
            await stream.send_all(last + b" " + word.upper() + b"\n")

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            last, word = line.split()
            nursery.start_soon(answer, word)


# -- what is left behind


@mistake("a pool of eight loses a place with each cancel", "nothing_left", SHOUTS)
def a_pool_of_eight() -> Handler:
    free = [f"worker {number}" for number in range(8)]

    async def handle(stream: Stream) -> None:
        worker = free.pop()
        try:
            async for line in Lines(stream):
                await stream.send_all(line.upper() + b"\n")
        except (Exception, trio.Cancelled):
            log(f"{worker} was interrupted")
            raise
        free.append(worker)

    return handle


LOGIN = Peer().send(b"ann\n").expect(b"hello ann\n").send(b"?\n").expect(b"ann\n")


@mistake(
    "who resets stays logged in",
    "nothing_left",
    LOGIN,
    without={"alone": "a name can be used once at a time"},
)
def stays_logged_in() -> Handler:
    here: set[bytes] = set()

    async def handle(stream: Stream) -> None:
        name = b""
        async for line in Lines(stream):
            if name:
                await stream.send_all(name + b"\n")
            elif line in here:
                await stream.send_all(b"you are here already\n")
            else:
                name = line
                here.add(name)
                await stream.send_all(b"hello " + name + b"\n")
        here.discard(name)

    return handle


@mistake("news are sent to a client that has said goodbye", "errors", QUIT)
async def news_after_goodbye(stream: Stream) -> None:
    async def news() -> None:
        await trio.sleep(0.5)
        await stream.send_all(b"")

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            if line == b"quit":
                await stream.send_all(b"bye\n")
                await stream.aclose()
                return  # noqa: ASYNC121 - as users do it
            nursery.start_soon(news)
            await stream.send_all(line.upper() + b"\n")


@mistake(
    "a table of clients grows when one resets in its greeting",
    "nothing_left",
    Peer().expect(b"hello, 1 of 4\n").send(b"one\n").expect(b"ONE\n"),
    without={"alone": "it counts the clients"},
)
def a_table_that_grows() -> Handler:
    here: dict[int, Stream] = {}

    async def handle(stream: Connection) -> None:
        here[stream.id] = stream
        await stream.send_all(b"hello, %d of 4\n" % len(here))
        try:
            async for line in Lines(stream):
                await stream.send_all(line.upper() + b"\n")
        finally:
            del here[stream.id]

    return handle


def _logs_in(number: int) -> Peer:
    name = b"user%d\n" % number
    return Peer().send(name).expect(b"hello\n").send(b"?\n").expect(name)


@mistake(
    "the user who has logged in is in a global",
    "alone",
    _logs_in,
)
def one_user_for_all() -> Handler:
    user = b""

    async def handle(stream: Stream) -> None:
        nonlocal user
        lines = Lines(stream)
        async for line in lines:
            user = line
            await stream.send_all(b"hello\n")
            async for _ in lines:
                await stream.send_all(user + b"\n")

    return handle


# -- bytes


def framed(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


@mistake(
    "the body is what came with the header",
    "chunking",
    Peer().send(framed(b"hello")).expect(b"5\n").send(framed(b"hi")).expect(b"2\n"),
)
async def the_body_came_along(stream: Stream) -> None:
    buffer = b""
    async for data in stream:
        buffer += data
        while len(buffer) >= 2:
            (count,) = struct.unpack(">H", buffer[:2])
            body, buffer = buffer[2 : 2 + count], buffer[2 + count :]
            await stream.send_all(b"%d\n" % len(body))


@mistake(
    "a character in two pieces can't be decoded",
    "chunking",
    Peer().send("é\n".encode()).expect("É\n".encode()),
)
async def decodes_strictly(stream: Stream) -> None:
    text = ""
    async for data in stream:
        text += data.decode()
        while "\n" in text:
            line, _, text = text.partition("\n")
            await stream.send_all((line.upper() + "\n").encode())


# -- correct handlers that are ugly


@correct("a cleanup of twenty seconds, shielded", SHOUTS)
async def a_long_cleanup(stream: Stream) -> None:
    try:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)


@correct("a job goes on for ten minutes after its client has left", SHOUTS)
async def a_job_outlives_its_client(stream: Stream) -> None:
    async def job() -> None:
        await trio.sleep(600)

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            nursery.start_soon(job)
            await stream.send_all(line.upper() + b"\n")


@correct(
    "dots until it is done",
    Peer().send(b"job\n").receive_until(b"done\n").send(b"job\n").receive_until(b"e\n"),
)
async def dots_until_done(stream: Stream) -> None:
    async def dots() -> None:
        while True:
            await trio.sleep(1)
            await stream.send_all(b".")

    async for _ in Lines(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dots)
            await trio.sleep(3.5)
            nursery.cancel_scope.cancel()
        await stream.send_all(b"done\n")


@correct("heartbeats of an hour, and a lock", SHOUTS)
async def heartbeats_and_a_lock(stream: Stream) -> None:
    turn = trio.Lock()

    async def beat() -> None:
        while True:
            await trio.sleep(3600)
            async with turn:
                await stream.send_all(b"\0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        async for line in Lines(stream):
            async with turn:
                await stream.send_all(line.upper() + b"\n")
        nursery.cancel_scope.cancel()


@correct(
    "answers with ids, as they are ready",
    Peer()
    .send(b"1 slow\n")
    .expect(b"1 SLOW\n")
    .send(b"2 quick\n")
    .expect(b"2 QUICK\n")
    .send(b"3 slow\n")
    .expect(b"3 SLOW\n"),
)
async def answers_with_ids(stream: Stream) -> None:
    turn = trio.Lock()
    places = trio.CapacityLimiter(4)

    async def answer(number: bytes, word: bytes, task_status: Any) -> None:
        async with places:
            task_status.started()
            await trio.sleep(1 if word == b"slow" else 0)
            async with turn:
                await stream.send_all(number + b" " + word.upper() + b"\n")

    async def start(line: bytes, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        number, word = line.split()
        await answer(number, word, task_status)

    async with trio.open_nursery() as nursery:
        async for line in Lines(stream):
            await nursery.start(start, line)


@correct(
    "it deliberately drops what comes before the upgrade is confirmed",
    Peer().send(b"UPGRADE\n").expect(b"OK\n").send(b"hello").expect(b"hello"),
    without={"pipelining": "plain text before the upgrade must not be trusted"},
)
async def drops_plain_text(stream: Stream) -> None:
    await upgrade(stream)


@correct(
    "EOF cancels the job",
    Peer().send(b"report\n").receive_until(b"end\n"),
    without={"half_close": "a client that closes its side is not waited for"},
)
async def eof_cancels_the_job(stream: Stream) -> None:
    await report(stream)


@correct("one message a second", SHOUTS)
async def one_message_a_second(stream: Stream) -> None:
    async for line in Lines(stream):
        await stream.send_all(line.upper() + b"\n")
        await trio.sleep(1)


@correct("a closing message, and what is left is read", QUIT)
async def reads_what_is_left(stream: Stream) -> None:
    async for line in Lines(stream):
        if line == b"quit":
            await stream.send_all(b"bye\n")
            await stream.send_eof()
            break
        await stream.send_all(line.upper() + b"\n")
    with trio.move_on_after(2):
        async for _ in stream:
            pass


@correct(
    "a challenge that the client answers",
    Peer().receive(8).send(b"let me in\n").expect(b"welcome\n"),
)
async def a_challenge(stream: Connection) -> None:
    await stream.send_all(b"%08d" % (stream.id * 7919))
    async for _ in Lines(stream):
        await stream.send_all(b"welcome\n")


@correct(
    "a long download in small pieces",
    Peer().send(b"GET\n").receive(50_000).send(b"thanks\n").expect(b"bye\n"),
)
async def a_long_download(stream: Stream) -> None:
    async for line in Lines(stream):
        if line == b"GET":
            for number in range(50):
                await stream.send_all(b"%03d " % number + b"x" * 996)
        else:
            await stream.send_all(b"bye\n")


@correct("a window of four requests, answered in order", SHOUTS)
async def a_window_of_four(stream: Stream) -> None:
    to_writer, jobs = trio.open_memory_channel[Any](4)

    async def work(line: bytes, done: trio.Event, result: list[bytes]) -> None:
        await trio.sleep(len(line) / 10)
        result.append(line.upper() + b"\n")
        done.set()

    async def write() -> None:
        async for done, result in jobs:
            await done.wait()
            await stream.send_all(result[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        async with to_writer:
            async for line in Lines(stream):
                done, result = trio.Event(), list[bytes]()
                await to_writer.send((done, result))
                nursery.start_soon(work, line, done, result)


@correct("it counts connections, and never says how many", SHOUTS)
def counts_connections() -> Handler:
    numbers = itertools.count()

    async def handle(stream: Stream) -> None:
        log(f"connection {next(numbers)}")
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")

    return handle

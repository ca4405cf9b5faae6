"""Handlers that meet hostile peers: some have one mistake each, some are correct."""

from __future__ import annotations

import collections
import dataclasses
import functools
import struct
from collections.abc import Callable
from typing import Any

import trio

from testing.natural import SHOUTS
from testing.zoo import Handler, Lines, Stream, frame, receive_up_to
from trioserve import Connection
from trioserve.testing import Checked, HandlerFailure, Peer, check_handler

QUIT = SHOUTS.send(b"quit\n").expect(b"bye\n").expect_eof()
FRAMES = (
    Peer().send(frame(b"hi")).expect(frame(b"HI")).send(frame(b"o")).expect(frame(b"O"))
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A handler, its conversation, and the law that it breaks, or None."""

    make: Callable[[], Handler]
    title: str
    peer: Peer
    law: str | None
    bounds: dict[str, Any]

    def __str__(self) -> str:
        return self.make.__name__

    def check(self, repeat: str | None = None) -> Checked:
        return self.check_of(self.make(), repeat=repeat)

    def check_of(self, handler: Handler, **options: Any) -> Checked:
        return check_handler(handler, self.peer, **options, **self.bounds)


ENTRIES: list[Entry] = []


def entry(
    title: str, law: str | None, peer: Peer = SHOUTS, **bounds: Any
) -> Callable[[Callable[[], Handler]], Callable[[], Handler]]:
    """Register a function that makes a handler."""

    def register(make: Callable[[], Handler]) -> Callable[[], Handler]:
        ENTRIES.append(Entry(make, title, peer, law, bounds))
        return make

    return register


async def shout(stream: Stream, line: bytes) -> None:
    await stream.send_all(line.upper() + b"\n")


# -- a deadline


@entry("its deadline starts anew with every byte", "deadline", deadline=10)
def a_deadline_for_each_receive() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        while True:
            data: bytes | bytearray = b""
            with trio.move_on_after(10):
                data = await stream.receive_some()
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                await shout(stream, line)

    return handle


@entry("only its first message has a deadline", "deadline", deadline=10)
def a_deadline_for_the_first() -> Handler:
    async def handle(stream: Stream) -> None:
        lines = Lines(stream)
        line = b""
        with trio.move_on_after(10):
            line = await anext(lines, b"")
        if line:
            await shout(stream, line)
            async for line in lines:
                await shout(stream, line)

    return handle


@entry("the body of its messages has no deadline", "deadline", FRAMES, deadline=10)
def a_deadline_for_the_header() -> Handler:
    async def handle(stream: Stream) -> None:
        while True:
            head = b""
            with trio.move_on_after(10):
                head = await receive_up_to(stream, 4)
            if len(head) < 4:
                return
            body = await receive_up_to(stream, int.from_bytes(head, "big"))
            await stream.send_all(head + body.upper())

    return handle


@entry("a watchdog that each byte feeds", "deadline", deadline=60)
def a_watchdog_that_is_fed() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        with trio.move_on_after(60) as watchdog:
            async for data in stream:
                watchdog.deadline = trio.current_time() + 60
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    await shout(stream, line)

    return handle


@entry("a deadline for each line", None, deadline=10)
def a_deadline_for_each_line() -> Handler:
    async def handle(stream: Stream) -> None:
        lines = Lines(stream)
        while True:
            line = None
            with trio.move_on_after(10):
                line = await anext(lines, None)
            if line is None:
                return
            await shout(stream, line)

    return handle


@entry("a deadline for the whole conversation, and a word", None, deadline=30)
def a_deadline_for_all() -> Handler:
    async def handle(stream: Stream) -> None:
        with trio.move_on_after(30) as deadline:
            async for line in Lines(stream):
                await shout(stream, line)
        if deadline.cancelled_caught:
            with trio.move_on_after(1):
                await stream.send_all(b"too slow\n")

    return handle


@entry("a deadline that a watch task keeps", None, FRAMES, deadline=20, longest=1000)
def a_watch_task() -> Handler:
    async def handle(stream: Stream) -> None:
        while True:
            async with trio.open_nursery() as nursery:

                async def watch(scope: trio.CancelScope = nursery.cancel_scope) -> None:
                    await trio.sleep(20)
                    scope.cancel()

                nursery.start_soon(watch)
                body = b""
                head = await receive_up_to(stream, 4)
                size = int.from_bytes(head, "big")
                if len(head) == 4 and size <= 1000:
                    body = await receive_up_to(stream, size)
                nursery.cancel_scope.cancel()
            if not body:
                return
            await stream.send_all(head + body.upper())

    return handle


# -- the longest message


@entry("a line without end is kept", "endless", longest=1000)
def keeps_an_endless_line() -> Handler:
    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            await shout(stream, line)

    return handle


@entry("a frame is as long as it says", "endless", FRAMES, longest=1000)
def a_frame_of_any_length() -> Handler:
    async def handle(stream: Stream) -> None:
        while len(head := await receive_up_to(stream, 4)) == 4:
            body = await receive_up_to(stream, int.from_bytes(head, "big"))
            await stream.send_all(head + body.upper())

    return handle


@entry("the length is looked at when the line is there", "endless", longest=1000)
def looks_at_the_length_too_late() -> Handler:
    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            if len(line) > 1000:
                return
            await shout(stream, line)

    return handle


@entry("a long line is not taken, but kept in its parts", "endless", longest=1000)
def keeps_the_parts() -> Handler:
    async def handle(stream: Stream) -> None:
        parts: list[bytes | bytearray] = []
        async for data in stream:
            head, *tail = data.split(b"\n")
            parts.append(head)
            for rest in tail:
                if len(line := b"".join(parts)) < 1000:
                    await shout(stream, line)
                parts = [rest]

    return handle


@entry("it refuses a line that is too long", None, longest=1000)
def refuses_a_long_line() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        async for data in stream:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                await shout(stream, line)
            if len(buffer) > 1000:
                await stream.send_all(b"too long\n")
                return

    return handle


@entry("it drops a line that is too long, and goes on", None, longest=1000)
def drops_a_long_line() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer, drops = b"", False
        async for data in stream:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if not drops:
                    await shout(stream, line)
                drops = False
            if len(buffer) > 1000:
                buffer, drops = b"", True

    return handle


@entry("it resets a client whose frame is too long", None, FRAMES, longest=1000)
def resets_a_long_frame() -> Handler:
    async def handle(stream: Connection) -> None:
        while len(head := await receive_up_to(stream, 4)) == 4:
            if (size := int.from_bytes(head, "big")) > 1000:
                stream.abort()
                return
            body = await receive_up_to(stream, size)
            await stream.send_all(head + body.upper())

    return handle


# -- what is kept of each message


@entry("it keeps all lines", "growth")
def keeps_all_lines() -> Handler:
    seen: list[bytes] = []

    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            seen.append(line)
            await shout(stream, line)

    return handle


@entry("it never drops the begin of its buffer", "growth", FRAMES)
def a_buffer_with_a_place() -> Handler:
    async def handle(stream: Stream) -> None:
        data, place = bytearray(), 0
        async for more in stream:
            data += more
            while len(data) >= place + 4:
                (count,) = struct.unpack_from(">I", data, place)
                if len(data) < place + 4 + count:
                    break
                body = bytes(data[place + 4 : place + 4 + count])
                place += 4 + count
                await stream.send_all(frame(body.upper()))

    return handle


@entry("a set of events that nobody leaves", "growth", QUIT)
def events_that_stay() -> Handler:
    async def handle(stream: Stream) -> None:
        waiting = set[trio.Event]()
        async for line in Lines(stream):
            waiting.add(done := trio.Event())
            done.set()
            if line == b"quit":
                await stream.send_all(b"bye\n")
                return
            await shout(stream, line)

    return handle


@entry("a cache with a key of its own for each message", "growth")
def a_cache_of_numbers() -> Handler:
    @functools.cache
    def answer(number: int, line: bytes) -> bytes:
        return line.upper() + b"\n"

    async def handle(stream: Stream) -> None:
        number = 0
        async for line in Lines(stream):
            number += 1
            await stream.send_all(answer(number, line))

    return handle


async def sleep(event: trio.Event) -> None:
    await event.wait()


@entry("a task for each message that never ends", "growth")
def a_task_for_each() -> Handler:
    async def handle(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            async for line in Lines(stream):
                nursery.start_soon(sleep, trio.Event())
                await shout(stream, line)
            nursery.cancel_scope.cancel()

    return handle


@entry("the last thousand lines", None)
def the_last_thousand() -> Handler:
    seen = collections.deque[bytes](maxlen=1000)

    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            seen.append(line + b"!")
            await shout(stream, line)

    return handle


@entry("a job of ten minutes for each line", None)
def a_long_job_for_each() -> Handler:
    async def handle(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            async for line in Lines(stream):
                nursery.start_soon(trio.sleep, 600)
                await shout(stream, line)

    return handle


@entry("a timeout of an hour for each line, and counters", None)
def an_hour_for_each_line() -> Handler:
    counts = collections.Counter[bytes]()

    async def handle(stream: Stream) -> None:
        lines = Lines(stream)
        while True:
            line = None
            with trio.move_on_after(3600):
                line = await anext(lines, None)
            if line is None:
                return
            counts[line] += 1
            await shout(stream, line)

    return handle


@entry("cycles that wait for the collector", None)
def cycles() -> Handler:
    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            cycle: list[Any] = [bytes(1000)]
            cycle.append(cycle)
            await shout(stream, line)

    return handle


def found(entry: Entry) -> HandlerFailure | None:
    """The failure of a check of this handler, or None."""
    try:
        entry.check()
    except HandlerFailure as failure:
        return failure
    return None

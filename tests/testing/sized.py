"""Handlers that mind the size of a message, or how long a client thinks.

Some have one mistake each, some are correct. The check is told what to vary: by a
conversation that is a function of ``size``, or by ``think``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import trio

from testing.hostile import Entry
from testing.natural import SHOUTS
from testing.zoo import Handler, Lines, Stream, frame, receive_up_to
from trioserve.testing import Peer

ENTRIES: list[Entry] = []


def entry(
    title: str, law: str | None, peer: Any, **options: Any
) -> Callable[[Callable[[], Handler]], Callable[[], Handler]]:
    """Register a function that makes a handler."""

    def register(make: Callable[[], Handler]) -> Callable[[], Handler]:
        ENTRIES.append(Entry(make, title, peer, law, options))
        return make

    return register


def shouts(size: int = 5) -> Peer:
    line = b"x" * size + b"\n"
    return Peer().send(line).expect(line.upper()).send(b"bye\n").expect(b"BYE\n")


def frames(size: int = 5) -> Peer:
    return Peer().send(frame(b"x" * size)).expect(frame(b"X" * size))


async def shout(stream: Stream, line: bytes) -> None:
    await stream.send_all(line.upper() + b"\n")


# -- sizes


@entry("a receive of a whole buffer is taken for a part", "answer", shouts)
def a_full_buffer_is_a_part() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        while data := await stream.receive_some(4096):
            buffer += data
            if len(data) == 4096:
                continue  # there must be more
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                await shout(stream, line)

    return handle


@entry("a shorter receive is taken for the last part", "chunking", frames)
def a_short_receive_is_the_end() -> Handler:
    async def handle(stream: Stream) -> None:
        while header := await receive_up_to(stream, 4):
            (count,) = struct.unpack(">I", header)
            body = b""
            while len(body) < count:
                data = await stream.receive_some(4096)
                body += data
                if len(data) < 4096:
                    break
            await stream.send_all(frame(body.upper()))

    return handle


@entry("its answer has a length of two bytes", "errors", frames)
def a_length_of_two_bytes() -> Handler:
    async def handle(stream: Stream) -> None:
        while header := await receive_up_to(stream, 4):
            body = await receive_up_to(stream, int.from_bytes(header, "big"))
            struct.pack(">H", len(body))
            await stream.send_all(frame(body.upper()))

    return handle


@entry("a line of 64 KiB is one too long", "answer", shouts)
def a_limit_that_is_one_too_small() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        async for data in stream:
            buffer += data
            if len(buffer) >= 65_536:
                return
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                await shout(stream, line)

    return handle


@entry("a line of the longest size is refused", "answer", shouts, longest=1000)
def the_longest_is_refused() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        async for data in stream:
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                if len(line) + 1 >= 1000:
                    return
                await shout(stream, line)
            if len(buffer) >= 1000:
                return

    return handle


@entry("it shouts lines of any size", None, shouts)
def lines_of_any_size() -> Handler:
    async def handle(stream: Stream) -> None:
        async for line in Lines(stream):
            await shout(stream, line)

    return handle


@entry("it shouts frames of any size", None, frames)
def frames_of_any_size() -> Handler:
    async def handle(stream: Stream) -> None:
        while header := await receive_up_to(stream, 4):
            count = int.from_bytes(header, "big")
            await stream.send_all(frame((await receive_up_to(stream, count)).upper()))

    return handle


@entry("it shouts what it receives, piece by piece", None, shouts)
def pieces() -> Handler:
    async def handle(stream: Stream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    return handle


@entry("it takes lines of up to 1000 bytes", None, shouts, longest=1000)
def lines_of_1000_bytes() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        async for data in stream:
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            if any(len(line) >= 1000 for line in (*lines, buffer)):
                return
            for line in lines:
                await shout(stream, line)

    return handle


# -- time to think


@entry("a timeout around a message that has begun", "answer", SHOUTS, think=5)
def a_timeout_within_a_message() -> Handler:
    async def handle(stream: Stream) -> None:
        while True:
            buffer = b""
            with trio.move_on_after(1) as scope:
                while not buffer.endswith(b"\n"):
                    data = await stream.receive_some()
                    if not data:
                        return
                    buffer += data
            if not scope.cancelled_caught:
                await stream.send_all(buffer.upper())

    return handle


@entry("a timeout for the whole conversation", "answer", SHOUTS, think=20)
def a_timeout_for_all() -> Handler:
    async def handle(stream: Stream) -> None:
        with trio.move_on_after(30):
            async for line in Lines(stream):
                await shout(stream, line)

    return handle


@entry("a client that thinks is asked whether it is there", "answer", SHOUTS, think=20)
def asks_whether_it_is_there() -> Handler:
    async def handle(stream: Stream) -> None:
        async def ask() -> None:
            await trio.sleep(15)
            await stream.send_all(b"are you there?\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            async for line in Lines(stream):
                await shout(stream, line)
            nursery.cancel_scope.cancel()

    return handle


@entry("it looks each second whether to stop", None, SHOUTS, think=5)
def looks_each_second() -> Handler:
    async def handle(stream: Stream) -> None:
        buffer = b""
        while True:
            data: bytes | bytearray | None = None
            with trio.move_on_after(1):
                data = await stream.receive_some()
            if data is None:
                continue
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                await shout(stream, line)

    return handle


@entry(
    "ten seconds for a line, once it has begun",
    None,
    SHOUTS,
    think=20,
    deadline=10,
)
def ten_seconds_for_a_line() -> Handler:
    async def handle(stream: Stream) -> None:
        while line := bytes(await stream.receive_some(1)):
            with trio.move_on_after(10) as scope:
                while not line.endswith(b"\n"):
                    data = await stream.receive_some(1)
                    if not data:
                        return
                    line += data
            if scope.cancelled_caught:
                return
            await stream.send_all(line.upper())

    return handle

"""Handlers that connect to a database, each with one realistic mistake or none.

``PYTHONPATH=tests python tests/testing/dialing.py`` prints the table of
docs/testing-evidence.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio

from testing.zoo import Handler, Lines, Stream
from trioserve.testing import Checked, HandlerFailure, Peer, check_handler

ASKS = Peer().send(b"one\n").expect(b"row one\n").send(b"two\n").expect(b"row two\n")

#: What goes wrong when a server is not there.
FAILURES = (OSError, trio.BrokenResourceError, trio.TooSlowError)

MISTAKES: list[tuple[str, Any]] = []
CORRECT: list[Any] = []


def mistake(law: str) -> Callable[[Any], Any]:
    """Register a function that makes a handler that breaks this law."""

    def register(make: Any) -> Any:
        MISTAKES.append((law, make))
        return make

    return register


def correct(make: Any) -> Any:
    """Register a function that makes a correct handler."""
    CORRECT.append(make)
    return make


async def database(stream: Stream) -> None:
    """A server with a row for each key; it answers line by line."""
    async for line in Lines(stream):
        assert line.isalpha()
        await stream.send_all(b"row " + line + b"\n")


def check(handler: Any, **options: Any) -> Checked:
    """Connections of another run are closed: a handler that keeps some forgets them."""
    forget = getattr(handler, "forget", None)
    return check_handler(
        handler, ASKS, servers={"db:5432": database}, before_run=forget, **options
    )


async def connect() -> trio.SocketStream:
    return await trio.open_tcp_stream("db", 5432)


async def look_up(db: trio.SocketStream, key: bytes) -> bytes:
    """The row of a key, without its line end."""
    await db.send_all(key + b"\n")
    async for line in Lines(db):
        return line
    raise OSError("the database has closed")


# -- mistakes


@mistake("ends")
def waits_without_bound() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            async with await connect() as db:
                row = await look_up(db, key)
            await stream.send_all(row + b"\n")

    return handle


@mistake("chunking")
def receives_once() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                async with await connect() as db:
                    await db.send_all(key + b"\n")
                    row = await db.receive_some()
            await stream.send_all(row)

    return handle


@mistake("nothing_left")
def closes_only_if_all_is_well() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                db = await connect()
                row = await look_up(db, key)
                await db.aclose()
            await stream.send_all(row + b"\n")

    return handle


@mistake("nothing_left")
def gives_a_broken_one_back() -> Handler:
    pool = list[trio.SocketStream]()

    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                db = pool.pop() if pool else await connect()
                try:
                    row = await look_up(db, key)
                finally:
                    pool.append(db)
            await stream.send_all(row + b"\n")

    handle.forget = pool.clear  # type: ignore[attr-defined]
    return handle


@mistake("nothing_left")
def keeps_its_place() -> Handler:
    """It has eight places, and loses one with each failure."""
    free = list(range(8))

    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            place = free.pop()
            with trio.fail_after(5):
                async with await connect() as db:
                    row = await look_up(db, key)
            free.append(place)
            await stream.send_all(row + b"\n")

    return handle


@mistake("ends")
def tries_again_at_once() -> Handler:
    async def row_of(key: bytes) -> bytes:
        while True:
            try:
                with trio.fail_after(5):
                    async with await connect() as db:
                        return await look_up(db, key)
            except FAILURES:
                pass

    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            await stream.send_all(await row_of(key) + b"\n")

    return handle


@mistake("ends")
def takes_eof_for_bytes() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                async with await connect() as db:
                    await db.send_all(key + b"\n")
                    row = b""
                    while not row.endswith(b"\n"):
                        row += await db.receive_some()
            await stream.send_all(row)

    return handle


@mistake("errors")
def takes_half_a_row() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                async with await connect() as db:
                    await db.send_all(key + b"\n")
                    row = b""
                    while not row.endswith(b"\n"):
                        if not (data := await db.receive_some()):
                            break
                        row += data
                _, value = row.split()
            await stream.send_all(b"row " + value + b"\n")

    return handle


@mistake("alone")
def shares_one_connection() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                if not shared:
                    shared.append(await connect())
                try:
                    row = await look_up(shared[0], key)
                except BaseException:
                    await trio.aclose_forcefully(shared.pop())
                    raise
            await stream.send_all(row + b"\n")

    shared = list[trio.SocketStream]()
    handle.forget = shared.clear  # type: ignore[attr-defined]
    return handle


# -- correct ones


@correct
def connects_each_time() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            with trio.fail_after(5):
                async with await connect() as db:
                    row = await look_up(db, key)
            await stream.send_all(row + b"\n")

    return handle


@correct
def says_sorry() -> Handler:
    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            try:
                with trio.fail_after(5):
                    async with await connect() as db:
                        row = await look_up(db, key)
            except FAILURES:
                row = b"sorry"
            await stream.send_all(row + b"\n")

    return handle


@correct
def has_one_for_each_client() -> Handler:
    async def handle(stream: Stream) -> None:
        with trio.fail_after(5):
            db = await connect()
        async with db:
            async for key in Lines(stream):
                with trio.fail_after(5):
                    row = await look_up(db, key)
                await stream.send_all(row + b"\n")

    return handle


@correct
def has_a_pool() -> Handler:
    """It keeps connections that have worked, and tries another if one has not."""
    pool = list[trio.SocketStream]()

    async def row_of(key: bytes) -> bytes:
        for _ in range(len(pool)):
            db = pool.pop()
            try:
                with trio.fail_after(5):
                    row = await look_up(db, key)
            except FAILURES:
                await trio.aclose_forcefully(db)
            except BaseException:
                await trio.aclose_forcefully(db)
                raise
            else:
                pool.append(db)
                return row
        with trio.fail_after(5):
            db = await connect()
            try:
                row = await look_up(db, key)
            except BaseException:
                await trio.aclose_forcefully(db)
                raise
        pool.append(db)
        return row

    async def handle(stream: Stream) -> None:
        async for key in Lines(stream):
            await stream.send_all(await row_of(key) + b"\n")

    handle.forget = pool.clear  # type: ignore[attr-defined]
    return handle


def title(make: Any) -> str:
    """The name of a handler, as words."""
    return str(make.__name__).replace("_", " ")


if __name__ == "__main__":
    for law, make in [*MISTAKES, *(("", make) for make in CORRECT)]:
        began, found = time.process_time(), ""
        try:
            check(make())
        except HandlerFailure as failure:
            found = failure.law
        sign = "" if found == law else " (!)"
        seconds = time.process_time() - began
        print(f"| {title(make)} | `{found}`{sign} | {seconds:.1f} |", flush=True)

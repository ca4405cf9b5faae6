"""Garbage: an ended connection is freed without a garbage collection."""

from __future__ import annotations

import contextlib
import gc
import ssl
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioserve
from shell import free_port
from support import Running, receive_all, receive_exactly, reset, run, serving
from trioserve import Connection, Timeouts
from trioserve._connection import lifecycle_of
from trioserve.testing import stream_pair


@pytest.fixture(scope="module", autouse=True)
def what_other_tests_left_is_no_garbage() -> None:
    """Nor does the collector look at it again and again."""
    gc.collect()
    gc.freeze()


class Oops(Exception):
    """The exception of a handler."""


async def _echo(conn: Connection) -> None:
    async for data in conn:
        await conn.send_all(data)


async def _raises(conn: Connection) -> None:
    try:
        raise ValueError
    except ValueError as error:
        raise Oops from error


async def _raises_in_a_group(conn: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_raises, conn)
        await trio.sleep_forever()


async def _raises_its_own(conn: Connection) -> None:
    try:
        await _echo(conn)
    except trio.BrokenResourceError as error:
        raise Oops from error


async def _returns_itself(conn: Connection) -> object:
    return conn


async def _aborts(conn: Connection) -> None:
    conn.abort()
    await conn.receive_some()


async def _relays_in_tasks(conn: Connection) -> None:
    ours, theirs = stream_pair()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in theirs:
                    await theirs.send_all(data)
                await theirs.send_eof()

        nursery.start_soon(answer)
        async with ours:
            await trioserve.relay(conn, ours)


async def _speaks_tls(conn: Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    await trio.SSLStream(conn, context, server_side=True).do_handshake()


# -- what clients do


Client = Callable[[Running], Awaitable[object]]


async def _read_until_reset(client: trio.SocketStream) -> None:
    """As a stream, it would make a cycle of its own from Python 3.12 on."""
    with contextlib.suppress(ConnectionResetError):
        while await client.socket.recv(65536):
            pass


async def _resets(running: Running) -> None:
    client = await running.connect()
    await client.send_all(b"x" * 1000)
    await receive_exactly(client, 1000)
    reset(client)


async def _resets_at_once(running: Running) -> None:
    reset(await running.connect())


async def _resets_unread(running: Running) -> None:
    client = await running.connect()
    with trio.move_on_after(1):  # send as much as the kernel takes
        await client.send_all(bytes(10_000_000))
    reset(client)


async def _waits(running: Running) -> None:
    async with await running.connect() as client:
        await _read_until_reset(client)


async def _says_something(running: Running) -> None:
    async with await running.connect() as client:
        await client.send_all(b"hello\n")
        await _read_until_reset(client)


async def _leaves(running: Running) -> None:
    async with await running.connect() as client:
        await client.send_all(b"x")
        await client.send_eof()
        await receive_all(client)


async def _is_cut(running: Running) -> None:
    client = await running.connect()
    await trio.testing.wait_all_tasks_blocked()
    for connection in running.server.connections:
        lifecycle_of(connection).stop(trioserve.Reason.CUT)
    await _read_until_reset(client)
    await client.aclose()


SHORT = Timeouts(idle=2, write_stall=2, first_byte=1, lifetime=5, connect=1)


def _refusing() -> str:
    """An address on which nobody listens."""
    return f"127.0.0.1:{free_port()}"


def _name(case: object) -> str:
    return getattr(case, "__name__", str(case))


@pytest.mark.parametrize("client", [_resets, _resets_at_once, _resets_unread, _leaves])
@pytest.mark.parametrize(
    "handler",
    [_echo, trioserve.echo, "proxy", "faulty", _raises_its_own, _relays_in_tasks],
    ids=_name,
)
def test_a_client_that_leaves_leaves_no_garbage(client: Client, handler: Any) -> None:
    """Law 13: by FIN or by RST, through the engine, tasks and every kind of handler."""
    _no_garbage(client, handler)


@pytest.mark.parametrize(
    ("client", "handler"),
    [
        (_waits, _raises),
        (_waits, _raises_in_a_group),
        (_waits, _aborts),
        (_waits, _returns_itself),
        (_waits, _echo),
        (_waits, trioserve.echo),
        (_waits, "proxy"),
        (_waits, "raises after its proxy"),
        (_waits, "aborts after its proxy"),
        (_waits, "dead"),
        (_waits, "dead name"),
        (_waits, "several dead"),
        (_says_something, _speaks_tls),
        (_is_cut, _echo),
        (_is_cut, trioserve.echo),
        (_is_cut, "proxy"),
        (_is_cut, _raises_its_own),
    ],
    ids=_name,
)
def test_a_connection_leaves_no_garbage_however_it_ends(
    client: Client, handler: Any
) -> None:
    """Law 13: handlers that raise, timers, cuts, unreachable targets, TLS."""
    _no_garbage(client, handler)


def _after(
    forward: Callable[[Connection], Awaitable[object]], what: str
) -> Callable[[Connection], Awaitable[object]]:
    """A handler whose relay is handed over, and never starts."""

    async def handler(conn: Connection) -> object:
        relay = await forward(conn)
        if what.startswith("aborts"):
            conn.abort()
            return relay
        raise ValueError("no")

    return handler


def _no_garbage(client: Client, handler: Any) -> None:
    async def main() -> None:
        async with serving(trioserve.echo) as behind:
            match handler:
                case "proxy":
                    serve: Any = trioserve.proxy(behind.address)
                case "raises after its proxy" | "aborts after its proxy":
                    serve = _after(trioserve.proxy(behind.address), handler)
                case "faulty":
                    serve = trioserve.proxy(behind.address, faults="latency=1ms")
                case "dead":
                    serve = trioserve.proxy(_refusing())
                case "dead name":
                    serve = trioserve.proxy("nobody.invalid:80")
                case "several dead":
                    serve = trioserve.proxy(_refusing(), _refusing())
                case _:
                    serve = handler
            async with serving(serve, timeouts=SHORT, collector=_forget) as running:
                is_cyclic = handler in (_relays_in_tasks, _speaks_tls)
                await _rounds(running, client, is_cyclic)

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


async def _forget(reports: trio.MemoryReceiveChannel[Any]) -> None:
    async for _ in reports:
        pass


async def _rounds(running: Running, client: Client, is_cyclic: bool) -> None:
    for _ in range(2):
        gc.collect()  # garbage from before
        for _ in range(3):
            await client(running)
            while running.server.statistics().open:
                await trio.sleep(0.1)
            running.clients.clear()
        await trio.testing.wait_all_tasks_blocked()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    # A memory stream refers to its other end, and Trio's TLS stream to itself: these
    # cycles are not the connection's.
    kinds = (types.FrameType, types.TracebackType) if is_cyclic else object
    garbage = [repr(each)[:200] for each in gc.garbage if isinstance(each, kinds)]
    gc.garbage.clear()
    assert not garbage, "\n".join(garbage)

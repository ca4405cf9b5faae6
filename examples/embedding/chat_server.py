"""A chat: each connection has its own tasks, and slow readers are disconnected.

``python chat_server.py 6667`` serves until SIGTERM or SIGINT. A client's first line
is its name; its other lines go to all clients, through a queue for each. A client
whose queue is full is disconnected instead of waited for, and its report says why.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator
from functools import partial
from typing import Final

import trio

from trioserve import Connection, Server, serve_tcp

MAX_LINE: Final = 1000  # bytes
MAX_QUEUE: Final = 100  # texts of up to 4 KiB that may wait for a client


class Room:
    """The clients in the room, each with a queue of texts to be sent to it."""

    def __init__(self) -> None:
        self._queues: dict[Connection, trio.MemorySendChannel[bytes]] = {}

    @contextlib.contextmanager
    def joined(
        self, conn: Connection, name: bytes, queue: trio.MemorySendChannel[bytes]
    ) -> Generator[None, None, None]:
        """Keep the client in the room for the block."""
        self.tell_others(conn, b"* %s is here\n" % name)
        self._queues[conn] = queue
        try:
            yield
        finally:
            self._queues.pop(conn, None)
            self.tell_others(conn, b"* %s has left\n" % name)

    def tell_others(self, speaker: Connection, text: bytes) -> None:
        """Queue ``text`` for all clients but the speaker, without waiting."""
        for conn, queue in list(self._queues.items()):
            if conn is not speaker:
                try:
                    queue.send_nowait(text)
                except trio.WouldBlock:
                    del self._queues[conn]
                    conn.note(dropped="it reads too slowly")
                    conn.abort()


async def handler(conn: Connection, *, room: Room) -> None:
    """Three tasks: one receives, one sends, one waits for the server to stop.

    Texts that are in the queue when the client leaves the room are still delivered.
    """
    to_client, queue = trio.open_memory_channel[bytes](MAX_QUEUE)
    async with queue, trio.open_nursery() as nursery:
        nursery.start_soon(deliver, conn, queue)
        async with to_client, trio.open_nursery() as background:
            background.start_soon(announce_drain, conn, to_client)
            await converse(conn, room, to_client)
            background.cancel_scope.cancel()


async def deliver(conn: Connection, queue: trio.MemoryReceiveChannel[bytes]) -> None:
    async for text in queue:
        await conn.send_all(text)


async def announce_drain(
    conn: Connection, to_client: trio.MemorySendChannel[bytes]
) -> None:
    await conn.draining.wait()
    with contextlib.suppress(trio.WouldBlock):
        to_client.send_nowait(b"* the server stops; finish your line\n")


async def converse(
    conn: Connection, room: Room, to_client: trio.MemorySendChannel[bytes]
) -> None:
    """Pass the client's lines on, until it leaves or the server drains."""
    name = rest = b""
    with contextlib.ExitStack() as stack:
        while True:
            data = b""
            with conn.idle(held=rest):
                data = await conn.receive_some(4096)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            if any(len(line) > MAX_LINE for line in [*lines, rest]):
                conn.note(dropped="a line was too long")
                await to_client.send(b"* your line is too long\n")
                return
            if lines and not name:
                name = lines.pop(0).strip() or b"somebody"
                stack.enter_context(room.joined(conn, name, to_client))
                await to_client.send(b"* welcome, %s\n" % name)
            if text := b"".join(b"%s: %s\n" % (name, line) for line in lines):
                room.tell_others(conn, text)
                await to_client.send(text)  # waits for a client that does not read


async def main(port: int) -> None:
    handle = partial(handler, room=Room())
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve_tcp, handle, port)
            print("listening on", *server.addresses, flush=True)
            await anext(signals)
            print(await server.drain(within=20, reason="signal"))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))

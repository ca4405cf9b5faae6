"""A line server: a command and an answer on each line, of limited length and time.

``python line_server.py 7000`` serves until SIGTERM or SIGINT. A client that is in
the middle of a line when the server drains may finish it, and gets its answer.
"""

from __future__ import annotations

import math
import signal
import sys
from functools import partial
from typing import Final

import trio

from trioserve import Connection, Server, Timeouts, serve_tcp

MAX_LINE: Final = 1000  # bytes
LINE_SECONDS: Final = 10.0  # for a line, from its first byte


class LineError(Exception):
    """A line is too long, too slow or cut short."""


class Lines:
    """The lines that a connection receives.

    The buffer holds the bytes after the last line: at most a line and a receive.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next line without its end; None at EOF, or if the server drains.

        A drain ends a wait between two lines, but not one within a line.

        Raises:
          LineError: the line is too long, takes too long, or EOF comes within it.
        """
        deadline = trio.current_time() + LINE_SECONDS
        while b"\n" not in self._buffer and len(self._buffer) <= MAX_LINE:
            has_begun, data = bool(self._buffer), b""
            with trio.move_on_at(deadline if has_begun else math.inf) as in_time:
                with self._conn.idle(held=self._buffer):
                    data = await self._conn.receive_some(MAX_LINE)
            if in_time.cancelled_caught:
                raise LineError("the line took too long")
            if not data and has_begun:
                raise LineError("the last line has no end")
            if not data:
                return None
            if not has_begun:
                deadline = trio.current_time() + LINE_SECONDS
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        if len(line) > MAX_LINE:
            raise LineError("the line is too long")
        return bytes(line)


def answer(line: bytes, store: dict[bytes, bytes]) -> bytes:
    """Execute the command on a line; return the answer."""
    match line.split():
        case [b"SET", key, value]:
            store[key] = value
            return b"OK"
        case [b"GET", key]:
            return store.get(key, b"NONE")
        case _:
            return b"ERROR: SET key value, or GET key, or QUIT"


async def handler(conn: Connection, *, store: dict[bytes, bytes]) -> None:
    lines = Lines(conn)
    try:
        while (line := await lines.next()) not in (None, b"QUIT"):
            await conn.send_all(answer(line, store) + b"\n")
    except LineError as error:
        conn.note(error=str(error))
        await conn.send_all(f"ERROR: {error}\n".encode())


async def main(port: int) -> None:
    serve = partial(serve_tcp, timeouts=Timeouts(idle=300))
    handle = partial(handler, store={})
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, handle, port)
            print("listening on", *server.addresses, flush=True)
            await anext(signals)
            print(await server.drain(within=20, reason="signal"))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))

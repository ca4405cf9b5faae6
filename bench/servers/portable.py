"""trioserve's relay between streams of which it knows only the interface.

A peer of the benchmark: python portable.py PORT TARGET-PORT
"""

from __future__ import annotations

import sys

import trio

import trioserve


class Opaque(trio.abc.HalfCloseableStream):
    """A stream that hides its socket, like TLS or a tunnel."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def handler(client: trioserve.Connection) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", int(sys.argv[2])) as target:
        await trioserve.relay(Opaque(client), Opaque(target))


async def main() -> None:
    limits = trioserve.Limits(max_connections=10_000)
    await trioserve.serve_tcp(
        handler, int(sys.argv[1]), host="127.0.0.1", limits=limits
    )


trio.run(main)

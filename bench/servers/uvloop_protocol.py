"""A proxy with two uvloop protocols, with backpressure and half-close.

A peer of the benchmark: python uvloop_protocol.py PORT TARGET-PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One end: what comes in here goes out through ``other``."""

    transport: asyncio.Transport
    other: Side
    ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        self.other.transport.write_eof()
        return not self.other.ended  # if False, uvloop closes it

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.other.transport.close()
        else:
            self.other.transport.abort()


class Client(Side):
    """The accepted end, which may send before the target is connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.early = b""
        self.dialing = asyncio.create_task(self._dial())

    def data_received(self, data: bytes) -> None:
        if self.dialing.done():
            self.other.transport.write(data)
        else:
            # uvloop ignores this in connection_made.
            self.transport.pause_reading()
            self.early += data

    def eof_received(self) -> bool:
        return self.dialing.done() and super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "other"):
            super().connection_lost(exc)
        else:
            self.dialing.cancel()

    async def _dial(self) -> None:
        target = int(sys.argv[2])
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(Side, "127.0.0.1", target)
        except OSError:
            self.transport.abort()
        else:
            self.other, other.other = other, self
            other.transport.write(self.early)
            self.transport.resume_reading()


async def main() -> None:
    loop = asyncio.get_running_loop()
    port = int(sys.argv[1])
    server = await loop.create_server(Client, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(main())

"""The demo's clients: every temper that a server meets.

A port in, what each client saw out. Nothing here knows who serves them.
"""

from __future__ import annotations

import dataclasses
import random
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable

import trio

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclasses.dataclass(slots=True, eq=False)
class Client:
    """One client, and what it saw.

    Attributes:
      temper: how it behaves; a key of `TEMPERS`.
      start: seconds after the beginning when it comes.
      random: what it rolls its dice with.
      address: its own end of the connection, as a report's ``peer`` writes it;
        ``""`` until it has one.
      sent, received: bytes that its kernel took, and that it got.
      sent_sum, received_sum: check sums of these.
      end: ``"done"`` when it got back what it sent, ``"closed"`` when the
        server closed before that, ``"reset"`` by whichever side, None while it
        goes on.
    """

    temper: str
    start: float
    random: random.Random
    address: str = ""
    sent: int = 0
    received: int = 0
    sent_sum: int = 0
    received_sum: int = 0
    end: str | None = None

    async def run(self, port: int) -> None:
        """Come when it is time, connect, behave, close."""
        await trio.sleep(self.start)
        with trio.socket.socket() as sock:
            try:
                await sock.connect(("127.0.0.1", port))
                self.address = "{}:{}".format(*sock.getsockname())
                await TEMPERS[self.temper](self, sock)
                complete = self.received == self.sent
                self.end = self.end or ("done" if complete else "closed")
            except* OSError:
                self.end = "reset"

    async def send(self, sock: trio.socket.SocketType, data: bytes) -> None:
        """Send all of it, and count."""
        rest = memoryview(data)
        while rest:
            count = await sock.send(rest)
            self.sent += count
            self.sent_sum = zlib.crc32(rest[:count], self.sent_sum)
            rest = rest[count:]

    async def receive(self, sock: trio.socket.SocketType) -> bytes:
        """Receive what comes next, and count; ``b""`` is the end."""
        data = await sock.recv(65536)
        self.received += len(data)
        self.received_sum = zlib.crc32(data, self.received_sum)
        return data

    async def finish(self, sock: trio.socket.SocketType) -> None:
        """Say that nothing more comes, and receive until the end."""
        sock.shutdown(socket.SHUT_WR)
        await self.receive_rest(sock)

    async def receive_rest(self, sock: trio.socket.SocketType) -> None:
        """Receive until the end."""
        while await self.receive(sock):
            pass


async def _quick(client: Client, sock: trio.socket.SocketType) -> None:
    for _ in range(client.random.randint(1, 20)):
        await client.send(sock, client.random.randbytes(64))
        await client.receive(sock)
    await client.finish(sock)


async def _slow(client: Client, sock: trio.socket.SocketType) -> None:
    for _ in range(client.random.randint(2, 8)):
        await client.send(sock, client.random.randbytes(16))
        await trio.sleep(client.random.uniform(0.05, 0.4))
        await client.receive(sock)
    await client.finish(sock)


async def _silent(client: Client, sock: trio.socket.SocketType) -> None:
    with trio.move_on_after(client.random.uniform(0.3, 2.0)):
        await client.receive(sock)
        client.end = "closed"
        return
    await client.finish(sock)


async def _half_closing(client: Client, sock: trio.socket.SocketType) -> None:
    await client.send(sock, client.random.randbytes(client.random.randint(1, 20_000)))
    await client.finish(sock)


async def _bulky(client: Client, sock: trio.socket.SocketType) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_blocks, client, sock)
        await client.receive_rest(sock)


async def _send_blocks(client: Client, sock: trio.socket.SocketType) -> None:
    block = client.random.randbytes(65536)
    for _ in range(client.random.randint(4, 32)):
        await client.send(sock, block)
    sock.shutdown(socket.SHUT_WR)


async def _resetting(client: Client, sock: trio.socket.SocketType) -> None:
    await client.send(sock, client.random.randbytes(client.random.randint(1, 50_000)))
    await client.receive(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.end = "reset"


#: How clients behave. One that means to end early notes it in ``end``.
TEMPERS: dict[str, Callable[[Client, trio.socket.SocketType], Awaitable[None]]] = {
    "quick": _quick,
    "slow": _slow,
    "silent": _silent,
    "half-closing": _half_closing,
    "bulky": _bulky,
    "resetting": _resetting,
}


def make_crowd(seconds: float, clients: int, seed: int) -> list[Client]:
    """Clients of every temper, that come one after the other within ``seconds``."""
    dice = random.Random(seed)
    pause = seconds / clients
    return [
        Client(temper, number * pause, random.Random(dice.random()))
        for number, temper in enumerate(dice.choices(list(TEMPERS), k=clients))
    ]

"""The demo's clients: each has one of the behaviours that a server meets.

A port in, what each client saw out. Nothing here knows what serves them.
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
class SimulatedClient:
    """One client, and what it saw.

    Attributes:
      behaviour: a key of `BEHAVIOURS`.
      start: seconds after the beginning at which it connects.
      random: where its random sizes and pauses come from.
      address: its own end of the connection, as a report's ``peer`` writes it;
        ``""`` until it is connected.
      sent, received: bytes that its kernel took, and bytes that arrived.
      sent_sum, received_sum: checksums of these.
      end: ``"done"`` when it got back what it sent, ``"closed"`` when the
        server closed before that, ``"reset"`` when either side reset the
        connection, None while it is open.
    """

    behaviour: str
    start: float
    random: random.Random
    address: str = ""
    sent: int = 0
    received: int = 0
    sent_sum: int = 0
    received_sum: int = 0
    end: str | None = None

    async def run(self, port: int) -> None:
        """Wait for its start, connect, behave, close."""
        await trio.sleep(self.start)
        with trio.socket.socket() as sock:
            try:
                await sock.connect(("127.0.0.1", port))
                self.address = "{}:{}".format(*sock.getsockname())
                await BEHAVIOURS[self.behaviour](self, sock)
                complete = self.received == self.sent
                self.end = self.end or ("done" if complete else "closed")
            except* OSError:
                self.end = "reset"

    async def send(self, sock: trio.socket.SocketType, data: bytes) -> None:
        """Send all of ``data`` and count it."""
        rest = memoryview(data)
        while rest:
            count = await sock.send(rest)
            self.sent += count
            self.sent_sum = zlib.crc32(rest[:count], self.sent_sum)
            rest = rest[count:]

    async def receive(self, sock: trio.socket.SocketType) -> bytes:
        """Receive what comes next and count it; ``b""`` is EOF."""
        data = await sock.recv(65536)
        self.received += len(data)
        self.received_sum = zlib.crc32(data, self.received_sum)
        return data

    async def finish(self, sock: trio.socket.SocketType) -> None:
        """Send EOF, and receive until EOF."""
        sock.shutdown(socket.SHUT_WR)
        await self.receive_rest(sock)

    async def receive_rest(self, sock: trio.socket.SocketType) -> None:
        """Receive until EOF."""
        while await self.receive(sock):
            pass


async def _quick(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    for _ in range(client.random.randint(1, 20)):
        await client.send(sock, client.random.randbytes(64))
        await client.receive(sock)
    await client.finish(sock)


async def _slow(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    for _ in range(client.random.randint(2, 8)):
        await client.send(sock, client.random.randbytes(16))
        await trio.sleep(client.random.uniform(0.05, 0.4))
        await client.receive(sock)
    await client.finish(sock)


async def _silent(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    with trio.move_on_after(client.random.uniform(0.3, 2.0)):
        await client.receive(sock)
        client.end = "closed"
        return
    await client.finish(sock)


async def _half_closing(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    await client.send(sock, client.random.randbytes(client.random.randint(1, 20_000)))
    await client.finish(sock)


async def _bulky(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_blocks, client, sock)
        await client.receive_rest(sock)


async def _send_blocks(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    block = client.random.randbytes(65536)
    for _ in range(client.random.randint(4, 32)):
        await client.send(sock, block)
    sock.shutdown(socket.SHUT_WR)


async def _resetting(client: SimulatedClient, sock: trio.socket.SocketType) -> None:
    await client.send(sock, client.random.randbytes(client.random.randint(1, 50_000)))
    await client.receive(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.end = "reset"


_Behaviour = Callable[[SimulatedClient, trio.socket.SocketType], Awaitable[None]]

#: How clients behave. A client that ends early on purpose sets its ``end`` itself.
BEHAVIOURS: dict[str, _Behaviour] = {
    "quick": _quick,
    "slow": _slow,
    "silent": _silent,
    "half-closing": _half_closing,
    "bulky": _bulky,
    "resetting": _resetting,
}


def make_clients(seconds: float, count: int, seed: int) -> list[SimulatedClient]:
    """Clients of all behaviours, which start at equal intervals within ``seconds``."""
    rng = random.Random(seed)
    pause = seconds / count
    behaviours = rng.choices(list(BEHAVIOURS), k=count)
    return [
        SimulatedClient(behaviour, number * pause, random.Random(rng.random()))
        for number, behaviour in enumerate(behaviours)
    ]

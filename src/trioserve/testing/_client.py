"""Clients: the other side of a conversation, one step after the other.

Where a peer has a script, a client is told what to do next, by plain code between
two moments. It knows no server.
"""

from __future__ import annotations

import trio

from ._peer import Tail
from ._stream import MemoryStream


class Client:
    """Somebody who has connected. It reads all the time, unless told to stop.

    Its methods do not wait: they say what is to happen, and it happens when the
    driver settles.

    Attributes:
      number: counts them from 1, in the order in which they connected; also the
        ``id`` of its connection.
      stream: its end of the connection.
      said: all that it was told to send.
      heard: all that came.
      tail: what came after that: nothing yet, EOF or RST.
      is_gone: whether it has closed or reset its connection, or vanished.
    """

    def __init__(self, number: int, stream: MemoryStream) -> None:
        self.number = number
        self.stream = stream
        self.said = bytearray()
        self.heard = bytearray()
        self.tail: Tail = "open"
        self.is_gone = False
        self._unsent = bytearray()
        self._says_more = True
        self._something_to_say = trio.Event()
        self._may_read = trio.Event()
        self._may_read.set()
        self._receiving = trio.CancelScope()
        self._talking = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Client {self.number}>"

    @property
    def listens(self) -> bool:
        """Whether it sees what comes."""
        return self._may_read.is_set() and not self.is_gone

    def send(self, data: bytes) -> None:
        """Send ``data`` as soon as there is room; after EOF, nothing."""
        if self._says_more:
            self.said += data
            self._unsent += data
            self._something_to_say.set()

    def send_eof(self) -> None:
        """Send EOF after all that was to be sent."""
        self._says_more = False
        self._something_to_say.set()

    def stop_reading(self) -> None:
        """Read no more; what comes stays in the network, which holds little."""
        if self._may_read.is_set():
            self._may_read = trio.Event()
            self._receiving.cancel(reason="it reads no more")

    def read_on(self) -> None:
        """Read again."""
        self._may_read.set()

    def reset(self) -> None:
        """Close by RST."""
        self.is_gone = True
        self.stream.reset()
        self._talking.cancel(reason="it has reset its connection")

    def vanish(self) -> None:
        """Neither send nor hear anything any more, as if the cable was pulled."""
        self.is_gone = True
        self.stream.vanish()

    async def close(self) -> None:
        """Close; by RST if something came that was not read."""
        self.is_gone = True
        await self.stream.aclose()
        self._talking.cancel(reason="it has closed its connection")

    async def run(self) -> None:
        """Read and send, until it is gone or the connection is over."""
        with self._talking:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, name=f"{self} reads")
                nursery.start_soon(self._write, name=f"{self} writes")

    async def _read(self) -> None:
        try:
            while self.tail == "open":
                await self._may_read.wait()
                with trio.CancelScope() as self._receiving:
                    if data := await self.stream.receive_some():
                        self.heard += data
                    else:
                        self.tail = "eof"
        except trio.BrokenResourceError:
            self.tail = "reset"
        except trio.ClosedResourceError:
            pass  # it was closed by its own rule

    async def _write(self) -> None:
        try:
            while self._says_more or self._unsent:
                await self._something_to_say.wait()
                self._something_to_say = trio.Event()
                while self._unsent:
                    data = bytes(self._unsent)
                    self._unsent.clear()
                    await self.stream.send_all(data)
            await self.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._says_more = False

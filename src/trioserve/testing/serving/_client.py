"""Clients: one side of a conversation, driven by plain code, one call at a time.

A peer has a script; a client does what the next call says. It knows no server.
"""

from __future__ import annotations

import trio

from trioserve.testing.network import MemoryStream, Tail


class Client:
    """A client that has connected. It reads all the time, unless it is paused.

    Its methods do not wait: they take effect when the driver settles.

    Attributes:
      number: counted from 1 in the order of connecting; also the ``id`` of its
        connection.
      stream: its end of the connection.
      sent: all bytes that :meth:`send` was given, whether or not there was room.
      received: all bytes received so far.
      tail: what came after them: ``"eof"``, ``"reset"``, or ``"open"`` for neither.
      is_gone: whether it has closed or reset its connection, or vanished.
    """

    def __init__(self, number: int, stream: MemoryStream) -> None:
        self.number = number
        self.stream = stream
        self.sent = bytearray()
        self.received = bytearray()
        self.tail: Tail = "open"
        self.is_gone = False
        self._unsent = bytearray()
        self._will_send_more = True
        self._has_work = trio.Event()
        self._may_read = trio.Event()
        self._may_read.set()
        self._receiving = trio.CancelScope()
        self._talking = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Client {self.number}>"

    @property
    def is_reading(self) -> bool:
        """Whether it would see bytes, EOF or a reset."""
        return self._may_read.is_set() and not self.is_gone

    def send(self, data: bytes) -> None:
        """Send ``data`` as soon as there is room; after EOF, do nothing."""
        if self._will_send_more:
            self.sent += data
            self._unsent += data
            self._has_work.set()

    def send_eof(self) -> None:
        """Send EOF after all bytes that still wait to be sent."""
        self._will_send_more = False
        self._has_work.set()

    def pause_reading(self) -> None:
        """Stop reading. The network holds as many bytes as it has room for."""
        if self._may_read.is_set():
            self._may_read = trio.Event()
            self._receiving.cancel(reason="the client pauses reading")

    def resume_reading(self) -> None:
        """Read again."""
        self._may_read.set()

    def reset(self) -> None:
        """Close with RST."""
        self.is_gone = True
        self.stream.reset()
        self._talking.cancel(reason="the client has reset its connection")

    def vanish(self) -> None:
        """Send and receive nothing from now on, as if the cable was pulled."""
        self.is_gone = True
        self.stream.vanish()

    async def close(self) -> None:
        """Close; with RST if bytes that have arrived are unread."""
        self.is_gone = True
        await self.stream.aclose()
        self._talking.cancel(reason="the client has closed its connection")

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
                        self.received += data
                    else:
                        self.tail = "eof"
        except trio.BrokenResourceError:
            self.tail = "reset"
        except trio.ClosedResourceError:
            pass  # this client has closed

    async def _write(self) -> None:
        try:
            while self._will_send_more or self._unsent:
                await self._has_work.wait()
                self._has_work = trio.Event()
                while self._unsent:
                    data = bytes(self._unsent)
                    self._unsent.clear()
                    await self.stream.send_all(data)
            await self.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._will_send_more = False

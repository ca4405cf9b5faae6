"""TLS clients: plain bytes over the client's end of a connection in memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, NoReturn

import trio

from trioserve.faults import Impairment
from trioserve.wire import RECORD, TlsError, TlsSession

from ._arguments import check_count
from ._certificates import SERVER_NAME, contexts
from .network import Event, EventKind, MemoryStream, Operation

#: Bytes of a record besides the plain ones, in TLS 1.3: RFC 8446, section 5.2
OVERHEAD: Final = 22

#: Bytes of a close_notify: a record with an alert of two bytes.
CLOSE_NOTIFY: Final = OVERHEAD + 2

#: The default ``max_bytes`` of a receive. Trio has the same.
_CHUNK: Final = 65536


class Records:
    """How many plain bytes each record has.

    A handler never sees a part of a record. So a record ends at each cut of its bytes,
    with slices it has as many plain bytes as a slice, and the network has room for it.
    Before the fault ``eof``, a close_notify follows the last record that there is room
    for: EOF may come anywhere.

    Args:
      impairment: the faults of the bytes that are sent.
      seed: decides what is random.
      buffer: bytes that the network holds.
    """

    def __init__(self, impairment: Impairment, seed: str, buffer: int = RECORD) -> None:
        self._most = max(1, min(RECORD, buffer - OVERHEAD))
        self._cuts = impairment.cuts
        self._slice = impairment.slice
        ends = (t.bytes for t in impairment.terminations if t.kind == "eof")
        self._end = min((end for end in ends if end is not None), default=math.inf)
        self._draw = random.Random(seed)

    def next(self, at: int, left: int) -> int:
        """Plain bytes of the next record; 0 if a close_notify comes instead.

        Args:
          at: how many encrypted bytes are before it.
          left: how many plain bytes are to be sent.
        """
        size = min(left, self._most)
        if self._slice is not None:
            size = min(size, self._draw.randint(*self._slice))
        begin = at + OVERHEAD
        room = self._end - at - CLOSE_NOTIFY
        if 0 <= room < OVERHEAD + size:
            size = max(0, int(room) - OVERHEAD)
        inside = (cut - begin for cut in self._cuts if begin < cut < begin + size)
        return next(inside, size)


class TlsClient(trio.abc.HalfCloseableStream):
    """The client's end of a TLS connection.

    It sends a close_notify as EOF, and takes only that for EOF: a FIN without one
    breaks it. RFC 8446, section 6.1. A send that is cancelled halfway breaks sending.

    Args:
      stream: the stream below.
      records: how the bytes that are sent are cut into records.
      on_event: called with each event of plain bytes, with the stream below.
      on_begin: called when the handshake has succeeded.

    Attributes:
      wire: how many bytes it has sent and received below.
      handshake: the same, at the end of the handshake.
      records: of each record with plain bytes: how many bytes it had sent below before,
        and how many plain ones the record has.
    """

    def __init__(
        self,
        stream: MemoryStream,
        records: Records,
        on_event: Callable[[Event], None],
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.wire = self.handshake = (0, 0)
        self.records = list[tuple[int, int]]()
        self._stream = stream
        self._records = records
        self._on_event = on_event
        self._on_begin = on_begin
        self._session = TlsSession(
            contexts().client, server_side=False, server_hostname=SERVER_NAME
        )
        self._error: TlsError | None = None
        self._has_sent_eof = False
        self._is_halfway = False
        # By a fault: what is sent after it is lost.
        self._is_cut_off = False
        # The plain bytes that are being sent, and how many bytes below that takes.
        self._plain, self._sent_at = b"", 0
        self._receiving = Operation("receiving from this stream")
        self._sending = Operation("sending on this stream")

    @property
    def is_over(self) -> bool:
        """Whether both ends have sent a close_notify."""
        return self._has_sent_eof and self._session.has_ended

    def note(self, event: Event) -> None:
        """Note an event of the stream below."""
        sent, received = self.wire
        match event.kind:
            case "send":
                self.wire = sent + len(event.data or b""), received
                if self._plain and self.wire[0] == self._sent_at:
                    self._tell("send", self._plain)
            case "receive":
                self.wire = sent, received + len(event.data or b"")
            case _:
                pass

    async def shake_hands(self) -> None:
        """Shake hands.

        Raises:
          trio.BrokenResourceError: that has failed, or the connection is broken. All
            later calls raise it too.
        """
        with self._receiving, self._sending:
            try:
                while not self._session.handshake():
                    await self._flush()
                    await self._feed()
                await self._flush()
            except TlsError as error:
                self._break(error)
            except trio.BrokenResourceError:
                self._error = TlsError("the connection broke in the handshake")
                raise
        self.handshake = self.wire
        self._on_begin()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive plain bytes, as :meth:`MemoryStream.receive_some`."""
        limit = _CHUNK if max_bytes is None else max_bytes
        check_count("max_bytes", limit, least=1)
        with self._receiving:
            await trio.lowlevel.checkpoint()
            try:
                while (data := self._read(limit)) is None:
                    await self._feed()
            except TlsError as error:
                self._break(error)
        self._tell("receive" if data else "receive_eof", data or None)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send plain bytes, as :meth:`MemoryStream.send_all`."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._has_sent_eof:
                raise trio.ClosedResourceError("can't send after EOF was sent")
            rest = bytes(data)
            while rest and not self._is_cut_off:
                self._check_sendable()
                size = self._records.next(self.wire[0], len(rest))
                if not size:
                    self._is_cut_off = True
                    await self._send_close_notify()
                    break
                self.records.append((self.wire[0], size))
                plain, rest = rest[:size], rest[size:]
                self._session.write(plain)
                await self._flush(plain)

    async def wait_send_all_might_not_block(self) -> None:
        """As :meth:`MemoryStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send a close_notify; this end can still receive. Repeated calls do nothing.

        Raises:
          trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError:
            as :meth:`send_all`.
        """
        with self._sending:
            await trio.lowlevel.checkpoint()
            if not (self._has_sent_eof or self._is_cut_off):
                self._check_sendable()
                await self._send_close_notify()
            self._has_sent_eof = True

    async def aclose(self) -> None:
        """Close with a close_notify and FIN; or as :meth:`MemoryStream.aclose`."""
        try:
            await self.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other end can't receive it
        finally:
            await self._stream.aclose()

    # -- over the stream below

    def _read(self, limit: int) -> bytes | None:
        if self._error is not None:
            raise self._error
        return self._session.read(limit)

    async def _feed(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise TlsError("it ended without close_notify: bytes may be missing")
        self._session.feed(data)

    async def _send_close_notify(self) -> None:
        self._session.close()
        self._tell("send_eof")
        await self._flush()

    async def _flush(self, plain: bytes = b"") -> None:
        """Send what is encrypted; ``plain`` is what it stands for."""
        data = self._session.output()
        self._plain, self._sent_at = plain, self.wire[0] + len(data)
        self._is_halfway = True
        await self._stream.send_all(data)
        self._is_halfway = False

    def _check_sendable(self) -> None:
        if self._error is not None:
            self._break(self._error)
        if self._is_halfway:
            raise trio.BrokenResourceError("a send has failed or was cancelled halfway")

    def _break(self, error: TlsError) -> NoReturn:
        if self._error is None:
            self._error = error
            self._tell("receive_reset", str(error))
        raise trio.BrokenResourceError(f"TLS is broken: {error}") from error

    def _tell(self, kind: EventKind, data: bytes | str | None = None) -> None:
        self._on_event(Event(kind, self._stream, data))

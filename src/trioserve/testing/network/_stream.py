"""Streams in memory: Trio's stream interface over one end of a connection."""

from __future__ import annotations

import dataclasses
import errno
import operator
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import trio

from trioserve.faults import Faults, parse_faults

from ._endpoint import Endpoint, EventKind, broken, connect_ends, os_error
from ._wire import Wire

#: How the peer has ended its side so far, as this side sees it.
Tail = Literal["open", "eof", "reset"]

#: The default ``max_bytes`` of a receive. Trio has the same.
_CHUNK: Final = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a stream.

    Attributes:
      kind: what happened. ``reset`` is an RST that this stream sent,
        ``receive_reset`` the first call that failed because of one. ``wait_receive``
        and ``wait_send`` begin a wait; ``cancelled`` ends a call.
      stream: the stream.
      data: the bytes of ``send`` (those that the network has taken) and
        ``receive``; the reason of ``cancelled``, if it has one; over TLS, the error
        of a ``receive_reset`` that is no RST; otherwise None.
    """

    kind: EventKind
    stream: MemoryStream
    data: bytes | str | None = None


OnEvent: TypeAlias = Callable[[Event], None]


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory. It behaves like a ``trio.SocketStream``.

    That includes undocumented behaviour: the first send to a peer that has closed
    succeeds and the next one breaks; bytes that arrived before an RST can still be
    received. There are two differences: an error is raised by all later calls,
    where a kernel raises it once; and a second task that receives always gets an
    error. Without retransmissions, a connection whose peer has vanished does not
    time out; see :meth:`give_up`.

    Attributes:
      name: such as ``"client 1"``, for messages.
    """

    def __init__(self, name: str, end: Endpoint, on_event: OnEvent | None) -> None:
        self.name = name
        self._end = end
        self._on_event = on_event
        end.report = self._report_event
        self._options: dict[tuple[int, int], int | bytes] = {}

    def __repr__(self) -> str:
        return f"<MemoryStream {self.name}>"

    @property
    def applied_faults(self) -> tuple[str, ...]:
        """The faults applied to the bytes for this end, as items of the grammar."""
        return self._end.incoming.applied_faults

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what has arrived, or wait for it; ``b""`` is EOF.

        If it is cancelled, no byte is lost.

        Args:
          max_bytes: the most bytes to return; 65536 by default.

        Raises:
          trio.BrokenResourceError: the connection is broken. The ``OSError`` that
            a kernel would raise is its cause.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this end was closed.
          ValueError: ``max_bytes`` is less than 1.
        """
        limit = _CHUNK if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError(f"max_bytes must be 1 or more, not {max_bytes}")
        with self._end.receiving:
            return await self._end.receiving.until(self._end.try_to_receive, limit)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes; wait while the network has no room for them.

        If it fails or is cancelled, some of the first bytes may have been sent.

        Raises:
          trio.BrokenResourceError, trio.BusyResourceError: as :meth:`receive_some`.
          trio.ClosedResourceError: this end was closed, or it has sent EOF.
        """
        if self._end.has_sent_eof:
            raise trio.ClosedResourceError("can't send after EOF was sent")
        sending = self._end.sending
        with sending:
            rest = memoryview(data).cast("B")
            if not rest:
                self._end.check_open()
                await trio.lowlevel.checkpoint()
            while rest:
                rest = rest[await sending.until(self._end.try_to_send, rest) :]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a send would not wait.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this end was closed.
        """
        with self._end.sending:
            self._end.check_open()
            await self._end.sending.until(self._end.is_writable)

    async def send_eof(self) -> None:
        """Send FIN; this end can still receive. Repeated calls do nothing.

        Raises:
          trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError:
            as :meth:`send_all`.
        """
        with self._end.sending:
            await trio.lowlevel.checkpoint()
            if self._end.has_sent_eof:
                return
            self._end.catch_up()
            self._end.check_open()
            if self._end.error is not None:
                raise broken(os_error(errno.ENOTCONN))
            self._end.send_eof()

    def send_eof_now(self) -> None:
        """Send FIN at once, even while a task is sending.

        Does nothing if this end was closed, is broken or has sent FIN.
        """
        self._end.catch_up()
        if not (self._end.is_closed or self._end.has_sent_eof or self._end.error):
            self._end.send_eof()

    async def aclose(self) -> None:
        """Close with FIN, or with RST if bytes that have arrived are unread.

        In a cancelled scope, or after its deadline, always close with RST:
        :func:`trio.aclose_forcefully` is a reset.
        """
        is_late = trio.current_effective_deadline() <= trio.current_time()
        self._end.close(reset=is_late)
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close at once: with FIN, or with RST if bytes that have arrived are unread.

        Repeated calls do nothing.
        """
        self._end.close(reset=False)

    def is_readable(self) -> bool:
        """Whether a receive would not wait: for bytes, EOF or an error."""
        return self._end.is_readable()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Store a socket option. In memory, it has no effect."""
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """The value that was set, or 0."""
        return self._options.get((level, option), 0)

    def reset(self) -> None:
        """Close with RST, at once. Repeated calls do nothing."""
        self._end.close(reset=True)

    def stall(self) -> None:
        """Lose all that this end sends from now on, and what is in flight."""
        self._end.catch_up()
        self._end.peer.apply_fault("stall")

    def vanish(self) -> None:
        """Lose all that either end sends from now on, as if the cable was pulled."""
        self._end.catch_up()
        self._end.apply_fault("vanish")

    def give_up(self) -> None:
        """Break both ends with ``ETIMEDOUT`` if a direction has stalled or vanished.

        Linux does that after about 15 minutes of retransmissions.
        """
        self._end.catch_up()
        ends = (self._end, self._end.peer)
        if any(end.incoming.end in ("stall", "vanish") for end in ends):
            for end in ends:
                end.fail(errno.ETIMEDOUT)

    def _report_event(self, kind: EventKind, data: bytes | str | None = None) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, self, data))


def make_pair(
    names: tuple[str, str],
    buffer: tuple[int, int],
    faults: Faults,
    seed: int | str,
    on_event: OnEvent | None,
) -> tuple[MemoryStream, MemoryStream]:
    """The client's and the server's end of a new connection."""
    up, down = buffer
    client = Endpoint(Wire(down, faults.down, f"{seed} down"))
    server = Endpoint(Wire(up, faults.up, f"{seed} up"))
    connect_ends(client, server)
    if faults.refuse:
        client.apply_fault("reset")
    return (
        MemoryStream(names[0], client, on_event),
        MemoryStream(names[1], server, on_event),
    )


def stream_pair(
    *,
    buffer: int | tuple[int, int] = 16384,
    faults: Faults | str = "",
    seed: int | str = 0,
) -> tuple[MemoryStream, MemoryStream]:
    """The client's and the server's end of one connection.

    Args:
      buffer: how many bytes each direction holds, sent and not yet received; or two
        numbers, for those that the client sends and for those that the server sends.
      faults: the faults of the connection, as a value or as text for
        :func:`trioserve.faults.parse_faults`; none by default. ``refuse`` resets the
        connection at once.
      seed: decides what is random in the faults.

    Raises:
      ValueError: an argument is wrong.
    """
    names = ("client 1", "server 1")
    return make_pair(names, as_buffers(buffer), as_faults(faults), seed, None)


def as_buffers(buffer: int | tuple[int, int]) -> tuple[int, int]:
    up, down = buffer if isinstance(buffer, tuple) else (buffer, buffer)
    if min(up, down) < 1:
        raise ValueError(f"buffer must be 1 byte or more, not {buffer}")
    return up, down


def as_faults(faults: Faults | str) -> Faults:
    return parse_faults(faults) if isinstance(faults, str) else faults

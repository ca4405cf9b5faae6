"""A transport over any Trio stream.

It uses only the methods of :class:`trio.abc.Stream`. These don't tell how many bytes
the kernel holds, or whether the peer has reset the connection.
"""

from __future__ import annotations

import math
from typing import Any

import trio

from ._errors import cause_of, is_ours, isolated
from ._transport import CHUNK, FAILURES, Transport


class StreamTransport(Transport):
    """Bytes to and from a peer through any Trio stream.

    If ``send_all`` fails or is cancelled, it does not tell how much was sent, and
    nothing is counted as sent.

    Args:
      stream: the transport closes it, unless :meth:`release` is called.
      grace: seconds that :meth:`close` gives the stream to close gracefully.
    """

    __slots__ = ("_gone", "_grace", "can_half_close", "stream")

    closes_at_once = False

    def __init__(self, stream: trio.abc.Stream, *, grace: float = 2.0) -> None:
        super().__init__()
        self.stream = stream
        self.can_half_close = isinstance(stream, trio.abc.HalfCloseableStream)
        self._grace = grace
        self._gone = trio.Event()

    @property
    def can_reset(self) -> bool:
        return False

    def options(self) -> Any:
        return self.stream if hasattr(self.stream, "setsockopt") else None

    def wraps(self, thing: object) -> bool:
        return thing is self or thing is self.stream

    # -- bytes

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            if self.unread_bytes:
                return await self.receive_unread(max_bytes)
            self.start_receiving()
            try:
                data = await self.stream.receive_some(max_bytes)
            except trio.BrokenResourceError as error:
                self.keep_error(_cause_or_itself(error))
                raise self.broken() from self.error
            finally:
                self.receiving_since = math.inf
            return self.count_received(bytes(data), at_eof)
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._start_sending()
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError as error:
                self.keep_error(_cause_or_itself(error))
                raise self.broken() from self.error
            finally:
                self.sending_since = math.inf
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        self.sent += len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        self.moved_at = self.clock.current_time()

    async def wait_writable(self) -> None:
        self._start_sending()
        try:
            await self.stream.wait_send_all_might_not_block()
        finally:
            self.sending_since = math.inf

    def _start_sending(self) -> None:
        self.check_sendable()
        self.sending_since = self.clock.current_time()
        if self.on_wait is not None:
            self.on_wait()

    async def send_eof(self) -> None:
        self.check_open()
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise TypeError(f"{type(self.stream).__name__} can't send EOF")
        if self.sent_eof:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.stream.send_eof()
        except trio.BrokenResourceError as error:
            self.keep_error(_cause_or_itself(error))
        self.mark_eof_sent()
        if self.on_wait is not None:
            self.on_wait()

    async def check_no_receiver(self) -> None:
        """Do nothing: the stream itself raises if another task uses it."""

    # -- its state, without moving a byte: almost unknown

    def readable(self) -> bool:
        return bool(self.unread_bytes)

    def writable(self) -> bool:
        return False

    def end_is_receivable(self) -> bool:
        return not is_ours(self.error)

    # -- closing

    def abort(self) -> None:
        self._close_within(0)

    def close(self) -> None:
        self._close_within(self._grace)

    def _close_within(self, seconds: float) -> None:
        # A system task, because aclose() is async and this must not wait: a timer
        # closes streams, also one that a shielded handler waits for.
        if not self.closed:
            self.mark_closed()
            trio.lowlevel.spawn_system_task(self._aclose, seconds)

    async def _aclose(self, seconds: float) -> None:
        try:
            # A foreign stream may raise anything, and no caller is left to get it.
            with isolated(), trio.move_on_after(seconds):
                await self.stream.aclose()
        finally:
            self._gone.set()

    async def wait_closed(self) -> None:
        with trio.CancelScope(shield=True):
            await self._gone.wait()

    def release(self) -> None:
        self.mark_closed()


def _cause_or_itself(error: BaseException) -> BaseException:
    """The ``__cause__`` of a stream's error; the error itself if it has none."""
    cause = cause_of(error)
    return error if cause is None else cause

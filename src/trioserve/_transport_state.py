"""The state of every transport: counts, times, the error, and bytes given back.

It keeps two of the rules of transports: the counts are exact, and the first error is
sticky. The kernel forgets an error once it has been read, and then a reset connection
reads like one that ended well; here such an EOF raises the error again.

This module does not know how bytes move.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ._describe import describe


class TransportState:
    """The state of the bytes to and from one peer.

    Attributes:
      received, sent: bytes received from and sent to the peer, so far.
      discarded: of the bytes received, those that were discarded.
      eof: whether the peer's EOF was received.
      sent_eof, sent_eof_at: whether EOF was sent; and when, ``math.inf`` if not.
      error: the first error, or None. The peer or this machine may have caused it.
      closed: whether it was closed, or released.
      unacknowledged: bytes that the peer had not acknowledged when the
        transport was aborted; None if it was not aborted, or if the system does
        not tell.
      moved_at: when the last byte moved, on Trio's clock.
      first_byte_at: when the first byte was received, or None.
      receiving_since: when the current receive began to wait; ``math.inf`` if none
        waits.
      sending_since: when the current send last made progress; ``math.inf`` if none
        waits.
      acked_at: when ``observe_acks()`` last found that the peer takes bytes that the
        kernel holds; ``-math.inf`` before that.
      unread_bytes: bytes that :meth:`unread` has given back and no receive has taken.
      on_wait: called without arguments when a receive or a send starts to wait.
      clock: Trio's clock.
    """

    __slots__ = (
        "acked_at", "clock", "closed", "discarded", "eof", "error", "first_byte_at",
        "moved_at", "on_wait", "received", "receiving_since", "sending_since", "sent",
        "sent_eof", "sent_eof_at", "unacknowledged", "unread_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received: int = 0
        self.sent: int = 0
        self.discarded: int = 0
        self.eof = False
        self.sent_eof = False
        self.sent_eof_at = math.inf
        self.error: BaseException | None = None
        self.closed = False
        self.unacknowledged: int | None = None
        self.clock = trio.lowlevel.current_clock()
        self.moved_at = self.clock.current_time()
        self.acked_at = -math.inf
        self.first_byte_at: float | None = None
        self.receiving_since = math.inf
        self.sending_since = math.inf
        self.unread_bytes = b""
        self.on_wait: Callable[[], None] | None = None

    # -- before bytes move

    def check_open(self) -> None:
        """Raise ``ClosedResourceError`` if it is closed."""
        if self.closed:
            raise trio.ClosedResourceError("this stream was closed")

    def check_receivable(self) -> None:
        """Raise the error that a receive would raise at once, but not a sticky one.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this stream was closed.
        """
        self.check_open()
        if self.receiving_since < math.inf:
            raise trio.BusyResourceError("another task is receiving")

    def start_receiving(self) -> None:
        """Note that a receive begins to wait; raise as :meth:`check_receivable`."""
        self.check_receivable()
        self.receiving_since = self.clock.current_time()
        if self.on_wait is not None:
            self.on_wait()

    def check_sendable(self) -> None:
        """Raise the error that :meth:`Transport.send` would raise at once."""
        self.check_open()
        if self.sent_eof:
            raise trio.ClosedResourceError("can't send after EOF was sent")
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if self.error is not None:
            raise self.broken() from self.error

    # -- after bytes have moved

    def count_received(self, data: bytes, at_eof: type[Exception] | None) -> bytes:
        """Count the bytes of a read, and return them; ``b""`` is EOF.

        Raises:
          trio.BrokenResourceError: there was an error before, so it is not EOF.
          Exception: ``at_eof``, at EOF.
        """
        if data:
            self.moved_at = self.clock.current_time()
            if not self.received:
                self.first_byte_at = self.moved_at
            self.received += len(data)
        elif self.error is not None:
            raise self.broken() from self.error
        else:
            self.eof = True
            if at_eof is not None:
                raise at_eof
        return data

    def forget_received(self, count: int) -> None:
        """Take the first ``count`` of the bytes received out of the counts.

        They are of a layer, and not of the client: a PROXY header. The next byte, if
        one has come with them, is the client's first.
        """
        self.received -= count
        self.first_byte_at = self.moved_at if self.received else None

    def mark_closed(self) -> None:
        """Note that it is closed; bytes that were given back count as discarded."""
        self.closed = True
        self.discarded += len(self.unread_bytes)
        self.unread_bytes = b""

    def mark_eof_sent(self) -> None:
        """Note that EOF was sent, and when."""
        self.sent_eof = True
        self.sent_eof_at = self.clock.current_time()

    def keep_error(self, error: BaseException) -> None:
        """Keep ``error`` if it is the first."""
        if self.error is None:
            # Without the traceback: its frames refer to this transport, and that cycle
            # would keep both until a garbage collection.
            self.error = BaseException.with_traceback(error, None)

    def broken(self) -> trio.BrokenResourceError:
        """The exception to raise for :attr:`error`, from it."""
        assert self.error is not None
        return trio.BrokenResourceError(describe(self.error))

    # -- bytes that are given back

    def unread(self, data: bytes) -> None:
        """Give back bytes that were received; the next receive returns them first.

        A layer that has received more than it needs uses this. The bytes are not
        counted as received again. After several calls, the bytes of the last call come
        first. Bytes that no receive takes before the close count as discarded.

        Raises:
          trio.BusyResourceError: a task is receiving, and would get later bytes first.
        """
        if self.closed:
            self.discarded += len(data)
            return
        if self.receiving_since < math.inf:
            raise trio.BusyResourceError("another task is receiving")
        self.unread_bytes = data + self.unread_bytes

    def take_unread(self, max_bytes: int | None = None) -> bytes:
        """Take up to ``max_bytes`` of :attr:`unread_bytes`, or all."""
        data = self.unread_bytes[:max_bytes]
        self.unread_bytes = self.unread_bytes[len(data) :]
        return data

    async def receive_unread(self, max_bytes: int) -> bytes:
        """:meth:`Transport.receive`, if there are :attr:`unread_bytes`."""
        self.check_receivable()
        await trio.lowlevel.checkpoint_if_cancelled()
        data = self.take_unread(max_bytes)
        self.receiving_since = self.clock.current_time()
        try:
            # Shielded: the bytes are taken, and a Cancelled would lose them.
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self.receiving_since = math.inf
        return data

"""The state that every transport has: counts, times, its error, what was given back.

It keeps two of the rules of transports. The counts are what the kernel (or the
stream) has given and taken. And the first error is sticky: the kernel forgets an
error once it has been read, and then a reset connection reads like one that ended
well; here such an EOF raises the error again.

This module does not know how bytes move.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ._describe import describe


class TransportState:
    """What is counted and remembered of one peer's bytes.

    Attributes:
      received, sent: bytes taken from and given to the peer, so far.
      discarded: of the bytes received, those that were thrown away.
      eof: whether the peer's EOF was received.
      sent_eof, sent_eof_at: whether EOF was sent; and when, ``math.inf`` if not.
      error: the first error, or None. It may be of the peer's making, or of this
        machine's.
      closed: whether nothing more can be done with it.
      unacknowledged: bytes that the peer had not acknowledged when the
        transport was aborted; None if it was not aborted, or if the system does
        not tell.
      moved_at: when the last byte moved, on Trio's clock.
      first_byte_at: when the first byte was received, or None.
      receiving_since: when the receive that waits now began to wait;
        ``math.inf`` if none does.
      sending_since: when the send that waits now last got rid of a byte;
        ``math.inf`` if none waits.
      acked_at: when ``observe_acks()`` last found that the peer takes what the
        kernel holds; ``-math.inf`` before that.
      unread_bytes: what :meth:`unread` has given back and nothing has received.
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
        """Raise what a receive would raise at once, unless it is a sticky error.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this stream was closed.
        """
        self.check_open()
        if self.receiving_since < math.inf:
            raise trio.BusyResourceError("another task is receiving")

    def start_receiving(self) -> None:
        """Mark that a receive begins to wait; raises as :meth:`check_receivable`."""
        self.check_receivable()
        self.receiving_since = self.clock.current_time()
        if self.on_wait is not None:
            self.on_wait()

    def check_sendable(self) -> None:
        """Raise what a send would raise at once; see :meth:`Transport.send`."""
        self.check_open()
        if self.sent_eof:
            raise trio.ClosedResourceError("can't send after EOF was sent")
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if self.error is not None:
            raise trio.BrokenResourceError(describe(self.error)) from self.error

    # -- what has happened

    def count_received(self, data: bytes, at_eof: type[Exception] | None) -> bytes:
        """Count what a read has brought, and return it; ``b""`` is EOF.

        Raises:
          trio.BrokenResourceError: what looks like EOF is not, for there was an error.
          Exception: ``at_eof``, at EOF.
        """
        if data:
            self.moved_at = self.clock.current_time()
            if not self.received:
                self.first_byte_at = self.moved_at
            self.received += len(data)
        elif self.error is not None:
            raise trio.BrokenResourceError(describe(self.error)) from self.error
        else:
            self.eof = True
            if at_eof is not None:
                raise at_eof
        return data

    def mark_closed(self) -> None:
        """Note that it is closed; what was given back is thrown away."""
        self.closed = True
        self.discarded += len(self.unread_bytes)
        self.unread_bytes = b""

    def mark_eof_sent(self) -> None:
        """Note that EOF was sent, and when."""
        self.sent_eof = True
        self.sent_eof_at = self.clock.current_time()

    def keep_error(self, error: BaseException) -> trio.BrokenResourceError:
        """Keep ``error`` if it is the first, and return what is raised for it."""
        if self.error is None:
            # Its traceback has frames that refer to this transport: a cycle, which
            # would keep both until garbage is collected.
            self.error = BaseException.with_traceback(error, None)
        return trio.BrokenResourceError(describe(self.error))

    # -- bytes that are given back

    def unread(self, data: bytes) -> None:
        """Give back bytes that were received, and belong to what reads next.

        A layer that has received more than it needs uses this. The next receive
        returns them first, and they are not counted as received again. Of several
        calls, the last one's bytes come first. What is given back to a transport that
        is closed, or closed before it is received, counts as discarded.

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
        """Take up to ``max_bytes`` of :attr:`unread_bytes`; None: all of them."""
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
            # Shielded, for the bytes are taken: Cancelled would lose them.
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self.receiving_since = math.inf
        return data

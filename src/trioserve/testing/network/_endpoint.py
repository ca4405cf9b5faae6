"""One end of a TCP connection in memory: its state, and what Linux would do.

FIN, RST, half-close, partial writes, data for a closed end. A connection has no task
of its own: each call of either end first delivers what is due, in order of time, so
that the same schedule gives the same result.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from typing import Literal, TypeAlias

import trio

from trioserve.faults import Termination

from ._operation import Operation
from ._wire import Arrival, Signal, Wire

EventKind: TypeAlias = Literal[
    "connect", "accept", "send", "receive", "send_eof", "receive_eof", "reset",
    "receive_reset", "close", "wait_receive", "wait_send", "cancelled",
]  # fmt: skip

Report: TypeAlias = Callable[[EventKind, bytes | str | None], None]


class Endpoint:
    """One end of a connection. :func:`connect_ends` makes two of them peers.

    Args:
      incoming: the direction to this end.

    Attributes:
      peer: the other end.
      report: called with each event of this end. The stream sets it.
      is_closed: whether this end was closed.
      has_sent_eof: whether it has sent FIN before that.
      error: why it is broken, or None. An error is sticky.
      receiving, sending: the two operations; one task at a time may be in each.
    """

    peer: Endpoint
    report: Report

    def __init__(self, incoming: Wire) -> None:
        self.incoming = incoming
        self.is_closed = False
        self.has_sent_eof = False
        self.error: OSError | None = None
        self.receiving = Operation(
            "receiving from this stream",
            self._receive_due,
            lambda: self.report("wait_receive", None),
            lambda reason: self.report("cancelled", reason),
        )
        self.sending = Operation(
            "sending on this stream",
            self._due,
            lambda: self.report("wait_send", None),
            lambda reason: self.report("cancelled", reason),
        )
        self._has_eof = False
        self._has_sent_reset = False
        self._has_told_error = False

    # -- calls

    def try_to_receive(self, limit: int) -> bytes | None:
        """Bytes, or b"" for EOF; None to wait."""
        self.catch_up()
        self.check_open()
        if data := self.incoming.take(limit):
            self.report("receive", data)
            self.peer.sending.wake()
            return data
        if self.incoming.has_unread:
            return None
        if self._has_eof:
            self.report("receive_eof", None)
            return b""
        self._check_intact()
        return None

    def try_to_send(self, data: memoryview) -> int | None:
        """How many bytes were sent; None to wait for room."""
        self.catch_up()
        self.check_open()
        self._check_intact()
        if self.has_sent_eof:  # by another task, while this one waited
            raise broken(os_error(errno.EPIPE))
        wire = self.peer.incoming
        if not wire.room:
            return None
        part = bytes(data[: wire.room])
        self.report("send", part)
        wire.send(part, trio.current_time())
        if wire.end == "close":
            self.fail()
        self.catch_up()
        return len(part)

    def is_writable(self) -> bool | None:
        """Whether a send would not wait; None to wait for that."""
        self.catch_up()
        self.check_open()
        fails = self.error is not None or self.has_sent_eof
        return True if fails or self.peer.incoming.room else None

    def is_readable(self) -> bool:
        """Whether a receive would not wait."""
        self.catch_up()
        unread = self.incoming.has_unread
        return unread or self._has_eof or self.is_closed or self.error is not None

    def send_eof(self) -> None:
        self.has_sent_eof = True
        self.report("send_eof", None)
        self.peer.incoming.send_fin(trio.current_time())
        self.sending.wake()
        self.catch_up()

    def close(self, *, reset: bool) -> None:
        """Close with FIN, or with RST if told to or if bytes are unread."""
        if self.is_closed:
            return
        self.catch_up()
        self.is_closed = True
        self.report("close", None)
        is_over = self._has_eof and self.has_sent_eof
        if self.error is None and not is_over:
            if reset or self.incoming.has_unread:
                self._send_reset(trio.current_time())
            elif not self.has_sent_eof:
                self.peer.incoming.send_fin(trio.current_time())
        self.receiving.wake()
        self.sending.wake()
        self.catch_up()

    def check_open(self) -> None:
        """Raise ``trio.ClosedResourceError`` if this end was closed."""
        if self.is_closed:
            raise trio.ClosedResourceError("this stream was closed")

    def _check_intact(self) -> None:
        if self.error is not None:
            if not self._has_told_error:
                self._has_told_error = True
                self.report("receive_reset", None)
            raise broken(self.error)

    # -- time

    def _due(self) -> float:
        """The time of the next event that this end may see."""
        return min(self.incoming.due, self.peer.incoming.due)

    def _receive_due(self) -> float:
        return trio.current_time() if self.incoming.release() else self._due()

    def catch_up(self) -> None:
        """Deliver all that is due at both ends, in order of time."""
        if (due := self._due()) == math.inf:
            return
        now = trio.current_time()
        while due <= now:
            end = self if self.incoming.due == due else self.peer
            end.arrive(end.incoming.pop_due())
            due = self._due()
        if due < math.inf:
            for end in (self, self.peer):
                end.receiving.wake_before(due)
                end.sending.wake_before(due)

    # -- what happens to it

    def arrive(self, arrival: Arrival) -> None:
        """Handle bytes, FIN, RST or a fault that arrives at this end."""
        match arrival.payload:
            case Signal.RST:
                self.fail()
            case Signal.FIN:
                self.see_eof()
            case Termination(kind=kind):
                self.apply_fault(kind)
            case bytes() if self.is_closed:
                self._send_reset(arrival.at)
            case data:
                self.incoming.deliver(data, boundary=arrival.boundary)
                self.receiving.wake()

    def apply_fault(self, kind: str) -> None:
        """End the direction to this end by a fault; some kinds end both directions."""
        ends = [self] if kind in ("stall", "eof") else [self, self.peer]
        for end in ends:
            end.incoming.terminate(kind)
            if kind == "reset":
                end.fail()
            elif kind in ("close", "eof"):
                end.see_eof()

    def see_eof(self) -> None:
        self._has_eof = True
        self.receiving.wake()

    def fail(self, code: int | None = None) -> None:
        """Break this end with the error ``code``; by default with that of a reset."""
        if not self.is_closed and self.error is None:
            # Linux, tcp_reset(): after the peer's FIN, the error is EPIPE.
            reset = errno.EPIPE if self._has_eof else errno.ECONNRESET
            self.error = os_error(code or reset)
            self.receiving.wake()
            self.sending.wake()

    def _send_reset(self, now: float) -> None:
        if not self._has_sent_reset:
            self._has_sent_reset = True
            self.report("reset", None)
            self.peer.incoming.send_rst(now)


def connect_ends(one: Endpoint, other: Endpoint) -> None:
    """Make each the peer of the other."""
    one.peer, other.peer = other, one


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def broken(error: OSError) -> trio.BrokenResourceError:
    """The error of a stream that breaks because of ``error``."""
    result = trio.BrokenResourceError(f"connection broken: {error}")
    result.__cause__ = error
    return result

"""The abstract transport: bytes to and from one peer, counted exactly.

A transport also says what it can do (``can_half_close``, ``trio_socket()``,
...), so that nobody has to ask what kind of transport it is. This module does
not know how bytes move, and it does not know servers, relays, what a timer is
for, or why a connection is closed.

Every transport keeps these rules:

1. ``received`` and ``sent`` count what the kernel (or the stream) has given
   and taken, also when a call is cancelled or fails.
2. The first error is sticky. The kernel forgets an error once it has been
   read, and then a reset connection reads like one that ended well. A transport
   delivers what had arrived before, and after that it raises the error; it
   never reports EOF.
3. ``abort`` and ``close`` are synchronous, and they wake every waiting task with
   ``ClosedResourceError``.
"""

from __future__ import annotations

import abc
import contextlib
import math
import socket
from typing import Any, Final, Protocol

import trio

from ._transport_state import TransportState

#: Bytes per read. Trio's own default.
CHUNK: Final = 65536

#: After one of these, the next call fails at once. A receive or a send that raises
#: one is a checkpoint all the same: a task that ignores the error and calls again,
#: for ever, must not keep all others from running.
FAILURES: Final = (
    trio.BrokenResourceError,
    trio.BusyResourceError,
    trio.ClosedResourceError,
)


class CloseObserver(Protocol):
    """An object that is told when a transport is about to be closed."""

    def on_closed(self) -> None: ...


class Transport(TransportState, abc.ABC):
    """The bytes to and from one peer; see :class:`TransportState` for its state.

    Attributes:
      can_half_close: whether EOF can be sent while receiving goes on.
      closes_at_once: whether :meth:`close` and :meth:`abort` have closed it when
        they return, so that :meth:`wait_closed` does not wait.
    """

    __slots__ = ()

    can_half_close: bool
    closes_at_once: bool

    # -- what it can do

    @property
    @abc.abstractmethod
    def can_reset(self) -> bool:
        """Whether the peer sees :meth:`abort` as a reset (RST)."""

    def trio_socket(self) -> trio.socket.SocketType | None:
        """The socket below as Trio has it, for options and names, if there is one."""
        return None

    def options(self) -> Any:
        """What has ``setsockopt`` and ``getsockopt``: the socket below, or a stream
        that passes them on; None if neither is there.
        """
        return self.trio_socket()

    def pollable(self) -> PollableTransport | None:
        """This transport if the engine can move its bytes, else None."""
        return None

    @abc.abstractmethod
    def wraps(self, thing: object) -> bool:
        """Whether ``thing`` is this transport, or the stream that its bytes go
        through.
        """

    # -- bytes

    @abc.abstractmethod
    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        """Receive 1 to ``max_bytes`` bytes, or ``b""`` at EOF.

        Also when it fails, it lets other tasks run, as :meth:`send` does.
        Cancelled while it waits, it has taken nothing.

        Args:
          at_eof: an exception to raise at EOF, instead of returning ``b""``.

        Raises:
          trio.BrokenResourceError: the connection is broken; everything that
            had arrived was delivered before.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this stream was closed.
        """

    @abc.abstractmethod
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Cancelled or failed, ``sent`` tells how much went.

        Raises:
          trio.BrokenResourceError: the connection is broken.
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this stream was closed, or has sent EOF.
        """

    @abc.abstractmethod
    async def wait_writable(self) -> None:
        """Wait until :meth:`send` might not have to wait.

        Raises the same exceptions as :meth:`send`.
        """

    @abc.abstractmethod
    async def send_eof(self) -> None:
        """Send EOF; receiving goes on. The second call does nothing."""

    async def discard(self, max_bytes: int, seconds: float) -> None:
        """Receive and throw away until EOF, an error, closing or ``max_bytes``.

        It gives up after ``seconds`` in which the peer acknowledges nothing. Bytes
        that the peer sends do not extend that time; bytes that it takes do.
        """
        budget = max_bytes
        since = looked_at = self.clock.current_time()
        holds = self.observe_acks(since)
        over = trio.BrokenResourceError, trio.ClosedResourceError
        with contextlib.suppress(*over):
            # Checked before the receive, which lets other tasks run before it fails.
            self.check_receivable()
            while budget > 0:
                until = max(since, self.acked_at) + seconds
                step = looked_at + 1 if holds else math.inf
                with trio.move_on_at(min(until, step)):
                    data = await self.receive(min(budget, CHUNK))
                    if not data:
                        return
                    self.discarded += len(data)
                    budget -= len(data)
                    continue
                looked_at = self.clock.current_time()
                holds = self.observe_acks(looked_at)
                if looked_at >= max(since, self.acked_at) + seconds:
                    return

    def discard_readable(self, max_bytes: int) -> None:
        """Throw away what has arrived, as far as that is possible without waiting."""
        self.discarded += len(self.take_unread())

    def send_refusal(self, message: bytes) -> bool:
        """Send as much of ``message`` as goes without waiting, then EOF.

        Returns:
          False if this kind of transport can't send without waiting; then nothing
          was sent.
        """
        return False

    # -- what is known without moving a byte

    @abc.abstractmethod
    def readable(self) -> bool:
        """Whether a receive would not wait, as far as can be known."""

    @abc.abstractmethod
    def writable(self) -> bool:
        """Whether a send would not wait, as far as can be known."""

    def unsent(self) -> int | None:
        """How much of what was sent the kernel still holds; None if unknown.

        Over TCP these are the bytes that are not acknowledged. Of other sockets it
        is the memory that they take, which is more.
        """
        return None

    def observe_acks(self, now: float) -> bool:
        """Update :attr:`acked_at`, and return whether the kernel holds anything.

        Bytes that the peer acknowledges are movement too, but there is no event for
        it. So the timers call this from time to time, and :attr:`acked_at` says when
        a call last found that the peer had made progress. For bytes that were sent
        since the last call that can't be known; it counts as progress, so a timer is
        late by at most the time between two calls.
        """
        return False

    def is_reset(self) -> bool:
        """Whether it is broken, such as by a reset, as known without waiting."""
        return self.error is not None

    @abc.abstractmethod
    def end_is_receivable(self) -> bool:
        """Whether a receive will find out how it ended, after a send that failed.

        What the peer has sent before is still to be received, and then comes its
        reset. But if it was this machine that would not send, the peer knows nothing
        of it, and a receive may wait for ever.
        """

    async def wait_peer_gone(self, patience: float) -> None:
        """Wait until the peer is gone; nothing is taken from it.

        It is gone when it has reset the connection, or ``patience`` seconds after
        its EOF if nothing that it has sent is still to be received. Where the system
        can't tell, this waits for ever.
        """
        await trio.sleep_forever()

    async def wait_acknowledged(self, seconds: float) -> None:
        """Wait until the peer has acknowledged all bytes, or it is broken.

        It gives up after ``seconds`` in which the peer acknowledges nothing. There
        is no event for it, so this looks again after 1 ms, 2 ms, ... 50 ms.
        """
        if not self.unsent():
            return  # a scope alone would cost 9 us
        since, pause = self.clock.current_time(), 0.001
        with trio.CancelScope() as patience:
            while self.error is None and self.observe_acks(self.clock.current_time()):
                patience.deadline = max(since, self.acked_at) + seconds
                await trio.sleep(pause)
                pause = min(2 * pause, 0.05)

    @abc.abstractmethod
    async def check_no_receiver(self) -> None:
        """Check that no task receives from the stream below, as far as is known.

        Raises:
          trio.BusyResourceError: one does.
        """

    # -- closing

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once, with RST where there is such a thing. It is idempotent."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close at once, with FIN if all that arrived was read. It is idempotent."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Wait, shielded, until what :meth:`abort` or :meth:`close` began is over."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give the stream back to its owner, open. The transport is closed then."""


class PollableTransport(Transport):
    """A transport over a socket that never waits, which the engine can poll.

    The engine calls ``recv_into`` and ``send`` of :attr:`sock` itself, and keeps
    the counts, so that a message costs no call in between.

    Attributes:
      sock: what bytes go through; no call of it waits.
    """

    __slots__ = ("sock",)

    sock: socket.socket

    def pollable(self) -> PollableTransport:
        return self

    @property
    @abc.abstractmethod
    def is_relayed(self) -> bool:
        """Whether an observer is to be told when it is closed: a relay."""

    @abc.abstractmethod
    def notify_on_close(self, observer: CloseObserver | None) -> None:
        """Call ``observer.on_closed()`` before it is closed; None: call nothing."""

    @abc.abstractmethod
    def keep_os_error(self, error: OSError) -> bool:
        """Keep an error of a system call; False if it says that this was closed."""

    @abc.abstractmethod
    def send_eof_now(self) -> None:
        """:meth:`send_eof` without a checkpoint; an error is kept, and not raised.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this stream was closed.
        """

    @abc.abstractmethod
    def set_notsent_lowat(self, size: int) -> int:
        """Set how many unsent bytes the kernel may hold; return what was set before.

        See :func:`trioserve._tcp.set_notsent_lowat`.
        """

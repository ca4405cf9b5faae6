"""The abstract transport: bytes to and from one peer, counted exactly.

A transport has properties for its abilities (``can_half_close``, ``trio_socket()``,
...), so that callers don't test its class. This module does not know how bytes move,
and it does not know servers, relays, timers, or why a connection is closed.

Every transport keeps these rules:

1. ``received`` and ``sent`` count the bytes that the kernel (or the stream) has given
   and taken, also when a call is cancelled or fails.
2. The first error is sticky. The kernel forgets an error once it has been
   read, and then a reset connection reads like one that ended well. A transport
   delivers the bytes that arrived before the error, and then raises the error; it
   never reports EOF.
3. ``abort`` and ``close`` are synchronous, and they wake every waiting task with
   ``ClosedResourceError``.
"""

from __future__ import annotations

import abc
import contextlib
import math
import socket
from collections.abc import Iterable
from typing import Any, Final, Protocol

import trio

from ._report import TlsFacts
from ._tcp import Setting
from ._transport_state import TransportState

#: Bytes per read. Trio's own default.
CHUNK: Final = 65536

#: After one of these, the next call fails at once. A receive or a send that raises
#: one is still a checkpoint: a task that ignores the error and calls again in a loop
#: must not block all others.
FAILURES: Final = (
    trio.BrokenResourceError,
    trio.BusyResourceError,
    trio.ClosedResourceError,
)


class CloseObserver(Protocol):
    """An object whose ``on_closed`` is called before a transport is closed."""

    def on_closed(self) -> None: ...


class Transport(TransportState, abc.ABC):
    """The bytes to and from one peer; see :class:`TransportState` for its state.

    Attributes:
      can_half_close: whether EOF can be sent while receiving goes on.
      closes_at_once: whether :meth:`close` and :meth:`abort` have closed it when
        they return, so that :meth:`wait_closed` does not wait.
      held: encrypted bytes that the transport below has not taken yet; those of
        :meth:`send_now` count as sent already.
    """

    __slots__ = ()

    can_half_close: bool
    closes_at_once: bool
    held: bytes = b""

    # -- its abilities

    @property
    @abc.abstractmethod
    def can_reset(self) -> bool:
        """Whether the peer sees :meth:`abort` as a reset (RST)."""

    def trio_socket(self) -> trio.socket.SocketType | None:
        """The Trio socket below, for options and addresses; None without one."""
        return None

    def options(self) -> Any:
        """The object with ``setsockopt`` and ``getsockopt``: the socket below, or a
        stream with these methods; None without one.
        """
        return self.trio_socket()

    def apply(self, settings: Iterable[Setting]) -> None:
        """Apply options to the socket below. Here there is none: do nothing."""

    def for_engine(self) -> EngineTransport | None:
        """This transport if the engine can move its bytes, else None."""
        return None

    def pollable(self) -> PollableTransport | None:
        """This transport if its bytes are those of a socket, else None."""
        return None

    def tls_facts(self) -> TlsFacts | None:
        """What its TLS handshake has agreed on; None without TLS, or before."""
        return None

    @abc.abstractmethod
    def wraps(self, thing: object) -> bool:
        """Whether ``thing`` is this transport, or the stream below it."""

    # -- bytes

    @abc.abstractmethod
    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        """Receive 1 to ``max_bytes`` bytes, or ``b""`` at EOF.

        It is a checkpoint, also when it fails, like :meth:`send`. If it is cancelled
        while it waits, no byte is lost.

        Args:
          at_eof: an exception to raise at EOF, instead of returning ``b""``.

        Raises:
          trio.BrokenResourceError: the connection is broken, and all bytes that had
            arrived were delivered.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this stream was closed.
        """

    @abc.abstractmethod
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. If it is cancelled or fails, ``sent`` says how much
        was sent.

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
        """Receive and discard bytes until EOF, an error, a close or ``max_bytes``.

        It gives up after ``seconds`` in which the peer acknowledges nothing. Bytes
        that the peer sends do not extend that time; bytes that it acknowledges do.
        """
        budget = max_bytes
        since = looked_at = self.clock.current_time()
        holds = self.observe_acks(since)
        over = trio.BrokenResourceError, trio.ClosedResourceError
        with contextlib.suppress(*over):
            # Checked before the receive, which is a checkpoint even if it fails.
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
        """Discard bytes that have arrived, without waiting for more."""
        self.discarded += len(self.take_unread())

    def send_now(self, data: bytes | memoryview, now: float) -> int:
        """Send as much of ``data`` as goes without waiting; return how much.

        Call it only if no task is sending. An error is kept, and not raised. It is 0
        if this kind of transport can't send without waiting.

        Args:
          now: the time, on Trio's clock. The engine asks for it once per poll; to do so
            six times for each round trip over TLS would take a microsecond.
        """
        return 0

    def send_refusal(self, message: bytes) -> bool:
        """Send as much of ``message`` as the kernel takes without waiting, then EOF.

        Returns:
          False if this kind of transport can't send without waiting; then nothing
          was sent.
        """
        return False

    # -- its state, without moving a byte

    @abc.abstractmethod
    def readable(self) -> bool:
        """Whether a receive would not wait, as far as can be known."""

    @abc.abstractmethod
    def writable(self) -> bool:
        """Whether a send would not wait, as far as can be known."""

    def unsent(self) -> int | None:
        """How many sent bytes the kernel still holds; None if unknown.

        For TCP these are the bytes that are not acknowledged. For other sockets it is
        the memory that they take, which is more.
        """
        return None

    def observe_acks(self, now: float) -> bool:
        """Update :attr:`acked_at`, and return whether the kernel holds bytes.

        Bytes that the peer acknowledges count as movement, but there is no event for
        an ACK. So the timers call this regularly, and :attr:`acked_at` is the time of
        the last call that found progress. Bytes sent since the last call count as
        progress, because nothing is known of them yet; so a timer may be late by the
        time between two calls.
        """
        return False

    def is_reset(self) -> bool:
        """Whether it is broken, for example by a reset, as far as is known now."""
        return self.error is not None

    @abc.abstractmethod
    def end_is_receivable(self) -> bool:
        """Whether a receive will raise the error, after a send that failed.

        It will after a reset: bytes of the peer from before may be left, then comes the
        error. But if this machine refused to send, the peer does not know, and a
        receive may wait without end.
        """

    async def wait_peer_gone(self, patience: float) -> None:
        """Wait until the peer is gone, without receiving from it.

        It is gone when it has reset the connection, or ``patience`` seconds after
        its EOF if no byte of it is left to be received. On a system that can't tell,
        this waits until it is cancelled.
        """
        await trio.sleep_forever()

    async def wait_acknowledged(self, seconds: float) -> None:
        """Wait until the peer has acknowledged all bytes, or the connection is broken.

        It gives up after ``seconds`` in which the peer acknowledges nothing. There
        is no event for an ACK, so this polls after 1 ms, 2 ms, ... 50 ms.
        """
        if not self.unsent():
            return  # the scope below costs 9 us
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
        """Close at once, over TCP by RST. Idempotent."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close at once, by FIN if all bytes that arrived were read. Idempotent."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Wait, shielded, for the end of an :meth:`abort` or :meth:`close`."""

    @abc.abstractmethod
    def release(self) -> None:
        """Detach from the stream, which stays open; the transport counts as closed."""


class EngineTransport(Transport):
    """A transport whose bytes the engine can move: over a socket, perhaps with TLS.

    The methods are called by pumps, in the engine's task, and none of them waits.
    """

    __slots__ = ()

    #: Whether :meth:`receive_held` may have more to give after :meth:`receive_now`.
    holds_received = False

    @property
    @abc.abstractmethod
    def carrier(self) -> PollableTransport:
        """The transport of the socket, at whose events bytes move."""

    @property
    @abc.abstractmethod
    def is_relayed(self) -> bool:
        """Whether a relay of the engine uses it, and observes its close."""

    @abc.abstractmethod
    def notify_on_close(self, observer: CloseObserver | None) -> None:
        """Call ``observer.on_closed()`` before the next close; None: call nothing."""

    @abc.abstractmethod
    def tell_closing(self) -> None:
        """Call the observer, before the close."""

    @abc.abstractmethod
    def receive_now(self, now: float) -> bytes | None:
        """Receive from the socket once: ``b""`` at EOF, None if no byte has come.

        Call it only after :meth:`receive_held` has returned None.

        Args:
          now: the time, as for :meth:`send_now`.

        Raises:
          trio.BrokenResourceError: the connection is broken, and all bytes that had
            arrived were delivered.
          trio.ClosedResourceError: this stream was closed.
        """

    def receive_held(self, now: float) -> bytes | None:
        """:meth:`receive_now`, but of what was read from the socket before."""
        return None

    @abc.abstractmethod
    def send_eof_now(self) -> None:
        """:meth:`send_eof` without a checkpoint; a system error is kept, not raised.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this stream was closed.
        """


class PollableTransport(EngineTransport):
    """A transport over a non-blocking socket, which the engine can poll.

    The engine calls ``recv_into`` and ``send`` of :attr:`sock` itself and keeps the
    counts, which saves a call per message.

    Attributes:
      sock: the non-blocking socket.
    """

    __slots__ = ("sock",)

    sock: socket.socket

    def for_engine(self) -> PollableTransport:
        return self

    def pollable(self) -> PollableTransport:
        return self

    @property
    def carrier(self) -> PollableTransport:
        return self

    @abc.abstractmethod
    def keep_os_error(self, error: OSError) -> bool:
        """Keep an error of a system call; False if the error is from a close."""

    @abc.abstractmethod
    def set_notsent_lowat(self, size: int) -> int:
        """Set how many unsent bytes the kernel may hold; return the value before.

        See :func:`trioserve._tcp.set_notsent_lowat`.
        """

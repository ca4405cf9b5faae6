"""Pumps that the engine runs, without a task: what all kinds of them do.

A pump receives once per event and sends the bytes at once. If its sink takes no bytes,
it stops reading, and holds the bytes of one read. This module does not know how bytes
are read and written.
"""

from __future__ import annotations

import abc
import math
from typing import Any, Generic, Protocol, TypeVar

import trio

from ._engine import IN, OUT, Engine
from ._pump import Pump
from ._transport import EngineTransport, Transport

_T = TypeVar("_T", bound=EngineTransport)


class RelayCallbacks(Protocol):
    """The callbacks of pumps to their relay, in the engine's task. None may wait.

    Attributes:
      quiet: set by the relay, to have :meth:`on_activity` called once.
    """

    quiet: bool

    def on_eof(self, pump: PolledPump[Any]) -> None:
        """Called when a pump has received EOF and delivered all before it.

        It stops the pump, or calls its :meth:`~PolledPump.update_interest`.
        """

    def on_error(self, transport: Transport) -> None:
        """Called when a transport has an error and no pump will receive from it."""

    def on_closed(self) -> None:
        """Called when other code has closed one of the sides."""

    def on_failure(self, error: BaseException) -> None:
        """Called for errors of this machine, sides that another task uses, and bugs."""

    def on_backpressure(self, pump: PolledPump[Any], now: float) -> None:
        """Called when a pump blocks or unblocks: a deadline may be earlier now."""

    def on_activity(self, now: float) -> None:
        """Called when a byte moves while :attr:`quiet` is set."""


class PolledPump(Pump, abc.ABC, Generic[_T]):
    """A pump that is driven by the events of its source's socket.

    Args:
      first: bytes that go to the sink before any other; next are those that were given
        back to the source, then those that it receives.

    Attributes:
      back: the pump of the other direction; in an echo, this pump. It is set from
        :meth:`start` to :meth:`stop`, like ``relay``.
      blocked: whether it holds bytes that the sink has not taken.
      fd, mask: the source's descriptor, and the events that the engine waits for
        there; the mask of a pump that has stopped is 0.
      relay: the relay, for callbacks.
    """

    __slots__ = ("_engine", "_held", "_runs", "back", "blocked", "fd", "mask", "relay")

    source: _T
    sink: _T

    def __init__(self, source: _T, sink: _T, first: bytes = b"") -> None:
        first += source.take_unread()
        super().__init__(source, sink, len(first))
        self.blocked = False
        self.mask = 0
        self.relay: RelayCallbacks
        self.back: PolledPump[_T]
        self._engine: Engine
        self._runs = False
        self._held: bytes | memoryview = first

    def start(
        self, engine: Engine, relay: RelayCallbacks, back: PolledPump[_T]
    ) -> None:
        """Let the engine wait for bytes of the source.

        Raises:
          trio.BusyResourceError: another task or relay receives from it.
          trio.ClosedResourceError: it was closed.
          OSError: the system has no room for one more.
        """
        if self.source.is_relayed:
            # Checked here: the engine does not know a source that it has lost.
            raise trio.BusyResourceError("another task is relaying this stream")
        self.source.start_receiving()
        self.fd = self.source.carrier.sock.fileno()
        try:
            engine.add(self)
        except BaseException:
            self.source.receiving_since = math.inf
            raise
        # Set here and not earlier: in a relay that never starts they would be cycles.
        self.relay, self.back, self._engine = relay, back, engine
        self._runs = True

    def send_first(self) -> None:
        """Let the sink take the bytes that were received before the relay."""
        if self._held and self._runs:
            self._block(trio.current_time())

    def stop(self) -> None:
        """Stop moving bytes, and forget the engine and the relay."""
        self._runs = False
        if self.reading:
            self.source.receiving_since = math.inf
        if self.blocked:
            self.sink.sending_since = math.inf
        self.blocked = False
        self._engine.remove(self)
        # Break the cycles, so that the relay is freed without a garbage collection.
        del self.relay, self.back

    # -- callbacks of the engine

    def on_event(self, engine: Engine, events: int, now: float) -> None:
        # This pump's source is the sink of the other pump: EPOLLOUT is for that one.
        if events & ~IN and self.back.blocked:
            self.back.on_writable(now)
        # Checked after sending, which may have ended the relay.
        if events & ~OUT and self.mask & IN:
            self.on_readable(engine, now)

    @abc.abstractmethod
    def on_readable(self, engine: Engine, now: float) -> None:
        """Receive once, and send the bytes at once."""

    @abc.abstractmethod
    def on_writable(self, now: float) -> None:
        """Send the held bytes: the sink may take some."""

    def on_lost(self, error: OSError) -> None:
        if self._runs:
            self.relay.on_failure(error)

    # -- while the sink takes no bytes

    def _block(self, now: float) -> None:
        """Stop reading until the sink has taken the held bytes."""
        if self.sink.sending_since < math.inf:
            self.relay.on_failure(trio.BusyResourceError("another task is sending"))
            return
        self.blocked = True
        self.sink.sending_since = now
        self.update_interest()
        self.back.update_interest()
        self.relay.on_backpressure(self, now)

    def _unblock(self) -> None:
        if self.blocked:
            self.blocked = False
            self.sink.sending_since = math.inf
        self.update_interest()
        self.back.update_interest()

    def update_interest(self) -> None:
        """Wait for EPOLLIN to read, and for EPOLLOUT if the other pump is blocked."""
        mask = IN if self.reading and not self.blocked else 0
        if self.back.blocked:
            mask |= OUT
        self._engine.set_interest(self, mask)

    # -- ends

    def _stop_reading(self) -> None:
        self.reading = False
        self.source.receiving_since = math.inf

"""Pumps that move bytes by the transports' own means: where a side speaks TLS.

This module knows neither sockets nor TLS.
"""

from __future__ import annotations

from typing import Final

import trio

from ._engine import Engine
from ._polled_pump import PolledPump
from ._transport import EngineTransport

#: What a receive raises when the source is broken, or was closed by other code.
_ENDS: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class LayeredPump(PolledPump[EngineTransport]):
    """A pump between two transports; see :class:`PolledPump`."""

    __slots__ = ()

    def send_first(self) -> None:
        super().send_first()
        # What came with the last bytes of a handshake gives no event.
        if self._runs and not self.blocked:
            self._move_held(trio.current_time())

    def on_readable(self, engine: Engine, now: float) -> None:
        if self.relay.quiet:
            self.relay.on_activity(now)
        source = self.source
        try:
            data = source.receive_now(now)
        except _ENDS as error:
            self._cannot_receive(error)
            return
        if self._deliver(data, now) and source.holds_received:
            self._move_held(now)

    def on_writable(self, now: float) -> None:
        sink, carrier = self.sink, self.sink.carrier
        before = carrier.sent
        # Without bytes, it is the sink's own EOF that has to be sent.
        if sink.closed or (sink.sent_eof and self._held):
            self._end_as_closed()
            return
        self._held = self._held[sink.send_now(self._held, now) :]
        if sink.error is not None:
            self._cannot_send()
            return
        if carrier.closed:  # other code has closed the descriptor
            self._end_as_closed()
            return
        if carrier.sent != before:
            sink.moved_at = sink.sending_since = now
        if self._held or sink.held:
            return
        self._unblock()
        self.relay.on_backpressure(self, now)
        self._move_held(now)

    def _move_held(self, now: float) -> None:
        """Move what the source has read already: no event tells of it."""
        while self._runs and self.reading and not self.blocked:
            try:
                data = self.source.receive_held(now)
            except _ENDS as error:
                self._cannot_receive(error)
                return
            if not self._deliver(data, now):
                return

    def _deliver(self, data: bytes | None, now: float) -> bool:
        """Pass on bytes or an EOF that was received; whether bytes were sent.

        If the sink is closed or broken, it ends the relay and returns False.
        """
        if not data:
            if data is not None:
                self._receive_eof(now)
            return False
        sink = self.sink
        if sink.closed or sink.sent_eof:
            self._end_as_closed()
            return False
        sent = sink.send_now(data, now)
        if sink.error is not None:
            self._cannot_send()
            return False
        if sent < len(data) or sink.held:
            self._held = data[sent:]
            self._block(now)
        return True

    # -- ends; a callback may end the relay

    def _receive_eof(self, now: float) -> None:
        self._stop_reading()
        self.done = True
        self.relay.on_eof(self)
        if self._runs and self.sink.held:
            self._block(now)  # until the EOF is sent

    def _cannot_receive(self, error: Exception) -> None:
        if isinstance(error, trio.ClosedResourceError):
            self.relay.on_closed()
            return
        self._stop_reading()
        self.update_interest()
        self.relay.on_error(self.source)

    def _end_as_closed(self) -> None:
        """Other code has closed the sink, or has sent its EOF."""
        self._stop_reading()
        self._unblock()
        self.relay.on_closed()

    def _cannot_send(self) -> None:
        self._stop_reading()
        self._unblock()
        # If bytes of the sink's peer may be left, the other pump receives them and
        # then the error.
        back = self.back
        if back is self or not (back.reading and self.sink.end_is_receivable()):
            self.relay.on_error(self.sink)

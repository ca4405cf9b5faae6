"""Pumps that move bytes by the transports' own means: where a side speaks TLS.

This module knows neither sockets nor TLS.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._engine import Engine
from ._polled_pump import PolledPump
from ._transport import EngineTransport


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
        if self._move(self.source.receive_now, now) and self.source.holds_received:
            self._move_held(now)

    def on_writable(self, now: float) -> None:
        sink, before = self.sink, self.sink.carrier.sent
        if not self._send(self._held):
            return
        if sink.carrier.sent != before:
            sink.moved_at = sink.sending_since = now
        if self._held or sink.holds_sent:
            return
        self._unblock()
        self.relay.on_backpressure(self, now)
        self._move_held(now)

    def _move_held(self, now: float) -> None:
        """Move what the source has read already: no event tells of it."""
        while self._runs and self.reading and not self.blocked:
            if not self._move(self.source.receive_held, now):
                return

    def _move(self, receive: Callable[[], bytes | None], now: float) -> bool:
        """Move the next bytes; False if none was there, or the source has ended."""
        source, sink = self.source, self.sink
        try:
            data = receive()
        except trio.BrokenResourceError:
            self._stop_reading()
            self.update_interest()
            self.relay.on_error(source)
            return False
        except trio.ClosedResourceError:
            self.relay.on_closed()
            return False
        if data is None:
            return False
        if not data:
            self._stop_reading()
            self.done = True
            self.relay.on_eof(self)
            if self._runs and sink.holds_sent:
                self._block(now)  # until the EOF is sent
            return False
        if not self._send(data):
            return False
        if self._held or sink.holds_sent:
            self._block(now)
        return True

    def _send(self, data: bytes | memoryview) -> bool:
        """Send as much as goes, and hold the rest; False if the sink is broken."""
        sink = self.sink
        # Without data, it is its own EOF that has to be sent.
        is_over = sink.closed or (sink.sent_eof and bool(data))
        if not is_over:
            self._held = data[sink.send_now(data) :]
            if sink.error is None:
                return True
        self._stop_reading()
        self._unblock()
        back = self.back
        if is_over:
            self.relay.on_closed()
        # If bytes of the sink's peer may be left, the other pump receives them and
        # then the error.
        elif back is self or not (back.reading and sink.end_is_receivable()):
            self.relay.on_error(sink)
        return False

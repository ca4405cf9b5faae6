"""Traffic: the bytes sent and received at the server's end of one connection."""

from __future__ import annotations

from .network import Event


class Traffic:
    """Byte counts and the state of one connection, from the events of its stream.

    Attributes:
      is_accepted, is_closed: whether the server has accepted it, and closed it.
      received, sent: bytes.
      is_blocked: whether a send waits for room.
      is_inexact: whether a send has failed or was cancelled. A stream in between
        may not count the part that was sent.
    """

    def __init__(self) -> None:
        self.is_accepted = False
        self.is_closed = False
        self.received = 0
        self.sent = 0
        self.is_blocked = False
        self.is_inexact = False
        self._is_tls = False

    def begin(self, received: int, sent: int) -> None:
        """Take over what a TLS handshake has received and sent.

        After the report there may be a close_notify, and more of the peer's bytes.
        """
        self.received, self.sent, self._is_tls = received, sent, True

    def count(self, event: Event) -> None:
        """Count an event of the server's stream."""
        match event.kind:
            case "accept":
                self.is_accepted = True
            case "receive":
                self.received += len(event.data or b"")
            case "send":
                self.sent += len(event.data or b"")
                self.is_blocked = False
            case "wait_send":
                self.is_blocked = True
            case "cancelled" | "receive_reset":
                self.is_inexact = True
                self.is_blocked = False
            case "close":
                self.is_closed = True
                self.is_inexact = self.is_inexact or self.is_blocked
            case _:
                pass

    def counts_are_right(self, *, received: int, sent: int) -> bool:
        """Whether a report's counts match the wire, as far as that can be known."""
        if self._is_tls:
            return received <= self.received and sent <= self.sent
        return received == self.received and (
            sent == self.sent or (self.is_inexact and sent < self.sent)
        )

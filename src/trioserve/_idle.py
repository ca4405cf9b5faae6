"""Idle: a wait for the client's next message, which a drain may end.

It knows what has arrived since. Who drains, and when, is decided elsewhere.
"""

from __future__ import annotations

import trio

from ._transport import Transport


class Idle:
    """One such wait.

    Args:
      holds_some: whether the handler has a part of the message already.

    Attributes:
      scope: around the wait.
    """

    __slots__ = ("_holds_some", "_received_before", "_transport", "scope")

    def __init__(self, transport: Transport, holds_some: bool) -> None:
        self.scope = trio.CancelScope()
        self._transport = transport
        self._holds_some = holds_some
        self._received_before = transport.received

    def may_end(self) -> bool:
        """Whether no byte of the message is there, nor EOF."""
        transport = self._transport
        return not (
            self._holds_some
            or transport.eof
            or transport.received != self._received_before
            or transport.readable()
        )

"""Refusals: close a connection that is not served, with or without a message.

This module does not count refused connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from ._closing import LINGER_BYTES
from ._lifecycle import Lifecycle
from ._reason import Reason

#: Refused clients whose close lingers at the same time; each holds a task and a
#: descriptor until it has read the message.
_MAX_LINGERING: Final = 64


class _Starts(Protocol):
    def __call__(
        self, task: Callable[..., Awaitable[object]], *args: Any, name: str
    ) -> None: ...


class Refusals:
    """The refusals of one server.

    Args:
      start: starts a task in the server's own nursery.
      finalize: called when the lingering close of a connection has ended.
    """

    def __init__(self, start: _Starts, finalize: Callable[[int], None]) -> None:
        self._start = start
        self._finalize = finalize
        self._lingering = 0

    def refuse(self, life: Lifecycle, message: bytes | None) -> bool:
        """Close a connection, after a message or by RST.

        Args:
          message: bytes for the client; None for RST.

        Returns:
          True if it is closed. If not, a task waits until the client has read the
          message, and then calls ``finalize``.
        """
        if not self._send_message(life, message):
            self._lingering += 1
            name = f"conn-{life.id} {life.peer} refused"
            self._start(self._linger_and_finalize, life, name=name)
            return False
        life.transport.close()
        return True

    async def refuse_in_task(self, life: Lifecycle, message: bytes | None) -> None:
        """Close a connection as :meth:`refuse` does, in the task that serves it.

        If it is cancelled, the transport stays open, and the caller closes it.
        """
        if not self._send_message(life, message):
            self._lingering += 1
            await self._linger(life)
        life.transport.close()

    def _send_message(self, life: Lifecycle, message: bytes | None) -> bool:
        """Send the message, or RST; return False if the close has to linger."""
        transport = life.transport
        if message is None:
            transport.abort()
        elif transport.send_refusal(message):
            transport.discard_readable(LINGER_BYTES)
            # A close with unread bytes, or before bytes arrive, sends a RST, which can
            # overtake the message.
            assert life.close_reason is not None
            may_wait = life.close_reason.reason is not Reason.NO_FDS
            room = self._lingering < _MAX_LINGERING
            return not (message and may_wait and room and not transport.eof)
        return True

    async def _linger_and_finalize(self, life: Lifecycle) -> None:
        try:
            with life.begin_task(shield=True):
                await self._linger(life)
            life.transport.close()
        finally:
            self._finalize(life.id)

    async def _linger(self, life: Lifecycle) -> None:
        """Wait until a refused client has read the message."""
        try:
            await life.transport.discard(LINGER_BYTES, life.timeouts.linger)
        finally:
            self._lingering -= 1

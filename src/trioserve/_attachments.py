"""Attachments: a relay, a dialer and faults, as a connection sees them.

Protocols with what the server and the report need. This module does not know what
implements them.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from ._report import Attempt
from ._transport import Transport


class RelaySide(Protocol):
    """A relay, as one of its two connections sees it."""

    @property
    def target_transport(self) -> Transport | None:
        """The transport of the other side; None for an echo."""

    def discarded(self) -> tuple[int, int]:
        """Bytes not passed on: received from this side, and from the other side."""
        ...

    def server_drains(self) -> None:
        """Called when the server's drain begins."""


class EngineHandshake(Protocol):
    """A handshake that the engine runs, without a task."""

    def time_is_over(self) -> None:
        """End it, because ``Timeouts.handshake`` is over. Idempotent."""


class RelayHandle:
    """Returned by a handler that has handed over a relay; not a result for a report."""

    __slots__ = ()


class RelayOwner(Protocol):
    """What a relay without a task belongs to."""

    def on_relay_over(self) -> None:
        """Called when the relay has ended and must be finished, but not in this call:
        its caller may be in the middle of a close.
        """


class HandedOver(Protocol):
    """A relay that a handler hands over to the server.

    The server calls these methods in this order; after a :meth:`begin` that returns
    True it waits for the owner's ``on_relay_over`` instead of :meth:`move`.
    """

    async def prepare(self) -> None:
        """Check that the streams can be relayed."""

    def attach(self) -> None:
        """Start the timers, and register the relay at the connection."""

    def begin(self, owner: RelayOwner) -> bool:
        """Begin to move bytes, without a task; False if it needs one to :meth:`move`.

        Args:
          owner: its ``on_relay_over`` is called once, after this has returned True.
        """
        ...

    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until the relay ends. Await the result at once."""
        ...

    def finish_now(self) -> bool:
        """Leave both sides open, or close them by FIN or RST, by how it ended.

        Returns:
          False if something of that has to wait; then :meth:`finish` does the rest.
        """
        ...

    async def finish(self) -> None:
        """Do the rest, after :meth:`finish_now` has returned False."""

    def detach(self) -> None:
        """Clean up; called last, after any error, and if it was never attached."""


class Dialer(Protocol):
    """The dialer of a connection's target."""

    @property
    def target(self) -> object: ...
    @property
    def attempts(self) -> Sequence[Attempt]: ...
    def release(self) -> None:
        """Called when the connection is over; idempotent."""


class ActiveFaults(Protocol):
    """Faults that are applied to a connection."""

    @property
    def applied(self) -> Sequence[str]: ...

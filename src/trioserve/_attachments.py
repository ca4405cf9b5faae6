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


class RelayHandle:
    """Returned by a handler that has handed over a relay; not a result for a report."""

    __slots__ = ()


class HandedOver(Protocol):
    """A relay that a handler hands over to the server.

    The server calls these four methods in this order.
    """

    def attach(self) -> None:
        """Start the timers, and register the relay at the connection."""

    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until the relay ends. Await the result at once."""
        ...

    async def finish(self) -> None:
        """Leave both sides open, or close them by FIN or RST, by how it ended."""

    def detach(self) -> None:
        """Clean up; called last, after any error, and if it was never attached."""


class Dialer(Protocol):
    """The dialer of a connection's target."""

    @property
    def target(self) -> object: ...
    @property
    def attempts(self) -> Sequence[Attempt]: ...


class ActiveFaults(Protocol):
    """Faults that are applied to a connection."""

    @property
    def applied(self) -> Sequence[str]: ...

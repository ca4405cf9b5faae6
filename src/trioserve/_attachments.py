"""Attachments: what a connection may be given while it is served.

They are a relay, a dialer and faults, as far as the server and the report need them.
This module does not know what implements them.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from ._report import Attempt
from ._transport import Transport


class RelaySide(Protocol):
    """A relay that a connection is a side of, as far as its report needs it."""

    @property
    def target_transport(self) -> Transport | None:
        """The other side's; None if it is an echo."""

    def discarded(self) -> tuple[int, int]:
        """Bytes not passed on: of those from this side, and from the other one."""
        ...

    def server_drains(self) -> None:
        """The server has begun to drain."""


class RelayHandle:
    """What a handler returns that has handed a relay over; no result of its own."""

    __slots__ = ()


class HandedOver(Protocol):
    """A relay that a handler hands over to the server.

    The server calls these four, one after the other.
    """

    def attach(self) -> None:
        """Begin: the timers run, and the connection knows of it."""

    def move(self) -> Coroutine[Any, Any, Any]:
        """Move bytes until it is over. To be awaited at once."""
        ...

    async def finish(self) -> None:
        """Leave both sides as the way it ended asks for."""

    def detach(self) -> None:
        """To be called last, whatever was raised, and if it has never begun."""


class Dialer(Protocol):
    """What connects to a target for a connection."""

    @property
    def target(self) -> object: ...
    @property
    def attempts(self) -> Sequence[Attempt]: ...


class ActiveFaults(Protocol):
    """Faults that are applied to a connection."""

    @property
    def applied(self) -> Sequence[str]: ...

"""Handshake: run the layers of a connection between accept and its handler.

A layer looks at a connection, may wait for its bytes, and may refuse it. The layers run
in the connection's own task, under one deadline. This module does not know how a
refused connection is closed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import trio

from ._access import Access, parse_rule
from ._address import address_in
from ._layers import Layers
from ._lifecycle import Lifecycle
from ._reason import Phase, Reason


class Layer(Protocol):
    """A layer.

    If it reads more bytes than it needs, it gives the rest back by
    ``life.transport.unread()``.
    """

    async def __call__(self, life: Lifecycle) -> Reason | None:
        """Return why the connection is refused; None if it is not."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class AccessLayer:
    """Apply access rules to the address that the client has now."""

    access: Access

    async def __call__(self, life: Lifecycle) -> Reason | None:
        return None if self.access.allows(address_in(life.peer)) else Reason.DENIED


def layers_in_order(layers: Layers) -> tuple[Layer, ...]:
    """The layers that ``layers`` asks for, in the order in which they run."""
    if not layers.access:
        return ()
    return (AccessLayer(Access(map(parse_rule, layers.access))),)


async def pass_layers(life: Lifecycle, layers: Iterable[Layer]) -> Reason | None:
    """Run all layers of a connection, within ``Timeouts.handshake`` seconds.

    Returns:
      why it is refused, or ``Reason.HANDSHAKE`` if the time has run out; None if it
      has passed all layers.
    """
    life.phase = Phase.HANDSHAKE
    deadline = life.accepted_at + (life.queued or 0) + life.timeouts.handshake
    with trio.CancelScope(deadline=deadline):
        for layer in layers:
            if (refusal := await layer(life)) is not None:
                return refusal
        return None
    return Reason.HANDSHAKE

"""Mirror: a relay between two connections, as the connection at ``b`` sees it.

In the report of a connection, the connection itself is the client. For the one at
``b``, this module swaps directions and reasons.
"""

from __future__ import annotations

from typing import Final

from ._attachments import RelaySide
from ._reason import Reason, Side
from ._results import CloseReason
from ._transport import Transport

_MIRRORED: Final = {
    Reason.CLIENT_CLOSED: Reason.SERVER_CLOSED,
    Reason.SERVER_CLOSED: Reason.CLIENT_CLOSED,
    Reason.CLIENT_RESET: Reason.SERVER_RESET,
    Reason.SERVER_RESET: Reason.CLIENT_RESET,
}


class MirroredRelay:
    """A relay as the connection at ``b`` sees it.

    Args:
      relay: the relay as the connection at ``a`` sees it.
      a: the transport of side ``a``, which is the target for ``b``.
    """

    __slots__ = ("_a", "_relay")

    def __init__(self, relay: RelaySide, a: Transport) -> None:
        self._relay = relay
        self._a = a

    @property
    def target_transport(self) -> Transport | None:
        return self._a

    def discarded(self) -> tuple[int, int]:
        a_to_b, b_to_a = self._relay.discarded()
        return b_to_a, a_to_b

    def server_drains(self) -> None:
        self._relay.server_drains()


def mirrored(closed: CloseReason) -> CloseReason:
    """How a relay ended, as the connection at ``b`` sees it."""
    waited_for: Side | None = None
    if closed.waited_for is not None:
        waited_for = "target" if closed.waited_for == "client" else "client"
    reason = _MIRRORED.get(closed.reason, closed.reason)
    return CloseReason(reason, waited_for, closed.limit, closed.error)

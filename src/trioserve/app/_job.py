"""What one run of the command serves. A value; nothing here serves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from trioserve import Address, Connection, Limits, Timeouts

Handler = Callable[[Connection], Awaitable[object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A server as the command line asked for it.

    Args:
      name: the command, ``"echo"`` or ``"proxy"``.
      listen: where, as it was asked for; the port may be 0.
      target: where a proxy dials, else None.
      handler: what serves a connection.
    """

    name: str
    listen: Address
    target: Address | None = None
    handler: Handler
    limits: Limits
    timeouts: Timeouts

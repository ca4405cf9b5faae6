"""What one run of the command serves. A value; nothing here serves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from trioserve import Address, Connection, Limits, Timeouts
from trioserve.faults import Faults

Handler = Callable[[Connection], Awaitable[object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A server as the command line asked for it.

    Args:
      name: the command, ``"echo"`` or ``"proxy"``.
      listen: where, as it was asked for; a port may be 0.
      targets: where a proxy dials, the first one first; else none.
      handler: what serves a connection.
      port_file: a file that gets the port's number while it listens, or None.
      live: whether to show all the time how it stands.
      faults, seed: what a proxy breaks on purpose.
    """

    name: str
    listen: tuple[Address, ...]
    targets: tuple[Address, ...] = ()
    handler: Handler
    limits: Limits
    timeouts: Timeouts
    port_file: str | None = None
    live: bool = False
    faults: Faults = dataclasses.field(default_factory=Faults)
    seed: int = 0

    @property
    def route(self) -> str:
        """Where it relays to, in words; "" if it does not."""
        return ", then ".join(str(target) for target in self.targets)

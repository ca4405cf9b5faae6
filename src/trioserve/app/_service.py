"""The service that one command line asks for. A value; nothing here serves it."""

from __future__ import annotations

import dataclasses

from trioserve import Address, Handler, Layers, Limits, Timeouts
from trioserve.faults import Faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Listeners, a handler, and how it is to be served.

    Args:
      name: the command, ``"echo"`` or ``"proxy"``.
      listen: the addresses to listen on; a port may be 0.
      targets: where a proxy dials, in this order; empty for other handlers.
      handler: what serves a connection.
      layers: what is done to a connection before that, such as access rules.
      port_file: a file that holds the ports while they are listened on, or None.
      live: whether to show the live view.
      faults, seed: what a proxy breaks on purpose.
    """

    name: str
    listen: tuple[Address, ...]
    targets: tuple[Address, ...] = ()
    handler: Handler
    limits: Limits
    timeouts: Timeouts
    layers: Layers = dataclasses.field(default_factory=Layers)
    port_file: str | None = None
    live: bool = False
    faults: Faults = dataclasses.field(default_factory=Faults)
    seed: int = 0

    @property
    def route(self) -> str:
        """Its targets, in words; "" if there are none."""
        return ", then ".join(str(target) for target in self.targets)

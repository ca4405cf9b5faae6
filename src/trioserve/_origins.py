"""Origins: which proxies dialed a connection that is accepted here.

A proxy whose target leads back to itself would dial without end. So each socket that
connects is registered, with both of its addresses, until it is closed. If its other end
is accepted in this process, that has the same two addresses. This module compares
addresses. It does not know what a proxy does about a loop.
"""

from __future__ import annotations

import socket
from typing import Any, TypeAlias

import trio

from ._address import sockaddr_text
from ._names import AddrInfo

#: The proxies that a connection has come through, in order.
Origin: TypeAlias = tuple[object, ...]

_local_endpoints: trio.lowlevel.RunVar[dict[str, Origin]] = trio.lowlevel.RunVar(
    "trioserve_local_endpoints"
)


def local_endpoints() -> dict[str, Origin]:
    """The origin of each open socket that this run has dialed, by its addresses."""
    try:
        return _local_endpoints.get()
    except LookupError:
        endpoints: dict[str, Origin] = {}
        _local_endpoints.set(endpoints)
        return endpoints


def origin_of(peer: str, local: str) -> Origin:
    """The origin of the connection that was accepted from ``peer`` at ``local``.

    Both addresses are compared, because the system may use one local port for several
    connections to different addresses.

    Returns:
      the origin that the dialer was given; ``()`` if this run has not dialed it.
    """
    return local_endpoints().get(f"{peer} {local}", ())


class DialedSocket(socket.socket):
    """A socket that is registered as a local endpoint until it is closed.

    After the close, another process may get its addresses.
    """

    __slots__ = ("_addresses", "_registry")

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._registry: dict[str, Origin] | None = None

    def register(self, local: Any, remote: AddrInfo, origin: Origin) -> None:
        """Register it with its own address ``local`` and the address it connects to."""
        if remote.sockaddr[0] in ("0.0.0.0", "::"):  # connects to this machine
            remote = remote._replace(sockaddr=(local[0], *remote.sockaddr[1:]))
        self._addresses = f"{sockaddr_text(local)} {remote.text}"
        self._registry = local_endpoints()
        self._registry[self._addresses] = origin

    def close(self) -> None:
        if self._registry is not None:
            self._registry.pop(self._addresses, None)
        super().close()

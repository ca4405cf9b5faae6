"""Names and sockets: what a Trio run sees of the network when it connects.

Trio has public hooks for that, one for look-ups and one for sockets. They apply to the
run that sets them, and to everything that is built on Trio's sockets.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from ._socket import MemorySocket
from ._stream import MemoryStream

#: Each name gets the next address of the network for tests: RFC 5737, RFC 2544.
_PREFIX: Final = "198.18"


class MemoryInternet(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    """Every name has an address, and connecting to it calls a function.

    Args:
      connect: called with what is connected to, such as ``"db:5432"`` or
        ``"unix:/run/db.sock"``. It returns the client's end, or raises ``OSError``.
    """

    def __init__(self, connect: Callable[[str], Awaitable[MemoryStream]]) -> None:
        self._connect = connect
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def install(self) -> None:
        """Let the current Trio run look up names and make sockets here."""
        trio.socket.set_custom_hostname_resolver(self)
        trio.socket.set_custom_socket_factory(self)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """One IPv4 address for each name."""
        await trio.lowlevel.checkpoint()
        if host is None or family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_NONAME, "names in memory have IPv4 only")
        sockaddr = (self._address_of(host.decode("ascii").lower()), int(port or 0))
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr)]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """The name, or else the number."""
        await trio.lowlevel.checkpoint()
        host: str = sockaddr[0]
        return self._names.get(host, host), str(sockaddr[1])

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> MemorySocket:
        return MemorySocket(family, type, proto, self._connect_to)

    def _address_of(self, name: str) -> str:
        if name not in self._addresses:
            number = len(self._addresses) + 1
            address = f"{_PREFIX}.{number // 250}.{number % 250 + 1}"
            self._addresses[name], self._names[address] = address, name
        return self._addresses[name]

    async def _connect_to(self, sockaddr: Any) -> MemoryStream:
        if isinstance(sockaddr, str | bytes):
            path = sockaddr if isinstance(sockaddr, str) else sockaddr.decode()
            return await self._connect(f"unix:{path}")
        number: str = sockaddr[0]
        name = self._names.get(number, number)
        host = f"[{name}]" if ":" in name else name
        return await self._connect(f"{host}:{sockaddr[1]}")

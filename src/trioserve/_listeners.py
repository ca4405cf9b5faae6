"""Listeners: from addresses to bound, listening sockets; all or none.

It knows nothing of who accepts from them.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

import trio

from ._address import Address, is_numeric

#: As large as the kernel allows; it clamps.
_BACKLOG: Final = 0xFFFF


async def open_listeners(
    *addresses: str | Address, backlog: int | None = None
) -> list[trio.SocketListener]:
    """Bind all ``addresses`` and listen, or none.

    A name, or no host at all, may stand for several addresses, a listener
    each; with port 0 they get one number. IPv6 listeners take IPv6 only.

    Args:
      addresses: what :meth:`Address.parse` reads, or addresses.
      backlog: connections the kernel may hold for us; default: as many as it
        allows.

    Raises:
      ValueError: an address can't be read, or there is none; nothing was bound.
      OSError: an address can't be bound; its ``filename`` is the address. Nothing
        stays bound.
    """
    if not addresses:
        raise ValueError("no address to listen on")
    parsed = [a if isinstance(a, Address) else Address.parse(a) for a in addresses]
    listeners: list[trio.SocketListener] = []
    try:
        for address in parsed:
            listeners += await _bind(address, _BACKLOG if backlog is None else backlog)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _bind(address: Address, backlog: int) -> list[trio.SocketListener]:
    try:
        # Numbers need no look-up, and a look-up needs a thread.
        flags = socket.AI_NUMERICHOST if is_numeric(address.host) else 0
        found = await trio.socket.getaddrinfo(
            address.host or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=flags | socket.AI_PASSIVE,
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(address)) from error
    # A free port of one family may be taken in the other: then try another.
    for attempts_left in reversed(range(8)):
        try:
            return await _bind_each(address, found, backlog)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE and address.port == 0
            if not (taken and attempts_left):
                raise
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


async def _bind_each(
    address: Address, found: list[Any], backlog: int
) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    failed: OSError | None = None
    port = address.port
    for family, kind, protocol, _, sockaddr in found:
        name = (sockaddr[0], port, *sockaddr[2:])
        try:
            listener = await _listen(family, kind, protocol, name, backlog)
        except OSError as error:
            # A family that this system lacks, or has switched off, is no
            # matter if another one works; any other error is.
            failed = OSError(error.errno, error.strerror, str(address))
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            for opened in listeners:
                opened.socket.close()
            raise failed from error
        port = listener.socket.getsockname()[1]
        listeners.append(listener)
    if not listeners:
        assert failed is not None
        raise failed
    return listeners


async def _listen(
    family: int, kind: int, protocol: int, name: tuple[Any, ...], backlog: int
) -> trio.SocketListener:
    sock = trio.socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(name)
        sock.listen(backlog)
        return trio.SocketListener(sock)
    except BaseException:
        sock.close()
        raise

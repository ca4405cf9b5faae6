"""Loops: whether a proxy would dial itself.

Bound sockets and targets in, the target that is one of them out. Nothing is
connected to, and nothing here decides what follows from it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trio

from trioserve import Address, TcpAddress, UnixAddress

_ANYWHERE = frozenset({"0.0.0.0", "::"})


async def find_loop(
    bound: Iterable[trio.socket.SocketType],
    targets: Iterable[Address],
    *,
    within: float,
) -> Address | None:
    """The first of ``targets`` that leads back to one of the ``bound`` sockets.

    A name is looked up only if its port is one of theirs, ``within`` seconds;
    one that has no answer by then is taken for somebody else.
    """
    names = [sock.getsockname() for sock in bound]
    for target in targets:
        if isinstance(target, UnixAddress):
            if any(_is_same_file(target, name) for name in names):
                return target
        elif any(isinstance(n, tuple) and n[1] == target.port for n in names):
            with trio.move_on_after(within):
                for found in await _look_up(target):
                    if any(_leads_to(found, name) for name in names):
                        return target
    return None


async def _look_up(target: TcpAddress) -> list[Any]:
    try:
        found = await trio.socket.getaddrinfo(
            target.host_bytes, target.port, type=socket.SOCK_STREAM
        )
    except (OSError, RuntimeError):  # the last one: without a thread
        return []
    return [_unmapped(sockaddr) for *_, sockaddr in found]


def _unmapped(sockaddr: Any) -> Any:
    # An IPv4 address that is written as an IPv6 one is dialed as what it is.
    host = sockaddr[0].removeprefix("::ffff:")
    return (host, sockaddr[1]) if "." in host else sockaddr


def _is_same_file(target: UnixAddress, name: object) -> bool:
    if target.is_abstract or not isinstance(name, str):
        return target.sockaddr == name
    try:
        return Path(target.path).samefile(name)
    except OSError:
        return False


def _leads_to(sockaddr: Any, name: Any) -> bool:
    if not isinstance(name, tuple) or len(name) != len(sockaddr):
        return False
    if name == sockaddr:  # with its zone: link-local addresses are many times the same
        return True
    # 0.0.0.0 and :: are this machine for whoever connects to them, too.
    return (
        name[1] == sockaddr[1]
        and (name[0] in _ANYWHERE or sockaddr[0] in _ANYWHERE)
        and _is_local(sockaddr)
    )


def _is_local(sockaddr: Any) -> bool:
    # From here to an address of this machine, our own end has that address, too;
    # within 127.0.0.0/8 it is always 127.0.0.1.
    if sockaddr[0] in _ANYWHERE or sockaddr[0].startswith("127."):
        return True
    family = socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(sockaddr)  # which sends nothing
        except OSError:
            return False
        return bool(sock.getsockname()[0] == sockaddr[0])

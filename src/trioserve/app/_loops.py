"""Loops: whether a proxy would dial itself.

Bound sockets and targets in, the target that leads to one of them out. Nothing
here sends anything, or decides what to do about a loop.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trio

from trioserve import Address, UnixAddress

from ._lookup import look_up

_ANYWHERE = frozenset({"0.0.0.0", "::"})


async def find_loop(
    bound: Iterable[trio.socket.SocketType],
    targets: Iterable[Address],
    *,
    within: float,
) -> Address | None:
    """The first of ``targets`` that leads back to one of the ``bound`` sockets.

    A name is looked up only if a socket has its port. A name without an answer
    ``within`` seconds is assumed to be another machine.
    """
    names = [sock.getsockname() for sock in bound]
    for target in targets:
        if isinstance(target, UnixAddress):
            if any(_is_same_file(target, name) for name in names):
                return target
        elif any(isinstance(n, tuple) and n[1] == target.port for n in names):
            for found in await look_up(target, within=within) or []:
                if any(_leads_to(_unmapped(found), name) for name in names):
                    return target
    return None


def _unmapped(sockaddr: Any) -> Any:
    # An IPv4-mapped IPv6 address is dialed as IPv4.
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
    if name == sockaddr:  # with its zone: each interface has its own fe80:: network
        return True
    # Connecting to 0.0.0.0 or :: connects to this machine, too.
    return (
        name[1] == sockaddr[1]
        and (name[0] in _ANYWHERE or sockaddr[0] in _ANYWHERE)
        and _is_local(sockaddr)
    )


def _is_local(sockaddr: Any) -> bool:
    # The kernel routes an address of this machine back to itself, and uses the same
    # address at both ends; within 127.0.0.0/8 the local end is always 127.0.0.1.
    if sockaddr[0] in _ANYWHERE or sockaddr[0].startswith("127."):
        return True
    family = socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(sockaddr)  # a datagram socket sends nothing
        except OSError:
            return False
        return bool(sock.getsockname()[0] == sockaddr[0])

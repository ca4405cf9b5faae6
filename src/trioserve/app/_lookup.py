"""Look up the name of a target, as a proxy would before it dials.

A target in, socket addresses out. This is for checks when a proxy starts; while
it serves, the library looks names up itself, and caches the answers.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

import trio

from trioserve import Address, TcpAddress


async def look_up(target: TcpAddress, *, within: float) -> list[Any] | None:
    """The socket addresses of a target; empty if its host can't be found now.

    None if there is no answer ``within`` seconds.
    """
    with trio.move_on_after(within):
        try:
            found = await trio.socket.getaddrinfo(
                target.host_bytes, target.port, type=socket.SOCK_STREAM
            )
        except (OSError, RuntimeError):  # RuntimeError: no thread can be started
            return []
        return [sockaddr for *_, sockaddr in found]
    return None


async def unknown_hosts(targets: Iterable[Address], *, within: float) -> list[str]:
    """The hosts of ``targets`` that can't be found now, each once.

    A host without an answer ``within`` seconds is not listed: its name server may
    just be slow.
    """
    unknown: dict[str, None] = {}
    for target in targets:
        if not isinstance(target, TcpAddress) or target.host in unknown:
            continue
        if await look_up(target, within=within) == []:
            unknown[target.host] = None
    return list(unknown)

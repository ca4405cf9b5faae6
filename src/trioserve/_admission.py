"""Admission: how many at once, exactly, and who counts as one peer.

Slots over a :class:`trio.CapacityLimiter`. It does not know what is admitted,
or where it waits meanwhile.
"""

from __future__ import annotations

import functools
import socket
from typing import Any

import trio

from ._address import unmapped


class Slot:
    """The right to be one of the many. Released once, however often it is said."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: trio.CapacityLimiter | None = limiter

    def release(self) -> None:
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter = None


class Slots:
    """At most ``total`` slots are held, at any time.

    Every slot borrows for itself: two waiters with the same borrower would
    both be let in, and count as one.
    """

    def __init__(self, total: int) -> None:
        self._limiter = trio.CapacityLimiter(total)

    @property
    def total(self) -> int:
        """May be changed at any time. Lowered, it takes no slot away."""
        return int(self._limiter.total_tokens)

    @total.setter
    def total(self, total: int) -> None:
        self._limiter.total_tokens = total

    @property
    def used(self) -> int:
        return self._limiter.borrowed_tokens

    async def take(self) -> Slot:
        """Wait for a slot; first come, first served."""
        slot = Slot(self._limiter)
        await self._limiter.acquire_on_behalf_of(slot)
        return slot

    def take_nowait(self) -> Slot | None:
        """A slot if one is free and nobody waits for it."""
        slot = Slot(self._limiter)
        try:
            self._limiter.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            return None
        return slot


def peer_of(sockaddr: Any, prefix: int) -> str | None:
    """What counts as one peer: an IPv4 address, or a network of IPv6 addresses.

    Args:
      sockaddr: what accept(2) said.
      prefix: bits of an IPv6 address that are those of its network.

    Returns:
      the same text for the same peer; None for a client without an IP address.
    """
    if not isinstance(sockaddr, tuple):
        return None
    host = sockaddr[0]
    if ":" not in host:
        return _shared(host)
    return _network(host, sockaddr[3], prefix)


#: One text for all connections of a peer, as long as it is one of the last.
_shared = functools.lru_cache(1024)(str)


@functools.lru_cache(1024)
def _network(host: str, zone: int, prefix: int) -> str:
    if (ipv4 := unmapped(host)) != host:
        return _shared(ipv4)
    number = int.from_bytes(socket.inet_pton(socket.AF_INET6, host), "big")
    # Link-local addresses are the same on every interface.
    return f"{number >> (128 - prefix):x}/{prefix}%{zone}"

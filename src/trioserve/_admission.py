"""Admission: how many connections at once, exactly, and how many of one peer.

Tokens of a :class:`trio.CapacityLimiter`, and a count for each peer. It does not know
what is admitted, or where a client waits meanwhile.
"""

from __future__ import annotations

import collections
import functools
import socket
from typing import Any

import trio

from ._address import unmapped
from ._options import Limits
from ._reason import Reason


class Token:
    """One of the limit's tokens. ``release()`` is idempotent."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: trio.CapacityLimiter | None = limiter

    def release(self) -> None:
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter = None


class Tokens:
    """At most ``total`` tokens are held, at any time.

    Each token borrows for itself: two waiters with the same borrower would both be
    let in, and count as one.
    """

    def __init__(self, total: int) -> None:
        self._limiter = trio.CapacityLimiter(total)

    @property
    def total(self) -> int:
        """May be changed at any time. Lowered, it takes no token away."""
        return int(self._limiter.total_tokens)

    @total.setter
    def total(self, total: int) -> None:
        self._limiter.total_tokens = total

    @property
    def used(self) -> int:
        return self._limiter.borrowed_tokens

    async def take(self) -> Token:
        """Wait for a token; first come, first served."""
        token = Token(self._limiter)
        await self._limiter.acquire_on_behalf_of(token)
        return token

    def take_nowait(self) -> Token | None:
        """A token if one is free and nobody waits for it."""
        token = Token(self._limiter)
        try:
            self._limiter.acquire_on_behalf_of_nowait(token)
        except trio.WouldBlock:
            return None
        return token


class Admission:
    """Whether one more connection is let in.

    Attributes:
      tokens: those of ``limits.max_connections``.
    """

    def __init__(self, limits: Limits) -> None:
        self.tokens = Tokens(limits.max_connections)
        self._limits = limits
        self._of_peer = collections.Counter[str]()

    @property
    def limits(self) -> Limits:
        """May be replaced at any time; lower ones end nothing that is open."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.tokens.total = limits.max_connections

    def peer_key(self, sockaddr: Any) -> str | None:
        """What counts as one peer; see :func:`peer_key`."""
        return peer_key(sockaddr, self._limits.per_peer_ipv6_prefix)

    def refusal(self, key: str | None) -> Reason | None:
        """Why one more connection of this peer is refused; None if it is not."""
        most = self._limits.max_per_peer
        if most is not None and key is not None and self._of_peer.get(key, 0) >= most:
            return Reason.PEER_LIMIT
        return None

    def limit_of(self, reason: Reason) -> int | None:
        """The number that a connection was refused by."""
        if reason is Reason.LIMIT:
            return self._limits.max_connections
        return self._limits.max_per_peer if reason is Reason.PEER_LIMIT else None

    def count(self, key: str | None) -> None:
        """This peer has one connection more."""
        if key is not None:
            self._of_peer[key] += 1

    def uncount(self, key: str | None) -> None:
        """This peer has one connection less."""
        if key is not None:
            self._of_peer[key] -= 1
            if not self._of_peer[key]:
                del self._of_peer[key]

    @property
    def peers(self) -> dict[str, int]:
        """How many connections each peer has."""
        return dict(self._of_peer)


def peer_key(sockaddr: Any, prefix: int) -> str | None:
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

"""Admission: the connection limit, and the limits per peer.

Tokens of a :class:`trio.CapacityLimiter`, a count and a rate per peer. This module does
not know what is admitted, or where a client waits.
"""

from __future__ import annotations

import collections
import functools
import socket
from typing import Any

import trio

from ._address import unmapped
from ._options import Limits
from ._rates import Rates
from ._reason import Reason


class Token:
    """One token of the limit. ``release()`` is idempotent."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: trio.CapacityLimiter | None = limiter

    def release(self) -> None:
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter = None


class Tokens:
    """A limiter: at most ``total`` tokens are held at any time.

    Each token is its own borrower: two waiters with the same borrower would both get
    in and count as one.
    """

    def __init__(self, total: int) -> None:
        self._limiter = trio.CapacityLimiter(total)

    @property
    def total(self) -> int:
        """It may be changed at any time. A lower total takes no token away."""
        return int(self._limiter.total_tokens)

    @total.setter
    def total(self, total: int) -> None:
        self._limiter.total_tokens = total

    @property
    def used(self) -> int:
        return self._limiter.borrowed_tokens

    async def take(self) -> Token:
        """Wait for a token; waiters are served in order."""
        token = Token(self._limiter)
        await self._limiter.acquire_on_behalf_of(token)
        return token

    def take_nowait(self) -> Token | None:
        """Take a token if one is free and no task waits for one; else None."""
        token = Token(self._limiter)
        try:
            self._limiter.acquire_on_behalf_of_nowait(token)
        except trio.WouldBlock:
            return None
        return token


class Admission:
    """Decides whether another connection is let in.

    Attributes:
      tokens: the limiter of ``limits.max_connections``.
    """

    def __init__(self, limits: Limits) -> None:
        self.tokens = Tokens(limits.max_connections)
        self._limits = limits
        self._of_peer = collections.Counter[str]()
        self._rates = _rates_of(limits)

    @property
    def limits(self) -> Limits:
        """They may be replaced at any time; lower limits close no open connection."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        if limits.rate_per_peer != self._limits.rate_per_peer:
            self._rates = _rates_of(limits)
        self._limits = limits
        self.tokens.total = limits.max_connections

    def peer_key(self, sockaddr: Any) -> str | None:
        """The key of a client in the count per peer; see :func:`peer_key`."""
        return peer_key(sockaddr, self._limits.per_peer_ipv6_prefix)

    def ask(self, key: str | None) -> Reason | None:
        """Ask for another connection of this peer: why it is refused, or None.

        One that is not refused counts for the rate of its peer.
        """
        if key is None:
            return None
        most = self._limits.max_per_peer
        if most is not None and self._of_peer.get(key, 0) >= most:
            return Reason.PEER_LIMIT
        if self._rates is None or self._rates.take(key, trio.current_time()):
            return None
        return Reason.RATE

    def limit_of(self, reason: Reason) -> int | None:
        """The value of the limit that refused a connection; None if none did."""
        match reason:
            case Reason.LIMIT:
                return self._limits.max_connections
            case Reason.PEER_LIMIT:
                return self._limits.max_per_peer
            case Reason.RATE:
                rate = self._limits.rate_per_peer
                return rate and rate[0]
            case _:
                return None

    def count(self, key: str | None) -> None:
        """Count a connection of this peer."""
        if key is not None:
            self._of_peer[key] += 1

    def uncount(self, key: str | None) -> None:
        """Undo one :meth:`count`."""
        if key is not None:
            self._of_peer[key] -= 1
            if not self._of_peer[key]:
                del self._of_peer[key]

    @property
    def peers(self) -> dict[str, int]:
        """The number of connections of each peer."""
        return dict(self._of_peer)


def _rates_of(limits: Limits) -> Rates | None:
    rate = limits.rate_per_peer
    return None if rate is None else Rates(*rate)


def peer_key(sockaddr: Any, prefix: int) -> str | None:
    """The key of one peer: an IPv4 address, or a network of IPv6 addresses.

    Args:
      sockaddr: the address from accept(2).
      prefix: the length of the IPv6 network, in bits.

    Returns:
      the same text for the same peer; None for a client without an IP address.
    """
    if not isinstance(sockaddr, tuple):
        return None
    host = sockaddr[0]
    if ":" not in host:
        return _shared(host)
    return _network(host, sockaddr[3], prefix)


#: Makes the connections of a peer share one text, which saves memory.
_shared = functools.lru_cache(1024)(str)


@functools.lru_cache(1024)
def _network(host: str, zone: int, prefix: int) -> str:
    if (ipv4 := unmapped(host)) != host:
        return _shared(ipv4)
    number = int.from_bytes(socket.inet_pton(socket.AF_INET6, host), "big")
    # A link-local address may be another host's on each interface: add the zone.
    return f"{number >> (128 - prefix):x}/{prefix}%{zone}"

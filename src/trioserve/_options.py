"""Options: the limits and timeouts of a server, and options of its sockets.

Frozen values, checked when they are made. This module does not know what enforces
them. Durations are in seconds; ``math.inf`` means never.
"""

from __future__ import annotations

import dataclasses
import math
import resource
from typing import Final, Literal, get_args

from ._arguments import check_count, check_seconds

WhenFull = Literal["wait", "refuse"]


def default_max_connections() -> int:
    """min(10,000, (RLIMIT_NOFILE - 64) // 4), at least 1.

    A proxied connection may hold four descriptors (two sockets, one pipe);
    64 are left for the rest of the program. While it dials a name whose addresses
    don't answer, it may hold up to six more sockets; if descriptors run out, further
    addresses wait until another attempt has ended. HAProxy derives its ``maxconn``
    from the same limit.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:  # pragma: no cover - by the system's settings
        return 10_000
    return max(1, min(10_000, (soft - 64) // 4))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections are served at a time, and what happens to the others.

    Args:
      max_connections: connections at a time, over all listeners of the server. Each
        holds a token from accept to last close. 0 admits nobody (a pause). Default:
        ``min(10_000, (RLIMIT_NOFILE - 64) // 4)``.
      max_per_peer: connections at a time from one peer; further ones are refused.
        A peer is an IPv4 address, or the IPv6 addresses of one network. Default
        None: any number. Clients without an IP address are not counted.
      rate_per_peer: a pair of a number and seconds, like ``(100, 60.0)``: how many new
        connections of one peer are served in that time; further ones are refused. A
        peer may use the whole number at once, and then gets one more each time that its
        share of the seconds has passed. Refused connections don't count. Default None:
        any number.
      per_peer_ipv6_prefix: the length in bits, 1 to 128, of the network that counts as
        one IPv6 peer. Default 64, because a host may use any address of its /64. 128
        counts each address. A change applies to connections accepted after it.
      max_handshakes: connections of one listener that are in their handshakes at a
        time: in the layers that ``Timeouts.handshake`` bounds, or in
        :func:`by_server_name`. When one more begins, the one that began first is reset,
        as after that time. Default None: any number.
      when_full: what happens to a client when the limit is reached. ``"wait"``
        (default) leaves it in the kernel's accept queue until another connection
        has ended; ``"refuse"`` accepts it and closes it at once, with a report.
      refusal: what a refused client gets: ``b""`` (default) a FIN, other bytes (4096
        at most) these and a FIN, ``None`` a RST.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    max_connections: int = dataclasses.field(default_factory=default_max_connections)
    max_per_peer: int | None = None
    rate_per_peer: tuple[int, float] | None = None
    per_peer_ipv6_prefix: int = 64
    max_handshakes: int | None = None
    when_full: WhenFull = "wait"
    refusal: bytes | None = b""

    def __post_init__(self) -> None:
        check_count("max_connections", self.max_connections, least=0)
        if self.max_per_peer is not None:
            check_count("max_per_peer", self.max_per_peer, least=1)
        if self.rate_per_peer is not None:
            _check_rate(self.rate_per_peer)
        check_count("per_peer_ipv6_prefix", self.per_peer_ipv6_prefix, least=1)
        if self.per_peer_ipv6_prefix > 128:
            raise ValueError(
                "per_peer_ipv6_prefix must be 128 or less,"
                f" not {self.per_peer_ipv6_prefix}"
            )
        if self.max_handshakes is not None:
            check_count("max_handshakes", self.max_handshakes, least=1)
        if self.when_full not in get_args(WhenFull):
            raise ValueError(
                f"when_full must be 'wait' or 'refuse', not {self.when_full!r}"
            )
        if self.refusal is not None and not isinstance(self.refusal, bytes):
            raise TypeError(f"refusal must be bytes or None, not {self.refusal!r}")
        if self.refusal is not None and len(self.refusal) > 4096:
            raise ValueError("refusal must be 4096 bytes or fewer")


def _check_rate(rate: object) -> None:
    if not isinstance(rate, tuple) or len(rate) != 2:
        raise TypeError(
            "rate_per_peer must be a number of connections and seconds, like"
            f" (100, 60.0), not {rate!r}"
        )
    count, seconds = rate
    check_count("rate_per_peer", count, least=1, what="a pair of an int and seconds")
    check_seconds("rate_per_peer", seconds)
    if seconds == 0 or seconds == math.inf:
        raise ValueError(
            f"rate_per_peer must have a time of more than 0 and less than infinity, not"
            f" {rate!r}"
        )


#: With 0, any other timeout would end a connection before it could do anything.
_MAY_BE_ZERO = frozenset({"drain", "cleanup", "linger", "lame_duck", "drain_idle"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The timeouts of a server, in seconds; ``math.inf`` means no limit.

    A *total* runs from its start to its end. An *inactivity* timer restarts with every
    byte that moves and with every byte that a peer acknowledges, so it does not run out
    while the peer reads what the kernel holds for it. Timers run only while a receive
    or a send of the connection is waiting: a handler that computes is not idle. A timer
    that is late, because the process was stopped, first lets bytes move that have
    arrived meanwhile.

    Args:
      connect: total, for dialing a target, name look-up and TLS handshake included.
        Default 5.
      handshake: total, for the :class:`Layers` of a connection before its handler,
        and for the ClientHello that :func:`by_server_name` reads. Default 10. Access
        rules take no time.
      first_byte: total, from accept to the first byte of either side. Default:
        no limit, because *idle* covers it.
      idle: inactivity, while both directions are open. Default 3600.
      half_closed: inactivity, after one direction has ended. Default 60.
      write_stall: inactivity, while a send waits for a peer that takes no
        bytes. Default 60.
      lifetime: total, from accept. Default: no limit.
      drain: total, from the start of a drain until open connections are reset.
        Default 25: Kubernetes kills after 30.
      drain_idle: inactivity of a relay during a drain, after which it ends
        with FIN. Default: no limit, because the target may still be working on an
        answer; ``echo`` uses at most 1.
      lame_duck: how long a draining server still accepts. Default 0.
      cleanup: total, for handlers to end after the reset, and for the collector
        to take the last reports. Default 5.
      linger: total, for a client to close after the handler has returned before the
        client's EOF; only acknowledgements of the client extend it. At most 64 KiB
        that the client still sends are discarded. Default 2.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    connect: float = 5.0
    handshake: float = 10.0
    first_byte: float = math.inf
    idle: float = 3600.0
    half_closed: float = 60.0
    write_stall: float = 60.0
    lifetime: float = math.inf
    drain: float = 25.0
    drain_idle: float = math.inf
    lame_duck: float = 0.0
    cleanup: float = 5.0
    linger: float = 2.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            seconds = getattr(self, field.name)
            check_seconds(field.name, seconds)
            if seconds == 0 and field.name not in _MAY_BE_ZERO:
                raise ValueError(
                    f"{field.name} must be more than 0 (math.inf means never), not 0"
                )


#: Of TCP_KEEPIDLE, in seconds, and of TCP_USER_TIMEOUT, an int in milliseconds. tcp(7)
_LONGEST_KEEPALIVE: Final = 32767
_LONGEST_USER_TIMEOUT: Final = 2_147_483


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """When the kernel gives up a TCP connection whose peer no longer answers.

    Such a connection ends as ``client_reset`` or ``server_reset``, and its error is
    *Connection timed out*. Times are in seconds.

    Args:
      keepalive: after this time without a packet, the kernel asks the peer for a sign
        of life, six times within the same time again; so a peer that is gone is noticed
        after twice that time. It counts whole seconds. Default 60. ``math.inf``: leave
        the socket as it is, which is without keepalive, unless other code has switched
        it on.
      user_timeout: how long sent bytes may wait for their acknowledgement
        (RFC 5482; ``TCP_USER_TIMEOUT`` in Linux's tcp(7)). It takes the place of the
        six times above, too. Default ``math.inf``: the kernel's own, some 15 minutes.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    keepalive: float = 60.0
    user_timeout: float = math.inf

    def __post_init__(self) -> None:
        _check_most("keepalive", self.keepalive, _LONGEST_KEEPALIVE)
        _check_most("user_timeout", self.user_timeout, _LONGEST_USER_TIMEOUT)


def _check_most(name: str, seconds: float, most: int) -> None:
    check_seconds(name, seconds)
    if seconds == 0 or most < seconds < math.inf:
        raise ValueError(
            f"{name} must be more than 0 and at most {most}, or math.inf, not {seconds}"
        )

"""Options: how much at once, and how long to wait.

Frozen values, checked when they are made. Nothing here knows what enforces
them. Every duration is in seconds, and
``math.inf`` means never.
"""

from __future__ import annotations

import dataclasses
import math
import resource
from typing import Literal, get_args

from ._arguments import check_count, check_seconds

WhenFull = Literal["wait", "refuse"]


def default_max_connections() -> int:
    """min(10,000, (open files allowed - 64) // 4), at least 1.

    A proxied connection may hold four descriptors (two sockets, one pipe);
    64 are left for the rest of the program. While it dials a name whose addresses
    are silent it may hold more, up to six sockets at once; if there are no
    descriptors for these, further addresses wait for those that are tried. HAProxy
    derives its ``maxconn`` from the same limit.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:  # pragma: no cover - by the system's settings
        return 10_000
    return max(1, min(10_000, (soft - 64) // 4))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections are served at once, and what happens to the others.

    Args:
      max_connections: connections that may be open at once, over all listeners
        of the server. Each holds a token from accept to last close. 0 admits
        nobody (a pause). Default: ``min(10_000, (open files - 64) // 4)``.
      max_per_peer: of these, how many may come from one peer; more are refused.
        A peer is an IPv4 address, or the IPv6 addresses of one network. Default
        None: any number. Clients without an IP address are not counted.
      per_peer_ipv6_prefix: how many bits, 1 to 128, the IPv6 addresses of one
        peer have in common. Default 64: a host may take any address of its
        /64. 128 counts each address by itself. A change applies to connections
        that are accepted after it.
      when_full: what happens to a client that comes at the limit. ``"wait"``
        (default) leaves it in the kernel's accept queue until another connection
        has ended; ``"refuse"`` accepts it and closes it at once, with a report.
      refusal: how a refused client is told: ``b""`` (default) by FIN, some
        bytes by these and then FIN, ``None`` by RST.

    Raises:
      TypeError, ValueError: naming the argument that can't be.
    """

    max_connections: int = dataclasses.field(default_factory=default_max_connections)
    max_per_peer: int | None = None
    per_peer_ipv6_prefix: int = 64
    when_full: WhenFull = "wait"
    refusal: bytes | None = b""

    def __post_init__(self) -> None:
        check_count("max_connections", self.max_connections, least=0)
        if self.max_per_peer is not None:
            check_count("max_per_peer", self.max_per_peer, least=1)
        check_count("per_peer_ipv6_prefix", self.per_peer_ipv6_prefix, least=1)
        if self.per_peer_ipv6_prefix > 128:
            raise ValueError(
                "per_peer_ipv6_prefix must be 128 or less,"
                f" not {self.per_peer_ipv6_prefix}"
            )
        if self.when_full not in get_args(WhenFull):
            raise ValueError(
                f"when_full must be 'wait' or 'refuse', not {self.when_full!r}"
            )
        if self.refusal is not None and not isinstance(self.refusal, bytes):
            raise TypeError(f"refusal must be bytes or None, not {self.refusal!r}")
        if self.refusal is not None and len(self.refusal) > 4096:
            raise ValueError("refusal must be 4096 bytes or fewer")


#: What may be 0: these end something that goes on, the others would end it
#: before it began.
_MAY_BE_ZERO = frozenset({"drain", "cleanup", "linger", "lame_duck", "drain_idle"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for what, in seconds; ``math.inf`` means for ever.

    A total runs from its start whatever arrives; an inactivity starts again
    with every byte that moves, and with every byte that a peer acknowledges: as
    long as it takes what the kernel holds for it, no inactivity runs out. A timer
    runs only while a receive or a send of the connection is waiting: a handler
    that computes is not idle. One that is late, because the process was stopped,
    first lets move what has arrived meanwhile.

    Args:
      connect: total, for dialing a target, name look-up included. Default 5.
      handshake: total, for what :class:`Layers` do with a connection before its
        handler. Default 10. Access rules take no time.
      first_byte: total, from accept to the first byte of either side. Default:
        for ever, because *idle* covers it.
      idle: inactivity, while both directions are open. Default 3600.
      half_closed: inactivity, once one direction has ended. Default 60.
      write_stall: inactivity, while a send waits for a peer that takes no
        bytes. Default 60.
      lifetime: total, from accept. Default: for ever.
      drain: total, from the start of draining until what still runs is cut.
        Default 25: Kubernetes kills after 30.
      drain_idle: inactivity of a relay while draining, after which it ends
        with FIN. Default: for ever, the target may be thinking; ``echo`` uses
        at most 1.
      lame_duck: how long a draining server still accepts. Default 0.
      cleanup: total, for handlers to end after the cut, and for the collector
        to take the last reports. Default 5.
      linger: for a client to close after the handler has returned without having
        seen its EOF: a total, which only what it acknowledges extends; at most
        64 KiB that it still sends are thrown away. Default 2.

    Raises:
      TypeError, ValueError: naming the argument that can't be.
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

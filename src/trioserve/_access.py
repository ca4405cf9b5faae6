"""Access rules: which clients are served, by their addresses.

Values and their grammar, that of nginx's ``allow`` and ``deny``. This module does not
know what happens to a denied client.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable
from typing import Final, TypeAlias

from ._address import Address, UnixAddress

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: IPv4-mapped IPv6 addresses. RFC 4291, section 2.5.5.2
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")

_NETWORKS: Final = "an IPv4 or IPv6 address, a network like 10.0.0.0/8, 'unix' or 'all'"


@dataclasses.dataclass(frozen=True, slots=True)
class AccessRule:
    """Whether the clients of one network are served.

    Args:
      allows: True for ``allow``, False for ``deny``.
      network: an IP network; ``"unix"`` for all clients of a Unix socket, ``"all"``
        for all clients.
    """

    allows: bool
    network: _Network | str

    def __str__(self) -> str:
        return f"{'allow' if self.allows else 'deny'} {self.network}"

    def matches(self, peer: Address | None) -> bool:
        """Whether the rule applies to a client.

        Args:
          peer: its address, or None.
        """
        if isinstance(self.network, str):
            return self.network == "all" or isinstance(peer, UnixAddress)
        if peer is None or isinstance(peer, UnixAddress):
            return False
        return ipaddress.ip_address(peer.host) in self.network


def parse_rule(text: str) -> AccessRule:
    """Read a rule: ``allow NETWORK`` or ``deny NETWORK``.

    Raises:
      ValueError: with one line that says what is wrong and what to write instead.
    """
    match text.split():
        case ["allow" | "deny" as word, network]:
            return AccessRule(word == "allow", parse_network(network))
        case _:
            raise ValueError(f"{text!r} is not 'allow NETWORK' or 'deny NETWORK'")


def parse_network(text: str) -> _Network | str:
    """Read the network of a rule.

    Raises:
      ValueError: with one line that says what is wrong and what to write instead.
    """
    if text in ("all", "unix"):
        return text
    try:
        network = ipaddress.ip_network(text, strict=False)
        address = ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write {_NETWORKS}") from None
    if isinstance(network, ipaddress.IPv6Network):
        if "%" in text:
            raise ValueError(
                f"{text!r} has a zone; a rule applies to the address on all interfaces"
            )
        if network.subnet_of(_MAPPED):
            # The addresses of such clients are shown and compared as IPv4.
            ipv4 = int(network.network_address) & 0xFFFF_FFFF
            bits = network.prefixlen - _MAPPED.prefixlen
            return ipaddress.IPv4Network((ipv4, bits))
    if address != network.network_address:
        raise ValueError(
            f"{text!r} has bits of a host; did you mean {network}, or {address}?"
        )
    return network


class Access:
    """An ordered list of rules. The first one that matches a client decides.

    If none matches, the opposite of the last rule applies, as in squid: after
    ``allow 10.0.0.0/8`` all others are denied, and after ``deny 192.0.2.7`` all others
    are allowed.
    """

    def __init__(self, rules: Iterable[AccessRule]) -> None:
        self._rules = tuple(rules)

    def allows(self, peer: Address | None) -> bool:
        """Whether a client is served; without rules, all are."""
        allows = False
        for rule in self._rules:
            if rule.matches(peer):
                return rule.allows
            allows = rule.allows
        return not allows

"""Access rules: which clients are served, by their addresses.

Values and their grammar. This module does not know what happens to a denied client.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from ._address import Address, UnixAddress

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What rules are compared with: an IP address, ``"unix"``, or None for no address.
Client: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address | str | None

#: IPv4-mapped IPv6 addresses. RFC 4291, section 2.5.5.2
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")

#: What people who know nginx, HAProxy or a firewall write first.
_MEANT: Final = {
    **dict.fromkeys(("any", "*", "everyone", "0/0"), "all"),
    "unix:": "unix",
    "0.0.0.0": "0.0.0.0/0",
    "::": "::/0",
}

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

    def matches(self, client: Client) -> bool:
        """Whether the rule applies to a client; see :func:`client_of`."""
        if isinstance(self.network, str):
            return self.network in ("all", client)
        return not isinstance(client, str | None) and client in self.network

    def hides(self, later: AccessRule) -> bool:
        """Whether a rule after this one would match nobody, and says something else."""
        if self.allows == later.allows:
            return False
        ours, theirs = self.network, later.network
        if isinstance(ours, str) or isinstance(theirs, str):
            return ours in ("all", theirs)
        # Networks that begin within another one and are not larger lie within it.
        return theirs.prefixlen >= ours.prefixlen and theirs.network_address in ours


def client_of(peer: Address | None) -> Client:
    """What rules are compared with, of a client's address."""
    if isinstance(peer, UnixAddress):
        return "unix"
    return None if peer is None else ipaddress.ip_address(peer.host)


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
    if "," in text:
        raise ValueError(f"{text!r} is more than one network; write a rule for each")
    meant = _MEANT.get(text.lower(), text.lower().strip("[]"))
    host, slash, bits = meant.partition("/")
    try:
        if slash and not re.fullmatch(r"0|[1-9]\d?\d?", bits, re.ASCII):
            raise ValueError  # a netmask can be read in two ways
        network = ipaddress.ip_network(meant, strict=False)
        address = ipaddress.ip_address(host)
    except ValueError:
        if meant in ("all", "unix"):
            raise ValueError(f"{text!r}: did you mean {meant!r}?") from None
        raise ValueError(f"{text!r} is not a network; write {_NETWORKS}") from None
    if "%" in text:
        raise ValueError(
            f"{text!r} has a zone; leave it out: a rule holds on every interface"
        )
    if meant != text.lower():
        raise ValueError(f"{text!r}: did you mean {meant!r}?")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        # The addresses of such clients are shown and compared as IPv4.
        start = ipaddress.IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
        address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        length = network.prefixlen - _MAPPED.prefixlen
        network = ipaddress.IPv4Network((int(start), length))
    if address != network.network_address:
        raise ValueError(
            f"{text!r} has bits of a host; did you mean {network} or {address}?"
        )
    return network


def check_order(rules: Iterable[AccessRule]) -> None:
    """Check that each rule can match a client.

    Raises:
      ValueError: one can't, because an earlier rule says the opposite about all its
        clients.
    """
    for earlier, later in itertools.combinations(rules, 2):
        if earlier.hides(later):
            raise ValueError(
                f"'{later}' never matches, because '{earlier}' stands before it;"
                " put it first"
            )


class Access:
    """An ordered list of rules. The first one that matches a client decides.

    If none matches, a client is denied if there is a rule that allows, and served
    otherwise: after ``allow 10.0.0.0/8`` all others are denied, and after
    ``deny 192.0.2.7`` all others are served.
    """

    def __init__(self, rules: Iterable[AccessRule]) -> None:
        self._rules = tuple(rules)

    def allows(self, peer: Address | None) -> bool:
        """Whether a client is served; without rules, all are."""
        client = client_of(peer)  # once, not for each rule
        for rule in self._rules:
            if rule.matches(client):
                return rule.allows
        return not any(rule.allows for rule in self._rules)

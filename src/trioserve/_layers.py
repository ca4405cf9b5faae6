"""Layers: the options for what happens between accept and the handler.

A frozen value, checked when it is made. This module does not know what applies it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ._access import check_order, parse_rule
from ._arguments import check_type


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What is done to a connection between accept and its handler.

    Layers run in the connection's own task, which holds a token, before ``on_start``,
    so they don't block other clients. They share ``Timeouts.handshake``.

    Args:
      access: rules about the client's address, each ``"allow NETWORK"`` or
        ``"deny NETWORK"``. A network is an IPv4 or IPv6 address, a prefix like
        ``10.0.0.0/8``, ``unix`` (all clients of a Unix socket) or ``all``. The first
        matching rule decides. If none matches, a client is denied if there is an
        ``allow``, and served otherwise. A denied client gets ``Limits.refusal``, and
        its report has the reason ``denied``. Default: no rules; every client is served.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    access: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.access, str):
            raise TypeError(f"access must be a list of rules, not {self.access!r}")
        check_type("access", self.access, Sequence, "a list of rules")
        for each in self.access:
            check_type("access", each, str, "a list of texts")
        try:
            rules = [parse_rule(each) for each in self.access]
            check_order(rules)
        except ValueError as error:
            raise ValueError(f"access: {error}") from None
        # Normalise, so that equal rules compare equal.
        object.__setattr__(self, "access", tuple(map(str, rules)))

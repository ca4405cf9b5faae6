"""Layers: what is done to a connection between accept and its handler.

A frozen value, checked when it is made. It does not know who does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ._access import parse_rule
from ._arguments import check_type


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What is done to a connection between accept and its handler.

    It is done in the connection's own task, which holds a token, and before
    ``on_start``; so it keeps no other client waiting.

    Args:
      access: rules about the client's address, each of them ``"allow NETWORK"`` or
        ``"deny NETWORK"``. A network is an IPv4 or IPv6 address, a network of them
        like ``10.0.0.0/8``, ``unix`` (all clients of a Unix socket) or ``all``. The
        first rule that matches decides; if none does, the opposite of the last one is
        done. A client that is denied is told as ``Limits.refusal`` says, and its
        report has the reason ``denied``. Default: no rules, so everyone is served.

    Raises:
      TypeError, ValueError: naming the argument that can't be.
    """

    access: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.access, str):
            raise TypeError(f"access must be a list of rules, not {self.access!r}")
        check_type("access", self.access, Sequence, "a list of rules")
        rules = []
        for each in self.access:
            check_type("access", each, str, "a list of texts")
            try:
                rules.append(str(parse_rule(each)))
            except ValueError as error:
                raise ValueError(f"access: {error}") from None
        # Equal rules are equal values, however they were written.
        object.__setattr__(self, "access", tuple(rules))

"""Balance: which of several endpoints a connection gets, if all of them may get it.

Pure functions of the endpoints. They do not know which ones are down or full, or
whether one was tried already: callers leave these out.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, TypeAlias

from ._endpoint import Endpoint
from ._targets import Balance

#: Chooses one of at least one endpoint, for the client at this address.
Choose: TypeAlias = Callable[[Sequence[Endpoint], str], Endpoint]


def choose_by(balance: Balance, random: Random) -> Choose:
    """The function that chooses.

    Args:
      random: for the balance of this name.
    """
    if balance == "random":
        return lambda endpoints, _: _of_two(endpoints, random)
    return _BY_NAME[balance]


def _first(endpoints: Sequence[Endpoint], peer: str) -> Endpoint:
    return endpoints[0]


def _round_robin(endpoints: Sequence[Endpoint], peer: str) -> Endpoint:
    """Smooth weighted round robin, as in nginx (``upstream_round_robin.c``).

    Each gets its weight in credit, the richest one is chosen and pays the sum. So in
    as many turns as the sum of the weights, each is chosen as often as its weight says,
    and its turns are spread out.
    """
    total = 0.0
    richest = endpoints[0]
    for each in endpoints:
        each.credit += each.weight
        total += each.weight
        if each.credit > richest.credit:
            richest = each
    richest.credit -= total
    return richest


def _least_connections(endpoints: Sequence[Endpoint], peer: str) -> Endpoint:
    """The one with the fewest connections for its weight, one more included.

    Among equals, the one that was chosen longest ago.
    """
    chosen, last = endpoints[0], 0
    for each in endpoints:
        last = max(last, each.turn)
        ours = (each.open + 1) * chosen.weight
        theirs = (chosen.open + 1) * each.weight
        if ours < theirs or (ours == theirs and each.turn < chosen.turn):
            chosen = each
    chosen.turn = last + 1
    return chosen


def _of_two(endpoints: Sequence[Endpoint], random: Random) -> Endpoint:
    """The better one of two that are drawn by weight.

    M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    one = _draw(endpoints, random)
    if len(endpoints) == 1:
        return one
    other = _draw([each for each in endpoints if each is not one], random)
    is_better = other.open * one.weight < one.open * other.weight
    return other if is_better else one


def _draw(endpoints: Sequence[Endpoint], random: Random) -> Endpoint:
    ticket = random.random() * sum(each.weight for each in endpoints)
    for each in endpoints[:-1]:
        ticket -= each.weight
        if ticket < 0:
            return each
    return endpoints[-1]


def _by_source(endpoints: Sequence[Endpoint], peer: str) -> Endpoint:
    """The one with the highest score for the host of ``peer``; rendezvous hashing.

    When an endpoint goes, only its own peers move, and they are spread over the others.
    D. Thaler, C. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996. A
    client of a Unix socket has no address; round robin chooses for it.
    """
    host = peer.rpartition(":")[0]
    if host in ("", "unix"):
        return _round_robin(endpoints, peer)
    # The logarithm of a number from 0 to 1 makes the shares those of the weights.
    return max(endpoints, key=lambda each: -each.weight / _log_of_hash(host, each.text))


@functools.lru_cache(4096)
def _log_of_hash(host: str, target: str) -> float:
    text = f"{host} {target}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=6).digest()
    return math.log((int.from_bytes(digest, "big") + 0.5) / 2**48)  # negative


_BY_NAME: Final[dict[str, Choose]] = {
    "first": _first,
    "round-robin": _round_robin,
    "least-connections": _least_connections,
    "source": _by_source,
}

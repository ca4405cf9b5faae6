"""Derived conversations: messages of other sizes, and peers that think.

They are scripts of their own, made from those of the user. This module runs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from ._case import Case, own_name
from ._peer import Peer
from ._plays import hesitating, thinking

#: A script; or a function that makes one. Its parameter ``size`` is the size of a
#: message, and another one the number of a copy, counted from 0.
AnyPeer: TypeAlias = Peer | Callable[..., Peer]

#: Bytes of the buffers that programs have: a page, a record of TLS, all that 16 bits
#: can count. Messages have about as many.
_BUFFERS: Final = (4096, 16384, 65536)
_AROUND: Final = (-1, 0, 1)

#: A network in which each of these messages can be one chunk.
_ROOM: Final = 262_144

#: The size of a message whose other bytes are counted: line ends, headers.
_PROBE: Final = 1000

#: A message with more other bytes than this is not one of ``size`` bytes.
_MOST_OTHERS: Final = 64


def numbered(
    peers: tuple[AnyPeer, ...], number: int, size: int | None = None
) -> tuple[Peer, ...]:
    """The scripts of the connections with this number.

    Args:
      size: of the messages; by default as the functions say.

    Raises:
      TypeError: a function has a ``size`` without a default.
    """
    return tuple(_made(peer, number, size) for peer in peers)


def derived(
    peers: tuple[AnyPeer, ...],
    *,
    think: float | None,
    deadline: float | None,
    longest: int | None,
) -> dict[str, list[Case]]:
    """The cases with other scripts, by what is varied, in words.

    Args:
      think: seconds that a peer may think; None if it does not.
      deadline: seconds within which a whole message must be there, or None.
      longest: bytes of the longest message, or None.
    """
    cases = dict[str, list[Case]]()
    if any(_has_size(peer) for peer in peers):
        cases["messages of other sizes"] = list(_sized(peers, longest))
    if think is not None:
        within = deadline is None or think < deadline
        cases["peers that think"] = list(_thinking(numbered(peers, 0), think, within))
    return cases


def _sized(peers: tuple[AnyPeer, ...], longest: int | None) -> Iterator[Case]:
    """Messages of about as many bytes as a buffer, with and without other bytes."""
    others = _longest_send(numbered(peers, 0, _PROBE)) - _PROBE
    less = {0, others} if 0 < others <= _MOST_OTHERS else {0}
    bounds = _BUFFERS if longest is None else (*_BUFFERS, longest)
    sizes = {bound + more - n for bound in bounds for more in _AROUND for n in less}
    for size in sorted(size for size in sizes if size > 0):
        scripts = numbered(peers, 0, size)
        if longest is None or _longest_send(scripts) <= longest:
            yield Case(scripts)
            yield Case(scripts, buffer=_ROOM)


def _thinking(peers: tuple[Peer, ...], seconds: float, within: bool) -> Iterator[Case]:
    """Peers that think before each message, and within it."""
    yield Case(tuple(thinking(peer, seconds) for peer in peers))
    if within:
        for share in (0.0, 0.5):
            yield Case(tuple(hesitating(peer, seconds, share) for peer in peers))


def _longest_send(peers: tuple[Peer, ...]) -> int:
    steps = [step for peer in peers for step in peer.steps if step.name == "send"]
    return max((len(step.value) for step in steps), default=0)


def _has_size(peer: AnyPeer) -> bool:
    return callable(peer) and "size" in inspect.signature(peer).parameters


def _made(peer: AnyPeer, number: int, size: int | None) -> Peer:
    """A script, or what a function makes."""
    if isinstance(peer, Peer) or not callable(peer):
        return peer  # what is neither is refused by the case
    parameters = inspect.signature(peer).parameters
    if not _has_size(peer):
        return peer(number)
    if parameters["size"].default is inspect.Parameter.empty:
        name = own_name(peer, "the function")
        raise TypeError(f"size must have a default in {name}, such as size=10")
    numbers = [number][: len(parameters) - 1]
    return peer(*numbers) if size is None else peer(*numbers, size=size)

"""Plays: other ways to play a script, such as sending all messages at once.

The result is a script too. This module does no I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from ._case import Play
from ._peer import Peer, Step

#: Steps that wait for bytes; a peer that pipelines need not wait before it sends.
_ANSWERS: Final = ("expect", "receive", "receive_until")

#: Steps that may be between two messages that are sent at once.
_PASSED: Final = (*_ANSWERS, "send", "wait")


def played(peer: Peer, play: Play | None) -> Peer:
    """The script of a peer that plays its own script like this.

    It is the same script if the peer can't play it like this: it sends too little,
    meets another peer in between, or pauses reading by itself.
    """
    match play:
        case None:
            return peer
        case "pipelined":
            return _pipelined(peer)
        case "half_closed":
            return _half_closed(peer)
        case "all_at_once":
            return _half_closed(_pipelined(peer))
        case "writes_first":
            return _writes_first(peer)


def without_farewell(peer: Peer) -> Peer:
    """The messages of a peer but for the last one, which ends the conversation."""
    *sends, _ = (step for step in peer.steps if step.name == "send")
    return Peer(tuple(sends)) if sends else peer


def _sends(steps: Sequence[Step]) -> list[int]:
    return [at for at, step in enumerate(steps) if step.name == "send"]


def _pipelined(peer: Peer) -> Peer:
    steps = peer.steps
    first, *rest = _sends(steps) or [0]
    if not rest:
        return peer
    between = steps[first : rest[-1] + 1]
    if any(step.name not in _PASSED for step in between):
        return peer
    waits = tuple(step for step in between if step.name in _ANSWERS)
    at_once = Step("send", peer.sends)
    return Peer((*steps[:first], at_once, *waits, *steps[rest[-1] + 1 :]))


def _half_closed(peer: Peer) -> Peer:
    steps = peer.steps
    sends = _sends(steps)
    if not sends:
        return peer
    end = sends[-1] + 1
    after = tuple(step for step in steps[end:] if step.name != "half_close")
    if not any(step.name in _ANSWERS for step in after):
        return peer
    return Peer((*steps[:end], Step("half_close"), *after))


def _writes_first(peer: Peer) -> Peer:
    if any(step.name == "pause_reading" for step in peer.steps):
        return peer
    steps = list[Step]()
    for is_send, group in itertools.groupby(peer.steps, lambda s: s.name == "send"):
        bounds = ("pause_reading", "resume_reading") if is_send else ()
        before, after = bounds[:1], bounds[1:]
        steps += [*map(Step, before), *group, *map(Step, after)]
    return Peer(tuple(steps))

"""Plays: other ways to play a script, such as sending all messages at once.

The result is a script too. This module does no I/O.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

from ._case import Play
from ._peer import Peer, Step

#: Steps that wait for bytes; a peer that pipelines need not wait before it sends.
_ANSWERS: Final = ("expect", "expect_in_any_order", "receive", "receive_until")

#: Steps in which a peer says something.
_SAYS: Final = ("send", "half_close")

#: Steps that may be between two messages that are sent at once.
_PASSED: Final = (*_ANSWERS, "send", "wait")


def played(peer: Peer, play: Play | None) -> Peer:
    """The script of a peer that plays its own script like this.

    It is the same script if the peer can't play it like this: it sends too little,
    meets another peer in between, or pauses reading by itself. A peer that meets
    another one never ends earlier, because the other one may see its end.
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
        case _:
            return peer  # a hostile one plays it in a way of its own


def without_closing_message(peer: Peer) -> Peer:
    """The messages of a peer but for the last one, which ends the conversation.

    If there is one message and then EOF, the EOF ends it.
    """
    sends = tuple(step for step in peer.steps if step.name == "send")
    ends_it = len(sends) > 1 or all(step.name != "half_close" for step in peer.steps)
    return Peer(sends[:-1] if ends_it else sends)


def thinking(peer: Peer, seconds: float) -> Peer:
    """A peer that waits before each message and before its EOF."""
    steps = list[Step]()
    for step in peer.steps:
        if step.name in _SAYS:
            steps.append(Step("wait", seconds))
        steps.append(step)
    return Peer(tuple(steps))


def hesitating(peer: Peer, seconds: float, share: float) -> Peer:
    """A peer that waits within each message, after this share of it, or one byte."""
    steps = list[Step]()
    for step in peer.steps:
        if step.name != "send" or len(step.value) < 2:
            steps.append(step)
            continue
        at = max(1, int(len(step.value) * share))
        parts = (step.value[:at], step.value[at:])
        first, rest = (Step("send", part) for part in parts)
        steps += [first, Step("wait", seconds), rest]
    return Peer(tuple(steps))


def without_waits(peer: Peer) -> Peer:
    """The same script without its waits."""
    return Peer(tuple(step for step in peer.steps if step.name != "wait"))


def flooding(peer: Peer, size: int) -> Peer:
    """A peer that sends at least ``size`` bytes of the script, and reads nothing."""
    words = peer.sends
    if not words:
        return peer
    return Peer().pause_reading().send(words * (size // len(words) + 1))


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
    at_once = Step("send", peer.sends)
    if (answers := _answers_with_ids(steps[first:])) is not None:
        end = rest[-1] + 2
        waits: tuple[Step, ...] = (Step("expect_in_any_order", answers),)
    else:
        end = rest[-1] + 1
        waits = tuple(step for step in between if step.name in _ANSWERS)
    return Peer((*steps[:first], at_once, *waits, *steps[end:]))


def _answers_with_ids(steps: Sequence[Step]) -> tuple[bytes, ...] | None:
    """The answers, if each has a number that its message has and no other one.

    Such answers say themselves what they belong to, so they may come in any order.
    """
    pairs = [
        (step.value, after.value)
        for step, after in itertools.pairwise(steps)
        if step.name == "send" and after.name == "expect"
    ]
    if len(pairs) < sum(step.name in ("send", *_ANSWERS) for step in steps) / 2:
        return None
    shared = [_numbers(message) & _numbers(answer) for message, answer in pairs]
    for own, (message, answer) in zip(shared, pairs, strict=True):
        others = [pair for pair in pairs if pair != (message, answer)]
        seen = {number for pair in others for data in pair for number in _numbers(data)}
        if len(others) < len(pairs) - 1 or not own - seen:
            return None
    return tuple(answer for _, answer in pairs)


def _numbers(data: bytes) -> set[bytes]:
    return set(re.findall(rb"\d+", data))


def _half_closed(peer: Peer) -> Peer:
    steps = peer.steps
    sends = _sends(steps)
    if not sends or any(step.name == "meet" for step in steps):
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

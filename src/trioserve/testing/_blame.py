"""Blame: which parts of a failing case are needed, and the law that it is named by.

Each part is taken away in turn, and the rest is tried under several seeds. What is
needed in the end is the smallest case, and the name of the law follows from it: a
failure that needs a cut is about chunks, one that needs another seed is about the
order of tasks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from trioserve.faults import Faults, parse_faults

from ._case import DEFAULT_BUFFER, Case, Law
from ._peer import Peer
from ._plays import without_waits
from ._trial import Seen, Trial
from .runs import preemptions_of, seed_of

Attempt: TypeAlias = Callable[[Case], Trial]

#: Seeds under which a case without one of its parts is tried.
_SEEDS: Final = range(10)

#: Scheduler steps that all trials together may take.
_MOST_STEPS: Final = 25_000

#: Laws that peers see. A failure names the law about what is varied instead.
_VISIBLE: Final[tuple[Law, ...]] = ("answer", "ends", "errors")

#: Parts of a case that can be taken away, and what the case then has instead.
_PARTS: Final[Sequence[dict[str, Any]]] = (
    {"play": None},
    {"flood": 0},
    {"copies": 1},
    {"faults": Faults()},
    {"server_faults": Faults()},
    {"disturbance": None, "at_step": None},
    {"rounds": 1, "disturbed": 1},
    {"read_delay": 0.0},
    {"buffer": DEFAULT_BUFFER},
    {"order": "shuffled"},
    {"seed": 0},
)

#: Plays that are parts of another one.
_SMALLER_PLAYS: Final = ("pipelined", "half_closed")


class Blame:
    """Finds the smallest case, and the law.

    Args:
      attempt: runs a case, and returns what is seen.
      overhead: bytes that each message has on the network besides its own, over TLS.
    """

    def __init__(self, attempt: Attempt, *, overhead: int = 0) -> None:
        self._attempt = attempt
        self._overhead = overhead
        self._steps = 0

    def smallest(self, case: Case, seen: Seen) -> tuple[Case, Seen]:
        """The case without the parts that are not needed, and what is seen then."""
        found = case, seen
        while smaller := self._without_a_part(*found):
            found = smaller
        return self._with_fewer_rounds(*found)

    def shortest(self, case: Case, seen: Seen) -> tuple[Case, Seen]:
        """The case with shorter scripts, each of which passes if nothing is varied."""
        found = case, seen
        while smaller := self._without_a_message(*found):
            found = smaller
        return found

    def law(self, case: Case, seen: Seen) -> tuple[Law, str]:
        """The law that the smallest case breaks, and how, in words."""
        law, how = seen.law, seen.how
        if law not in _VISIBLE:
            return law, how
        if seen.round >= case.disturbed:
            return "nothing_left", how
        if case.copies > 1 or self._each_passes_alone(case):
            return "alone", how
        if not case.is_undisturbed:
            return law, how
        if any(d.cuts or d.slice for d in (case.faults.up, case.server_faults.down)):
            return "chunking", how
        if case.seed or case.order != "shuffled":
            return "schedule", how
        if law != "ends" and self._passes_in_another_order(case):
            return "schedule", f"in another order of tasks it passes: {how}"
        match case.play:
            case "pipelined":
                return "pipelining", how
            case "half_closed" | "all_at_once":
                return "half_close", how
            case _:
                return law, how

    # -- trials

    def _try(self, case: Case) -> Seen | None:
        trial = self._attempt(case)
        self._steps += trial.steps
        return trial.seen

    @property
    def _may_try(self) -> bool:
        return self._steps < _MOST_STEPS

    def _like(self, case: Case, seen: Seen) -> tuple[Case, Seen] | None:
        """The case under the first seed that shows the same."""
        for seed in dict.fromkeys((0, case.seed, *_SEEDS)):
            if not self._may_try:
                break
            again = dataclasses.replace(case, seed=seed)
            if seen.is_like(now := self._try(again)) and now is not None:
                return again, now
        return None

    def _without_a_part(self, case: Case, seen: Seen) -> tuple[Case, Seen] | None:
        for smaller in simpler(case):
            if smaller.seed != case.seed:
                now = self._try(smaller) if self._may_try else None
                if now is not None and seen.is_like(now):
                    return smaller, now
            elif found := self._like(smaller, seen):
                return found
        return None

    def _with_fewer_rounds(self, case: Case, seen: Seen) -> tuple[Case, Seen]:
        found, too_few = (case, seen), 0
        while self._may_try and (often := found[0].disturbed) - too_few > 1:
            half = (too_few + often) // 2
            fewer = dataclasses.replace(case, disturbed=half, rounds=half + 1)
            if (now := self._try(fewer)) is not None and seen.is_like(now):
                found = fewer, now
            else:
                too_few = half
        return found

    def _without_a_message(self, case: Case, seen: Seen) -> tuple[Case, Seen] | None:
        if len(case.peers) != 1:
            return None
        for peer, left_out in _shorter(case.peers[0]):
            plain = Case((without_waits(peer),))
            for faults in self._without_bytes(case, peer, left_out):
                smaller = dataclasses.replace(case, peers=(peer,), faults=faults)
                if smaller == plain or not self._may_try or self._try(plain):
                    continue
                if found := self._like(smaller, seen):
                    return found
        return None

    def _without_bytes(
        self, case: Case, peer: Peer, left_out: range
    ) -> Iterator[Faults]:
        """Faults with cuts at the same bytes, after some are left out of the script.

        Over TLS cuts count the bytes of the handshake, too. How many there are is not
        known here, so the cuts may be before what is left out, or after it.
        """
        if not self._overhead:
            yield _with_earlier_cuts(case.faults, left_out.stop, len(left_out))
            return
        messages = _messages(case.peers[0]) - _messages(peer)
        size = len(left_out) + messages * self._overhead
        earlier = _with_earlier_cuts(case.faults, size, size)
        yield from dict.fromkeys([case.faults, earlier])  # they may be equal

    def _each_passes_alone(self, case: Case) -> bool:
        alone = [dataclasses.replace(case, peers=(peer,)) for peer in case.peers]
        may = len(alone) > 1 and not _meets(case) and self._may_try
        return may and not any(self._try(one) for one in alone)

    def _passes_in_another_order(self, case: Case) -> bool:
        others = (dataclasses.replace(case, seed=seed) for seed in _SEEDS[1:])
        return any(self._may_try and self._try(other) is None for other in others)


def _meets(case: Case) -> bool:
    return any(step.name == "meet" for peer in case.peers for step in peer.steps)


def simpler(case: Case) -> Iterator[Case]:
    """The case without each of its parts, or with one that is simpler."""
    if len(case.peers) > 1 and not _meets(case):
        for at in range(len(case.peers)):
            others = case.peers[:at] + case.peers[at + 1 :]
            yield dataclasses.replace(case, peers=others)
    for part in _PARTS:
        smaller = dataclasses.replace(case, **part)
        if smaller != case:
            yield smaller
    # In a flood, a small buffer is about room, not about pieces.
    if case.buffer < DEFAULT_BUFFER and not (case.faults or case.flood):
        pieces = parse_faults(f"up:slice=1..{case.buffer}")
        yield dataclasses.replace(case, buffer=DEFAULT_BUFFER, faults=pieces)
    if case.order == "preempted" and len(places := preemptions_of(case.seed)) > 1:
        for place in places:
            yield dataclasses.replace(case, seed=seed_of([place]))
    if case.play == "all_at_once":
        yield from [dataclasses.replace(case, play=play) for play in _SMALLER_PLAYS]
    for name in ("faults", "server_faults"):
        faults = getattr(case, name)
        for text in str(faults).split("; ") if faults else ():
            if (one := parse_faults(text)) != faults:
                simpler: dict[str, Any] = {name: one}
                yield dataclasses.replace(case, **simpler)


def _shorter(peer: Peer) -> Iterator[tuple[Peer, range]]:
    """The script without each of its messages, and which bytes that leaves out.

    Also without each of its waits, which leaves out no bytes.
    """
    for at, step in enumerate(peer.steps):
        if step.name == "wait":
            yield Peer(peer.steps[:at] + peer.steps[at + 1 :]), range(0)
    # The parts of a message that is sent in parts are left out together, too.
    done = [
        (at, step.name) for at, step in enumerate(peer.steps) if step.name != "wait"
    ]
    sends = [at for at, name in done if name == "send"]
    after_a_send = {
        b for (_, name), (b, _) in itertools.pairwise(done) if name == "send"
    }
    begins = [at for at in sends if at not in after_a_send]
    yield from _without_each(peer, begins)
    if begins != sends:
        yield from _without_each(peer, sends)


def _without_each(peer: Peer, begins: list[int]) -> Iterator[tuple[Peer, range]]:
    """The script without what begins at each of these steps, of which there are two."""
    if len(begins) < 2:
        return
    tail = len(peer.steps)
    while peer.steps[tail - 1].name not in _ANSWERS:
        tail -= 1
    sent = 0
    for begin, end in zip(
        begins, [*begins[1:], max(tail, begins[-1] + 1)], strict=True
    ):
        size = len(Peer(peer.steps[begin:end]).sends)
        left_out = range(sent, sent := sent + size)
        yield Peer(peer.steps[:begin] + peer.steps[end:]), left_out


def _messages(peer: Peer) -> int:
    return sum(step.name == "send" for step in peer.steps)


def _with_earlier_cuts(faults: Faults, begin: int, size: int) -> Faults:
    """The faults, with cuts ``size`` bytes earlier if not before ``begin``."""
    cuts = tuple(cut - size if cut >= begin else cut for cut in faults.up.cuts)
    return dataclasses.replace(faults, up=dataclasses.replace(faults.up, cuts=cuts))


_ANSWERS: Final = ("send", "expect", "expect_in_any_order", "receive", "receive_until")

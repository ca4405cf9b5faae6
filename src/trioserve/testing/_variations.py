"""Variations: the cases of a conversation that are run.

Each kind of case varies one thing of the plain conversation. This module knows no
handler and runs nothing.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

from trioserve.faults import parse_faults

from ._case import Case, Disturbance
from ._handler_run import MEMORY

Explore = Literal["quick", "thorough"]

#: Disturbances of the network, as opposed to those of the server.
PEER_DISTURBANCES: Final[tuple[Disturbance, ...]] = ("eof", "reset", "stall", "vanish")

#: Faults that end each direction.
_ENDINGS: Final = (
    ("up", ("eof", "reset", "stall", "vanish")),
    ("down", ("reset", "stall", "vanish")),
)

#: A long conversation is cut into about this many pieces, not into single bytes.
_PIECES: Final = 64

#: Bytes of a flood, twice what a handler may receive, and the network's buffer then.
_FLOOD: Final = 2 * MEMORY
_FLOOD_BUFFER: Final = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The largest number of cases of each kind.

    ``cost`` is the cost of a run for which these numbers hold, in scheduler steps; a
    thousand bytes count as one step. If a run costs more, there are fewer cases.
    """

    cuts: int
    schedules: int
    steps: int
    offsets: int
    cost: float

    def for_runs_of(self, cost: float) -> Effort:
        """The effort for runs of this cost."""
        share = min(1.0, self.cost / cost)
        numbers = (self.cuts, self.schedules, self.steps, self.offsets)
        cuts, schedules, steps, offsets = (max(3, int(n * share)) for n in numbers)
        return dataclasses.replace(
            self, cuts=cuts, schedules=schedules, steps=steps, offsets=offsets
        )


EFFORTS: Final[Mapping[Explore, Effort]] = {
    "quick": Effort(cuts=40, schedules=20, steps=60, offsets=24, cost=150),
    "thorough": Effort(
        cuts=2000, schedules=500, steps=5000, offsets=5000, cost=math.inf
    ),
}


class Variations:
    """The variations of one plain case.

    Args:
      plain: the plain case.
      rounds: rounds of a case whose first round is disturbed or broken.
      grain: bytes of the smallest piece.
    """

    def __init__(self, plain: Case, *, rounds: int, grain: int = 1) -> None:
        self._plain = plain
        self._rounds = rounds
        self._grain = grain

    def with_grain_for(self, up: int, down: int) -> Variations:
        """The same variations for a conversation of this many bytes."""
        grain = max(1, max(up, down) // _PIECES)
        return Variations(self._plain, rounds=self._rounds, grain=grain)

    def again(self) -> Case:
        """The plain conversation twice, one after the other."""
        return self._with(rounds=2)

    def schedules(self, effort: Effort) -> Iterator[Case]:
        """Other orders of tasks."""
        for seed in range(1, effort.schedules + 1):
            yield self._with(seed=seed)

    def chunkings(self, effort: Effort, draw: random.Random) -> Iterator[Case]:
        """A cut at each byte, single bytes, random pieces."""
        size = max(len(peer.sends) for peer in self._plain.peers)
        faults = [f"up:cut@{at}" for at in sample(range(1, size), effort.cuts, draw)]
        if size > 1:
            faults += [self._slices(1, 1), self._slices(1, 3), self._slices(2, 7)]
        for text in faults:
            yield self._with(faults=parse_faults(text))
        pieces = parse_faults(self._slices(1, 5))
        for number in range(effort.cuts // 4):
            yield self._with(faults=pieces, seed=number + 1)

    def slow(self) -> Iterator[Case]:
        """Peers that read late, a small buffer, and latency."""
        narrow = 2 * self._grain
        yield self._with(buffer=narrow)
        yield self._with(read_delay=1.0)
        yield self._with(read_delay=1.0, buffer=narrow)
        yield self._with(faults=parse_faults("latency=0.1s"))

    def crowd(self) -> Iterator[Case]:
        """Three of each peer at once, with large and with small chunks."""
        yield self._with(copies=3)
        pieces = parse_faults(self._slices(1, 3))
        for seed in range(3):
            yield self._with(copies=3, faults=pieces, seed=seed)

    def disturbed(self, what: Disturbance, steps: Iterable[int]) -> Iterator[Case]:
        """A disturbance after each of these steps."""
        rounds = 1 if what == "drain" else self._rounds
        for step in steps:
            yield self._with(disturbance=what, at_step=step, rounds=rounds)

    def byte_by_byte(self) -> Case:
        """Each byte is a chunk of its own, so that there are steps between them."""
        return self._with(faults=parse_faults(self._slices(1, 1)))

    def drained_byte_by_byte(self, steps: Iterable[int]) -> Iterator[Case]:
        """A drain between two bytes of a message."""
        case = self.byte_by_byte()
        for step in steps:
            yield dataclasses.replace(case, disturbance="drain", at_step=step)

    def broken(self, up: Iterable[int], down: Iterable[int]) -> Iterator[Case]:
        """A network that breaks at each of these bytes, in either direction."""
        for (direction, kinds), offsets in zip(_ENDINGS, (up, down), strict=True):
            for offset in offsets:
                for kind in kinds:
                    faults = parse_faults(f"{direction}:{kind}@{offset}")
                    narrow = 2 * self._grain
                    yield self._with(faults=faults, rounds=self._rounds, buffer=narrow)

    def flood(self) -> Case:
        """Peers that send much and read nothing."""
        return self._with(flood=_FLOOD, buffer=_FLOOD_BUFFER)

    def _with(self, **changes: object) -> Case:
        return dataclasses.replace(self._plain, **changes)  # type: ignore[arg-type]

    def _slices(self, least: int, most: int) -> str:
        return f"up:slice={least * self._grain}..{most * self._grain}"


def sample(numbers: range | list[int], most: int, draw: random.Random) -> list[int]:
    """At most ``most`` of the numbers, with the first and the last, in order."""
    if len(numbers) <= most:
        return list(numbers)
    inner = draw.sample(numbers[1:-1], most - 2)
    return [numbers[0], *sorted(inner), numbers[-1]]

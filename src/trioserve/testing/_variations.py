"""Variations: the cases of a conversation that are run.

Each kind of case varies one thing of the plain conversation. This module knows no
handler and runs nothing.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, get_args

from trioserve import Reason
from trioserve.faults import parse_faults

from ._case import HOSTILE, Case, Disturbance, Order, Play
from ._peer import Peer
from ._plays import played, without_closing_message
from ._result import Run
from .runs import WAYS, Preemption, seed_of

Explore = Literal["quick", "thorough"]

#: Disturbances of the network, as opposed to those of the server.
PEER_DISTURBANCES: Final[tuple[Disturbance, ...]] = ("eof", "reset", "stall", "vanish")

#: Faults that end each direction, besides an EOF of the peer.
_ENDINGS: Final = (
    ("up", ("reset", "stall", "vanish")),
    ("down", ("reset", "stall", "vanish")),
)

#: The same of a connection that the handler opens.
_SERVER_ENDINGS: Final = (
    ("up", ("reset", "stall")),
    ("down", ("eof", "reset", "stall", "vanish")),
)

#: A long conversation is cut into about this many pieces, not into single bytes.
_PIECES: Final = 64

#: The network's buffer in a flood.
_FLOOD_BUFFER: Final = 64

#: Bytes of a TLS record that has two plain ones. RFC 8446, section 5.2
_RECORD: Final = 24

#: A handler that leaks a place of a pool is found if the pool has less than these.
_MANY: Final = 10

#: Tasks are not preempted at a later place than this.
_MOST_PLACES: Final = 2000

#: The orders of tasks are tried in turn.
_ORDERS: Final[tuple[Order, ...]] = ("shuffled", "priorities", "held_back")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The largest number of cases of each kind.

    ``cost`` is the cost of a run for which these numbers hold, in scheduler steps; a
    thousand bytes count as one step. If a run costs more, there are fewer cases.
    ``handshake`` is the largest number of steps or bytes of each kind within TLS
    handshakes, where no handler runs.
    ``repeats`` says whether all messages are sent again and again, and
    ``preemptions`` is the largest number of orders in which tasks are preempted.
    """

    cuts: int
    schedules: int
    steps: int
    offsets: int
    handshake: int
    cost: float
    repeats: bool = False
    preemptions: int = 0

    def for_runs_of(self, cost: float) -> Effort:
        """The effort for runs of this cost."""
        share = min(1.0, self.cost / cost)
        numbers = (self.cuts, self.schedules, self.steps, self.offsets)
        cuts, schedules, steps, offsets = (max(3, int(n * share)) for n in numbers)
        return dataclasses.replace(
            self, cuts=cuts, schedules=schedules, steps=steps, offsets=offsets
        )


EFFORTS: Final[Mapping[Explore, Effort]] = {
    "quick": Effort(cuts=40, schedules=20, steps=60, offsets=16, handshake=3, cost=150),
    "thorough": Effort(
        cuts=2000,
        schedules=500,
        steps=5000,
        offsets=5000,
        handshake=5000,
        cost=math.inf,
        repeats=True,
        preemptions=2000,
    ),
}


class Variations:
    """The variations of one plain case.

    Args:
      plain: the plain case.
      crowd: several of its peers at once.
      rounds: rounds of a case whose first round is disturbed or broken.
      memory: bytes that a handler may receive while its own send waits.
      grain: bytes of the smallest piece that the network holds.
      piece: bytes of the smallest slice.
      room: bytes that the network holds for a peer that writes all before it reads.
      up: the most bytes that a peer sends; by default as its script says.
    """

    def __init__(
        self,
        plain: Case,
        crowd: Case,
        *,
        rounds: int,
        memory: int = 65_536,
        grain: int = 1,
        piece: int = 1,
        room: int | None = None,
        up: int | None = None,
    ) -> None:
        self._crowd = crowd
        self._memory = memory
        self._plain = plain
        self._rounds = rounds
        self._grain = grain
        self._piece = piece
        # A handler that sends first must find no room for it, also over TLS.
        self._narrow = max(2 * piece, min(2 * grain, _RECORD))
        self._room = plain.buffer if room is None else room
        scripts = max(len(peer.sends) for peer in plain.peers)
        self._up = scripts if up is None else up

    def with_grain_for(self, up: int, down: int, plain: int) -> Variations:
        """The same variations for a conversation of this many bytes.

        Args:
          plain: the most of them in one direction that are not TLS.
        """
        size = max(up, down)
        return Variations(
            self._plain,
            self._crowd,
            rounds=self._rounds,
            memory=self._memory,
            grain=max(1, size // _PIECES),
            piece=max(1, plain // _PIECES),
            # A handler that answers while it receives passes if a peer writes all
            # before it reads: it has taken half of it when its own half of the answers
            # is full.
            room=max(self._plain.buffer, size // 2),
            up=up,
        )

    def again(self) -> Case:
        """The plain conversation twice, one after the other."""
        return self._with(rounds=2)

    def schedules(self, effort: Effort) -> Iterator[Case]:
        """Other orders of tasks."""
        for number in range(effort.schedules):
            seed, kind = divmod(number, len(_ORDERS))
            yield self._with(seed=seed + 1, order=_ORDERS[kind])

    def preempted(self, choices: Iterable[Iterable[Preemption]]) -> Iterator[Case]:
        """Orders of tasks with these preemptions."""
        for preemptions in choices:
            yield self._with(order="preempted", seed=seed_of(preemptions))

    def plays(self, effort: Effort) -> Iterator[Case]:
        """Other ways to play the scripts, also in a network that holds little."""
        seeds = range(effort.schedules // 3)
        for play in get_args(Play)[: -len(HOSTILE)]:
            peers = [played(peer, play) for peer in self._plain.peers]
            if peers == list(self._plain.peers):
                continue
            if play == "writes_first":
                yield self._with(play=play, buffer=self._room)
                continue
            yield self._with(play=play)
            if play == "pipelined":
                for seed in seeds:
                    yield self._with(play=play, buffer=self._narrow, seed=seed)

    def chunkings(self, cuts: Iterable[int], effort: Effort) -> Iterator[Case]:
        """A cut at each of these bytes, single bytes, random pieces."""
        faults = [f"up:cut@{at}" for at in cuts]
        if self._up > 1:
            faults += [self._slices(1, 1), self._slices(1, 3), self._slices(2, 7)]
        for text in faults:
            yield self._with(faults=parse_faults(text))
        pieces = parse_faults(self._slices(1, 5))
        for number in range(effort.cuts // 4):
            yield self._with(faults=pieces, seed=number + 1)

    def slow(self) -> Iterator[Case]:
        """Peers that read late, a small buffer, and latency."""
        yield self._with(buffer=self._narrow)
        yield self._with(read_delay=1.0)
        yield self._with(read_delay=1.0, buffer=self._narrow)
        yield self._with(faults=parse_faults("latency=0.1s"))

    def crowd(self) -> Iterator[Case]:
        """Several of each peer at once, with large and with small chunks."""
        yield self._crowd
        pieces = parse_faults(self._slices(1, 3))
        for seed in range(3):
            yield dataclasses.replace(self._crowd, faults=pieces, seed=seed)

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

    def broken(
        self, up: Sequence[int], down: Iterable[int], eofs: Sequence[int] | None = None
    ) -> Iterator[Case]:
        """A network that breaks at each of these bytes, in either direction.

        Args:
          eofs: at which bytes peers end what they send; by default at those of ``up``.
        """
        for offset in up if eofs is None else eofs:
            yield self._broken(f"up:eof@{offset}")
        for (direction, kinds), offsets in zip(_ENDINGS, (up, down), strict=True):
            for offset in offsets:
                for kind in kinds:
                    yield self._broken(f"{direction}:{kind}@{offset}")

    def _broken(self, text: str) -> Case:
        faults, narrow = parse_faults(text), 2 * self._grain
        return self._with(faults=faults, rounds=self._rounds, buffer=narrow)

    def served_in_chunks(self, cuts: Iterable[int]) -> Iterator[Case]:
        """Answers of servers that are cut, or come late."""
        faults = [f"down:cut@{at}" for at in cuts]
        faults += ["down:slice=1..1", "down:slice=1..3", "latency=0.1s"]
        for text in faults:
            yield self._with(server_faults=parse_faults(text))

    def without_servers(self) -> Iterator[Case]:
        """Servers that refuse, also many times in a row, and that do not answer."""
        often = {"disturbed": _MANY, "rounds": _MANY + 1} if self._rounds > 1 else {}
        for text in ("refuse", "vanish@0s"):
            faults = parse_faults(text)
            yield self._with(server_faults=faults, rounds=self._rounds)
            yield self._with(server_faults=faults, **often)

    def broken_servers(self, up: Iterable[int], down: Iterable[int]) -> Iterator[Case]:
        """Connections to servers that break at each of these bytes."""
        endings = zip(_SERVER_ENDINGS, (up, down), strict=True)
        for (direction, kinds), offsets in endings:
            for offset in offsets:
                for kind in kinds:
                    faults = parse_faults(f"{direction}:{kind}@{offset}")
                    yield self._with(server_faults=faults, rounds=self._rounds)

    def many(self, steps: int) -> Iterator[Case]:
        """Many connections in a row that end badly, and then a plain one."""
        if self._rounds < 2:
            return
        often = {"disturbed": _MANY, "rounds": _MANY + 1}
        for what in ("cancel", "reset", "eof"):
            yield self._with(disturbance=what, at_step=2 * steps // 3, **often)

    def floods(self, base: Run) -> Iterator[Case]:
        """Peers that send much and read nothing."""
        if any(peer.is_code for peer in self._plain.peers):
            return  # code decides itself what it sends
        peers = self._without_closing_messages(base)
        if any(peer.sends for peer in peers):
            much = 2 * self._memory
            yield self._with(peers=peers, flood=much, buffer=_FLOOD_BUFFER)

    def hostile(self, base: Run, plays: Iterable[Play]) -> Iterator[Case]:
        """Peers that do harm, if there is one peer, and its messages are known."""
        (peer, *others) = self._plain.peers
        if others or not peer.sends or any(s.name == "meet" for s in peer.steps):
            return
        for play in plays:
            ends = play == "repeated"  # the closing message would
            peers = self._without_closing_messages(base) if ends else self._plain.peers
            if any(peer.sends for peer in peers):
                yield self._with(peers=peers, play=play)

    def _without_closing_messages(self, base: Run) -> tuple[Peer, ...]:
        """The peers, which do not send the message after which the handler closes."""
        closed = {r.id for r in base.reports if r.reason is Reason.SERVER_CLOSED}
        return tuple(
            without_closing_message(peer) if number in closed else peer
            for number, peer in enumerate(self._plain.peers, 1)
        )

    def _with(self, **changes: object) -> Case:
        return dataclasses.replace(self._plain, **changes)  # type: ignore[arg-type]

    def _slices(self, least: int, most: int) -> str:
        return f"up:slice={least * self._piece}..{most * self._piece}"


def preemptions(places: Sequence[int]) -> list[Preemption]:
    """All that one preemption can be.

    Args:
      places: how many other tasks can run, at each place where there are some.
    """
    return [
        Preemption(place, way)
        for place, others in enumerate(places[:_MOST_PLACES])
        for way in range(min(others, WAYS))
    ]


def pairs_of(
    preemptions: Sequence[Preemption], numbers: Iterable[int]
) -> Iterator[list[Preemption]]:
    """The pairs with these numbers, of all pairs of them, at two places."""
    for number in numbers:
        later = (1 + math.isqrt(8 * number + 1)) // 2
        pair = [preemptions[number - math.comb(later, 2)], preemptions[later]]
        if pair[0].place != pair[1].place:
            yield pair


def sample(numbers: range | list[int], most: int, draw: random.Random) -> list[int]:
    """At most ``most`` of the numbers, with the first and the last, in order."""
    if len(numbers) <= most:
        return list(numbers)
    inner = draw.sample(numbers[1:-1], most - 2)
    return [numbers[0], *sorted(inner), numbers[-1]]

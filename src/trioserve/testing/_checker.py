"""The checker: runs the cases of a conversation, in the order of what they cost.

The first failure ends the check. The explainer finds out what it needs.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Final

from ._case import Case, Handler, Law, Play, Setting, own_name
from ._explain import Explainer
from ._failure import HandlerFailure
from ._kept import Kept
from ._progress import Progress
from ._result import Checked, Opened, Run
from ._settings import check_bounds
from ._tls_client import CLOSE_NOTIFY, OVERHEAD
from ._token import Tokens
from ._trial import base_of
from ._variations import (
    PEER_DISTURBANCES,
    Effort,
    Variations,
    pairs_of,
    preemptions,
    sample,
)

#: The note of a check whose peers are not compared.
_DIFFER: Final = (
    "two plain conversations differ, so the bytes that peers receive are compared with"
    " the script only, not with each other"
)

#: The note of a check whose handler does not use its servers.
_UNUSED: Final = "the plain conversation connects to none of the servers"


class Checker:
    """A handler and its conversation.

    Methods raise :class:`HandlerFailure` if a law is broken.

    Args:
      handler: the handler to check.
      plain: the plain conversation.
      crowd: several connections of each peer at once.
      setting: what is the same in all runs.
      budget: seconds of real time, after which no further case is begun.
      derived: more cases, by what they vary; they have other scripts.
    """

    def __init__(
        self,
        handler: Handler,
        plain: Case,
        crowd: Case,
        setting: Setting,
        budget: float | None = None,
        derived: Mapping[str, Sequence[Case]] | None = None,
    ) -> None:
        self.variations = Variations(
            plain,
            crowd,
            # The second round shows what the first has left behind.
            rounds=1 if "nothing_left" in setting.without else 2,
            memory=setting.memory,
        )
        name = own_name(handler, "handler")
        client = "" if setting.client is None else own_name(setting.client, "client")
        client += " over TLS" if setting.tls else ""
        self._derived = derived or {}
        others = itertools.chain.from_iterable(self._derived.values())
        scripts = (peer for each in (plain, crowd, *others) for peer in each.peers)
        self._tokens = Tokens(name, plain, tuple(scripts), client)
        self.checked = Checked()
        self._plain = plain
        self._setting = setting
        self._end = None if budget is None else time.monotonic() + budget
        self._explain = Explainer(handler, setting, self._tokens)
        self._accepted = set[tuple[str, Law]]()
        self._progress = Progress()

    def run(self, case: Case, *, compare: bool = False) -> Run:
        """Run one case.

        Args:
          compare: whether peers must receive the same as when nothing is varied.
        """
        __tracebackhide__ = True
        if compare:
            self._explain.base = base_of(self._explain.run(Case(case.peers))[0])
        run, seen = self._explain.run(case)
        if seen is not None and (failure := self._explain.name(run, seen)) is not None:
            raise failure from failure.cause
        return run

    def plain(self) -> Run:
        """Run the plain conversation."""
        __tracebackhide__ = True
        return self._one(self._plain, "nothing")

    def all_of(self, kind: str, cases: Iterable[Case]) -> int:
        """Run these cases. Return how many there were.

        Args:
          kind: what they vary, in words.
        """
        __tracebackhide__ = True
        count = 0
        for case in cases:
            if self._end is not None and time.monotonic() > self._end:
                self.checked.notes.append(f"the budget ended within: {kind}")
                break
            self._one(case, kind)
            count += 1
        return count

    @contextlib.contextmanager
    def from_here(self) -> Generator[None]:
        """Within the block, failures are tried again in the state of its begin."""
        with self._explain.from_here(), Progress() as self._progress:
            yield

    def repeat(self, token: str) -> Checked:
        """Run the case of a token alone.

        Raises:
          ValueError: it is not a token of this check.
        """
        __tracebackhide__ = True
        case, compares = self._case(token)
        if compares:
            self._explain.base = base_of(self.plain())
        self._one(case, "the case that is repeated")
        return self.checked

    def everything(self, effort: Effort, draw: random.Random, kept: Kept) -> Checked:
        """Check all laws in all kinds of cases.

        Args:
          kept: failures to try first. They are forgotten if they pass, and a failure
            is added.
        """
        __tracebackhide__ = True
        try:
            self._all_kinds(effort, draw, kept)
        except HandlerFailure as failure:
            kept.add(failure.repeat)
            raise
        return self.checked

    def _all_kinds(self, effort: Effort, draw: random.Random, kept: Kept) -> None:
        __tracebackhide__ = True
        base = self.plain()
        self._one(self.variations.again(), "nothing, twice in a row")
        again = self.plain()
        if base_of(base) == base_of(again):
            self._explain.base = base_of(base)
        else:
            self.checked.notes.append(_DIFFER)
        self._earlier(kept)
        up, down = self.lengths(base)
        plain = max(max(each.sent, len(each.data)) for each in base.received[0])
        self.variations = kinds = self.variations.with_grain_for(up, down, plain)
        effort = effort.for_runs_of(base.steps + (up + down) / 1000)
        self.all_of("the order of tasks", kinds.schedules(effort))
        self._preempt(effort, draw)
        begin_up, begin_down = handshake_of(base)
        within_up, within_down = range(begin_up), range(begin_down)
        seen = cuts_of(base) if self._setting.tls else range(1, up)
        few = effort.handshake
        cuts = self._places("chunks", within_up[1:], few, seen, effort.cuts, draw)
        self.all_of("chunks", kinds.chunkings(cuts, effort))
        self.all_of("how scripts are played", kinds.plays(effort))
        self.all_of("slow peers", kinds.slow())
        self.all_of("several peers at once", kinds.crowd())
        for kind, cases in self._derived.items():
            self.all_of(kind, cases)
        self._servers(base, effort, draw)
        self._disturb(base, effort, draw)
        what = "a broken network"
        after_up, after_down = range(begin_up, up + 1), range(begin_down, down + 1)
        most = effort.offsets
        eofs = None
        if self._setting.tls:
            eofs = self._places(what, within_up, few, ends_of(base), most, draw)
            # A handler gets all of a record or nothing: many of its bytes are alike.
            most //= 2
        up_to = self._places(what, within_up, few, after_up, most, draw)
        down_to = self._places(what, within_down, few, after_down, most, draw)
        self.all_of(what, kinds.broken(up_to, down_to, eofs))
        self.all_of("many broken ones in a row", kinds.many(base.steps))
        self.all_of("a flood", kinds.floods(base))
        self.all_of("hostile peers", kinds.hostile(base, self._harm(effort)))

    def _preempt(self, effort: Effort, draw: random.Random) -> None:
        """Preempt tasks at each place, and then at some pairs of places."""
        __tracebackhide__ = True
        if not effort.preemptions:
            return
        kind, kinds, most = "preempted tasks", self.variations, effort.preemptions
        (never,) = kinds.preempted([[]])
        each = preemptions(self._one(never, kind).places)
        one = self._sample(kind, range(len(each)), most, draw)
        self.all_of(kind, kinds.preempted([each[number]] for number in one))
        left = max(2, most - len(one))
        two = self._sample(kind, range(math.comb(len(each), 2)), left, draw)
        self.all_of(kind, kinds.preempted(pairs_of(each, two)))

    def _harm(self, effort: Effort) -> list[Play]:
        """The hostile plays that are asked for, and whose law is not off."""
        setting = self._setting
        harm: list[tuple[Play, Law, bool]] = [
            ("trickled", "deadline", setting.deadline is not None),
            ("endless", "endless", setting.longest is not None),
            ("repeated", "growth", effort.repeats and not setting.servers),
        ]
        off = setting.without
        return [play for play, law, asked in harm if asked and law not in off]

    def _earlier(self, kept: Kept) -> None:
        """Try what has failed the last time."""
        __tracebackhide__ = True
        for token in kept.tokens():
            try:
                case, _ = self._case(token)
            except ValueError:
                continue  # it is of another check of this test
            self._one(case, "what has failed before")
            kept.remove(token)

    def _case(self, token: str) -> tuple[Case, bool]:
        case, compares = self._tokens.case(token)
        check_bounds(case, self._setting)
        return case, compares

    def lengths(self, base: Run) -> tuple[int, int]:
        """The most bytes that a peer sends, and that one receives, on the network."""
        sent, received = zip(*(each.wire for each in base.received[0]), strict=True)
        return max(sent), max(received)

    def _one(self, case: Case, kind: str) -> Run:
        __tracebackhide__ = True
        self._progress.show(sum(self.checked.runs.values()), kind)
        run, seen = self._explain.run(case)
        self.checked.runs[kind] = self.checked.runs.get(kind, 0) + 1
        if seen is not None and (kind, seen.law) not in self._accepted:
            if (failure := self._explain.explain(run, seen)) is not None:
                raise failure from failure.cause
            # Its law is switched off. So it is for what breaks the same in this kind.
            self._accepted.add((kind, seen.law))
        return run

    def _disturb(self, base: Run, effort: Effort, draw: random.Random) -> None:
        __tracebackhide__ = True
        kinds = self.variations
        steps = self._steps("a cancel", base, effort.steps, effort, draw)
        self.all_of("a cancel", kinds.disturbed("cancel", steps))
        if "drain" not in self._setting.without:
            self._drain(base, effort, draw)
        for what in PEER_DISTURBANCES:
            kind = f"a peer's {what}"
            steps = self._steps(kind, base, effort.offsets, effort, draw)
            self.all_of(kind, kinds.disturbed(what, steps))

    def _drain(self, base: Run, effort: Effort, draw: random.Random) -> None:
        __tracebackhide__ = True
        kinds = self.variations
        steps = self._steps("a drain", base, effort.steps, effort, draw)
        self.all_of("a drain", kinds.disturbed("drain", steps))
        cut = self._one(kinds.byte_by_byte(), "chunks")
        within = "a drain within a message"
        between = self._steps(within, cut, effort.offsets, effort, draw)
        self.all_of(within, kinds.drained_byte_by_byte(between))

    def _servers(self, base: Run, effort: Effort, draw: random.Random) -> None:
        __tracebackhide__ = True
        if not base.opened:
            if self._setting.servers:
                self.checked.notes.append(_UNUSED)
            return
        kinds, few = self.variations, max(3, effort.offsets // 2)
        up, down = lengths_of(base.opened)
        cuts = self._sample("chunks of servers", range(1, down), few, draw)
        self.all_of("chunks of servers", kinds.served_in_chunks(cuts))
        self.all_of("servers that are not there", kinds.without_servers())
        what = "a broken connection to a server"
        up_to = self._sample(what, range(up + 1), few, draw)
        down_to = self._sample(what, range(down + 1), few, draw)
        self.all_of(what, kinds.broken_servers(up_to, down_to))

    def _places(
        self,
        kind: str,
        within: range,
        few: int,
        after: range | list[int],
        most: int,
        draw: random.Random,
    ) -> list[int]:
        """At most ``few`` places within TLS handshakes, and ``most`` after these."""
        begin = self._sample(kind, within, few, draw)
        return begin + self._sample(kind, after, most, draw)

    def _steps(
        self, kind: str, run: Run, most: int, effort: Effort, draw: random.Random
    ) -> list[int]:
        """Some of the steps of a run."""
        within, after = range(run.begun), range(run.begun, run.steps + 1)
        return self._places(kind, within, effort.handshake, after, most, draw)

    def _sample(
        self, kind: str, numbers: range | list[int], most: int, draw: random.Random
    ) -> list[int]:
        """Some of the numbers; the check notes of how many."""
        chosen = sample(numbers, most, draw)
        self.checked.note_places(kind, len(chosen), len(numbers))
        return chosen


def handshake_of(base: Run) -> tuple[int, int]:
    """The most bytes that a peer sends and receives in its TLS handshake."""
    sent, received = zip(*(each.handshake for each in base.received[0]), strict=True)
    return max(sent), max(received)


def cuts_of(base: Run) -> list[int]:
    """The bytes on the network at which a cut shows in plain bytes over TLS."""
    return [
        at + OVERHEAD + plain
        for at, size in _longest(base)
        for plain in range(size)
        if plain
    ]


def ends_of(base: Run) -> list[int]:
    """The bytes on the network at which a peer that speaks TLS can end, by plain bytes.

    Where a record would be cut, a shorter one and a close_notify are before that byte.
    """
    return [
        at + CLOSE_NOTIFY + (OVERHEAD + plain if plain else 0)
        for at, size in _longest(base)
        for plain in range(size)
    ]


def _longest(base: Run) -> Sequence[tuple[int, int]]:
    """The records of the peer that sends most."""
    return max(base.received[0], key=lambda each: each.sent).records


def lengths_of(opened: Sequence[Opened]) -> tuple[int, int]:
    """The most bytes that a handler sends to a server, and that it receives."""
    return (
        max(len(each.sent) for each in opened),
        max(len(each.received) for each in opened),
    )

"""Checking a handler: which cases are worth a run, and what they must show.

Each kind of case varies one thing of the plain conversation. They are tried
from the smallest up, so that the first that fails is a small one.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, get_args

from trioserve import Limits, Timeouts
from trioserve.faults import Faults, parse_faults

from ._arguments import check_type
from ._case import LAWS, Act, Case, HandlerFailure, Law, Run, Setting
from ._peer import Peer
from ._run import MEMORY, Handler, play

Explore = Literal["quick", "thorough"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Effort:
    """How much is tried: at most so many cases of each kind, if a run costs no
    more than so many steps, a thousand bytes being worth one.
    """

    cuts: int
    schedules: int
    steps: int
    offsets: int
    cost: float

    def for_runs_of(self, cost: float) -> _Effort:
        """Less of each kind where a run costs more than it may."""
        share = min(1.0, self.cost / cost)
        numbers = (self.cuts, self.schedules, self.steps, self.offsets)
        cuts, schedules, steps, offsets = (max(3, int(n * share)) for n in numbers)
        return dataclasses.replace(
            self, cuts=cuts, schedules=schedules, steps=steps, offsets=offsets
        )


_EFFORTS: Final[Mapping[Explore, _Effort]] = {
    "quick": _Effort(cuts=40, schedules=20, steps=60, offsets=24, cost=150),
    "thorough": _Effort(
        cuts=2000, schedules=500, steps=5000, offsets=5000, cost=math.inf
    ),
}

#: What one step can do to a connection, besides cancelling its handler.
_VISIBLE: Final[tuple[Law, ...]] = ("answer", "ends", "errors")

_FAULT_ACTS: Final[tuple[Act, ...]] = ("eof", "reset", "stall", "vanish")

#: Into how many pieces, about, the longest conversation is cut.
_PIECES: Final = 64

#: Bytes that the network holds of a flood, and has: twice what may be taken.
_FLOOD_BUFFER: Final = 64
_FLOOD: Final = 2 * MEMORY


def run_conversation(
    handler: Handler,
    *peers: Peer,
    faults: Faults | str = "",
    seed: int = 0,
    act: Act | None = None,
    at: int | None = None,
    copies: int = 1,
    rounds: int = 1,
    buffer: int = 16384,
    deaf: float = 0.0,
    flood: int = 0,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
) -> Run:
    """Play one conversation with a handler, in a server of its own, once.

    The handler is any ``async def handler(stream)``. It runs in
    :func:`trioserve.serve` over a network in memory, on a virtual clock; the
    same arguments do the same again. It may be called anywhere, also by a test
    that Trio runs.

    Args:
      peers: scripts, a connection each, which begin at the same time.
      faults: what the network does; a :class:`trioserve.faults.Faults`, or its text.
      seed: of the order in which tasks run, and of what faults draw.
      act, at: what happens after scheduler step ``at``: ``"cancel"`` (the
        handlers, whose peers say nothing more), ``"drain"`` (the server),
        ``"eof"``, ``"reset"``, ``"stall"``, ``"vanish"`` (the peers).
      copies, rounds: connect that often at once, and one after the other.
      buffer: bytes that the network holds for each direction.
      deaf: seconds for which the peers read nothing at first.
      flood: bytes that the peers send, by repeating what they send, and read
        nothing.
      raises: exceptions that the handler may raise, besides the
        ``BrokenResourceError`` of its stream.
      without: laws that are not looked at, each with the reason.
      before_run: called before each run, to put back what handlers share.
      limits, timeouts: of the server. Without, there is room for everybody, and
        nothing ends by a timer unless something happens to the network; then
        60 seconds of silence do.

    Raises:
      HandlerFailure: a law is broken.
    """
    __tracebackhide__ = True
    case = Case(
        peers,
        faults=parse_faults(faults) if isinstance(faults, str) else faults,
        seed=seed,
        act=act,
        at=at,
        copies=copies,
        rounds=rounds,
        buffer=buffer,
        deaf=deaf,
        flood=flood,
    )
    check = _Check(handler, peers, raises, without, before_run, limits, timeouts)
    return check.run(case)


def check_handler(
    handler: Handler,
    *peers: Peer,
    explore: Explore = "quick",
    seed: int = 0,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
) -> None:
    """Check a handler by all laws, in every way its conversation can go.

    The conversation is played as it is; with its bytes cut everywhere; in other
    orders of tasks; with peers that read late, or not at all; several times at
    once and one after the other; and with a cancel, a drain, an EOF, a reset, a
    stall and a cut cable after every scheduler step and at every byte, each
    followed by the plain conversation, which must go as ever.

    Args:
      explore: ``"quick"`` takes a second or two, and samples where there is too
        much; ``"thorough"`` tries all, and may take minutes.
      seed: of what is sampled.
      handler, peers, raises, without, before_run, limits, timeouts: as for
        :func:`run_conversation`.

    Raises:
      HandlerFailure: a law is broken; it says which, how, the smallest case, and
        what happened.
    """
    __tracebackhide__ = True
    check = _Check(handler, peers, raises, without, before_run, limits, timeouts)
    if explore not in _EFFORTS:
        raise ValueError(f"explore must be one of {get_args(Explore)}, not {explore!r}")
    check_type("seed", seed, int, "an int")
    check.everything(_EFFORTS[explore], random.Random(seed))


def sweep_cancellations(
    handler: Handler,
    *peers: Peer,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
) -> int:
    """Cancel the handler after every scheduler step, one run for each.

    Nothing can be cancelled but between two steps, so for this conversation and
    order of tasks that is everywhere. Returns how many steps there were.

    Raises:
      HandlerFailure: a law is broken.
    """
    __tracebackhide__ = True
    check = _Check(handler, peers, raises, without, before_run, limits, timeouts)
    base = check.plain()
    check.all_of(check.acts("cancel", range(base.steps + 1)))
    return base.steps


def sweep_faults(
    handler: Handler,
    *peers: Peer,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
) -> int:
    """Let the peers send EOF, reset, stall and vanish, at every step and byte.

    Returns how many runs that took.

    Raises:
      HandlerFailure: a law is broken.
    """
    __tracebackhide__ = True
    check = _Check(handler, peers, raises, without, before_run, limits, timeouts)
    base = check.plain()
    runs = 0
    for act in _FAULT_ACTS:
        runs += check.all_of(check.acts(act, range(base.steps + 1)))
    up, down = check.lengths(base)
    return runs + check.all_of(check.breaks(range(up + 1), range(down + 1)))


class _Check:
    """A handler, its conversation, and the run that all others are compared with."""

    def __init__(
        self,
        handler: Handler,
        peers: tuple[Peer, ...],
        raises: Iterable[type[BaseException]],
        without: Mapping[Law, str] | None,
        before_run: Callable[[], object] | None,
        limits: Limits | None,
        timeouts: Timeouts | None,
    ) -> None:
        if not callable(handler):
            raise TypeError(f"handler must be an async function, not {handler!r}")
        self._handler = handler
        self._case = Case(peers)
        check_type("raises", raises, Iterable, "a list of exceptions")
        for kind in (raises := tuple(raises)):
            check_type("raises", kind, type, "a list of exceptions")
            if not issubclass(kind, BaseException):
                raise TypeError(f"raises must have exceptions in it, not {kind!r}")
        if before_run is not None and not callable(before_run):
            raise TypeError(f"before_run must be callable, or None, not {before_run!r}")
        if limits is not None:
            check_type("limits", limits, Limits, "a Limits or None")
        if timeouts is not None:
            check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
        if not isinstance({} if without is None else without, Mapping):
            raise TypeError(f"without must map laws to reasons, not be {without!r}")
        self._without = dict(without or {})
        for law, reason in self._without.items():
            if law not in LAWS:
                raise ValueError(f"without must name laws, {tuple(LAWS)}, not {law!r}")
            check_type("without", reason, str, "a reason for each law")
            if not reason.strip():
                raise ValueError(f"without needs a reason for {law!r}")
        self._is_the_same = False
        # Bytes of the smallest piece: one, unless there are many.
        self._grain = 1
        self._setting = Setting(
            raises=tuple(raises),
            without=self._without,
            before_run=before_run,
            limits=limits,
            timeouts=timeouts,
        )

    def run(self, case: Case, law: Law | None = None) -> Run:
        """Run a case; what only breaks in this kind of case breaks ``law``."""
        __tracebackhide__ = True
        run = play(self._handler, case, self._setting)
        for violation in run.violations:
            broken = violation.law
            if law is not None and broken in _VISIBLE:
                broken = law
            if broken not in self._without:
                how = violation.how
                if not play(self._handler, case, self._setting).violations:
                    how += " (not when this case runs again: something of the runs"
                    how += " before it was left)"
                raise self._failure(broken, how, run) from violation.cause
        return run

    def _failure(self, law: Law, how: str, run: Run) -> HandlerFailure:
        return HandlerFailure(law, how, run, self._setting)

    @property
    def _rounds(self) -> int:
        """What happened to one may be seen by the next."""
        return 1 if "nothing_left" in self._without else 2

    def plain(self) -> Run:
        __tracebackhide__ = True
        return self.run(self._case)

    def all_of(self, cases: Iterable[Case], law: Law | None = None) -> int:
        __tracebackhide__ = True
        count = 0
        for case in cases:
            self.run(case, law)
            count += 1
        return count

    def everything(self, effort: _Effort, draw: random.Random) -> None:
        __tracebackhide__ = True
        base = self._first(effort)
        left_behind = self._again()
        again = self.run(self._case, "nothing_left")
        self._is_the_same = _heard(base) == _heard(again)
        self._grain = max(1, max(self.lengths(base)) // _PIECES)
        effort = effort.for_runs_of(base.steps + sum(self.lengths(base)) / 1000)
        self._same(base, "schedule", self._shuffled(effort))
        if left_behind is not None:
            raise left_behind
        self._same(base, "chunking", self._cut(effort, draw))
        self._same(base, None, self._slow())
        self._alone()
        steps = _some(range(base.steps + 1), effort.steps, draw)
        for act in ("cancel", "drain"):
            self.all_of(self.acts(act, steps))
        self.all_of(self._drained_in_the_middle(effort, draw))
        for act in _FAULT_ACTS:
            self.all_of(self.acts(act, _some(steps, effort.offsets, draw)))
        up, down = self.lengths(base)
        self.all_of(
            self.breaks(
                _some(range(up + 1), effort.offsets, draw),
                _some(range(down + 1), effort.offsets, draw),
            )
        )
        self.all_of(
            [dataclasses.replace(self._case, flood=_FLOOD, buffer=_FLOOD_BUFFER)]
        )

    def _first(self, effort: _Effort) -> Run:
        """The plain run. What goes wrong in some orders of tasks only is just that."""
        __tracebackhide__ = True
        try:
            return self.plain()
        except HandlerFailure as failure:
            if failure.law != "ends" and "schedule" not in self._without:
                for case in self._shuffled(effort):
                    if not play(self._handler, case, self._setting).violations:
                        how = f"in another order of tasks it is fine: {failure.how}"
                        raise self._failure("schedule", how, failure.run) from None
            raise

    # -- what must be the same

    def _same(self, base: Run, law: Law | None, cases: Iterable[Case]) -> None:
        """Whatever is varied, the peers hear the same; unless they never do."""
        __tracebackhide__ = True
        broken: Law = law or "answer"
        for case in cases:
            run = self.run(case, law)
            if broken in self._without or not self._is_the_same:
                continue
            for was, now in zip(_heard(base), _heard(run), strict=True):
                if was != now:
                    how = f"a peer heard {now!r}, where plainly it hears {was!r}"
                    raise self._failure(broken, how, run)

    def _again(self) -> HandlerFailure | None:
        """One after the other. What fails may be due to the order of tasks; then
        it is returned, and the plain conversation goes as before.
        """
        again = dataclasses.replace(self._case, rounds=2)
        try:
            self.run(again, "nothing_left")
        except HandlerFailure as failure:
            if play(self._handler, self._case, self._setting).violations:
                raise
            return failure
        return None

    def _alone(self) -> None:
        """Several at once, whose receives bring all or little."""
        crowd = dataclasses.replace(self._case, copies=3)
        self.run(crowd, "alone")
        pieces = parse_faults(self._slices(1, 3))
        for seed in range(3):
            crumbs = dataclasses.replace(crowd, faults=pieces, seed=seed)
            self.run(crumbs, "alone")

    def _cut(self, effort: _Effort, draw: random.Random) -> Iterator[Case]:
        size = max(len(peer.sends) for peer in self._case.peers)
        places = _some(range(1, size), effort.cuts, draw)
        faults = [f"up:cut@{place}" for place in places]
        if size > 1:
            faults += [self._slices(1, 1), self._slices(1, 3), self._slices(2, 7)]
        for text in faults:
            yield dataclasses.replace(self._case, faults=parse_faults(text))
        pieces = parse_faults(self._slices(1, 5))
        for number in range(effort.cuts // 4):
            yield dataclasses.replace(self._case, faults=pieces, seed=number + 1)

    def _slices(self, least: int, most: int) -> str:
        return f"up:slice={least * self._grain}..{most * self._grain}"

    def _shuffled(self, effort: _Effort) -> Iterator[Case]:
        for seed in range(1, effort.schedules + 1):
            yield dataclasses.replace(self._case, seed=seed)

    def _slow(self) -> Iterator[Case]:
        narrow = 2 * self._grain
        yield dataclasses.replace(self._case, buffer=narrow)
        yield dataclasses.replace(self._case, deaf=1.0)
        yield dataclasses.replace(self._case, deaf=1.0, buffer=narrow)
        yield dataclasses.replace(self._case, faults=parse_faults("latency=0.1s"))

    # -- what happens to it

    def acts(self, act: Act, steps: Iterable[int]) -> Iterator[Case]:
        rounds = 1 if act == "drain" else self._rounds
        for step in steps:
            yield dataclasses.replace(self._case, act=act, at=step, rounds=rounds)

    def _drained_in_the_middle(
        self, effort: _Effort, draw: random.Random
    ) -> Iterator[Case]:
        """A drain between two bytes of a message, each of which comes by itself."""
        __tracebackhide__ = True
        faults = parse_faults(self._slices(1, 1))
        cut = dataclasses.replace(self._case, faults=faults)
        steps = range(self.run(cut, "chunking").steps + 1)
        for step in _some(steps, effort.offsets, draw):
            yield dataclasses.replace(cut, act="drain", at=step)

    def breaks(self, up: Iterable[int], down: Iterable[int]) -> Iterator[Case]:
        for direction, kinds, offsets in (
            ("up", ("eof", "reset", "stall", "vanish"), up),
            ("down", ("reset", "stall", "vanish"), down),
        ):
            for offset in offsets:
                for kind in kinds:
                    faults = parse_faults(f"{direction}:{kind}@{offset}")
                    yield dataclasses.replace(
                        self._case,
                        faults=faults,
                        rounds=self._rounds,
                        buffer=2 * self._grain,
                    )

    def lengths(self, base: Run) -> tuple[int, int]:
        """Bytes of the longest peer: that it sends, that it hears."""
        up = max(len(peer.sends) for peer in self._case.peers)
        return up, max(len(heard.data) for heard in base.heard[0])


def _heard(run: Run) -> list[bytes]:
    """What the peers' steps have waited for, whatever it was."""
    return [heard.data[: heard.taken] for heard in run.heard[0]]


def _some(numbers: range | list[int], most: int, draw: random.Random) -> list[int]:
    """All of them, or the first and last and some between, in order."""
    if len(numbers) <= most:
        return list(numbers)
    inner = draw.sample(numbers[1:-1], most - 2)
    return [numbers[0], *sorted(inner), numbers[-1]]

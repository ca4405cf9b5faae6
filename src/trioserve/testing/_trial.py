"""Trials: a case is run, and the first law that it breaks is seen.

What is seen has no name yet that a user would be told: that depends on what the case
varies, and which of it is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ._case import Case, Handler, Law, Setting
from ._harness import play
from ._peer import Peer
from ._plays import played
from ._result import Run
from .runs import HangAlarm


class Base(NamedTuple):
    """What is compared: scripts, and what they received when nothing was varied."""

    peers: tuple[Peer, ...]
    heard: Sequence[bytes]


#: A case, what to compare it with, and whether the run is asked for.
Question: TypeAlias = tuple[Case, Base | None, bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A broken law, as one run shows it.

    Attributes:
      law: the law.
      how: how it was broken, in words.
      round: the round in which it was, counted from 0.
      compares: whether the run was compared with the plain conversation.
      cause: the error that shows it, or None. It is not pickled.
    """

    law: Law
    how: str
    round: int
    compares: bool = False
    cause: BaseException | None = None

    def is_like(self, other: Seen | None) -> bool:
        """Whether the other one breaks the same law, wherever."""
        return other is not None and (self.law, self.compares) == (
            other.law,
            other.compares,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Seen, (self.law, self.how, self.round, self.compares)


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of a case: what was seen, the steps that it took, and the run."""

    seen: Seen | None
    steps: int
    run: Run | None = None


def try_case(
    handler: Handler,
    case: Case,
    setting: Setting,
    base: Base | None = None,
    *,
    alarm: HangAlarm | None = None,
    hurries: bool = False,
) -> tuple[Run, Seen | None]:
    """Run a case, and look for the first broken law that is not switched off.

    Args:
      base: what to compare the run with, if its scripts are the same; by default
        nothing.
      alarm: watches the run; by default an alarm of its own.
      hurries: whether an endless loop is found sooner.
    """
    with contextlib.ExitStack() as after:
        alarm = alarm or after.enter_context(HangAlarm(hurries=hurries))
        run = play(handler, case, setting, alarm, hurries=hurries)
    return run, _first(run, setting.without) or _difference(run, base)


def base_of(run: Run) -> Base:
    """What other runs of the same scripts are compared with."""
    return Base(run.case.peers, _heard(run))


def _heard(run: Run) -> list[bytes]:
    """The bytes that each peer's steps have waited for in the first round."""
    return [each.data[: each.consumed] for each in run.received[0]]


def _first(run: Run, without: Mapping[Law, str]) -> Seen | None:
    for broken in run.violations:
        if broken.law not in without:
            return Seen(broken.law, broken.how, broken.round, cause=broken.cause)
    return None


def _difference(run: Run, base: Base | None) -> Seen | None:
    if base is None or not _is_comparable(run.case, base):
        return None
    for was, now in zip(base.heard, _heard(run), strict=True):
        if was != now:
            how = f"a peer received {now!r}, but {was!r} when nothing is varied"
            return Seen("answer", how, 0, compares=True)
    return None


def _is_comparable(case: Case, base: Base) -> bool:
    """Whether peers must receive the same, in the same order."""
    scripts = [played(peer, case.play) for peer in case.peers]
    any_order = any(s.name == "expect_in_any_order" for p in scripts for s in p.steps)
    is_same = case.peers == base.peers and case.copies == 1
    return is_same and case.is_undisturbed and not any_order

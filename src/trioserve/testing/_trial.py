"""Trials: a case is run, and the first law that it breaks is seen.

What is seen has no name yet that a user would be told: that depends on what the case
varies, and which of it is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from ._case import Case, Law, Setting
from ._harness import Handler, play
from ._result import Run

#: The bytes that each peer's steps have waited for.
Consumed: TypeAlias = Sequence[bytes]

#: A case, what to compare it with, and whether the run is asked for.
Question: TypeAlias = tuple[Case, Consumed | None, bool]


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
    base: Consumed | None = None,
    *,
    hurries: bool = False,
) -> tuple[Run, Seen | None]:
    """Run a case, and look for the first broken law that is not switched off.

    Args:
      base: what the peers' steps consumed in the plain conversation, to be compared;
        None to compare nothing.
      hurries: whether an endless loop is found sooner.
    """
    run = play(handler, case, setting, hurries=hurries)
    return run, _first(run, setting.without) or _difference(run, base)


def consumed(run: Run) -> Consumed:
    """The bytes that each peer's steps have waited for in the first round."""
    return [each.data[: each.consumed] for each in run.received[0]]


def _first(run: Run, without: Mapping[Law, str]) -> Seen | None:
    for broken in run.violations:
        if broken.law not in without:
            return Seen(broken.law, broken.how, broken.round, cause=broken.cause)
    return None


def _difference(run: Run, base: Consumed | None) -> Seen | None:
    if base is None or not run.case.is_undisturbed or run.case.copies > 1:
        return None
    for was, now in zip(base, consumed(run), strict=True):
        if was != now:
            how = f"a peer received {now!r}, but {was!r} when nothing is varied"
            return Seen("answer", how, 0, compares=True)
    return None

"""Contrasts: the run that passes and is nearest to one that fails.

It is one of the failing case without one of its parts, at the step before or after, or
in another order of tasks. The nearest does the same for longest. What it does then, and
the failing run does not, is told in the timeline of the failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

from ._blame import simpler
from ._case import Case
from ._plays import without_waits
from ._result import Run
from ._timeline import Passed, Row, Timeline
from ._trial import Trial

#: Orders of tasks that are tried.
_SEEDS: Final = range(1, 6)

#: Scheduler steps that all runs together may take, and the failing one. One that was
#: stopped has no number, and counts as this many.
_MOST_STEPS: Final = 2_000
_STOPPED: Final = 1_000

#: Rows that the failing run may have.
_MOST_ROWS: Final = 1_000

#: The rows of what a test does to a run.
_TEST: Final = "test"

#: A field that goes with another one.
_TOLD_BY_ANOTHER: Final = "at_step"


def nearest(failed: Run, attempt: Callable[[Case], Trial]) -> Passed | None:
    """Where the nearest run that passes differs; None if none is found.

    Args:
      failed: the run that fails.
      attempt: runs a case.
    """
    if failed.steps > _MOST_STEPS or len(failed.timeline.rows) > _MOST_ROWS:
        return None
    found: Passed | None = None
    steps = 0
    for how, case in _neighbours(failed.case):
        if steps > _MOST_STEPS:
            break
        trial = attempt(case)
        steps += trial.steps or _STOPPED
        if trial.seen is not None or trial.run is None:
            continue
        differs = _difference(failed.timeline, trial.run.timeline)
        if differs is not None and (found is None or differs[0] > found.at):
            found = Passed(*differs, how)
    return found


def _neighbours(case: Case) -> Iterator[tuple[str, Case]]:
    """Other cases with as many connections, and how they differ, in words."""
    for other in simpler(case):
        if _connections(other) == _connections(case):
            yield _how(case, other), other
    hasty = tuple(without_waits(peer) for peer in case.peers)
    if hasty != case.peers:
        yield "without waits", dataclasses.replace(case, peers=hasty)
    if case.at_step is not None:
        for step in (case.at_step - 1, case.at_step + 1):
            if step >= 0:
                yield f"with at_step={step}", dataclasses.replace(case, at_step=step)
    for seed in _SEEDS:
        if seed != case.seed:
            yield f"with seed={seed}", dataclasses.replace(case, seed=seed)


def _connections(case: Case) -> tuple[int, int, int]:
    return len(case.peers), case.copies, case.rounds


def _how(case: Case, other: Case) -> str:
    """How another case differs: ``"without faults"``, ``"with copies=1"``."""
    told = list[str]()
    for field in dataclasses.fields(Case):
        was, now = getattr(case, field.name), getattr(other, field.name)
        if was == now or field.name == _TOLD_BY_ANOTHER:
            continue
        shown = str(now) if field.name.endswith("faults") else now
        told.append(f"with {field.name}={shown!r}" if now else f"without {field.name}")
    return " and ".join(told)


def _difference(failed: Timeline, passed: Timeline) -> tuple[int, Row | None] | None:
    """The first row of the failed run that differs, and the other one's row there.

    What the test itself does to a run is no difference.
    """
    ours = [(at, row) for at, row in enumerate(failed.rows) if row.who != _TEST]
    theirs = [row for row in passed.rows if row.who != _TEST]
    for (at, row), other in zip(ours, theirs, strict=False):
        if row[2:] != other[2:]:
            where = "" if row.where == other.where else other.where
            return at, Row(*other[:4], where)
    if len(ours) == len(theirs):
        return None
    if len(ours) < len(theirs):
        return len(failed.rows), theirs[len(ours)]
    return ours[len(theirs)][0], None

"""Schedules: the order in which ready tasks run, decided by a seed.

This is the only module of the kit that uses private names of a dependency. Trio
shuffles the tasks that are ready, and has no public way to seed that: its random
generator and the switch that sorts tasks before the shuffle are private. Hypothesis
and pytest-trio set the same two names for the same reason.

Trio runs all tasks that are ready in one batch, so none waits while another makes
several steps. It does not promise that, and a wait that takes a little longer has the
same effect: a read from a real socket, or a thread. Three of the orders put tasks back
into the queue, so that some wait for several batches.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import trio._core._run

Order: TypeAlias = Literal["shuffled", "held_back", "priorities", "preempted"]

Task: TypeAlias = trio.lowlevel.Task

#: Typed as Any, because mypy does not let its attributes be set.
_run: Any = trio._core._run

#: In each batch, this share of the tasks begins to wait, for at most this many batches.
_HELD_SHARE: Final = 0.1
_MOST_HELD: Final = 12

#: How many times the task of the highest priority gets the lowest one, in the first
#: this many batches; and batches after which a task that waits runs in any case.
_DEMOTIONS: Final = 3
_HORIZON: Final = 60
_PATIENCE: Final = 40

#: A preemption is written with this many digits, of which a fourth are places.
_RADIX: Final = 10_000

#: Of so many tasks that wait, one can go on.
WAYS: Final = 4


class Preemption(NamedTuple):
    """At a place where several tasks could run, another one than the last goes on.

    Attributes:
      place: the number of the place, counted from 0.
      way: which of the others: 0 is the one that waits for longest.
    """

    place: int
    way: int


def seed_of(preemptions: Iterable[Preemption]) -> int:
    """The seed of an order with these preemptions; the default order has seed 0."""
    seed = 0
    for place, way in sorted(preemptions, reverse=True):
        seed = seed * _RADIX + place * WAYS + way + 1
    return seed


def preemptions_of(seed: int) -> list[Preemption]:
    """The preemptions that a seed stands for, in order."""
    found, rest = list[Preemption](), abs(seed)
    while rest:
        rest, code = divmod(rest, _RADIX)
        if code:
            found.append(Preemption(*divmod(code - 1, WAYS)))
    return sorted(found)


@contextlib.contextmanager
def schedule(seed: int, order: Order = "shuffled") -> Generator[list[int]]:
    """Within the block, ``seed`` decides the order in which ready tasks run.

    Yields a list that the order ``"preempted"`` fills: how many tasks could run instead
    of the last one, at each place where there were some.
    """
    before = _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r = chosen = _ORDERS[order](seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield chosen.places if isinstance(chosen, _Preempted) else []
    finally:
        _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING = before


def _put_back(task: Task) -> None:
    """Let a task wait for the next batch."""
    _run.GLOBAL_RUN_CONTEXT.runner.runq.append(task)


class _HeldBack(random.Random):
    """As Trio's own order, but now and then a task waits for some batches.

    A task that is alone does not wait: no other can make a step before it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._waits: dict[Task, int] = {}

    def shuffle(self, batch: list[Task]) -> None:  # type: ignore[override]
        super().shuffle(batch)
        if len(batch) < 2 and not self._waits:
            return
        now = [task for task in batch if not self._holds(task)]
        if not now:
            now = [batch[0]]
            self._waits.pop(batch[0])
        for task in batch:
            if task not in now:
                _put_back(task)
        batch[:] = now

    def _holds(self, task: Task) -> bool:
        left = self._waits.pop(task, 0)
        if not left and self.random() < _HELD_SHARE:
            left = self.randint(1, _MOST_HELD) + 1
        if left > 1:
            self._waits[task] = left - 1
        return left > 1


class _Priorities(random.Random):
    """Each task has a random priority, and the highest one runs alone.

    At a few random batches that task gets the lowest priority instead: PCT, by
    Burckhardt and others, "A Randomized Scheduler with Probabilistic Guarantees of
    Finding Bugs", ASPLOS 2010.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        places = [self.randrange(_HORIZON) for _ in range(_DEMOTIONS)]
        self._demotions = {place: -rank for rank, place in enumerate(places, 1)}
        self._priorities: dict[Task, float] = {}
        self._waited: dict[Task, int] = {}
        self._batches = 0

    def shuffle(self, batch: list[Task]) -> None:  # type: ignore[override]
        super().shuffle(batch)
        if len(batch) < 2:
            return
        for task in batch:
            self._priorities.setdefault(task, self.random())
        batch.sort(key=self._rank)
        top = batch.pop()
        self._batches += 1
        if self._batches in self._demotions:
            self._priorities[top] = self._demotions[self._batches]
        self._waited.pop(top, None)
        for task in batch:
            self._waited[task] = self._waited.get(task, 0) + 1
            _put_back(task)
        batch[:] = [top]

    def _rank(self, task: Task) -> tuple[bool, float]:
        is_late = self._waited.get(task, 0) >= _PATIENCE
        return is_late, self._priorities[task]


class _Preempted(random.Random):
    """A task runs until it waits, but for a few places where another one goes on.

    The others are numbered in the order in which they have become ready. All orders
    with few preemptions can be tried: Musuvathi and Qadeer, "Iterative Context Bounding
    for Systematic Testing of Multithreaded Programs", PLDI 2007.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.places: list[int] = []
        self._ways = dict(preemptions_of(seed))
        self._since: dict[Task, int] = {}
        self._last: Task | None = None
        self._alone = self._batches = 0

    def shuffle(self, batch: list[Task]) -> None:  # type: ignore[override]
        if not batch:
            return
        self._batches += 1
        for task in batch:
            self._since.setdefault(task, self._batches)
        batch.sort(key=self._rank)
        chosen = 0
        if len(batch) > 1:
            others = len(batch) - 1
            way = self._ways.get(len(self.places))
            self.places.append(others)
            if way is not None:
                chosen = 1 + way % others
            elif self._alone >= _PATIENCE:
                chosen = 1
        task = batch.pop(chosen)
        for other in batch:
            _put_back(other)
        batch[:] = [task]
        self._alone = self._alone + 1 if task is self._last else 0
        self._last = task
        del self._since[task]

    def _rank(self, task: Task) -> tuple[bool, int]:
        return task is not self._last, self._since[task]


_ORDERS: Final[dict[Order, type[random.Random]]] = {
    "shuffled": random.Random,
    "held_back": _HeldBack,
    "priorities": _Priorities,
    "preempted": _Preempted,
}

"""Task set: a task for each of some things, which come and go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

import trio

T = TypeVar("T", bound=Hashable)


class TaskSet(Generic[T]):
    """A task for each thing of a set.

    Args:
      nursery: where they run.
      run: the task of one thing, until it is cancelled.
      name: the name of its task.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        run: Callable[[T], Awaitable[object]],
        name: Callable[[T], str],
    ) -> None:
        self._nursery = nursery
        self._run = run
        self._name = name
        self._scopes: dict[T, trio.CancelScope] = {}

    def follow(self, things: Iterable[T]) -> None:
        """Start the tasks of those that are new, and cancel those of the others."""
        wanted = dict.fromkeys(things)
        for gone in [each for each in self._scopes if each not in wanted]:
            self._scopes.pop(gone).cancel(reason="it is in its set no more")
        for new in [each for each in wanted if each not in self._scopes]:
            scope = self._scopes[new] = trio.CancelScope()
            self._nursery.start_soon(self._run_in, scope, new, name=self._name(new))

    async def _run_in(self, scope: trio.CancelScope, thing: T) -> None:
        with scope:
            await self._run(thing)

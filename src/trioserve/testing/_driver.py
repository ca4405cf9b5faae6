"""A driver: plain code drives a Trio run in its own thread, step by step.

Trio runs as a guest of a queue. Nothing of it runs but while a method of the
driver does, and each of them returns when everything waits, so that plain code
always sees a world that stands still. It knows no server and no test.
"""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, TypeVarTuple

import outcome
import trio
import trio.testing

from ._driven import keep_for_ever, tear_out
from ._schedule import schedule
from ._timeline import standing

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Passes of the scheduler, at one moment, after which something goes on and on;
#: and once everything was cancelled.
_MOST_TICKS: Final = 100_000
_LAST_TICKS: Final = 3_000

#: Deadlines that may come one after the other while it is closed.
_MOST_DEADLINES: Final = 1_000

#: Errors that are raised in who can't be cancelled, before it is dropped.
_MOST_TEARS: Final = 3


class StuckError(AssertionError):
    """What was called still waits, or goes on and on; it says at which line."""


class Driver:
    """A Trio run that goes on when it is told to, and stands still otherwise::

        with Driver(seed=1) as driver:
            server = driver.call(driver.nursery.start, serving)
            driver.sleep(10)

    Time is virtual and passes in :meth:`sleep` only. It does not jump by itself
    when everything waits, because between two steps of a test everything does:
    every idle timer would end its connection before the next step.

    Sockets, threads and other things outside of Trio are not waited for. While
    a driver is open, no other Trio run can begin in its thread.

    Args:
      seed: of the order in which tasks run that could run.

    Attributes:
      nursery: for what goes on in the background. What a task of it raises ends
        the run, and comes out of the call in which it happens.
      is_open: whether the run goes on: it was not closed, and no task of its
        nursery has failed.
    """

    nursery: trio.Nursery

    def __init__(self, *, seed: int = 0) -> None:
        self._queue = collections.deque[Callable[[], object]]()
        self._clock = trio.testing.MockClock()
        self._steps = _Steps()
        self._main_is_over = False
        self._may_end = False
        self._outcome: outcome.Outcome[None] | None = None
        self._after = contextlib.ExitStack()
        self._after.enter_context(schedule(seed))
        self._after.callback(sys.set_asyncgen_hooks, *sys.get_asyncgen_hooks())
        try:
            trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._queue.append,
                done_callback=self._end,
                # Nothing is waited for, so no signal has to wake it.
                host_uses_signal_set_wakeup_fd=True,
                clock=self._clock,
                instruments=[self._steps],
            )
        except BaseException:
            self._after.close()
            raise
        self.is_open = True
        self._lookout = trio.lowlevel.spawn_system_task(self._look_out)
        self._turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def now(self) -> float:
        """Seconds on the clock of the run."""
        return self._clock.current_time()

    @property
    def tasks(self) -> tuple[trio.lowlevel.Task, ...]:
        """All that are alive, but for Trio's and the driver's own; innermost first."""
        system = self._lookout.parent_nursery
        assert system is not None
        return tuple(
            task
            for nursery in (self.nursery, system)
            for task in _below(nursery)
            if task is not self._lookout
        )

    def call(self, async_fn: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """What ``async_fn(*args)`` returns or raises, run at one moment.

        Raises:
          StuckError: it waits for something that does not happen now. It is
            cancelled.
          RuntimeError: the run is over.
        """
        call = _Call(async_fn, args)
        self._check_open()
        self.nursery.start_soon(call.run, name=call.name)
        self.settle()
        if call.outcome is None:
            where = call.where
            call.scope.cancel(reason="it waits and nothing happens")
            self.settle()
            raise StuckError(f"{call.name} waits at {where}, and nothing happens")
        return call.outcome.unwrap()

    def settle(self) -> None:
        """Let it run until everything waits, without letting time pass.

        Raises:
          StuckError: it never does.
          RuntimeError: the run is over.
        """
        self._check_open()
        self._turn()
        if self.nursery.cancel_scope.cancel_called:
            self.close()  # a task has failed; this raises its error
        self._check_open()

    def sleep(self, seconds: float) -> None:
        """Let time pass; at each deadline on the way, until everything waits again.

        Raises:
          StuckError, RuntimeError: as :meth:`settle`.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more and finite, not {seconds!r}")
        self.settle()
        end = self.now + seconds
        while self._next_deadline <= end - self.now:
            self._jump()
            self.settle()
        self._clock.jump(max(0.0, end - self.now))

    def close(self) -> None:
        """End the run: cancel everything, and let time pass until nothing is left.

        Twice is once. Who can't be cancelled is dropped with the run.

        Raises:
          StuckError: somebody was dropped, and where it stood.
        """
        if not self.is_open:
            return
        self.is_open = False
        stuck = None
        try:
            self.nursery.cancel_scope.cancel(reason="the driver is closed")
            if not self._runs_out():
                stuck = StuckError(f"this could not be cancelled: {places(self.tasks)}")
                self._tear_out()
        finally:
            if self._outcome is None:
                self._drop()
            self._after.close()
        if stuck is not None:
            raise stuck
        assert self._outcome is not None
        try:
            self._outcome.unwrap()
        except BaseExceptionGroup as group:
            raise _only(group) from None

    # -- turning

    async def _main(self) -> None:
        try:
            async with trio.open_nursery() as self.nursery:
                await trio.sleep_forever()
        finally:
            self._main_is_over = True

    async def _look_out(self) -> None:
        """See when everything waits.

        That somebody waits for idleness also keeps Trio from starting a thread
        in which it would wait for events.
        """
        with trio.CancelScope(shield=True):
            while not self._may_end:
                await trio.testing.wait_all_tasks_blocked()

    def _end(self, run_outcome: outcome.Outcome[None]) -> None:
        self._outcome = run_outcome

    def _check_open(self) -> None:
        if not self.is_open:
            raise RuntimeError("the run is over")

    def _turn(self, most: int = _MOST_TICKS) -> None:
        """Let it run until everything waits, or it is over."""
        lookout = {self._lookout}
        for _ in range(most):
            if self._outcome is not None:
                return
            self._steps.tasks.clear()
            self._queue.popleft()()
            if self._steps.tasks == lookout and not self._may_end:
                system = self._lookout.parent_nursery
                assert system is not None
                if not self._main_is_over or len(system.child_tasks) > 1:
                    return
                self._may_end = True
        raise StuckError(f"this goes on and on, at one moment: {places(self.tasks)}")

    @property
    def _next_deadline(self) -> float:
        """Seconds until something happens by itself."""
        return trio.lowlevel.current_statistics().seconds_to_next_deadline

    def _jump(self) -> None:
        """To the next deadline, or beyond it by a rounding error."""
        self._clock.jump(max(self._next_deadline, math.ulp(self.now)))

    # -- ending

    def _runs_out(self) -> bool:
        """Let time pass for as long as something comes of it; whether it is over."""
        with contextlib.suppress(StuckError):
            self._turn(_LAST_TICKS)
            for _ in range(_MOST_DEADLINES):
                if self._outcome is not None or self._next_deadline == math.inf:
                    break
                self._jump()
                self._turn(_LAST_TICKS)
        return self._outcome is not None

    def _tear_out(self) -> None:
        """Raise an error where somebody waits who can't be cancelled, a few times."""
        for _ in range(_MOST_TEARS):
            for task in self.tasks:
                tear_out(task)
            if self._runs_out():
                break

    def _drop(self) -> None:
        """Let go of the run as it is, and of all its tasks."""
        # Collected, its tasks would be closed.
        keep_for_ever((trio.lowlevel.current_root_task(), *self.tasks))
        with warnings.catch_warnings():
            # Trio says that it was abandoned. So it was.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._queue.clear()


class _Call(Generic[T]):
    """A function that is called in the run, and what comes of it."""

    def __init__(
        self, async_fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> None:
        self.name = getattr(async_fn, "__qualname__", repr(async_fn))
        self.scope = trio.CancelScope()
        self.outcome: outcome.Outcome[T] | None = None
        self._async_fn = async_fn
        self._args = args
        self._task: trio.lowlevel.Task | None = None

    @property
    def where(self) -> str:
        """The line at which it stands."""
        assert self._task is not None
        _ours, *stack = self._task.iter_await_frames()
        return standing(stack)

    async def run(self) -> None:
        self._task = trio.lowlevel.current_task()
        with self.scope:
            try:
                self.outcome = outcome.Value(await self._async_fn(*self._args))
            except trio.Cancelled:
                raise
            except BaseException as error:
                self.outcome = outcome.Error(error)


class _Steps(trio.abc.Instrument):
    """Which tasks made a step."""

    def __init__(self) -> None:
        self.tasks = set[trio.lowlevel.Task]()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)


def places(tasks: Iterable[trio.lowlevel.Task]) -> str:
    """The line at which each of these stands."""
    return "; ".join(
        f"{task.name} is at {standing(task.iter_await_frames())}" for task in tasks
    )


def _below(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    """All tasks in it, and in nurseries of these; innermost first."""
    for task in nursery.child_tasks:
        for inner in task.child_nurseries:
            yield from _below(inner)
        yield task


def _only(error: BaseException) -> BaseException:
    """The error in a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""A driver: plain code makes a Trio run in its own thread go on, step by step.

Tasks run only while a method of the driver does, and each method returns when all
tasks wait. Between two calls, nothing changes. It knows no server and no test.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, TypeVarTuple

import outcome
import trio
import trio.testing

from ._guest import GuestRun
from ._lines import innermost_line, line_of_task

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Passes of the scheduler at one moment until the tasks count as stuck in a loop;
#: the second figure is for tasks that were cancelled.
_MOST_TICKS: Final = 100_000
_LAST_TICKS: Final = 3_000

#: Deadlines that :meth:`Driver.close` waits for, one after the other.
_MOST_DEADLINES: Final = 1_000


class StuckError(AssertionError):
    """A call waits for something that does not happen, or tasks never stop running.

    The message names the line of each task.
    """


class Driver:
    """A Trio run that goes on only while one of its methods is called::

        with Driver(seed=1) as driver:
            server = driver.call(driver.nursery.start, serving)
            driver.sleep(10)

    Time is virtual and passes in :meth:`sleep` only. The clock does not jump when
    all tasks wait: they do so between any two steps of a test, and each idle timer
    would end its connection before the next step.

    Sockets, threads and other things outside of Trio are not waited for. While
    a driver is open, no other Trio run can begin in its thread.

    Args:
      seed: of the order in which ready tasks run.

    Attributes:
      nursery: for background tasks. An error that one of them raises ends the run
        and is raised by the method during which it happens.
      is_open: whether the run goes on: it was not closed, and no task of its
        nursery has failed.
    """

    nursery: trio.Nursery

    def __init__(self, *, seed: int = 0) -> None:
        self._clock = trio.testing.MockClock()
        self._steps = _Steps()
        self._main_is_over = False
        self._may_end = False
        self._run = GuestRun(
            self._main, seed=seed, clock=self._clock, instruments=[self._steps]
        )
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
        """All tasks but Trio's own and the driver's own; child tasks come first."""
        if self._run.is_closed:
            return ()
        system = self._lookout.parent_nursery
        assert system is not None
        return tuple(
            task
            for nursery in (self.nursery, system)
            for task in _below(nursery)
            if task is not self._lookout
        )

    def call(self, async_fn: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Run ``async_fn(*args)`` without letting time pass; return its result.

        Raises:
          StuckError: it waits for something that does not happen. It is cancelled.
          RuntimeError: the run is over.
          Exception: whatever the function raises.
        """
        call = _Call(async_fn, args)
        self._check_open()
        self.nursery.start_soon(call.run, name=call.name)
        self.settle()
        if call.outcome is None:
            line = call.line
            call.scope.cancel(reason="the call is stuck")
            self.settle()
            raise StuckError(f"{call.name} waits at {line}, and nothing wakes it")
        return call.outcome.unwrap()

    def settle(self) -> None:
        """Let all tasks run until they wait, without letting time pass.

        Raises:
          StuckError: they never do.
          RuntimeError: the run is over.
          Exception: whatever a task of :attr:`nursery` raises.
        """
        self._check_open()
        self._turn()
        if self.nursery.cancel_scope.cancel_called:
            self.close()  # raises the error of the task that has failed
        self._check_open()

    def sleep(self, seconds: float) -> None:
        """Let time pass, and :meth:`settle` at each deadline on the way.

        Raises:
          ValueError: ``seconds`` is negative or infinite.
          Exception: as :meth:`settle`.
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
        """Cancel all tasks, let time pass until they have ended, and end the run.

        If some of them do not end, the run is abandoned: not a line of it is
        executed any more. Repeated calls do nothing.

        Raises:
          StuckError: some tasks did not end; the message names their lines.
          Exception: whatever a task of :attr:`nursery` has raised.
        """
        if not self.is_open:
            return
        self.is_open = False
        stuck = None
        try:
            self.nursery.cancel_scope.cancel(reason="the driver is closed")
            if not self._runs_out():
                stuck = StuckError(f"tasks can't be cancelled: {places(self.tasks)}")
        finally:
            self._run.close()
        if stuck is not None:
            raise stuck
        assert self._run.outcome is not None
        try:
            self._run.outcome.unwrap()
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
        """Make a step whenever all other tasks wait; :meth:`_turn` counts on it.

        A task in ``wait_all_tasks_blocked`` also keeps Trio from starting a thread
        that waits for events.
        """
        with trio.CancelScope(shield=True):
            while not self._may_end:
                await trio.testing.wait_all_tasks_blocked()

    def _check_open(self) -> None:
        if not self.is_open:
            raise RuntimeError("the run is over")

    def _turn(self, most: int = _MOST_TICKS) -> None:
        """Let all tasks run until they wait, or the run is over."""
        lookout = {self._lookout}
        for _ in range(most):
            if self._run.outcome is not None:
                return
            self._steps.tasks.clear()
            self._run.tick()
            if self._steps.tasks == lookout and not self._may_end:
                system = self._lookout.parent_nursery
                assert system is not None
                if not self._main_is_over or len(system.child_tasks) > 1:
                    return
                self._may_end = True
        raise StuckError(f"tasks run without end: {places(self.tasks)}")

    @property
    def _next_deadline(self) -> float:
        """Seconds until the next deadline of a task."""
        return trio.lowlevel.current_statistics().seconds_to_next_deadline

    def _jump(self) -> None:
        """Jump to the next deadline, or past it by a rounding error."""
        self._clock.jump(max(self._next_deadline, math.ulp(self.now)))

    def _runs_out(self) -> bool:
        """Let time pass as long as there are deadlines; return whether it is over."""
        with contextlib.suppress(StuckError):
            self._turn(_LAST_TICKS)
            for _ in range(_MOST_DEADLINES):
                if self._run.outcome is not None or self._next_deadline == math.inf:
                    break
                self._jump()
                self._turn(_LAST_TICKS)
        return self._run.outcome is not None


class _Call(Generic[T]):
    """A function that is called in the run, and its outcome."""

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
    def line(self) -> str:
        """The line at which it waits."""
        assert self._task is not None
        _ours, *stack = self._task.iter_await_frames()
        return innermost_line(stack)

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
    """The tasks that have made a step."""

    def __init__(self) -> None:
        self.tasks = set[trio.lowlevel.Task]()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)


def places(tasks: Iterable[trio.lowlevel.Task]) -> str:
    """The name and the line of each task, in one line."""
    return "; ".join(f"{task.name} is at {line_of_task(task)}" for task in tasks)


def _below(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    """All tasks of a nursery and of their own nurseries; child tasks come first."""
    for task in nursery.child_tasks:
        for inner in task.child_nurseries:
            yield from _below(inner)
        yield task


def _only(error: BaseException) -> BaseException:
    """The error in a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""A driver: plain code runs Trio in its own thread, one call at a time.

Tasks run only while a method of the driver runs, and each method returns when all
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

#: Scheduler passes without time passing after which tasks count as an endless loop;
#: the second figure is for cancelled tasks.
_MOST_TICKS: Final = 20_000
_LAST_TICKS: Final = 3_000

#: The largest number of deadlines that :meth:`Driver.close` waits for, in turn.
_MOST_DEADLINES: Final = 1_000


class StuckError(AssertionError):
    """A call waits and nothing will wake it, or tasks never stop running.

    The message names the line of each task.
    """


class Driver:
    """A Trio run that runs only during calls of the driver's methods::

        with Driver(seed=1) as driver:
            server = driver.call(driver.nursery.start, serving)
            driver.sleep(10)

    Time is virtual and passes in :meth:`sleep` only. The clock does not jump when
    all tasks wait: they wait between any two steps of a test, and each idle timer
    would end its connection before the next step.

    A driver does not wait for sockets, threads and other things outside Trio. While
    a driver is open, no other Trio run can begin in its thread.

    Args:
      seed: decides the order in which ready tasks run.

    Attributes:
      nursery: for background tasks. An error in one of them ends the run, and the
        method that runs at that time raises it.
      is_open: whether the run continues: it was not closed, and no task of its
        nursery has failed.
    """

    nursery: trio.Nursery

    def __init__(self, *, seed: int = 0) -> None:
        self._clock = trio.testing.MockClock()
        self._steps = _Steps()
        self._main_has_ended = False
        self._may_end = False
        self._run = GuestRun(
            self._main, seed=seed, clock=self._clock, instruments=[self._steps]
        )
        self.is_open = True
        self._idle_task = trio.lowlevel.spawn_system_task(self._run_when_idle)
        self._run_until_idle()

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
        """All tasks except Trio's and the driver's; child tasks come first."""
        if self._run.is_closed:
            return ()
        system = self._idle_task.parent_nursery
        assert system is not None
        return tuple(
            task
            for nursery in (self.nursery, system)
            for task in _descendants(nursery)
            if task is not self._idle_task
        )

    def call(self, async_fn: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Run ``async_fn(*args)`` without letting time pass; return its result.

        Raises:
          StuckError: it waits and nothing will wake it. It is cancelled.
          RuntimeError: the run is over.
          Exception: an error of the function, or as :meth:`settle`.
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
          StuckError: they run without end.
          RuntimeError: the run is over.
          Exception: an error of a task of :attr:`nursery`.
        """
        self._check_open()
        self._run_until_idle()
        if self.nursery.cancel_scope.cancel_called:
            self.close()  # raises the error of the task that has failed
        self._check_open()

    def sleep(self, seconds: float) -> None:
        """Let time pass, and :meth:`settle` at each deadline on the way.

        Args:
          seconds: how much virtual time passes.

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

        If some of them do not end, the run is abandoned: no line of them is executed
        again. Repeated calls do nothing.

        Raises:
          StuckError: some tasks did not end; the message names their lines.
          Exception: an error of a task of :attr:`nursery`.
        """
        if not self.is_open:
            return
        self.is_open = False
        stuck = None
        try:
            self.nursery.cancel_scope.cancel(reason="the driver is closed")
            if not self._run_to_end():
                lines = task_lines(self.tasks)
                stuck = StuckError(f"tasks can't be cancelled: {lines}")
        finally:
            self._run.close()
        if stuck is not None:
            raise stuck
        assert self._run.outcome is not None
        try:
            self._run.outcome.unwrap()
        except BaseExceptionGroup as group:
            raise _unwrapped(group) from None

    # -- running

    async def _main(self) -> None:
        try:
            async with trio.open_nursery() as self.nursery:
                await trio.sleep_forever()
        finally:
            self._main_has_ended = True

    async def _run_when_idle(self) -> None:
        """Make a step whenever all other tasks wait: :meth:`_run_until_idle` needs it.

        A task in ``wait_all_tasks_blocked`` also keeps Trio from starting a thread
        that waits for events.
        """
        with trio.CancelScope(shield=True):
            while not self._may_end:
                await trio.testing.wait_all_tasks_blocked()

    def _check_open(self) -> None:
        if not self.is_open:
            raise RuntimeError("the run is over")

    def _run_until_idle(self, most: int = _MOST_TICKS) -> None:
        """Let all tasks run until they wait, or the run is over."""
        only_idle_task = {self._idle_task}
        for _ in range(most):
            if self._run.outcome is not None:
                return
            self._steps.tasks.clear()
            self._run.tick()
            if self._steps.tasks == only_idle_task and not self._may_end:
                system = self._idle_task.parent_nursery
                assert system is not None
                if not self._main_has_ended or len(system.child_tasks) > 1:
                    return
                self._may_end = True
        raise StuckError(f"tasks run without end: {task_lines(self.tasks)}")

    @property
    def _next_deadline(self) -> float:
        """Seconds until the next deadline of a task."""
        return trio.lowlevel.current_statistics().seconds_to_next_deadline

    def _jump(self) -> None:
        """Jump to the next deadline, or past it by a rounding error."""
        self._clock.jump(max(self._next_deadline, math.ulp(self.now)))

    def _run_to_end(self) -> bool:
        """Let time pass while there are deadlines; return whether the run is over."""
        with contextlib.suppress(StuckError):
            self._run_until_idle(_LAST_TICKS)
            for _ in range(_MOST_DEADLINES):
                if self._run.outcome is not None or self._next_deadline == math.inf:
                    break
                self._jump()
                self._run_until_idle(_LAST_TICKS)
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
        _own_frame, *stack = self._task.iter_await_frames()
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


def task_lines(tasks: Iterable[trio.lowlevel.Task]) -> str:
    """The name and the line of each task, in one line."""
    return "; ".join(f"{task.name} is at {line_of_task(task)}" for task in tasks)


def _descendants(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    """All tasks of a nursery and of their own nurseries; child tasks come first."""
    for task in nursery.child_tasks:
        for inner in task.child_nurseries:
            yield from _descendants(inner)
        yield task


def _unwrapped(error: BaseException) -> BaseException:
    """The single error in a group of one; otherwise the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

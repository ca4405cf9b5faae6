"""Driven coroutines: one that is watched at every step, and can be given up.

A handler that swallows whatever is raised in it, for ever, can't be stopped by
anything that is raised in it. So its coroutine is driven by hand, inside of the
task that would have awaited it. Of tasks that it has started, nothing is left to
run but their end.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, NoReturn

import trio


def keep_for_ever(undead: object) -> None:
    """Never collect it: then its coroutines would be closed once more.

    They would complain, or, swallowing that too, never let the interpreter end. So
    it is not enough that a module knows it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(undead))


class TornOut(BaseException):
    """Raised in whoever can't be cancelled."""


def tear_out(task: trio.lowlevel.Task) -> None:
    """Raise :class:`TornOut` where it waits, if it does, shielded or not."""
    # What Trio does to cancel, without asking whether it may.
    if task._abort_func is not None:
        task._attempt_abort(_raise_torn_out)


def _raise_torn_out() -> NoReturn:
    raise TornOut


def end_now(task: trio.lowlevel.Task) -> None:
    """Let a task end, and nothing more of it run, whatever it would do next."""
    keep_for_ever(task.coro)
    end: Any = _its_end()
    next(end)
    task.coro = end
    if task._next_send_fn is not None:
        task._next_send_fn = end.send
    tear_out(task)


def _its_end() -> Generator[None, object, None]:
    yield


class Driven:
    """Awaits a coroutine, and sees what comes into it.

    Attributes:
      cancels: the reason of each Cancelled that was delivered to it, in order.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.cancels: list[str | None] = []
        self._given_up = False

    def give_up(self) -> None:
        """End it at its next wait, whether it wants or not."""
        self._given_up = True

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        while True:
            try:
                trap = self.coroutine.send(value)
            except StopIteration as returned:
                return returned.value
            if self._given_up:
                return self._end()
            # What Trio sends is an outcome, of which an error is unwrapped inside.
            value = yield trap
            error = getattr(value, "error", None)
            if isinstance(error, trio.Cancelled):
                self.cancels.append(error.reason)

    def _end(self) -> None:
        chain = list(self._chain())
        try:
            self.coroutine.close()
        except BaseException:  # noqa: ASYNC103 - whatever it still says
            keep_for_ever(chain)

    def _chain(self) -> Iterator[Any]:
        """The coroutine, what it awaits, what that awaits, ..."""
        awaited: Any = self.coroutine
        while awaited is not None:
            yield awaited
            awaited = getattr(awaited, "cr_await", None) or getattr(
                awaited, "gi_yieldfrom", None
            )

    def stack(self) -> list[tuple[types.FrameType, int]]:
        """Where it stands: its frames and their lines, the outermost first."""
        frames = (
            getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            for awaited in self._chain()
        )
        return [(frame, frame.f_lineno) for frame in frames if frame is not None]

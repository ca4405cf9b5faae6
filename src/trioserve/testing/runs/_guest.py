"""Guest runs: plain code makes a Trio run go on, one pass of the scheduler at a time.

Guest mode is the one public way to leave a run whose tasks refuse to end: nothing
runs any more once its host makes no further passes. This module knows no handler,
no server and no test.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import outcome
import trio

from ._schedule import schedule


class GuestRun:
    """A Trio run in the calling thread.

    Args:
      main: the async function that is run.
      seed: of the order in which ready tasks run.
      clock, instruments: of the run, as for :func:`trio.run`.

    Attributes:
      outcome: what ``main`` returned or raised, once the run is over.
      is_closed: whether :meth:`close` was called.
    """

    def __init__(
        self,
        main: Callable[[], Awaitable[Any]],
        *,
        seed: int,
        clock: trio.abc.Clock,
        instruments: Sequence[trio.abc.Instrument],
    ) -> None:
        self.outcome: outcome.Outcome[Any] | None = None
        self.is_closed = False
        self._callbacks = queue.SimpleQueue[Callable[[], object]]()
        self._after = contextlib.ExitStack()
        self._after.enter_context(schedule(seed))
        self._after.callback(sys.set_asyncgen_hooks, *sys.get_asyncgen_hooks())
        try:
            trio.lowlevel.start_guest_run(
                main,
                run_sync_soon_threadsafe=self._callbacks.put,
                done_callback=self._end,
                # A signal interrupts the wait for a callback by itself.
                host_uses_signal_set_wakeup_fd=True,
                clock=clock,
                instruments=instruments,
            )
        except BaseException:
            self._after.close()
            raise

    def tick(self) -> None:
        """Make one pass of the scheduler.

        It blocks while the run waits for a thread or a file descriptor.
        """
        self._callbacks.get()()

    def close(self) -> None:
        """Put back what the run has changed. Abandon the run if it is not over.

        No line of the tasks of an abandoned run is executed again, not even their
        ``finally``. Repeated calls do nothing.
        """
        if self.is_closed:
            return
        self.is_closed = True
        try:
            if self.outcome is None:
                self._abandon()
        finally:
            self._after.close()

    def _end(self, run_outcome: outcome.Outcome[Any]) -> None:
        self.outcome = run_outcome

    def _abandon(self) -> None:
        _leak(trio.lowlevel.current_root_task())
        with warnings.catch_warnings():
            # Trio warns of an abandoned run.
            warnings.simplefilter("ignore", RuntimeWarning)
            # Only this callback refers to Trio's loop, which ends without it.
            self._callbacks.get_nowait()


def _leak(value: object) -> None:
    """Keep ``value``, and all that it refers to, until the process ends.

    A coroutine that is collected is closed first. Those of an abandoned run would
    complain; one that swallows ``GeneratorExit`` and goes on would hang. A reference
    in a module would only put that off to the end of the interpreter.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))

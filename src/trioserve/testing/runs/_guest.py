"""Guest runs: plain code advances a Trio run, one pass of the scheduler at a time.

Guest mode is the only public way to abandon a run whose tasks refuse to end: when
its host makes no more passes, no task runs. This module knows no handler, no server
and no test.
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

from ._schedule import Order, schedule


class GuestRun:
    """A Trio run in the calling thread.

    Args:
      main: the async function that is run.
      seed: decides the order in which ready tasks run.
      order: ``"shuffled"``, as Trio does it, or with tasks that wait while others make
        several steps: ``"held_back"``, ``"priorities"`` or ``"preempted"``.
      clock, instruments: as for :func:`trio.run`.

    Attributes:
      outcome: what ``main`` returned or raised, once the run is over.
      is_closed: whether :meth:`close` was called.
      places: with the order ``"preempted"``, how many other tasks could have run, at
        each place where there were some.
    """

    def __init__(
        self,
        main: Callable[[], Awaitable[Any]],
        *,
        seed: int,
        order: Order = "shuffled",
        clock: trio.abc.Clock,
        instruments: Sequence[trio.abc.Instrument],
    ) -> None:
        self.outcome: outcome.Outcome[Any] | None = None
        self.is_closed = False
        self._callbacks = queue.SimpleQueue[Callable[[], object]]()
        self._after = contextlib.ExitStack()
        self.places = self._after.enter_context(schedule(seed, order))
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
        """Restore what the run has changed. Abandon the run if it is not over.

        No line of the tasks of an abandoned run is executed again, not even their
        ``finally`` blocks. Repeated calls do nothing.
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
            # Trio warns about an abandoned run.
            warnings.simplefilter("ignore", RuntimeWarning)
            # Only this callback refers to Trio's loop; without it, the loop ends.
            self._callbacks.get_nowait()


def _leak(value: object) -> None:
    """Keep ``value``, and all that it refers to, until the process ends.

    Python closes a coroutine before it collects it. The coroutines of an abandoned
    run would complain, and one that swallows ``GeneratorExit`` and continues would
    hang. A reference in a module would only delay that until the interpreter exits.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))

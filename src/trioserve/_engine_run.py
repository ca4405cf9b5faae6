"""A relay at the engine: its pumps are started and stopped together, and a task waits.

This module does not know how bytes move, or why a relay ends.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import trio

from ._engine import Engine
from ._engine_pump import EnginePump, RelayCallbacks


class EngineRun:
    """The pumps of one relay while the engine runs them, and the task that waits."""

    __slots__ = ("_engine", "_pumps", "_task", "_woken")

    def __init__(self) -> None:
        self._engine: Engine
        self._pumps: Sequence[EnginePump] = ()
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    def start(
        self, engine: Engine, relay: RelayCallbacks, pumps: Sequence[EnginePump]
    ) -> None:
        """Let the engine move bytes, until :meth:`stop`.

        Raises:
          trio.BusyResourceError, trio.ClosedResourceError: a side is in use, or
            was closed.
          OSError: the system has no room for it.
        """
        engine.acquire()
        started = 0
        try:
            for pump, back in zip(pumps, reversed(pumps), strict=True):
                pump.start(engine, relay, back)
                started += 1
        except BaseException:
            for pump in pumps[:started]:
                pump.stop()
            engine.release()
            raise
        self._engine, self._pumps = engine, pumps
        for pump in pumps:
            pump.source.notify_on_close(relay)
        for pump in pumps:
            pump.send_first()

    def wait(self) -> Coroutine[Any, Any, Any]:
        """Wait until :meth:`wake` or :meth:`stop`; cancelled, it stops too.

        To be awaited at once, by the task that calls it.
        """
        # Not async itself: one more coroutine takes 200 bytes for each connection that
        # waits.
        if self._woken:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105

    def wake(self) -> None:
        """End the waiting; bytes go on moving. It is idempotent."""
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def stop(self) -> None:
        """End the waiting; no byte moves any more. It is idempotent."""
        self._stop_pumps()
        self.wake()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        """Trio's abort function: the wait is cancelled."""
        self._task = None
        self._stop_pumps()
        return trio.lowlevel.Abort.SUCCEEDED

    def _stop_pumps(self) -> None:
        pumps, self._pumps = self._pumps, ()
        if pumps:
            for pump in pumps:
                pump.source.notify_on_close(None)
                pump.stop()
            self._engine.release()

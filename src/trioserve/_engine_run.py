"""Run a relay at the engine: start and stop its pumps, and wait in a task.

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
          trio.BusyResourceError: another task or relay uses a side.
          trio.ClosedResourceError: a side was closed.
          OSError: out of descriptors or epoll watches.
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
        """Wait until :meth:`wake` or :meth:`stop`; a cancellation stops the pumps.

        Await the result at once, in the same task.
        """
        # Not an async function: that saves a coroutine of 200 bytes per connection.
        if self._woken:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105

    def wake(self) -> None:
        """End the wait; bytes go on moving. Idempotent."""
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def stop(self) -> None:
        """End the wait, and stop moving bytes. Idempotent."""
        self._stop_pumps()
        self.wake()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        """The abort function, called by Trio when the wait is cancelled."""
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

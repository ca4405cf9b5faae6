"""Relay by the engine: between two transports over sockets, without a task.

The engine moves bytes and calls back; the rules decide when the relay ends. What the
relay belongs to is told then: a connection of the server, or a task that waits.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from typing import Any

import trio

from ._attachments import RelayOwner
from ._engine import Engine
from ._engine_pump import EnginePump
from ._engine_run import start_pumps, stop_pumps
from ._errors import is_closed
from ._layered_pump import LayeredPump
from ._polled_pump import PolledPump
from ._pump import will_find_end
from ._reason import Reason
from ._relay_options import RelayOptions
from ._relay_rules import RelayRules
from ._transport import Transport


def pumps_between(
    a: Transport, b: Transport, first: bytes
) -> Sequence[PolledPump[Any]]:
    """Pumps from ``a`` to ``b`` and, unless they are the same, back.

    Args:
      first: bytes that go to ``b`` before any other.

    Returns:
      No pumps if the engine can't move the bytes of one of them.
    """
    if (one := a.pollable()) and (other := b.pollable()):
        there = EnginePump(one, other, first)
        return (there,) if a is b else (there, EnginePump(other, one))
    if (here := a.for_engine()) and (beyond := b.for_engine()):
        layered = LayeredPump(here, beyond, first)
        return (layered,) if a is b else (layered, LayeredPump(beyond, here))
    return ()


class EngineRelay(RelayRules):
    """A relay whose pumps the engine runs.

    Args:
      pumps: those that :func:`pumps_between` has made.
    """

    __slots__ = ("_engine", "_is_over", "_owner")

    pumps: Sequence[PolledPump[Any]]

    def __init__(self, pumps: Sequence[PolledPump[Any]], options: RelayOptions) -> None:
        super().__init__(pumps, options)
        #: The engine, while it runs the pumps.
        self._engine: Engine | None = None
        self._owner: RelayOwner | None = None
        self._is_over = False

    def begin(self, owner: RelayOwner) -> bool:
        self._start_moving()
        if self._is_over:
            return False
        self._owner = owner
        return True

    def move(self) -> Coroutine[Any, Any, Any]:
        # Not an async function: that saves a coroutine of 200 bytes per connection.
        if self._is_over or not self.begin(_Waiting()):  # over, if begin() has failed
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105
        return trio.lowlevel.wait_task_rescheduled(self._abort_wait)  # noqa: ASYNC105

    def _abort_wait(self, _: object) -> trio.lowlevel.Abort:
        """Called by Trio when the task that waits in :meth:`move` is cancelled."""
        self._owner = None
        self._stop_pumps()
        return trio.lowlevel.Abort.SUCCEEDED

    def stop_moving(self) -> None:
        self._stop_pumps()
        self._call_owner()

    def _call_owner(self) -> None:
        """Tell the owner that the relay is to be finished; idempotent."""
        self._is_over = True
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_relay_over()

    def _start_moving(self) -> None:
        self._engine = engine = Engine.of_this_run()
        try:
            start_pumps(engine, self, self.pumps)
        except BaseException as error:  # noqa: ASYNC103 - finish() raises it
            self._engine = None
            self.on_failure(error)

    def _stop_pumps(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            stop_pumps(engine, self.pumps)

    # -- callbacks of the pumps

    def on_eof(self, pump: PolledPump[Any]) -> None:
        self.direction_done(pump)
        sink, over = pump.sink, pump.back.done
        if not over:  # saves a system call at the end
            pump.update_interest()
        if not (over and self.options.closes_b):  # closing sends EOF, too
            try:
                sink.send_eof_now()
            except trio.ClosedResourceError:
                self.on_closed()
                return
        if sink.error is not None and not will_find_end(self.pumps, sink):
            pump.update_interest()
            self.on_error(sink)
        elif over:
            self.stop_moving()
        else:
            self.watch_soon(self.half_closed_at)

    def on_error(self, transport: Transport) -> None:
        if self.mark_lost(transport):
            self._call_owner()  # bytes go on moving

    def on_closed(self) -> None:
        self.end(
            Reason.ABORTED, error=trio.ClosedResourceError("this stream was closed")
        )

    def on_failure(self, error: BaseException) -> None:
        if is_closed(error):
            self.on_closed()
        elif isinstance(error, OSError):
            self.end(Reason.RESOURCE, error=error)
        else:
            self.fail(error)

    def on_backpressure(self, pump: PolledPump[Any], now: float) -> None:
        if pump.blocked and (
            self.timer_due == math.inf or self.quiet or self.has_short_timer()
        ):
            pump.sink.observe_acks(now)  # measure the sink's progress from here
        self.watch_soon(now)


class _Waiting:
    """The task that waits for a relay."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()

    def on_relay_over(self) -> None:
        trio.lowlevel.reschedule(self._task)

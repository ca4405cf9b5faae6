"""Relay by the engine: between two sockets, without a task for each direction.

The engine moves bytes and calls back; the rules decide when the relay ends.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import trio

from ._engine import Engine
from ._engine_pump import EnginePump
from ._engine_run import EngineRun
from ._errors import is_closed
from ._pump import will_find_end
from ._reason import Reason
from ._relay_options import RelayOptions
from ._relay_rules import RelayRules
from ._transport import PollableTransport


class EngineRelay(RelayRules):
    """A relay between two sockets: the engine runs its pumps, a task waits.

    Args:
      first: bytes that go to ``b`` before any other.
    """

    __slots__ = ("_run",)

    pumps: Sequence[EnginePump]

    def __init__(
        self,
        a: PollableTransport,
        b: PollableTransport,
        first: bytes,
        options: RelayOptions,
    ) -> None:
        there = EnginePump(a, b, first)
        pumps = (there,) if a is b else (there, EnginePump(b, a))
        super().__init__(pumps, options)
        self._run = EngineRun()

    def move(self) -> Coroutine[Any, Any, Any]:
        try:
            self._run.start(Engine.of_this_run(), self, self.pumps)
        except OSError as error:
            self.on_failure(error)
        return self._run.wait()

    def stop_moving(self) -> None:
        self._run.stop()

    # -- callbacks of the pumps

    def on_eof(self, pump: EnginePump) -> None:
        self.direction_done(pump)
        sink, over = pump.sink, pump.back.done
        if not (over and self.options.closes_b):  # closing sends EOF, too
            try:
                sink.send_eof_now()
            except trio.ClosedResourceError:
                self.on_closed()
                return
        if sink.error is not None and not will_find_end(self.pumps, sink):
            self.on_error(sink)
        elif over:
            self._run.stop()
        else:
            self.watch_from(self.half_closed_at)

    def on_error(self, transport: PollableTransport) -> None:
        if self.mark_lost(transport):
            self._run.wake()

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

    def on_backpressure(self, pump: EnginePump, now: float) -> None:
        # A bulk flow blocks thousands of times a second, and computing the deadline
        # each time would cost an eighth more CPU. A timer that is set fires within a
        # second, and then finds what is due.
        if self.timer_entry is None or self.quiet or self._has_a_short_timer():
            if pump.blocked:
                pump.sink.observe_acks(now)  # measure the sink's progress from here
            self.watch_from(now)

    def _has_a_short_timer(self) -> bool:
        timeouts = self.options.timeouts
        return (
            timeouts.write_stall <= 1
            or timeouts.idle <= 1
            or timeouts.half_closed <= 1
            or self.options.drain_idle <= 1
        )

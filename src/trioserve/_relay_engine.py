"""Relay by the engine: between two sockets, without a task for each direction.

The engine moves bytes and tells what happens; the rules decide what that means.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import trio

from ._engine import Direction, Engine, Pair
from ._errors import is_closed
from ._relay_rules import RelayOptions, RelayRules
from ._report import Reason
from ._transport import PollableTransport


class EngineRelay(RelayRules, Pair):
    """A relay between two sockets: the engine runs its pumps, a task waits.

    Args:
      first: bytes that go to ``b`` before any other.
    """

    __slots__ = Pair.SLOTS

    pumps: Sequence[Direction]

    def __init__(
        self,
        a: PollableTransport,
        b: PollableTransport,
        first: bytes,
        options: RelayOptions,
    ) -> None:
        there = Direction(a, b, first)
        directions = (there,) if a is b else (there, Direction(b, a))
        there.back, directions[-1].back = directions[-1], there
        RelayRules.__init__(self, directions, options)
        Pair.__init__(self)

    def move(self) -> Coroutine[Any, Any, Any]:
        try:
            self.begin(Engine.of_this_run(), self.pumps)
        except OSError as error:
            self.failed(error)
        return self.wait()

    def stop_moving(self) -> None:
        self.stop()

    # -- what the engine tells

    def ended(self, direction: Direction) -> None:
        self.direction_done(direction)
        sink, over = direction.sink, direction.back.done
        if not (over and self.options.closes_b):  # closing sends EOF, too
            try:
                sink.send_eof_now()
            except trio.ClosedResourceError:
                self.on_closed()
                return
        if sink.error is not None and not self.will_tell(sink):
            self.broke(sink)
        elif over:
            self.stop()
        else:
            self.watch_from(self.half_closed_at)

    def broke(self, transport: PollableTransport) -> None:
        if self.is_lost(transport):
            self.wake()

    def on_closed(self) -> None:
        self.end(Reason.ABORTED, error=trio.ClosedResourceError("this side was closed"))

    def failed(self, error: BaseException) -> None:
        if is_closed(error):
            self.on_closed()
        elif isinstance(error, OSError):
            self.end(Reason.RESOURCE, error=error)
        else:
            self.fail(error)

    def waits(self, direction: Direction, now: float) -> None:
        # Bulk is blocked thousands of times a second, and to look each time would cost
        # an eighth more. A timer entry that is there is for a look within a second,
        # which finds what is due.
        if self._alarm is None or self.quiet or self._has_a_short_timer():
            if direction.blocked:
                direction.sink.observe_acks(
                    now
                )  # from now on it is known what it takes
            self.watch_from(now)

    def _has_a_short_timer(self) -> bool:
        timeouts = self.options.timeouts
        return (
            timeouts.write_stall <= 1
            or timeouts.idle <= 1
            or timeouts.half_closed <= 1
            or self.options.drain_idle <= 1
        )

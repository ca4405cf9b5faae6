"""Faulty: a relay whose bytes suffer on their way.

A relay of tasks with a course for each direction: what a pump receives goes into
the course, and what comes out is delivered at its time. All rules of relays hold;
what the faults swallow counts as discarded.

A pump reads on while pieces wait for their time, so that latency costs no
throughput, and stops when a bounded number of bytes is under way. While its sink
takes nothing, it does not read: these bytes have not begun their way.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Final

import trio

from ._faults import Course, Ending, Faults, Impairment, Piece
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._relay_rules import FLUSH, RelayOptions
from ._relay_tasks import TaskPump, TaskRelay
from ._report import Reason
from ._transport import CHUNK, Transport

#: Bytes under way in one direction, at most.
_MOST: Final = 16 * 1024**2

#: Seconds after a boundary before anything more is sent, so that a receiver who
#: waits gets what came before by itself.
_APART: Final = 0.001

#: Bytes that are thrown away when a fault closes it, so that it looks closed.
_LINGER_BYTES: Final = 65536


class Ordeal:
    """What one connection is to suffer, and what of it has happened."""

    def __init__(self, faults: Faults, seed: int, connection: int) -> None:
        self.refused = faults.refuse
        self.up = Course(faults.up, f"{seed} {connection} up")
        self.down = Course(faults.down, f"{seed} {connection} down")
        self.window_up = _window(faults.up)
        self.window_down = _window(faults.down)

    @property
    def suffered(self) -> Sequence[str]:
        """Items of the grammar with their directions, like ``up:reset@4096``."""
        if self.refused:
            return ("refuse",)
        return (
            *(f"up:{item}" for item in self.up.suffered),
            *(f"down:{item}" for item in self.down.suffered),
        )


def _window(suffers: Impairment) -> int:
    """Bytes that may be under way, so that only bandwidth limits throughput."""
    rate = suffers.bandwidth or math.inf
    if suffers.slice is not None and suffers.pause:
        rate = min(rate, suffers.slice[1] / suffers.pause)
    if suffers.latency:
        return int(min(_MOST, CHUNK + rate * (suffers.latency + suffers.jitter)))
    return CHUNK


class _Way:
    """What is under way in one direction.

    Attributes:
      ending: how it has ended, if it has, before EOF or a reset came through.
      is_broken: whether its source was reset; what came before is delivered first.
      scope: around what moves its bytes.
    """

    __slots__ = (
        "_apart_until", "_began", "_eof_at", "_pieces", "_under_way", "_window",
        "course", "ending", "is_broken", "scope",
    )  # fmt: skip

    def __init__(self, course: Course, window: int, began: float) -> None:
        self.course = course
        self.ending: Ending | None = None
        self.is_broken = False
        self.scope = trio.CancelScope()
        self._began = began
        self._window = window
        self._pieces = collections.deque[Piece]()
        self._under_way = 0
        self._apart_until = -math.inf
        self._eof_at: float | None = None

    @property
    def reads(self) -> bool:
        """Whether more may come in."""
        over = self._eof_at is not None or self.is_broken or self.course.ending
        return not over and self._under_way < self._window

    @property
    def due(self) -> float:
        """When the next thing comes out, on Trio's clock."""
        if self._pieces:
            return max(self._began + self._pieces[0].at, self._apart_until)
        if self.is_broken or self.course.ending:
            return -math.inf
        return math.inf if self._eof_at is None else self._began + self._eof_at

    def put(self, data: bytes, now: float) -> None:
        """Something was received, or EOF."""
        if not data:
            self._eof_at = self.course.feed_eof(now - self._began)
            return
        for piece in self.course.feed(data, now - self._began):
            self._pieces.append(piece)
            self._under_way += len(piece.data)

    def take(self, now: float) -> bytes:
        """What is due; ``b""`` is EOF, or how it ends.

        Raises:
          trio.BrokenResourceError: its source is broken, and all bytes are out.
        """
        if self._pieces:
            piece = self._pieces.popleft()
            self._under_way -= len(piece.data)
            if piece.boundary:
                self._apart_until = now + _APART
            return piece.data
        if self.is_broken:
            raise trio.BrokenResourceError
        if self.course.ending:
            self.end(self.course.ending)
        return b""

    def end(self, ending: Ending) -> None:
        self.ending = ending
        self.course.suffer(ending)


class FaultyRelay(TaskRelay):
    """A relay of tasks whose bytes suffer ``ordeal``.

    An ending by bytes is found by the pump that has delivered these. One by time
    is the deadline of its pump's scope if it is about one direction, and has a
    task of its own if it is about both.
    """

    __slots__ = ("_by_fin", "_ways")

    def __init__(
        self,
        ordeal: Ordeal,
        client: Lifecycle,
        upstream: Transport,
        timeouts: Timeouts,
    ) -> None:
        began = client.accepted_at
        options = RelayOptions(
            timeouts,
            timeouts.drain_idle,
            client.timers,
            upstream.moved_at,
            closes_b=True,
            client=client,
        )
        super().__init__(client.transport, upstream, b"", options)
        up, down = self.task_pumps
        self._ways: dict[TaskPump, _Way] = {
            up: _Way(ordeal.up, ordeal.window_up, began),
            down: _Way(ordeal.down, ordeal.window_down, began),
        }
        self._by_fin = False

    async def move(self) -> None:
        async with trio.open_nursery() as nursery:
            for pump, way in self._ways.items():
                for ending in way.course.timed:
                    if ending.is_last:
                        nursery.start_soon(self._end_at_its_time, pump, ending)
                    else:
                        way.scope.deadline = self._time_of(ending)
            await super().move()
            nursery.cancel_scope.cancel(reason="the relay is over")

    async def run_pump(self, pump: TaskPump) -> None:
        way = self._ways[pump]
        with way.scope:
            await super().run_pump(pump)
        if way.scope.cancelled_caught and way.ending is None:
            way.end(way.course.timed[0])
        ending = way.ending
        if ending is None:
            return
        with trio.CancelScope() as way.scope:
            match ending.kind:
                case "eof":
                    await self._pass_eof_and_throw_away(pump)
                case "reset" | "close":
                    await self._end_as_asked(pump, ending)
                case _:  # a stall, or it vanished
                    await trio.sleep_forever()
        if way.scope.cancelled_caught:
            await trio.sleep_forever()

    async def receive(self, pump: TaskPump) -> bytes:
        way = self._ways[pump]
        while way.ending is None:
            if way.due <= (now := trio.current_time()):
                pump.receiving = way.is_broken
                data = way.take(now)
                if data or way.ending is None:
                    return data
            else:
                await self._receive_more(pump, way)
        if way.ending.kind != "eof":
            self._halt(way, way.ending)
            await trio.sleep_forever()
        if pump.done:
            while await super().receive(pump):
                pass  # it comes after EOF, and is thrown away
        return b""

    async def _receive_more(self, pump: TaskPump, way: _Way) -> None:
        """Receive something, or wait until something is due."""
        if not way.reads:
            await trio.sleep_until(way.due)
            return
        with trio.CancelScope(deadline=way.due):
            try:
                data = await super().receive(pump)
            except trio.BrokenResourceError:
                way.is_broken = True
            else:
                way.put(data, trio.current_time())

    async def _pass_eof_and_throw_away(self, pump: TaskPump) -> None:
        # That it was passed on already, or cut off while it was, is no matter:
        # twice is once.
        pump.done = False
        await super().run_pump(pump)
        pump.reading = True
        await super().run_pump(pump)

    async def _end_at_its_time(self, pump: TaskPump, ending: Ending) -> None:
        await trio.sleep_until(self._time_of(ending))
        if self.close_reason is None:
            way = self._ways[pump]
            way.course.suffer(ending)
            if ending.kind == "vanish":
                self._halt(way, ending)
            else:
                await self._end_as_asked(pump, ending)

    def _halt(self, way: _Way, ending: Ending) -> None:
        """Move no more bytes this way; if the connection vanished, either way."""
        halted = self._ways.values() if ending.kind == "vanish" else (way,)
        for each in halted:
            each.ending = ending
            each.scope.cancel(reason=str(ending))

    async def _end_as_asked(self, pump: TaskPump, ending: Ending) -> None:
        """End both directions, by RST or by FIN; unless they are ended already."""
        if self.close_reason is not None:
            await trio.sleep_forever()
        self.close_as(Reason.FAULT)
        self._by_fin = ending.kind == "close"
        if not self._by_fin:
            await pump.sink.wait_acknowledged(FLUSH)
        self.stop_moving()

    async def close_sides(self, reason: Reason) -> None:
        if not self._by_fin:
            await super().close_sides(reason)
            return
        await self.send_eof_to_both()
        # Closed with bytes that nobody has read, it would be reset.
        await self.b.discard(_LINGER_BYTES, self.options.timeouts.linger)

    def _time_of(self, ending: Ending) -> float:
        assert ending.seconds is not None
        return self.started_at() + ending.seconds

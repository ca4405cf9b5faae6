"""A relay that applies faults to the bytes of a connection.

A relay of tasks with a delay line for each direction: a pump puts the bytes that it
receives into the line, and sends them when they are due. All rules of relays hold.
Bytes that are lost to faults count as discarded.

A pump keeps reading while segments wait to be due, so that latency costs no
throughput, until the line is full. While the sink is full, the pump does not read:
bytes that the kernel holds then have not entered the line yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trioserve._closing import LINGER_BYTES
from trioserve._lifecycle import Lifecycle
from trioserve._options import Timeouts
from trioserve._reason import Reason
from trioserve._relay_options import RelayOptions
from trioserve._relay_rules import FLUSH, send_eof_to_both
from trioserve._relay_tasks import TaskPump, TaskRelay
from trioserve._transport import Transport

from ._delay_line import DelayLine, window
from ._schedule import Schedule
from ._values import Faults, Termination


class ActiveFaults:
    """The faults of one connection: its fault schedules, and what was applied.

    Args:
      faults: the proxy's faults.
      seed: the proxy's seed.
      connection: the number of the connection; each one draws its own faults.
    """

    def __init__(self, faults: Faults, seed: int, connection: int) -> None:
        self.refuse = faults.refuse
        self.up = Schedule(faults.up, f"{seed} {connection} up")
        self.down = Schedule(faults.down, f"{seed} {connection} down")
        self._faults = faults

    @property
    def applied(self) -> Sequence[str]:
        """The applied faults as text with their directions, like ``up:reset@4096``."""
        if self.refuse:
            return ("refuse",)
        return (
            *(f"up:{item}" for item in self.up.applied),
            *(f"down:{item}" for item in self.down.applied),
        )

    def delay_lines(self, began: float) -> tuple[DelayLine, DelayLine]:
        """The delay lines of both directions, for a connection that began then."""
        faults = self._faults
        return (
            DelayLine(self.up, window(faults.up), began),
            DelayLine(self.down, window(faults.down), began),
        )


class FaultyRelay(TaskRelay):
    """A relay of tasks that applies faults to its bytes.

    The pump that has delivered the last byte before a termination by bytes finds
    that termination in its delay line. A termination by time that ends one direction
    is the deadline of that direction's scope; one that ends both has a task.

    Args:
      active: the faults. Their times count from when ``client`` was accepted.
      client: the connection.
      upstream: the target's transport; it is closed at the end.
      timeouts: of the relay.
    """

    __slots__ = ("_by_fin", "_lines")

    def __init__(
        self,
        active: ActiveFaults,
        client: Lifecycle,
        upstream: Transport,
        timeouts: Timeouts,
    ) -> None:
        options = RelayOptions(
            timeouts,
            timeouts.drain_idle,
            client.timers,
            upstream.moved_at,
            closes_b=True,
            client=client,
        )
        super().__init__(client.transport, upstream, b"", options)
        lines = active.delay_lines(self.options.accepted_at)
        self._lines: dict[TaskPump, DelayLine] = dict(
            zip(self.task_pumps, lines, strict=True)
        )
        for pump, line in self._lines.items():
            if pump.first:  # faults apply to it, too
                line.put(pump.first, upstream.moved_at)
                pump.first = b""
        self._by_fin = False

    async def move(self) -> None:
        async with trio.open_nursery() as nursery:
            for pump, line in self._lines.items():
                for timed in line.schedule.timed:
                    if timed.ends_both:
                        nursery.start_soon(self._terminate_at_its_time, pump, timed)
                    else:
                        line.scope.deadline = self._time_of(timed)
            await super().move()
            nursery.cancel_scope.cancel(reason="the relay is over")

    async def run_pump(self, pump: TaskPump) -> None:
        # First it moves bytes; then it carries out the termination, if there is one.
        # Halting the direction cancels the scope of either part.
        line = self._lines[pump]
        with line.scope:
            await super().run_pump(pump)
        if line.scope.cancelled_caught and line.termination is None:
            # The scope's deadline has passed: that of the first timed termination.
            line.terminate(line.schedule.timed[0])
        termination = line.termination
        if termination is None:
            return
        with trio.CancelScope() as line.scope:
            match termination.kind:
                case "eof":
                    await self._pass_eof_and_discard(pump)
                case "reset" | "close":
                    await self._end_both(pump, termination)
                case _:  # "stall" and "vanish" move nothing until the relay ends
                    await trio.sleep_forever()
        if line.scope.cancelled_caught:
            # Meanwhile a fault of the other direction has made both vanish.
            await trio.sleep_forever()

    async def receive(self, pump: TaskPump) -> bytes:
        """Receive from the delay line instead of the source."""
        line = self._lines[pump]
        while line.termination is None:
            if line.due <= (now := trio.current_time()):
                pump.receiving = line.is_broken
                data = line.take(now)
                if data or line.termination is None:
                    return data
            else:
                await self._receive_more(pump, line)
        if line.termination.kind != "eof":
            self._halt(line, line.termination)
            await trio.sleep_forever()
        if pump.done:
            while await super().receive(pump):
                pass  # bytes after the EOF are discarded
        return b""

    async def _receive_more(self, pump: TaskPump, line: DelayLine) -> None:
        """Receive into the line until something is due, or only wait for that."""
        if not line.has_room:
            await trio.sleep_until(line.due)
            return
        with trio.CancelScope(deadline=line.due):
            try:
                data = await super().receive(pump)
            except trio.BrokenResourceError:
                line.is_broken = True
            else:
                line.put(data, trio.current_time())

    async def _pass_eof_and_discard(self, pump: TaskPump) -> None:
        # The first run receives b"" and passes EOF on. If the deadline has cancelled
        # the pump while it did that, it does it again; EOF is idempotent.
        pump.done = False
        await super().run_pump(pump)
        # The pump is done now, so this run discards what it receives.
        pump.reading = True
        await super().run_pump(pump)

    async def _terminate_at_its_time(
        self, pump: TaskPump, termination: Termination
    ) -> None:
        await trio.sleep_until(self._time_of(termination))
        if self.close_reason is None:
            line = self._lines[pump]
            line.schedule.mark_applied(termination)
            if termination.kind == "vanish":
                self._halt(line, termination)
            else:
                await self._end_both(pump, termination)

    def _halt(self, line: DelayLine, termination: Termination) -> None:
        """Move no more bytes in this direction, or in both if they vanish."""
        both = termination.kind == "vanish"
        for halted in self._lines.values() if both else (line,):
            halted.termination = termination
            halted.scope.cancel(reason=str(termination))

    async def _end_both(self, pump: TaskPump, termination: Termination) -> None:
        """End both directions by RST or FIN, unless they are ending already."""
        if self.close_reason is not None:
            await trio.sleep_forever()
        self.close_as(Reason.FAULT)
        self._by_fin = termination.kind == "close"
        if not self._by_fin:
            await pump.sink.wait_acknowledged(FLUSH)
        self.stop_moving()

    def close_sides_now(self) -> bool:
        return not self._by_fin and super().close_sides_now()

    async def close_sides(self) -> None:
        if not self._by_fin:
            await super().close_sides()
            return
        await send_eof_to_both(self.a, self.b)
        # A close with unread bytes would be a reset.
        await self.b.discard(LINGER_BYTES, self.options.timeouts.linger)

    def _time_of(self, termination: Termination) -> float:
        assert termination.seconds is not None
        return self.options.accepted_at + termination.seconds

"""Relay by tasks: between streams of any kind, with one task for each direction.

The tasks move bytes; the rules decide when the relay ends and how it closes.
"""

from __future__ import annotations

import trio

from ._pump import Pump, will_find_end
from ._reason import Reason
from ._relay_options import RelayOptions
from ._relay_rules import RelayRules
from ._transport import Transport


class TaskPump(Pump):
    """A pump that runs in a task of its own.

    Attributes:
      first: bytes that were received before, and go to the sink before any other.
      receiving: whether it is receiving from the source, rather than sending.
    """

    __slots__ = ("first", "receiving")

    def __init__(self, source: Transport, sink: Transport, first: bytes = b"") -> None:
        self.first = first + source.take_unread()
        super().__init__(source, sink, len(self.first))
        self.receiving = False


class TaskRelay(RelayRules):
    """A relay over streams of any kind.

    Args:
      first: bytes that go to ``b`` before any other.

    Attributes:
      task_pumps: the pumps, each with its task.
    """

    __slots__ = ("_closed_whole", "_scope", "task_pumps")

    def __init__(
        self, a: Transport, b: Transport, first: bytes, options: RelayOptions
    ) -> None:
        self.task_pumps = [TaskPump(a, b, first)]
        if a is not b:
            self.task_pumps.append(TaskPump(b, a))
        super().__init__(self.task_pumps, options)
        self._closed_whole: Transport | None = None
        self._scope = trio.CancelScope()

    async def move(self) -> None:
        self.a.on_wait = self.b.on_wait = self.watch
        with self._scope:
            async with trio.open_nursery() as nursery:
                for pump in self.task_pumps:
                    nursery.start_soon(self.run_pump, pump)

    def stop_moving(self) -> None:
        self._scope.cancel(reason="the relay has ended")
        self.a.on_wait = self.b.on_wait = None

    async def run_pump(self, pump: TaskPump) -> None:
        """Move one direction, from its first byte to its EOF."""
        source, sink = pump.source, pump.sink
        try:
            if pump.first:
                first, pump.first = pump.first, b""
                await sink.send(first)
            while data := await self.receive(pump):
                await sink.send(data)
            self.direction_done(pump)
            await self._pass_eof(sink)
        except trio.BrokenResourceError:
            lost = source if pump.receiving else sink
            # Bytes that the sink's peer sent before are still to be read. The other
            # pump reads them, and then comes here as well.
            if lost is sink and sink is not source and will_find_end(self.pumps, sink):
                return
            await self.lose(lost)
        except trio.ClosedResourceError as error:
            self.end(Reason.ABORTED, error=error)
        except trio.BusyResourceError as error:
            self.fail(error)
        finally:
            pump.reading = False

    async def receive(self, pump: TaskPump) -> bytes:
        """Receive the next bytes of a direction, or ``b""`` at EOF."""
        pump.receiving = True
        try:
            data = await pump.source.receive()
        except trio.ClosedResourceError:
            # The other pump has closed it, because it can't be half-closed.
            if pump.source is not self._closed_whole:
                raise
            data = b""
        pump.receiving = False
        if self.quiet:
            self.on_activity(trio.current_time())
        return data

    async def _pass_eof(self, sink: Transport) -> None:
        if sink.can_half_close:
            await sink.send_eof()
        else:
            self._closed_whole = sink
            sink.close()
            await sink.wait_closed()
        if sink.error is not None and not will_find_end(self.pumps, sink):
            await self.lose(sink)
        self.watch()

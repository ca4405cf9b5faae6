"""The server under test: it runs over the network in memory, and rules disturb it.

This module records the wire, what rules have done, and the clock. It checks no laws,
except when a client connects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from trioserve import (
    Connection,
    ConnectionReport,
    DrainSummary,
    Limits,
    Server,
    Timeouts,
    serve,
)
from trioserve.testing._traffic import Traffic
from trioserve.testing.network import Event, MemoryNetwork
from trioserve.testing.runs import Driver, task_lines

from ._client import Client
from ._failure import require

Handler: TypeAlias = Callable[[Connection], Awaitable[object]]


class InjectedError(Exception):
    """Raised by the handler of connection ``number``, because a rule made it raise.

    The collector raises it with number 0.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _HandlerCall:
    """A call of the handler, for one connection."""

    def __init__(self, stream: Connection) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self.injected: InjectedError | None = None


class ServedServer:
    """A running server, its clients, and a record of both.

    Args:
      driver: the driver of the run in which it serves.
      handler, limits, timeouts: as for :func:`trioserve.serve`.

    Attributes:
      driver, timeouts: as above.
      server: the server under test.
      clients: all clients that have connected.
      bystanders: the clients that no rule disturbs.
      traffic: the bytes and the state at the server's end, by connection.
      reports: the reports that the collector has received so far.
      reported_at: the times at which it received them.
      collector_dies: whether the collector raises at the next report.
      excess: how the limit was exceeded, in words, or None.
      accepts_until: the time at which the server stops accepting.
      deadline: the time at which the drain cuts the remaining connections.
      outcome: what ``serve`` returned or raised.
    """

    def __init__(
        self, driver: Driver, handler: Handler, limits: Limits, timeouts: Timeouts
    ) -> None:
        self.driver = driver
        self.timeouts = timeouts
        self.clients = list[Client]()
        self.bystanders = list[Client]()
        self.traffic = dict[int, Traffic]()
        self.reports: list[ConnectionReport] = []
        self.reported_at = list[float]()
        self.collector_dies = False
        self.excess: str | None = None
        self.accepts_until = math.inf
        self.deadline = math.inf
        self.outcome: DrainSummary | BaseException | None = None
        self._handler = handler
        self._limits = limits
        self._calls = dict[int, _HandlerCall]()
        self._network = MemoryNetwork(on_event=self._on_event)
        self._listener = self._network.listen()
        self.server: Server = driver.call(driver.nursery.start, self._serve)

    # -- what rules do

    def connect(self, *, is_bystander: bool = False) -> Client | None:
        """Connect a client; None if the server refuses it."""
        try:
            client = self.driver.call(self._new_client, is_bystander)
        except ConnectionRefusedError:
            require("no lost hello", not self.accepts, "a client was refused")
            return None
        require("drain ends", self.accepts, "it drains, but still accepts a client")
        return client

    def let_handler_raise(self, client: Client) -> None:
        """Make the client's handler, if it runs, raise where it waits."""
        if (call := self._calls.get(client.number)) is not None:
            call.injected = InjectedError(client.number)
            call.scope.cancel(reason="a rule makes it raise")

    def let_handler_abort(self, client: Client) -> None:
        """Abort the client's connection, if its handler runs."""
        if (call := self._calls.get(client.number)) is not None:
            call.stream.abort()

    def change_limit(self, most: int) -> None:
        """Set ``max_connections``."""
        self.server.limits = dataclasses.replace(
            self.server.limits, max_connections=most
        )

    def drain(self, within: float) -> None:
        """Begin to drain, or shorten the drain."""
        now, lame_duck = self.driver.now, 0.0
        if not self.is_draining:
            lame_duck = self.timeouts.lame_duck
            self.accepts_until = now + lame_duck
        self.deadline = min(self.deadline, now + (within + lame_duck))
        self.accepts_until = min(self.accepts_until, self.deadline)
        self.server.start_draining(within)

    # -- the record

    @property
    def is_draining(self) -> bool:
        return self.deadline < math.inf

    @property
    def accepts(self) -> bool:
        """Whether the server must accept new clients."""
        return self.driver.now < self.accepts_until

    @property
    def served(self) -> list[int]:
        """Connections whose handler was started and that are not closed."""
        return [number for number in self._calls if self.is_open(number)]

    @property
    def waiting(self) -> list[int]:
        """Connections that are neither served nor closed."""
        return [
            number
            for number, traffic in self.traffic.items()
            if number not in self._calls and not traffic.is_closed
        ]

    def is_open(self, number: int) -> bool:
        return any(number == connection.id for connection in self.server.connections)

    @property
    def task_lines(self) -> str:
        """The lines of all tasks but the clients'."""
        clients = tuple(map(repr, self.clients))
        tasks = (t for t in self.driver.tasks if not t.name.startswith(clients))
        return task_lines(tasks)

    # -- what happens in the run

    async def _new_client(self, is_bystander: bool) -> Client:
        stream = await self._network.connect(self._listener)
        client = Client(int(stream.name.split()[-1]), stream)
        self.clients.append(client)
        if is_bystander:
            self.bystanders.append(client)
        self.driver.nursery.start_soon(client.run, name=client)
        return client

    async def _serve(self, task_status: trio.TaskStatus[Server]) -> None:
        try:
            self.outcome = await serve(
                self._handle,
                [self._listener],
                limits=self._limits,
                timeouts=self.timeouts,
                collector=self._collect,
                task_status=task_status,
            )
        except Exception as error:
            self.outcome = error

    async def _handle(self, stream: Connection) -> object:
        call = self._calls[stream.id] = _HandlerCall(stream)
        most, now = self.server.limits.max_connections, len(self.served)
        if now > most:
            self.excess = f"{now} were served at once, and {most} may be"
        is_bystander = any(stream.id == c.number for c in self.bystanders)
        handler = _send_back if is_bystander else self._handler
        with call.scope:
            return await handler(stream)
        assert call.injected is not None
        raise call.injected

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self.reports.append(report)
            self.reported_at.append(trio.current_time())
            if self.collector_dies:
                raise InjectedError(0)

    def _on_event(self, event: Event) -> None:
        side, number = event.stream.name.split()
        traffic = self.traffic.setdefault(int(number), Traffic())
        if side == "server":
            traffic.count(event)


async def _send_back(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data)

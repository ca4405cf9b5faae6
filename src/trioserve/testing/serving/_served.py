"""A served server: it runs over the network in memory, and rules may disturb it.

What is known of it comes from the wire, from what rules have asked for and from the
clock. Which laws that must fulfil is known elsewhere.
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
from trioserve.testing.runs import Driver, places

from ._client import Client
from ._failure import require

Handler: TypeAlias = Callable[[Connection], Awaitable[object]]


class OrderedError(Exception):
    """Raised by the handler of connection ``number``, because a rule said so.

    The collector raises it with number 0.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Served:
    """A connection whose handler was started."""

    def __init__(self, stream: Connection) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self.order: OrderedError | None = None


class ServedServer:
    """A server that runs, its clients, and all that is known of both.

    Args:
      driver: of the run in which it serves.
      handler, limits, timeouts: of the server.

    Attributes:
      driver, timeouts: as above.
      server: what is tested.
      clients: all that have connected.
      bystanders: the clients to which nothing is done.
      traffic: what went over the wire at the server's end, by connection.
      reports: what the collector got so far.
      reported_at: the times at which it got them.
      collector_dies: whether the collector raises at the next report.
      excess: what the limit did not prevent, in words.
      accepts_until: the time at which the server stops accepting.
      deadline: the time at which the drain cuts what is left.
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
        self._started = dict[int, _Served]()
        self._network = MemoryNetwork(on_event=self._saw)
        self._listener = self._network.listen()
        self.server: Server = driver.call(driver.nursery.start, self._serve)

    # -- what rules do to it

    def connect(self, *, is_bystander: bool = False) -> Client | None:
        """Connect a client. None if the server refuses it."""
        try:
            client = self.driver.call(self._new_client, is_bystander)
        except ConnectionRefusedError:
            require("no lost hello", not self.accepts, "a client was refused")
            return None
        require("drain ends", self.accepts, "it drains, and still takes a client")
        return client

    def let_handler_raise(self, client: Client) -> None:
        """Make the client's handler, if it runs, raise where it waits."""
        if (served := self._started.get(client.number)) is not None:
            served.order = OrderedError(client.number)
            served.scope.cancel(reason="ordered to raise")

    def let_handler_abort(self, client: Client) -> None:
        """Abort the client's connection, if its handler runs."""
        if (served := self._started.get(client.number)) is not None:
            served.stream.abort()

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

    # -- what is known

    @property
    def is_draining(self) -> bool:
        return self.deadline < math.inf

    @property
    def accepts(self) -> bool:
        """Whether new clients are to be accepted."""
        return self.driver.now < self.accepts_until

    @property
    def served(self) -> list[int]:
        """Connections whose handler was started and that are not closed."""
        return [number for number in self._started if self.is_open(number)]

    @property
    def waiting(self) -> list[int]:
        """Connections that are neither served nor closed."""
        return [
            number
            for number, traffic in self.traffic.items()
            if number not in self._started and not traffic.is_closed
        ]

    def is_open(self, number: int) -> bool:
        return any(number == connection.id for connection in self.server.connections)

    @property
    def places(self) -> str:
        """The lines of all tasks but the clients'."""
        clients = tuple(map(repr, self.clients))
        tasks = (t for t in self.driver.tasks if not t.name.startswith(clients))
        return places(tasks)

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
        served = self._started[stream.id] = _Served(stream)
        most, now = self.server.limits.max_connections, len(self.served)
        if now > most:
            self.excess = f"{now} were served at once where {most} may be"
        is_bystander = any(stream.id == c.number for c in self.bystanders)
        handler = _send_back if is_bystander else self._handler
        with served.scope:
            return await handler(stream)
        assert served.order is not None
        raise served.order

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self.reports.append(report)
            self.reported_at.append(trio.current_time())
            if self.collector_dies:
                raise OrderedError(0)

    def _saw(self, event: Event) -> None:
        side, number = event.stream.name.split()
        traffic = self.traffic.setdefault(int(number), Traffic())
        if side == "server":
            traffic.saw(event)


async def _send_back(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data)

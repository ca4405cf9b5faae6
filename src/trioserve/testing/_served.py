"""A server that is served to: over the network in memory, with its laws.

What must hold is known from the wire, from what was asked for and from the clock;
the server is never asked about itself alone. It does not know what a handler
answers, or who decides what happens next.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeAlias

import trio

from trioserve import (
    Connection,
    ConnectionReport,
    DrainSummary,
    Limits,
    Reason,
    Server,
    Timeouts,
    serve,
)

from ._client import Client
from ._driver import Driver, places
from ._network import MemoryNetwork
from ._stream import Event

ServeLaw: TypeAlias = Literal[
    "isolation", "limit", "one record", "byte ledger", "drain ends",
    "no lost hello", "nothing left", "errors",
]  # fmt: skip

#: What each law asks for, in one sentence.
SERVE_LAWS: Final[dict[ServeLaw, str]] = {
    "isolation": "nothing that happens to a connection ends another one, or the server",
    "limit": "never do more hold a slot than may, and nobody waits while one is free",
    "one record": "each connection has one report, and the counters add up",
    "byte ledger": "what reports and statistics count is what went over the wire",
    "drain ends": "a drain cuts what is left at its deadline, nothing before, and ends",
    "no lost hello": "who was let in or waited is served, told or reset, not forgotten",
    "nothing left": "afterwards there is no task and no slot that was not there before",
    "errors": "the handler raises nothing but the errors of its stream, or `raises`",
}

#: Why a connection may end to which nothing was done: the server's clock, its limit,
#: or its own end.
_BY_ITSELF: Final = (
    Reason.FIRST_BYTE, Reason.IDLE, Reason.HALF_CLOSED, Reason.WRITE_STALL,
    Reason.LIFETIME, Reason.LIMIT, Reason.STOPPING, Reason.CUT,
)  # fmt: skip

#: Seconds that a drain may take, however long it may.
_PATIENCE: Final = 3600.0


class ServeFailure(AssertionError):  # noqa: N818 - it is the server's, or a handler's
    """A law of serving was broken.

    Attributes:
      law: its name.
    """

    def __init__(self, law: ServeLaw, how: str) -> None:
        self.law = law
        super().__init__(f"law {law!r}: {how}\n\nThe law: {SERVE_LAWS[law]}.")


def _require(law: ServeLaw, holds: bool, how: str) -> None:
    if not holds:
        raise ServeFailure(law, how)


class OrderedError(Exception):
    """What the handler of connection ``number`` raises because a rule said so.

    And the collector, as number 0.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Wire:
    """What went over the wire at the server's end of a connection.

    Attributes:
      has_gaps: whether it may have sent a part of what a call was to send; what a
        call that fails or is cancelled has passed on to a stream is not counted.
    """

    def __init__(self) -> None:
        self.is_accepted = False
        self.is_closed = False
        self.received = 0
        self.sent = 0
        self.has_gaps = False
        self._waits_to_send = False

    def saw(self, event: Event) -> None:
        match event.kind:
            case "accept":
                self.is_accepted = True
            case "receive":
                self.received += len(event.data or b"")
            case "send":
                self.sent += len(event.data or b"")
                self._waits_to_send = False
            case "wait_send":
                self._waits_to_send = True
            case "cancelled" | "receive_reset":
                self.has_gaps = True
            case "close":
                self.is_closed = True
                self.has_gaps = self.has_gaps or self._waits_to_send
            case _:
                pass


class _HandlerRun:
    """A handler that was started, and what it was ordered to raise."""

    def __init__(self, stream: Connection) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self.order: OrderedError | None = None


class Served:
    """A server that runs, its clients, and all that is known of both.

    Args:
      driver: of the run in which it serves.
      handler, limits, timeouts: of the server.
      raises: exceptions that the handler may raise.

    Attributes:
      server: what is tested.
      reports: what its collector got so far.
      bystanders: clients to which nothing is done, and whose bytes come back.
      collector_dies: whether its collector raises at the next report.
    """

    def __init__(
        self,
        driver: Driver,
        handler: Callable[[Connection], Awaitable[object]],
        limits: Limits,
        timeouts: Timeouts,
        raises: Sequence[type[BaseException]],
    ) -> None:
        self.reports: list[ConnectionReport] = []
        self.bystanders = list[Client]()
        self.collector_dies = False
        self._driver = driver
        self._handler = handler
        self._limits = limits
        self._timeouts = timeouts
        self._raises = tuple(raises)
        self._clients = list[Client]()
        self._wires = dict[int, _Wire]()
        self._lives = dict[int, _HandlerRun]()
        self._reported_at = list[float]()
        self._too_many: str | None = None
        # Of a drain, as it was asked for.
        self._accepts_until = math.inf
        self._deadline = math.inf
        self._outcome: DrainSummary | BaseException | None = None
        self._network = MemoryNetwork(on_event=self._saw)
        self._listener = self._network.listen()
        self.server: Server = driver.call(driver.nursery.start, self._serve)

    # -- what may happen to it

    def connect(self, *, is_bystander: bool = False) -> Client | None:
        """A new client; None if the server takes no more."""
        try:
            client = self._driver.call(self._new_client, is_bystander)
        except ConnectionRefusedError:
            _require("no lost hello", not self._accepts, "a client was refused")
            return None
        _require("drain ends", self._accepts, "it drains, and still takes a client")
        return client

    def let_handler_raise(self, client: Client) -> None:
        """If it is served: its handler raises, wherever it waits."""
        if (life := self._lives.get(client.number)) is not None:
            life.order = OrderedError(client.number)
            life.scope.cancel(reason="ordered to raise")

    def let_handler_abort(self, client: Client) -> None:
        """If it is served: its connection is aborted, while its handler waits."""
        if (life := self._lives.get(client.number)) is not None:
            life.stream.abort()

    def change_limit(self, most: int) -> None:
        self.server.limits = dataclasses.replace(
            self.server.limits, max_connections=most
        )

    def drain(self, within: float) -> None:
        """Begin to drain, or hurry up."""
        now, lame_duck = self._driver.now, 0.0
        if not self._drains:
            lame_duck = self._timeouts.lame_duck
            self._accepts_until = now + lame_duck
        self._deadline = min(self._deadline, now + (within + lame_duck))
        self._accepts_until = min(self._accepts_until, self._deadline)
        self.server.start_draining(within)

    def end(self) -> None:
        """Drain it to its end, check all laws, and that nothing is left."""
        self.drain(0)
        self.check()
        if self._outcome is None:
            cleanup = 2 * self._timeouts.cleanup
            self._driver.sleep(min(self._timeouts.lame_duck + cleanup + 1, _PATIENCE))
            self.check()
        for client in self._clients:
            client.reset()
        self.check()
        is_over = self._outcome is not None
        _require("drain ends", is_over, f"it was drained, but {self._where}")
        statistics = self.server.statistics()
        taken = statistics.open + statistics.slots_used
        _require("nothing left", not taken, f"it is over, with {statistics}")
        tasks = self._driver.tasks
        _require("nothing left", not tasks, f"it is over, but {self._where}")

    # -- the laws

    def check(self) -> None:
        """What must hold when everything waits.

        Raises:
          ServeFailure: a law is broken.
        """
        self._let_bystanders_talk()
        self._check_isolation()
        self._check_limit()
        self._check_records()
        self._check_ledger()
        self._check_hellos()
        self._check_drain()
        self._check_errors()

    def _let_bystanders_talk(self) -> None:
        for client in self.bystanders:
            if client.number in self._served:
                client.send(b"%d " % client.number)
        self._driver.settle()

    def _check_isolation(self) -> None:
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            how = f"the server has ended: {outcome!r}"
            raise ServeFailure("isolation", how) from outcome
        fine = outcome is None or self._drains
        _require("isolation", fine, "the server has ended, and nobody asked")
        for client in self.bystanders:
            who = f"client {client.number}, to which nothing was done,"
            said, heard = bytes(client.sent), bytes(client.received)
            fine = heard == said or client.number not in self._served
            _require("isolation", fine, f"{who} sent {said!r} and got back {heard!r}")
            for report in self.reports:
                fine = report.id != client.number or report.reason in _BY_ITSELF
                why = f"{who} was ended because {report.reason.sentence}"
                _require("isolation", fine, why)
        for report in self.reports:
            if isinstance(report.exception, OrderedError):
                whose = report.exception.number
                how = f"conn-{report.id} has the error of conn-{whose}"
                _require("isolation", report.id == whose, how)

    def _check_limit(self) -> None:
        if self._too_many is not None:
            raise ServeFailure("limit", self._too_many)
        most, served = self.server.limits.max_connections, len(self._served)
        taken = self.server.statistics().slots_used
        how = f"slots taken: {taken}, connections served: {served}"
        _require("limit", taken == served, how)
        if served < most and not self._drains:
            how = f"{served} are served, {most} may be, and somebody waits"
            _require("limit", not self._waiting, how)
        for report in self.reports:
            if report.reason is Reason.LIMIT:
                others, bound = report.open_at_close, report.bound or 0
                how = f"conn-{report.id} was refused with {others} open of {bound:g}"
                _require("limit", others >= bound, how)

    def _check_records(self) -> None:
        statistics = self.server.statistics()
        accepted = sum(wire.is_accepted for wire in self._wires.values())
        recorded = statistics.collected + statistics.buffered + statistics.lost
        reports = collections.Counter(report.id for report in self.reports)
        for fine, how in (
            (statistics.accepted == accepted, f"{accepted} were accepted"),
            (
                statistics.accepted == statistics.open + statistics.closed,
                "accepted is not open + closed",
            ),
            (
                statistics.closed == recorded,
                "closed is not collected + buffered + lost",
            ),
            (
                statistics.collected == reports.total() and not statistics.buffered,
                f"the collector got {reports.total()} reports",
            ),
            (
                self.collector_dies or not statistics.lost,
                "reports are lost, and the collector lives",
            ),
        ):
            _require("one record", fine, f"{how}: {statistics}")
        for number, count in reports.items():
            fine = count == 1 and not self._is_open(number)
            _require("one record", fine, f"conn-{number} has too many reports")

    def _check_ledger(self) -> None:
        for report in self.reports:
            wire, who = self._wires[report.id], f"conn-{report.id}"
            counted, real = report.bytes_received, wire.received
            how = f"{who} received {real} bytes, and its report says {counted}"
            _require("byte ledger", counted == real, how)
            counted, real = report.bytes_sent, wire.sent
            how = f"{who} sent {real} bytes, and its report says {counted}"
            fine = counted == real or (wire.has_gaps and counted < real)
            _require("byte ledger", fine, how)
        statistics = self.server.statistics()
        for name in ("bytes_received", "bytes_sent"):
            counted = getattr(statistics, name)
            of_all = (*self.reports, *self.server.connections)
            total = sum(getattr(one, name) for one in of_all)
            how = f"the {name} of all are {total}, and the statistics say {counted}"
            _require("byte ledger", counted == total or bool(statistics.lost), how)

    def _check_drain(self) -> None:
        late = self._driver.now - self._deadline
        for number, wire in self._wires.items():
            fine = late < 0 or not wire.is_accepted or wire.is_closed
            how = f"conn-{number} is open {late:g} s after the deadline"
            _require("drain ends", fine, how)
        for report, reported_at in zip(self.reports, self._reported_at, strict=True):
            early = self._deadline - reported_at
            how = f"conn-{report.id} was cut {early:g} s before the deadline"
            _require("drain ends", report.reason is not Reason.CUT or early <= 0, how)
        if isinstance(self._outcome, DrainSummary):
            stuck = "; ".join(self._outcome.stuck)
            _require("drain ends", not stuck, f"it left who did not end: {stuck}")
        elif not self.server.connections:
            how = f"nothing is open, but {self._where}"
            _require("drain ends", self._accepts, how)

    def _check_hellos(self) -> None:
        for client in self._clients:
            fine = (
                self._outcome is None or client.tail != "open" or not client.is_reading
            )
            how = f"the server is over, and client {client.number} still waits"
            _require("no lost hello", fine, how)

    def _check_errors(self) -> None:
        for report in self.reports:
            error = report.exception
            if report.reason is not Reason.HANDLER_ERROR or error is None:
                continue
            if _unexpected(error, (OrderedError, *self._raises)):
                how = f"the handler of conn-{report.id} raised {error!r}"
                raise ServeFailure("errors", how) from error

    # -- what is known

    @property
    def _drains(self) -> bool:
        return self._deadline < math.inf

    @property
    def _accepts(self) -> bool:
        return self._driver.now < self._accepts_until

    @property
    def _served(self) -> list[int]:
        """Whose handlers were started, and who hold a slot until they are closed."""
        return [number for number in self._lives if self._is_open(number)]

    @property
    def _waiting(self) -> list[int]:
        """Who has connected, and is neither served nor ended."""
        return [
            number
            for number, wire in self._wires.items()
            if number not in self._lives and not wire.is_closed
        ]

    def _is_open(self, number: int) -> bool:
        return any(number == connection.id for connection in self.server.connections)

    @property
    def _where(self) -> str:
        """Where all tasks stand that are not our clients'."""
        clients = tuple(map(repr, self._clients))
        tasks = (t for t in self._driver.tasks if not t.name.startswith(clients))
        return places(tasks)

    # -- what happens in the run

    async def _new_client(self, is_bystander: bool) -> Client:
        stream = await self._network.connect(self._listener)
        client = Client(int(stream.name.split()[-1]), stream)
        self._clients.append(client)
        if is_bystander:
            self.bystanders.append(client)
        self._driver.nursery.start_soon(client.run, name=client)
        return client

    async def _serve(self, task_status: trio.TaskStatus[Server]) -> None:
        try:
            self._outcome = await serve(
                self._handle,
                [self._listener],
                limits=self._limits,
                timeouts=self._timeouts,
                collector=self._collect,
                task_status=task_status,
            )
        except Exception as error:
            self._outcome = error

    async def _handle(self, stream: Connection) -> object:
        life = self._lives[stream.id] = _HandlerRun(stream)
        most = self.server.limits.max_connections
        served = len(self._served)
        if served > most:
            self._too_many = f"{served} were served at once where {most} may be"
        is_bystander = any(stream.id == c.number for c in self.bystanders)
        handler = _parrot if is_bystander else self._handler
        with life.scope:
            return await handler(stream)
        assert life.order is not None
        raise life.order

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self.reports.append(report)
            self._reported_at.append(trio.current_time())
            if self.collector_dies:
                raise OrderedError(0)

    def _saw(self, event: Event) -> None:
        side, number = event.stream.name.split()
        wire = self._wires.setdefault(int(number), _Wire())
        if side == "server":
            wire.saw(event)


async def _parrot(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data)


def _unexpected(
    error: BaseException, expected: tuple[type[BaseException], ...]
) -> bool:
    """Whether it is, or is in a group with, something else."""
    if isinstance(error, BaseExceptionGroup):
        return any(_unexpected(inner, expected) for inner in error.exceptions)
    return not isinstance(error, expected)

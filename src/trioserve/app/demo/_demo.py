"""The demo: clients, a proxy and its target, and then the audit.

A number of clients and a duration in, lines and an exit code out. It uses real
sockets of this machine. Nothing here knows where the lines go.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import trio

from trioserve import (
    Connection,
    ConnectionReport,
    Limits,
    Reason,
    Server,
    Statistics,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
    proxy,
    serve,
)
from trioserve.app._values import format_bytes
from trioserve.app.monitor._sampler import Sampler, Snapshot
from trioserve.app.output._live import view_lines
from trioserve.app.output._screen import Screen

from ._audit import Audit, ServerRecords, audit_text, discrepancies
from ._clients import BEHAVIOURS, SimulatedClient, make_clients

_LIMIT = 20
#: The limit of the drain, in seconds.
_DRAIN = 1.0
#: Seconds after that until clients that are still waiting are cancelled.
_PATIENCE = 10.0

Say = Callable[[str], object]


async def main(
    seconds: float, count: int, seed: int, say: Say, screen: Screen | None = None
) -> int:
    """Run the demo; return 0, or 1 if something doesn't add up.

    With a ``screen``, the live view of the proxy is shown there; without one, a
    line a second shows the progress.
    """
    say(f"A proxy that serves {_LIMIT} connections at once, an echo server behind it,")
    say(f"and {count} clients in {seconds:g} s: {', '.join(BEHAVIOURS)}.")
    say("")
    clients = make_clients(seconds, count, seed)
    audit = await perform(clients, seconds, say, screen)
    say("")
    for line in audit_text(audit):
        say(line)
    wrong = discrepancies(audit)
    for line in wrong:
        say(f"does not add up: {line}")
    if not wrong:
        say("Everything adds up.")
    return 1 if wrong else 0


async def perform(
    clients: Sequence[SimulatedClient],
    seconds: float,
    say: Say,
    screen: Screen | None = None,
) -> Audit:
    """Run the clients against a proxy for ``seconds``, drain it, return the audit."""
    target_reports: list[ConnectionReport] = []
    proxy_reports: list[ConnectionReport] = []
    reasons = Counter[Reason]()

    def keep(report: ConnectionReport) -> None:
        proxy_reports.append(report)
        reasons[report.reason] += 1

    async with trio.open_nursery() as nursery:
        target = await _start(nursery, echo, target_reports.append, Limits())
        front = await _start(
            nursery,
            proxy(target.addresses[0]),
            keep,
            Limits(max_connections=_LIMIT),
        )
        view: _View | None = None
        if screen is not None:
            view = _View(front, screen, reasons)
            nursery.start_soon(view.run)
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as running:
                address = front.addresses[0]
                assert isinstance(address, TcpAddress)
                for client in clients:
                    running.start_soon(client.run, address.port)
                if view is None:
                    await _say_progress(front, clients, seconds, say)
                else:
                    await trio.sleep(seconds)
                say(f"draining, up to {_DRAIN:g} s")
                patience.deadline = trio.current_time() + _DRAIN + _PATIENCE
                front.start_draining()
        summary = await front.drain()
        await target.drain()
        if view is not None:
            view.end()
        nursery.cancel_scope.cancel()
    return Audit(
        clients=clients,
        proxy=ServerRecords(reports=proxy_reports, statistics=front.statistics()),
        target=ServerRecords(reports=target_reports, statistics=target.statistics()),
        summary=summary,
    )


async def _start(
    nursery: trio.Nursery,
    handler: Callable[[Connection], Awaitable[object]],
    keep: Callable[[ConnectionReport], object],
    limits: Limits,
) -> Server:
    async def collect(channel: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        async for report in channel:
            keep(report)

    listeners = await open_listeners("127.0.0.1:0")
    server: Server = await nursery.start(
        functools.partial(
            serve,
            handler,
            listeners,
            limits=limits,
            timeouts=Timeouts(drain=_DRAIN),
            collector=collect,
        )
    )
    return server


class _View:
    # The live view of the proxy.

    def __init__(
        self, server: Server, screen: Screen, reasons: Counter[Reason]
    ) -> None:
        self._sampler = Sampler(server)
        self._screen = screen
        self._reasons = reasons

    async def run(self) -> None:
        await self._sampler.run(self._show, every=0.2)

    def end(self) -> None:
        self._show(self._sampler.sample())
        self._screen.close()

    def _show(self, snapshot: Snapshot) -> None:
        self._screen.show(list(view_lines(snapshot, self._reasons)))


async def _say_progress(
    server: Server, clients: Sequence[SimulatedClient], seconds: float, say: Say
) -> None:
    start = trio.current_time()
    second = 0.0
    while second < seconds:
        second = min(second + 1, seconds)
        await trio.sleep_until(start + second)
        say(progress_text(second, server.statistics(), clients))


def progress_text(
    elapsed: float, statistics: Statistics, clients: Sequence[SimulatedClient]
) -> str:
    """The progress of the demo, in one line."""
    ends = Counter(c.end for c in clients if c.address)
    waiting = max(0, ends[None] - statistics.open)
    moved = statistics.bytes_received + statistics.bytes_sent
    return (
        f"{elapsed:3.0f} s  {statistics.open:3} open  {waiting:4} waiting"
        f"  {ends['done']:4} done  {ends['reset']:4} reset  {format_bytes(moved)}"
    )

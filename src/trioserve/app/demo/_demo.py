"""The demo: a proxy, its target and a crowd of clients, then the accounts.

The size of the crowd in, lines and an exit code out. It uses real sockets of
this machine.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Awaitable, Callable, Sequence

import trio

from trioserve import (
    Connection,
    ConnectionReport,
    Limits,
    Server,
    Statistics,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
    parse_address,
    proxy,
    serve,
)
from trioserve.app._values import format_bytes
from trioserve.app.output._live import Moment, Tally, Watch, view_lines
from trioserve.app.output._screen import Screen

from ._accounts import Accounts, Books, accounts_text, mistakes
from ._crowd import TEMPERS, Client, make_crowd

_LIMIT = 20
#: Seconds to drain within, and how much longer a client may take.
_DRAIN = 1.0
_PATIENCE = 10.0

Say = Callable[[str], object]


async def main(
    seconds: float, clients: int, seed: int, say: Say, screen: Screen | None = None
) -> int:
    """Run the demo, say how it goes; return 0, or 1 if something doesn't add up.

    With a ``screen``, it shows there how the proxy stands; else it says so, a line
    a second.
    """
    say(f"A proxy that serves {_LIMIT} connections at once, an echo server behind it,")
    say(f"and {clients} clients in {seconds:g} s: {', '.join(TEMPERS)}.")
    say("")
    crowd = make_crowd(seconds, clients, seed)
    accounts = await perform(crowd, seconds, say, screen)
    say("")
    for line in accounts_text(accounts):
        say(line)
    wrong = mistakes(accounts)
    for line in wrong:
        say(f"does not add up: {line}")
    if not wrong:
        say("Everything adds up.")
    return 1 if wrong else 0


async def perform(
    crowd: Sequence[Client], seconds: float, say: Say, screen: Screen | None = None
) -> Accounts:
    """Let the crowd loose on a proxy for ``seconds``, drain it, close the books."""
    target_reports: list[ConnectionReport] = []
    proxy_reports: list[ConnectionReport] = []
    tally = Tally()

    def keep(report: ConnectionReport) -> None:
        proxy_reports.append(report)
        tally.add(report)

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
            view = _View(front, screen, tally)
            nursery.start_soon(view.run)
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as clients:
                address = parse_address(front.addresses[0])
                assert isinstance(address, TcpAddress)
                port = address.port
                for client in crowd:
                    clients.start_soon(client.run, port)
                if view is None:
                    await _say_progress(front, crowd, seconds, say)
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
    return Accounts(
        clients=crowd,
        proxy=Books(reports=proxy_reports, statistics=front.statistics()),
        target=Books(reports=target_reports, statistics=target.statistics()),
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
    # The proxy, as the live view of the command shows it.

    def __init__(self, server: Server, screen: Screen, tally: Tally) -> None:
        self._watch = Watch(server)
        self._screen = screen
        self._tally = tally

    async def run(self) -> None:
        await self._watch.run(self._show, every=0.2)

    def end(self) -> None:
        self._show(self._watch.look())
        self._screen.close()

    def _show(self, moment: Moment) -> None:
        self._screen.show(list(view_lines(moment, self._tally)))


async def _say_progress(
    server: Server, crowd: Sequence[Client], seconds: float, say: Say
) -> None:
    start = trio.current_time()
    second = 0.0
    while second < seconds:
        second = min(second + 1, seconds)
        await trio.sleep_until(start + second)
        say(progress_text(second, server.statistics(), crowd))


def progress_text(
    elapsed: float, statistics: Statistics, crowd: Sequence[Client]
) -> str:
    """How it stands, in one line."""
    ends = collections.Counter(c.end for c in crowd if c.address)
    waiting = max(0, ends[None] - statistics.open)
    moved = statistics.bytes_received + statistics.bytes_sent
    return (
        f"{elapsed:3.0f} s  {statistics.open:3} open  {waiting:4} waiting"
        f"  {ends['done']:4} done  {ends['reset']:4} reset  {format_bytes(moved)}"
    )

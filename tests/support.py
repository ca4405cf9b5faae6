"""Helpers of many tests: a running server and its reports, clients, a virtual clock.

They use real loopback sockets in this process, and numeric hosts. Under ``@given``
use :func:`run`, which gives every example its own clock.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import socket
import struct
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio
import trio.testing

from trioserve import (
    Connection,
    ConnectionReport,
    Limits,
    RelayResult,
    Server,
    Timeouts,
    open_listeners,
    relay,
    serve,
)
from trioserve._acceptor import Acceptor
from trioserve._connection import lifecycle_of
from trioserve._relay import make_relay, run_with_timers
from trioserve._relay_options import RelayOptions
from trioserve._relay_rules import RelayRules
from trioserve._timers import Timers
from trioserve._transport import Transport

_LIMIT = 1e9


class PanicError(BaseException):
    """An error that is not an ``Exception``, as extensions in Rust raise them."""


def one_of_each(
    cases: Iterable[tuple[Any, ...]], *, by: int | None = None, then_one_in: int = 1
) -> list[object]:
    """Cases for `parametrize`: the first of each kind stays in each run.

    The kind is the value at the index ``by``; without it, all are of one kind. The
    others are shared out by :func:`one_in`.
    """
    seen = set[str]()
    made, others = list[object](), list[tuple[Any, ...]]()
    for case in cases:
        kind = "" if by is None else str(case[by])
        if kind in seen:
            others.append(case)
        else:
            made.append(pytest.param(*case))
        seen.add(kind)
    return made + one_in(then_one_in, others)


def one_in(number: int, cases: Iterable[tuple[Any, ...]]) -> list[object]:
    """Cases for `parametrize`: the first in each ``number`` is `long`.

    The others are `nightly`.
    """
    marks = pytest.mark.long, pytest.mark.nightly
    return [
        pytest.param(*case, marks=marks[at % number > 0])
        for at, case in enumerate(cases)
    ]


def virtual_clock() -> trio.testing.MockClock:
    """A clock that jumps when nothing has happened for a (real) millisecond.

    On a busy machine, a name look-up in a thread or bytes on loopback may take
    longer; the clock must not jump meanwhile.
    """
    clock = trio.testing.MockClock(autojump_threshold=0.001)
    jump = clock._autojump

    def jump_unless_something_is_under_way() -> None:
        if not trio.testing.active_thread_count() and not packets_under_way():
            jump()

    clock._autojump = jump_unless_something_is_under_way  # type: ignore[method-assign]
    return clock


@contextlib.contextmanager
def time_stands_still() -> Generator[None]:
    """Let no virtual time pass in the block, however long the kernel is silent.

    During a transfer TCP may wait some ten real milliseconds, for a delayed ACK or a
    window. To a virtual clock these are many seconds in which nothing moves. No
    deadline comes in the block, so wait only for bytes there.
    """
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    before, clock.autojump_threshold = clock.autojump_threshold, math.inf
    try:
        yield
    finally:
        clock.autojump_threshold = before


def let_packets_arrive() -> None:
    """Block until the kernel has delivered what is under way; on a busy machine too."""
    for _ in range(10_000):
        if not packets_under_way():
            return
        os.sched_yield()


def packets_under_way() -> bool:
    """Whether the kernel has packets of any process that it has not delivered yet.

    Column 12 of each processor's line has their number, since Linux 5.10.
    """
    try:
        lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    except OSError:
        return False  # another system
    return any(int(column, 16) for line in lines for column in line.split()[11:12])


def run(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run under a virtual clock of its own, which jumps when nothing happens.

    A deadlock is an error, and prints all tasks.
    """

    async def main() -> Any:
        with trio.move_on_after(_LIMIT):
            return await function(*args)
        raise AssertionError("deadlock")

    async def watch() -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_dump_at, _LIMIT - 1)
            result = await main()
            nursery.cancel_scope.cancel()
        return result

    return trio.run(watch, clock=virtual_clock())


async def _dump_at(seconds: float) -> None:
    await trio.sleep(seconds)
    tasks = [trio.lowlevel.current_root_task()]
    while tasks:
        task = tasks.pop()
        assert task is not None
        lines = [f"{f.f_code.co_qualname}:{n}" for f, n in task.iter_await_frames()]
        print(f"{task.name}: {' > '.join(lines)}")
        tasks += [t for n in task.child_nurseries for t in n.child_tasks]


class DeadNames(trio.abc.HostnameResolver):
    """A name server that never answers, for the Trio run in which it is made."""

    def __init__(self) -> None:
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *_: int, **__: int) -> list[Any]:
        await trio.sleep_forever()
        raise AssertionError  # pragma: no cover

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


class Running:
    """A server that runs in a test, and the reports that its collector received."""

    def __init__(self) -> None:
        self.server: Server = None  # type: ignore[assignment]
        self.reports: list[ConnectionReport] = []
        self.collects = True
        self.clients: list[trio.SocketStream] = []
        self.scope = trio.CancelScope()
        self.summary: object = None
        self.ended = trio.Event()

    async def collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self.reports.append(report)

    async def connect(
        self, index: int = 0, source: str | None = None
    ) -> trio.SocketStream:
        """Connect a client from ``source``; the end of the test closes it."""
        listener = self.server[index].socket
        sock = trio.socket.socket(listener.family)
        try:
            if source is not None:
                await sock.bind((source, 0))
            await sock.connect(listener.getsockname())
        except BaseException:
            sock.close()
            raise
        self.clients.append(trio.SocketStream(sock))
        return self.clients[-1]

    @property
    def acceptor(self) -> Acceptor:
        """The acceptor of its first listener."""
        return self.server._serving.loops.acceptors[0]

    @property
    def address(self) -> str:
        return str(self.server.addresses[0])

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def closed(self, count: int) -> None:
        """Wait until this many connections are closed."""
        while self.server.statistics().closed < count:
            await trio.lowlevel.checkpoint()

    def check(self) -> None:
        """Check laws 2, 3, 4 and 13, as far as that is possible while it runs."""
        stats = self.server.statistics()
        assert stats.accepted == stats.open + stats.closed
        assert stats.closed == stats.collected + stats.buffered + stats.lost
        # A lowered limit does not take back tokens: neither those of connections
        # nor one that an acceptor has got in the step before.
        assert stats.tokens_used <= max(stats.limit, stats.open + len(self.server))

    def check_over(self) -> None:
        """The same after its end: nothing is left, and the sums agree."""
        self.check()
        stats = self.server.statistics()
        assert stats.open == stats.tokens_used == 0
        assert self.server._serving._timers._holders == {}
        if not self.collects:
            return
        assert stats.collected == len(self.reports)
        if not stats.lost:
            assert sorted(r.id for r in self.reports) == list(
                range(1, stats.accepted + 1)
            )
            for name in ("bytes_received", "bytes_sent", "bytes_discarded"):
                total = sum(getattr(report, name) for report in self.reports)
                assert total == getattr(stats, name), name
        for report in self.reports:
            balanced(report)
            # The server isolates a handler's failed assertion; the test must fail.
            if isinstance(report.exception, AssertionError | pytest.fail.Exception):
                raise report.exception


async def relayed(
    a: Transport, b: Transport, *, first: bytes = b"", closes_b: bool = False
) -> RelayResult:
    """Relay between two transports, as without a server."""
    running = relay_between(a, b, first=first, closes_b=closes_b)
    return await run_with_timers(running)


def relay_between(
    a: Transport, b: Transport, *, first: bytes = b"", closes_b: bool = False
) -> RelayRules:
    """A relay between two transports that has not begun."""
    timeouts, began = Timeouts(), trio.current_time()
    options = RelayOptions(timeouts, timeouts.drain_idle, Timers(), began, closes_b)
    return make_relay(a, b, first, options)


def balanced(report: ConnectionReport) -> None:
    """Check the byte ledger of a relayed connection."""
    if (upstream := report.upstream) is not None:
        assert report.bytes_received == upstream.bytes_sent + report.bytes_discarded
        assert upstream.bytes_received == report.bytes_sent + upstream.bytes_discarded


async def relay_with_timers(
    a: trio.abc.Stream, b: trio.abc.Stream, **options: Any
) -> RelayResult:
    """:func:`relay`; without a server nobody else runs the timers of a connection."""
    async with trio.open_nursery() as nursery:
        for owner in (a, b):
            if isinstance(owner, Connection):
                nursery.start_soon(lifecycle_of(owner).timers.run)
                break
        result = await relay(a, b, **options)
        nursery.cancel_scope.cancel()
    return result


class Result:
    """A relay that runs in a nursery; its result, and the time of its end."""

    def __init__(
        self,
        nursery: trio.Nursery,
        a: trio.abc.Stream,
        b: trio.abc.Stream,
        **options: Any,
    ) -> None:
        self.is_pending = True
        self.value: RelayResult
        self.at = math.nan
        nursery.start_soon(self._run, a, b, options)

    async def _run(
        self, a: trio.abc.Stream, b: trio.abc.Stream, options: dict[str, Any]
    ) -> None:
        try:
            self.value = await relay_with_timers(a, b, **options)
            self.at = trio.current_time()
        finally:
            self.is_pending = False


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Any], Awaitable[object]],
    *,
    addresses: tuple[str, ...] = ("127.0.0.1:0",),
    listeners: Any = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    **options: Any,
) -> AsyncGenerator[Running, None]:
    """Run a server for the block; at the end, drain and check it."""
    running = Running()
    running.collects = "collector" not in options
    options.setdefault("collector", running.collect)
    if listeners is None:
        listeners = await open_listeners(*addresses)

    async def serve_it(task_status: Any) -> None:
        with running.scope:
            try:
                running.summary = await serve(
                    handler,
                    listeners,
                    limits=limits or Limits(max_connections=100),
                    timeouts=timeouts,
                    task_status=task_status,
                    **options,
                )
            finally:
                running.ended.set()

    try:
        async with trio.open_nursery() as nursery:
            running.server = await nursery.start(serve_it)
            yield running
            running.server.start_draining(reason="the test is over")
    finally:
        for client in running.clients:
            client.socket.close()
    running.check_over()


async def acknowledged() -> None:
    """Wait until the kernel moves no more bytes to peers that don't read.

    A receiver may delay its acknowledgement by 0.04 (real) seconds, and a sender
    probes a small window after 0.2.
    """
    await trio.testing.wait_all_tasks_blocked(0.4)


async def send_received(
    running: Running, client: trio.SocketStream, data: bytes
) -> None:
    """Send, and wait (on a virtual clock) until the server has received everything."""
    count = running.server.statistics().bytes_received + len(data)
    await client.send_all(data)
    while running.server.statistics().bytes_received < count:
        await trio.sleep(0.001)


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, f"EOF after {len(data)} of {count} bytes"
        data += more
    return data


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    async for more in stream:
        data += more
    return data


class HasSocket(Protocol):
    """A stream with a socket below."""

    socket: trio.socket.SocketType

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None: ...


def reset(stream: HasSocket) -> None:
    """Close with RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def is_reset(stream: trio.SocketStream) -> bool:
    """Whether the peer ends with RST and not with FIN, after any bytes."""
    try:
        async for _ in stream:
            pass
    except trio.BrokenResourceError as error:
        assert isinstance(error.__cause__, ConnectionResetError)
        return True
    return False


async def is_reset_by(client: trio.SocketStream, *chunks: bytes) -> bool:
    """Send chunks and EOF; whether the connection is reset then or meanwhile."""
    try:
        for chunk in filter(None, chunks):
            await client.send_all(chunk)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
    except trio.BrokenResourceError:
        return True  # the kernel tells a reset once
    return await is_reset(client)


@contextlib.contextmanager
def no_free_fd() -> Generator[None, None, None]:
    """For the block, opening another descriptor fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))

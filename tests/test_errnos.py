"""Every error that a system call can give, at the first call and at all later ones.

For each: its connection ends at once and the report blames the right side, other
connections and the listeners go on, nothing spins, little is logged, and after the
errors all is as before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
import trio
import trio.testing

import trioserve._connect
import trioserve._origins
import trioserve._relay
from failing import Failing, FailingEpolls, Fault, Steps, Waits
from links import Peer, Sockets, roomy, sockets
from support import (
    Result,
    Running,
    is_reset,
    open_fds,
    receive_all,
    receive_exactly,
    relayed,
    serving,
    time_stands_still,
)
from trioserve import (
    Connection,
    Limits,
    Outcome,
    Reason,
    RelayResult,
    proxy,
    relay,
)
from trioserve._connection import lifecycle_of
from trioserve._engine import Engine
from trioserve._engine_pump import EnginePump
from trioserve._relay import transport_of

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="the table is Linux's"
)

_QUICKACK = getattr(socket, "TCP_QUICKACK", 12)

#: At the first call only, or at each call.
TIMES = {"once": 1, "for ever": math.inf}

#: Shortages and refusals of this machine.
OURS = ["ENOBUFS", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EPERM", "EINVAL", "EIO"]
#: Errors of the network or the peer.
THEIRS = [
    "ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN",
    "ENETRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "EACCES", "EPROTO",
    "EMSGSIZE", "EDESTADDRREQ", "EOPNOTSUPP", "ENOPROTOOPT", "EFAULT", "EISCONN",
]  # fmt: skip
#: Other code has closed the descriptor.
CLOSED = ["EBADF", "ENOTSOCK"]
#: Not possible now, but perhaps in a moment.
LATER = ["EAGAIN", "EINTR"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    """Law 13: no descriptor is left open after a test, whatever failed."""
    before = open_fds()
    yield
    assert open_fds() == before


async def _settle() -> None:
    """Wait until nothing happens; for less than the virtual clock needs to jump."""
    await trio.testing.wait_all_tasks_blocked(0.0005)


def _hang_up(stream: trio.SocketStream) -> None:
    """Send EOF without a checkpoint."""
    stream.socket.shutdown(socket.SHUT_WR)


async def _talk(a: Sockets, b: Sockets) -> None:
    """Check that bytes pass both ways."""
    await a.peer.send_all(b"there")
    assert await receive_exactly(b.peer, 5) == b"there"
    await b.peer.send_all(b"and back")
    assert await receive_exactly(a.peer, 8) == b"and back"
    # Acknowledge now, not after 40 ms: the end of a relay waits for that.
    a.peer.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


# -- A relay: what fails is a call of one of its sockets


class Scene:
    """A relay whose sockets fail, and beside it one that must not notice."""

    def __init__(self, a: Sockets, b: Sockets, nursery: trio.Nursery) -> None:
        self.a, self.b = a, b
        self.result: RelayResult | None = None
        self.sides: list[Any] = []
        self._nursery = nursery

    async def run(self) -> None:
        self.sides = [transport_of(link.ours) for link in (self.a, self.b)]
        try:
            a, b = self.sides
            self.result = await relayed(a, b)
        finally:
            for side in self.sides:
                side.release()

    def fail(self, side: int, fault: Fault) -> None:
        self.sides[side].sock = Failing(self.sides[side].sock, fault)


@contextlib.asynccontextmanager
async def _scene(
    way: str, monkeypatch: pytest.MonkeyPatch, link: Callable[[], Sockets] = sockets
) -> AsyncGenerator[Scene]:
    """The scene; at its end, the relay beside it still works."""
    with link() as a, link() as b, sockets() as c, sockets() as d:
        async with trio.open_nursery() as nursery:
            beside = Result(nursery, c.ours, d.ours)
            await _talk(c, d)
            with monkeypatch.context() as patch:
                if way == "tasks":
                    patch.setattr(trioserve._relay, "HAS_ENGINE", False)
                scene = Scene(a, b, nursery)
                nursery.start_soon(scene.run)
                await _talk(a, b)
            yield scene
            await _talk(c, d)
            assert beside.is_pending
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(steps)
            assert steps.count < 80, "it spins"
            nursery.cancel_scope.cancel()


def _reason(name: str, theirs: Reason) -> Reason:
    """The reason for an error: the peer's, ours, or a close by other code."""
    if name in CLOSED:
        return Reason.ABORTED
    return Reason.RESOURCE if name in OURS else theirs


both_ways = pytest.mark.parametrize("way", ["engine", "tasks"])
# A socket that fails once is not used again; the engine shows that for both ways.
each_way = pytest.mark.parametrize(
    ("way", "times"),
    [("engine", 1), ("engine", math.inf), ("tasks", math.inf)],
    ids=["engine, once", "engine, for ever", "tasks, for ever"],
)
any_times = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
any_errno = pytest.mark.parametrize("name", [*OURS, *THEIRS, *CLOSED])


@each_way
@any_errno
@pytest.mark.parametrize("call", ["recv", "send"])
async def test_a_socket_that_fails_ends_its_relay_at_once(
    call: str,
    name: str,
    times: float,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 1, 4 and 15: only that one, with the right side blamed."""
    async with _scene(way, monkeypatch) as scene:
        scene.fail(1, Fault(call, name, times))
        if call == "recv":
            await scene.b.peer.send_all(b"hello")
        else:
            await scene.a.peer.send_all(b"hello")
        assert await is_reset(scene.a.peer)
        assert await is_reset(scene.b.peer)
        await _settle()
        result = scene.result
        assert result is not None
        assert result.reason is _reason(name, Reason.SERVER_RESET)
        there = result.a_to_b
        assert there.received == there.delivered + there.discarded
        assert trio.current_time() <= 1  # a reset waits for the bytes before it
        assert there.discarded == (5 if call == "send" else 0)


@both_ways
@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("call", ["recv", "send"])
async def test_a_call_that_would_wait_is_repeated(
    call: str,
    name: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 4: EAGAIN and EINTR are not errors."""
    async with _scene(way, monkeypatch) as scene:
        for side in (0, 1):
            scene.fail(side, Fault(call, name, 1))
        await _talk(scene.a, scene.b)
        assert scene.result is None


@each_way
@any_errno
async def test_an_eof_that_can_not_be_sent_ends_its_relay(
    name: str,
    times: float,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 7 and 15: the peer would wait for it without end."""
    async with _scene(way, monkeypatch) as scene:
        scene.fail(1, Fault("shutdown", name, times))
        await scene.a.peer.send_eof()
        assert await is_reset(scene.b.peer)
        await _settle()
        assert scene.result is not None
        assert scene.result.reason is _reason(name, Reason.SERVER_RESET)
        assert trio.current_time() <= 1


# -- Bulk: what fails is splice(2), or the pipe


def _splice_fails(monkeypatch: pytest.MonkeyPatch, where: str, fault: Fault) -> None:
    """Make splice(2) fail when it fills a pipe (``"in"``) or empties one."""
    splice = os.splice

    def call(source: int, sink: int, count: int, **options: Any) -> int:
        is_in = stat.S_ISFIFO(os.fstat(sink).st_mode)
        if is_in is (where == "in"):
            fault.check("splice")
        return splice(source, sink, count, **options)

    monkeypatch.setattr(os, "splice", call)


@any_times
@pytest.mark.parametrize("name", ["ENOSYS", *OURS, *CLOSED, "ESPIPE"])
@pytest.mark.parametrize("where", ["in", "out"])
async def test_bulk_is_copied_where_it_can_not_be_spliced(
    where: str,
    name: str,
    times: float,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 4: no byte is lost; if splice(2) is forbidden, that is logged once."""
    fault = Fault("splice", name, times)
    _splice_fails(monkeypatch, where, fault)
    engine = Engine.of_this_run()
    for _ in range(2):
        async with _scene("engine", monkeypatch, roomy) as scene:
            sender, receiver = Peer(scene.a.peer), Peer(scene.b.peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send, 3_000_000)
                await _settle()
                nursery.start_soon(receiver.read)
                while len(receiver.received) < 3_000_000:
                    assert scene.result is None
                    await _settle()
                nursery.cancel_scope.cancel()
            assert receiver.received == sender.sent
            assert scene.result is None
    forbidden = name in ("ENOSYS", "EPERM")
    assert fault.hits == (1 if forbidden or times == 1 else 2)
    said = [r for r in caplog.records if "splice(2) can't be used" in r.message]
    assert len(said) == len(caplog.records) == forbidden
    assert engine.pipes.lent == 0


async def test_a_forbidden_splice_is_logged_once(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 4: also for flows that have a pipe with bytes in it."""
    async with _scene("engine", monkeypatch, roomy) as scene:
        with roomy() as e, roomy() as f:
            flows = [(scene.a.peer, scene.b.peer), (e.peer, f.peer)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, e.ours, f.ours)
                senders = [Peer(sender) for sender, _ in flows]
                for sender in senders:
                    nursery.start_soon(sender.send, 5_000_000)
                await _settle()
                assert Engine.of_this_run().pipes.lent == 2
                _splice_fails(monkeypatch, "out", Fault("splice", "ENOSYS"))
                with time_stands_still():
                    for sender, (_, sink) in zip(senders, flows, strict=True):
                        assert await receive_exactly(sink, 5_000_000) == sender.sent
                nursery.cancel_scope.cancel()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", THEIRS[:8])
@pytest.mark.parametrize("where", ["in", "out"])
async def test_a_peer_that_breaks_during_bulk_is_blamed(
    where: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 8 and 15: the kernel reports it once, perhaps to splice(2)."""
    _splice_fails(monkeypatch, where, Fault("splice", name, 1))
    async with _scene("engine", monkeypatch, roomy) as scene:
        sender = Peer(scene.a.peer)
        await sender.send(3_000_000)
        assert sender.broke or await is_reset(scene.a.peer)
        assert await is_reset(scene.b.peer)
        await _settle()
        assert scene.result is not None
        expected = Reason.CLIENT_RESET if where == "in" else Reason.SERVER_RESET
        assert scene.result.reason is expected


@any_times
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("pipe2", "EMFILE"), ("pipe2", "ENFILE"), ("pipe2", "ENOSYS"),
        ("pipe2", "EPERM"), ("pipe2", "EINVAL"), ("pipe2", "ENOMEM"),
        ("fcntl", "EPERM"), ("fcntl", "ENOMEM"), ("fcntl", "EBUSY"),
        ("fcntl", "EINVAL"), ("fcntl", "EBADF"),
    ],
)  # fmt: skip
async def test_bulk_is_copied_where_there_is_no_pipe(
    call: str,
    name: str,
    times: float,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Laws 4 and 13: and a pipe that is too small is closed."""
    fault = Fault(call, name, times)

    def failing(name: str, work: Any) -> Any:
        def call(*args: Any) -> Any:
            fault.check(name)
            return work(*args)

        return call

    monkeypatch.setattr(os, "pipe2", failing("pipe2", os.pipe2))
    monkeypatch.setattr(fcntl, "fcntl", failing("fcntl", fcntl.fcntl))
    async with _scene("engine", monkeypatch, roomy) as scene:
        sender, receiver = Peer(scene.a.peer), Peer(scene.b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.read)
            await sender.send(3_000_000)
            while len(receiver.received) < 3_000_000:
                assert scene.result is None
                await _settle()
            nursery.cancel_scope.cancel()
        assert receiver.received == sender.sent
        lent = Engine.of_this_run().pipes.lent
        assert lent == 0 if times == math.inf else lent <= 1
    assert fault.hits >= 1
    assert caplog.records == []


# -- The engine's epoll


@pytest.fixture
async def epolls(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> FailingEpolls:
    """The epolls that are made after Trio's own."""
    epolls = FailingEpolls()
    monkeypatch.setattr(select, "epoll", epolls)
    return epolls


@any_times
@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC", "EPERM", "ELOOP", "EINVAL"])
async def test_a_relay_that_can_not_be_registered_ends_alone(
    name: str,
    times: float,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Laws 1 and 15: for as long as epoll has no room."""
    async with _scene("engine", monkeypatch) as scene:
        for _ in range(3 if times == math.inf else 1):
            with sockets() as e, sockets() as f:
                fault = Fault("epoll_ctl(ADD)", name, times)
                epolls.faults = [fault]
                result = await relay(e.ours, f.ours)
                assert result.reason is Reason.RESOURCE
                assert fault.hits == 1
                assert await is_reset(e.peer)
                assert await is_reset(f.peer)
        await _talk(scene.a, scene.b)
        epolls.faults = []
        with sockets() as e, sockets() as f:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, e.ours, f.ours)
                await _talk(e, f)
                nursery.cancel_scope.cancel()
        assert epolls.made == 1


@any_times
async def test_a_relay_that_holds_bytes_stays_registered(
    times: float,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 1: whatever it waits for, so it needs no room again."""
    async with _scene("engine", monkeypatch) as scene:
        fault = Fault("epoll_ctl(ADD)", "ENOSPC", times)
        epolls.faults = [fault]
        sender, receiver = Peer(scene.a.peer), Peer(scene.b.peer)

        async def send() -> None:
            await sender.send(5_000_000)
            await sender.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await _settle()
            nursery.start_soon(receiver.read)
            while receiver.tail == "open":
                await _settle()
        assert receiver.received == sender.sent
        assert fault.hits == 0
        await scene.b.peer.send_all(b"and back")
        assert await receive_exactly(scene.a.peer, 8) == b"and back"


@any_times
@pytest.mark.parametrize("name", ["ENOMEM", "ENOENT", "EBADF", "EINVAL", "EPERM"])
async def test_a_relay_whose_events_can_not_be_changed_ends_alone(
    name: str,
    times: float,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Laws 1 and 15: others need no change."""
    async with _scene("engine", monkeypatch) as scene:
        epolls.faults = [Fault("epoll_ctl(MOD)", name, times)]
        await scene.a.peer.send_eof()
        assert await is_reset(scene.b.peer)
        await _settle()
        assert scene.result is not None
        closed = name in ("EBADF", "ENOENT")
        assert scene.result.reason is (Reason.ABORTED if closed else Reason.RESOURCE)
        assert epolls.made == 1


def _make_it_something_else(epoll: Any) -> None:
    """Close the descriptor and reuse its number for another file."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, epoll.fileno())
    os.close(nothing)


async def test_another_epoll_has_the_changed_masks(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 1: whichever call notices first that the epoll is gone."""
    async with _scene("engine", monkeypatch) as scene:
        engine = Engine.of_this_run()
        pumps = [pump for pump in engine._polled if isinstance(pump, EnginePump)]
        (there, _) = [pump for pump in pumps if pump.source in scene.sides]
        _make_it_something_else(engine._epoll)
        one, other = scene.a, scene.b
        if there.source is scene.sides[1]:
            one, other = other, one
        _hang_up(one.peer)
        while there.reading:
            await trio.lowlevel.checkpoint()
            there.on_readable(engine, trio.current_time())
        assert await receive_all(other.peer) == b""
        await other.peer.send_all(b"and back")
        assert await receive_exactly(one.peer, 8) == b"and back"


async def test_a_relay_that_finds_no_room_in_another_epoll_ends(
    epolls: FailingEpolls, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: as a shortage, when it changes its mask."""
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await _talk(a, b)
            engine = Engine.of_this_run()
            number = a.ours.socket.fileno()
            there = engine._polled[number]
            assert isinstance(there, EnginePump)
            _make_it_something_else(engine._epoll)
            epolls.faults = [Fault("epoll_ctl(ADD)", "ENOSPC")]
            nursery.start_soon(Peer(a.peer).send, 30_000_000)
            while not there.blocked:
                await trio.lowlevel.checkpoint()
                there.on_readable(engine, trio.current_time())
        assert result.value.reason is Reason.RESOURCE


async def test_an_epoll_that_is_gone_can_not_be_waited_for(
    waits: Waits, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: its relays end, and the next one gets another."""
    with sockets() as a, sockets() as b, sockets() as c, sockets() as d:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await _talk(a, b)
            epoll: Any = Engine.of_this_run()._epoll

            class Gone(Fault):
                def check(self, call: str) -> None:
                    if not self.hits:
                        _make_it_something_else(epoll)
                    super().check(call)

            waits.fd, waits.fault = epoll.fileno(), Gone("epoll_ctl(ADD)", "EPERM", 1)
            await a.peer.send_all(b"last words")
            assert await receive_exactly(b.peer, 10) == b"last words"
            assert await is_reset(b.peer)
            nursery.start_soon(relay, c.ours, d.ours)
            await _talk(c, d)
            nursery.cancel_scope.cancel()
        assert result.value.reason is Reason.RESOURCE


@any_times
@pytest.mark.parametrize("name", ["ENOMEM", "ENOENT", "EBADF", "EINVAL", "EPERM"])
async def test_a_relay_that_can_not_be_unregistered_ends_alone(
    name: str,
    times: float,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 1: the others go on with another epoll."""
    async with _scene("engine", monkeypatch) as scene:
        epolls.faults = [Fault("epoll_ctl(DEL)", name, times)]
        await scene.a.peer.send_eof()
        await scene.b.peer.send_eof()
        assert await receive_all(scene.a.peer) == b""
        await _settle()
        assert scene.result is not None
        assert scene.result.reason is Reason.CLIENT_CLOSED
        epolls.faults = []


@pytest.mark.parametrize("call", ["epoll_create1", "epoll_ctl(ADD)"])
async def test_without_another_epoll_all_relays_end(
    call: str,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: their errors name the shortage, and the next ones work."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(sockets()) for _ in range(6)]
        pairs = list(zip(links[::2], links[1::2], strict=True))
        async with trio.open_nursery() as nursery:
            results = [Result(nursery, a.ours, b.ours) for a, b in pairs[:2]]
            await _talk(*pairs[0])
            # Other code closes one, so that it can't be unregistered.
            epolls.faults = [Fault("epoll_ctl(DEL)", "EBADF", 1), Fault(call, "ENOMEM")]
            for link in pairs[0]:
                _hang_up(link.peer)
            for link in pairs[1]:
                assert await is_reset(link.peer)
            await _settle()
            assert [r.value.reason for r in results] == [
                Reason.CLIENT_CLOSED,
                Reason.RESOURCE,
            ]
            epolls.faults = []
            e, f = pairs[2]
            nursery.start_soon(relay, e.ours, f.ours)
            await _talk(e, f)
            nursery.cancel_scope.cancel()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Trio's waits, which can be made to fail."""
    waits = Waits(trio.lowlevel.wait_readable)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", waits)
    return waits


@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC", "EEXIST"])
async def test_relays_go_on_while_the_engine_can_not_be_waited_for(
    name: str,
    waits: Waits,
    epolls: FailingEpolls,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 1: slower, with a warning at most once a second."""
    async with _scene("engine", monkeypatch) as scene:
        began = trio.current_time()
        epoll: Any = Engine.of_this_run()._epoll
        waits.fd = epoll.fileno()
        waits.fault = Fault("epoll_ctl(ADD)", name)
        while trio.current_time() < began + 5:
            await _talk(scene.a, scene.b)
        seconds = trio.current_time() - began
        assert waits.fault.hits <= 20 * seconds + 2
        assert 1 <= len(caplog.records) <= seconds + 1
        assert "can't wait for their sockets" in caplog.text
        waits.fault.stop()
        await trio.sleep(1)
        began = trio.current_time()
        for _ in range(20):
            await _talk(scene.a, scene.b)
        assert trio.current_time() == pytest.approx(began, abs=0.04)
        assert scene.result is None


# -- A server: what fails is a call for one of its connections, or for its listener


async def _by_hand(conn: Connection) -> None:
    """An echo that receives and sends itself."""
    async for data in conn:
        await conn.send_all(data)
    await conn.send_eof()


async def _says(client: trio.SocketStream, word: bytes = b"hello") -> None:
    """Check that an echo answers."""
    await client.send_all(word)
    assert await receive_exactly(client, len(word)) == word


def _transport(conn: Connection) -> Any:
    """The transport of a connection, whose socket tests replace."""
    return lifecycle_of(conn).transport


@contextlib.asynccontextmanager
async def _served(
    handler: Any = _by_hand, **options: Any
) -> AsyncGenerator[tuple[Running, trio.SocketStream, Any]]:
    """A server with a client, its connection, and another that must not notice."""
    async with serving(handler, **options) as running:
        beside = await running.connect()
        await _says(beside)
        client = await running.connect()
        await _says(client)
        yield running, client, running.server.connections[-1]
        await _says(beside)
        await beside.aclose()


def _only(running: Running, number: int = 2) -> Any:
    return next(report for report in running.reports if report.id == number)


@pytest.mark.untraced
@any_times
@any_errno
@pytest.mark.parametrize("call", ["recv", "send", "shutdown"])
async def test_a_handler_sees_that_its_stream_is_broken(
    call: str, name: str, times: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: the handler is blamed only if it has closed the stream itself."""
    async with _served() as (running, client, conn):
        below = _transport(conn)
        below.sock = Failing(below.sock, Fault(call, name, times))
        if call == "shutdown":
            await client.send_eof()
        else:
            await client.send_all(b"more")
        assert await is_reset(client)
        await _settle()
        expected = _reason(name, Reason.CLIENT_RESET)
        if expected is Reason.ABORTED:
            expected = Reason.HANDLER_ERROR
        assert _only(running).reason is expected
    if name in OURS:
        assert _only(running).outcome is Outcome.RESOURCE
        assert os.strerror(getattr(errno, name)) in _only(running).error


@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC", "EPERM", "EEXIST", "EBADF"])
@pytest.mark.parametrize("wait", ["readable", "writable", "writable, asked for"])
async def test_a_connection_that_can_not_be_waited_for_ends_alone(
    wait: str,
    name: str,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 15: the handler is not blamed."""

    async def handler(conn: Connection) -> None:
        async for data in conn:
            if data == b"fail":
                if wait == "writable, asked for":
                    await conn.wait_send_all_might_not_block()
                elif wait == "writable":
                    await conn.send_all(bytes(10_000_000))
                else:
                    await conn.receive_some()
            await conn.send_all(data)

    word = wait[:8]
    waits = Waits(getattr(trio.lowlevel, f"wait_{word}"))
    monkeypatch.setattr(trio.lowlevel, f"wait_{word}", waits)
    async with _served(handler) as (running, client, conn):
        waits.fd = _transport(conn).sock.fileno()
        waits.fault = Fault("epoll_ctl(ADD)", name)
        await client.send_all(b"fail")
        assert await is_reset(client)
        waits.fault.stop()
        await _settle()
        ours = Reason.HANDLER_ERROR if name == "EBADF" else Reason.RESOURCE
        assert _only(running).reason is ours


@pytest.mark.parametrize("name", ["ENOMEM", "EPERM", "EINVAL", "ENOTTY", "EBADF"])
@pytest.mark.parametrize("call", ["ioctl", "getsockopt", "setsockopt", "close"])
async def test_optional_system_calls_may_fail(
    call: str,
    name: str,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 5: a socket that can't be reset is closed, and that is logged."""
    fault = Fault(call, name)

    def ioctl(*_: object) -> bytes:
        fault.check("ioctl")
        raise AssertionError

    async with _served() as (running, client, conn):
        if call == "ioctl":
            monkeypatch.setattr(fcntl, "ioctl", ioctl)
        below = _transport(conn).sock
        _transport(conn).sock = Failing(below, fault)
        conn.abort()
        below.close()
        assert await is_reset(client) is (call != "setsockopt")
        await _settle()
        assert _only(running).reason is Reason.ABORTED
        assert (_only(running).unacknowledged is None) is (call == "ioctl")
        monkeypatch.undo()
    said = call == "setsockopt" and name in ("ENOMEM", "EPERM", "EINVAL")
    assert ("can't reset" in caplog.text) is said


async def test_a_failed_reset_is_logged_once_a_second(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(_by_hand) as running:
        for _ in range(20):
            await _says(await running.connect())
        for number, conn in enumerate(running.server.connections):
            transport: Any = _transport(conn)
            transport.sock = Failing(transport.sock, Fault("setsockopt", "EPERM"))
            conn.abort()
            if number == 10:
                await trio.sleep(1)
    assert len(caplog.records) == 2
    assert "(10 more)" in caplog.text


async def test_a_descriptor_that_a_handler_has_closed_ends_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: even though it can't be closed again."""

    async def handler(conn: Connection) -> None:
        await _says_hello(conn)
        if conn.id == 2:
            os.close(conn.socket.fileno())
        await _by_hand(conn)

    async def _says_hello(conn: Connection) -> None:
        await conn.send_all(await conn.receive_some())

    async with _served(handler) as (running, client, _):
        assert await receive_all(client) == b""
        await _settle()
        assert _only(running).reason is Reason.HANDLER_ERROR


@any_times
@pytest.mark.parametrize("name", ["ENOMEM", "ENOBUFS", "EPERM", "EIO"])
async def test_a_failed_look_for_bytes_changes_nothing(
    name: str, times: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: the next receive raises the error, if it is one."""
    async with _served() as (_, client, conn):
        below = _transport(conn).sock
        _transport(conn).sock = Failing(below, Fault("recv", name, times))
        assert _transport(conn).readable()
        assert _transport(conn).error is None
        _transport(conn).sock = below
        await _says(client)
        await client.aclose()


# -- Listeners

#: The errors of accept(2), and some of a system call filter. EAGAIN is left out: the
#: kernel does not return it if a client is in the queue.
ACCEPT = [
    "EBADF", "ECONNABORTED", "EFAULT", "EINVAL", "EMFILE", "ENFILE",
    "ENOBUFS", "ENOMEM", "ENOTSOCK", "EOPNOTSUPP", "EPERM", "EPROTO", "ENETDOWN",
    "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH", "ENOSR",
    "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ETIMEDOUT", "ENOSYS", "EACCES", "EIO",
]  # fmt: skip


@pytest.mark.parametrize("name", ACCEPT)
@pytest.mark.parametrize("spare", [True, False], ids=["a spare one", "none to spare"])
async def test_a_listener_that_can_not_accept_backs_off_and_logs(
    name: str,
    spare: bool,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Laws 1 and 2: it recovers by itself, and costs nothing meanwhile."""
    async with serving(_by_hand, addresses=("127.0.0.1:0",) * 2) as running:
        acceptor: Any = running.acceptor
        if not spare:
            acceptor._give_up_reserve()
            acceptor._reserve = lambda: None
        inside = await running.connect()
        await _says(inside)
        good, fault = acceptor._sock, Fault("accept4", name)
        acceptor._sock = Failing(good, fault)
        began = trio.current_time()
        waiting = await running.connect()
        await trio.sleep(20)
        await _says(inside)
        await _says(await running.connect(1))
        seconds = trio.current_time() - began
        assert fault.hits <= 16 * (8 + seconds + 1) + 2 * 64
        assert 1 <= len(caplog.records) <= seconds + 1
        acceptor._sock = good
        await _says(waiting)
        assert trio.current_time() <= began + seconds + 1
        ((said, count),) = running.server.statistics().accept_errors.items()
        assert said == errno.errorcode[getattr(errno, name)]
        assert 0 < count <= fault.hits


@pytest.mark.parametrize("name", ACCEPT)
async def test_a_listener_that_can_not_accept_can_be_stopped(
    name: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Laws 5 and 6: clients in its queue can't be refused, and a drain ends."""
    async with serving(_by_hand, addresses=("127.0.0.1:0",) * 2) as running:
        inside = await running.connect(1)
        await _says(inside)
        acceptor: Any = running.acceptor
        good, fault = acceptor._sock, Fault("accept4", name)
        acceptor._sock = Failing(good, fault)
        waiting = await running.connect()
        running.server.start_draining()
        assert await is_reset(waiting)
        await _says(inside)
        await inside.aclose()
        await running.ended.wait()
        assert fault.hits <= 16 * 16 + 64
    assert len(caplog.records) <= 2


@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC", "EEXIST", "EPERM"])
async def test_a_listener_that_can_not_be_waited_for_is_polled(
    name: str,
    waits: Waits,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law 1: it accepts within a second, and does not count as closed."""
    async with serving(_by_hand) as running:
        acceptor: Any = running.acceptor
        waits.fd = acceptor.listener.socket.fileno()
        await _says(await running.connect())
        waits.fault = Fault("epoll_ctl(ADD)", name)
        began = trio.current_time()
        for _ in range(5):
            await trio.sleep(3)
            now = trio.current_time()
            await _says(await running.connect())
            assert trio.current_time() <= now + 1
        seconds = trio.current_time() - began
        assert waits.fault.hits <= 8 * 5 + seconds + 5
        assert 1 <= len(caplog.records) <= seconds + 1
        waits.fault.stop()
        await _says(await running.connect())


@any_times
@pytest.mark.parametrize("name", ["ENOBUFS", "EINVAL", "ENOTCONN"])
async def test_a_client_without_an_address_is_served(
    name: str,
    times: float,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 3: its report has the listener's address."""
    fault = Fault("getsockname", name, times)
    getsockname = socket.socket.getsockname
    none = Limits(max_connections=0)
    async with serving(_by_hand, addresses=("0.0.0.0:0",), limits=none) as running:
        client = await running.connect()

        def fails(sock: socket.socket) -> Any:
            fault.check("getsockname")
            return getsockname(sock)

        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "getsockname", fails)
            running.server.limits = Limits()
            await _says(client)
        await client.aclose()
    assert fault.hits == 1
    (report,) = running.reports
    assert report.local == report.listener
    assert report.outcome is Outcome.OK


@any_times
@pytest.mark.parametrize("name", ["EPERM", "ENOTTY", "ENOMEM", "EBADF"])
async def test_a_socket_that_stays_blocking_is_closed(
    name: str,
    times: float,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Laws 3 and 13: and counted as an error of accepting."""
    fault = Fault("ioctl", name, times)
    setblocking = socket.socket.setblocking

    def fails(sock: socket.socket, flag: bool) -> None:
        fault.check("ioctl")
        setblocking(sock, flag)

    async with serving(_by_hand, limits=Limits(max_connections=1)) as running:
        inside = await running.connect()
        await _says(inside)
        outside = await running.connect()
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "setblocking", fails)
            running.server.limits = Limits()
            assert await receive_all(outside) == b""
            await _says(inside)
        await _says(await running.connect())
        assert running.server.statistics().accept_errors == {name: 1}
        assert running.server.statistics().accepted == 2
    assert len(caplog.records) == 1


async def test_a_queue_is_emptied_even_if_listen_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 6: no client in it is reset without a report."""
    async with serving(_by_hand, limits=Limits(max_connections=0)) as running:
        acceptor: Any = running.acceptor
        acceptor._sock = Failing(acceptor._sock, Fault("listen", "EINVAL"))
        waiting = await running.connect()
        running.server.start_draining()
        assert await receive_all(waiting) == b""


# -- A target: what fails is a call for the socket that connects to it

#: The errors of connect(2), socket(2), tcp(7) and a system call filter.
CONNECT = [
    "EACCES", "EPERM", "EADDRINUSE", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN",
    "EBADF", "ECONNREFUSED", "EFAULT", "EINTR", "EISCONN", "ENETUNREACH", "ENOTSOCK",
    "EPROTOTYPE", "ETIMEDOUT", "EHOSTUNREACH", "ENOBUFS", "ENOMEM", "ENOSYS",
]  # fmt: skip
DIALS = [
    *(("connect", name) for name in CONNECT),
    *(("getsockname", name) for name in ("ENOBUFS", "EBADF", "EPERM")),
    *(("getsockopt", name) for name in ("ENOBUFS", "ENOMEM", "EBADF", "EPERM")),
    *(("wait", name) for name in ("ENOMEM", "ENOSPC", "EPERM", "EEXIST")),
    *(("socket", name) for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM",
                                    "EACCES", "EAFNOSUPPORT", "EINVAL", "EPERM",
                                    "EPROTONOSUPPORT")),
]  # fmt: skip


@any_times
@pytest.mark.parametrize(("call", "name"), DIALS)
async def test_a_target_that_can_not_be_connected_to(
    call: str,
    name: str,
    times: float,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Laws 1, 13 and 15: one client is reset at once, and the next is served."""
    fault = Fault(call, name, times)
    # It connects later, as over a network.
    later = call in ("getsockopt", "wait")

    def connect_ex(sock: socket.socket, address: Any) -> int:
        try:
            fault.check("connect")
        except OSError as error:
            assert error.errno is not None
            return error.errno
        code = socket.socket.connect_ex(sock, address)
        return errno.EINPROGRESS if later else code

    def getpeername(sock: socket.socket) -> Any:
        if later:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return socket.socket.getpeername(sock)

    def failing(name: str) -> Any:
        def method(sock: socket.socket, *args: Any) -> Any:
            fault.check(name)
            return getattr(socket.socket, name)(sock, *args)

        return method

    class FailingSocket(trioserve._origins.DialedSocket):
        __slots__ = ()

        def __init__(self, *args: Any) -> None:
            fault.check("socket")
            super().__init__(*args)

    async def wait(sock: Any) -> None:
        if isinstance(sock, FailingSocket):
            fault.check("wait")
        await wait_writable(sock)

    wait_writable = trio.lowlevel.wait_writable
    async with serving(_by_hand) as target, serving(proxy(target.address)) as running:
        beside = await running.connect()
        await _says(beside)
        with monkeypatch.context() as patch:
            for method in ("getsockname", "getsockopt"):
                setattr(FailingSocket, method, failing(method))
            patch.setattr(FailingSocket, "connect_ex", connect_ex)
            patch.setattr(FailingSocket, "getpeername", getpeername)
            patch.setattr(trioserve._connect, "DialedSocket", FailingSocket)
            patch.setattr(trio.lowlevel, "wait_writable", wait)
            client = await running.connect()
            if times == 1 and call in ("socket", "getsockname"):
                await _says(client)  # a connection that was not accepted is tried again
                return
            assert await is_reset(client)
            await _says(beside)
            if times == 1:
                await _says(await running.connect())
        assert fault.hits >= 1
        await _says(await running.connect())
        await _settle()
        report = _only(running)
        if report.outcome is Outcome.RESOURCE:
            no_local_port = ("EADDRNOTAVAIL", "EADDRINUSE", "EAGAIN")
            assert name in (*OURS, *no_local_port, "EEXIST", "ENOSYS")
        else:
            assert report.outcome is Outcome.TARGET_ERROR
        assert trio.current_time() <= 1

"""Progress: while bytes are on their way, no inactivity timer runs out.

Bytes that the kernel holds for a slow reader, and bytes that arrive while the process
is stopped, are movement. Only a peer that takes no bytes is cut.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
from collections.abc import Generator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    Link,
    RealMedium,
    Sockets,
    foreign,
    sockets,
    some_bytes,
    trio_stream,
)
from support import (
    Result,
    let_packets_arrive,
    receive_all,
    reset,
    run,
    serving,
    time_stands_still,
)
from trioserve import Connection, Reason, Timeouts, _relay, relay
from trioserve._connection import lifecycle_of
from trioserve._relay_rules import RelayRules
from trioserve._shared_socket import SharedSocketTransport

#: Bytes that our kernel may hold for a peer, and that a peer's kernel takes.
_OURS, _THEIRS = 1_000_000, 100_000
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


@contextlib.contextmanager
def path(name: str) -> Generator[None]:
    """Relays in the block use the engine, or tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_relay, "HAS_ENGINE", name == "engine")
        yield


PATHS = ("engine", "tasks")


def deep() -> Sockets:
    """A link whose kernel buffers hold much for a peer that reads slowly."""
    link = sockets()
    link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _THEIRS)
    link.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _OURS)
    link.ours.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _OURS)
    return link


def deep_on_this_machine() -> Sockets:
    """The same over a Unix socket, whose kernel tells at once what a peer has taken.

    TCP's delayed ACKs and window probes need real time, in which many virtual seconds
    pass.
    """
    ours, peer = map(trio_stream, socket.socketpair())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _OURS)
    return Link(ours, peer)


def take(stream: trio.SocketStream, most: int = 10 * _THEIRS) -> bytes | None:
    """Take all bytes that its kernel has, without waiting; None at EOF.

    All of them, because TCP announces a window only when there is much room. The other
    side knows of it when this returns: a stop of the process is longer than packets
    take, even if the machine is busy.
    """
    let_packets_arrive()
    # By the descriptor: Trio's socket can't receive without waiting.
    with socket.socket(fileno=stream.socket.fileno()) as sock:
        try:
            return sock.recv(most) or None
        except BlockingIOError:
            return b""
        finally:
            sock.detach()
            let_packets_arrive()


_T = 5.0
#: Pauses in seconds, each shorter than the timer.
_pauses = st.lists(st.floats(0.1, 4.9), min_size=1, max_size=5)


async def read_slowly(
    stream: trio.SocketStream, pauses: list[float], most: float = math.inf
) -> bytes:
    """Take the bytes that have arrived after each of these pauses, to the end."""
    data = bytearray()
    with trio.fail_after(1000):
        for pause in itertools.cycle(pauses):
            await trio.sleep(pause)
            part = take(stream)
            if part is None:
                break
            data += part
            if len(data) >= most:
                break
    return bytes(data)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("who", [0, 1])
@given(pauses=_pauses)
@settings(deadline=None, max_examples=20)
def test_a_slow_reader_gets_all_after_the_other_side_has_ended(
    way: str, who: int, pauses: list[float]
) -> None:
    """Law 14: the source has ended, and the kernel's buffer goes on draining."""

    async def main() -> None:
        with deep() as a, deep() as b, path(way):
            source, sink = ((a, b), (b, a))[who]
            data = some_bytes(0, _OURS)
            timeouts = Timeouts(half_closed=_T, idle=1000, write_stall=1000)
            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
                nursery.start_soon(_send_all_and_end, source.peer, data)
                assert await read_slowly(sink.peer, pauses) == data
                with contextlib.suppress(trio.BrokenResourceError):
                    await sink.peer.send_eof()
        # Bytes that its kernel has acknowledged and it has not read are unknown.
        if 3 * max(pauses) < _T:
            assert result.value.reason.outcome == "ok"

    run(main)


async def _send_all_and_end(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("timer", ["idle", "write_stall", "drain_idle"])
@pytest.mark.parametrize("who", [0, 1])
@given(pauses=_pauses)
@settings(deadline=None, max_examples=10)
def test_a_slow_reader_is_not_idle_for_any_timer(
    way: str, timer: str, who: int, pauses: list[float]
) -> None:
    """Law 14: the source is silent, and the sink has not got all bytes yet."""
    others = dict.fromkeys(("idle", "half_closed", "write_stall"), 1000.0)
    timeouts = Timeouts(**{**others, timer: _T})

    async def main() -> None:
        async def handler(conn: Connection) -> None:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _OURS)
            conn.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _OURS)
            await relay(conn, b.ours)

        data = some_bytes(0, 1_500_000)
        with deep() as b, path(way):
            async with serving(handler, timeouts=timeouts) as running:
                client = await running.connect()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _THEIRS)
                source, sink = ((client, b.peer), (b.peer, client))[who]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.send_all, data)
                    if timer == "drain_idle":
                        await trio.sleep(1)
                        running.server.start_draining(within=math.inf)
                    assert await read_slowly(sink, pauses, len(data)) == data

    run(main)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("timer", ["idle", "half_closed", "write_stall"])
@given(pauses=st.lists(st.floats(0.1, 4.9), max_size=3))
@settings(deadline=None, max_examples=10)
def test_a_reader_that_stops_is_cut_within_the_timer_and_a_second(
    way: str, timer: str, pauses: list[float]
) -> None:
    """Law 12: however often it has read before."""
    others = dict.fromkeys(("idle", "half_closed", "write_stall"), 1000.0)
    timeouts = Timeouts(**{**others, timer: _T})

    async def main() -> None:
        with deep_on_this_machine() as a, deep_on_this_machine() as b, path(way):
            # More than it takes; with an EOF after it, no more than the kernel holds.
            size = 200_000 if timer == "half_closed" else 5_000_000
            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
                sends = _send_all_and_end if timer == "half_closed" else _send_all
                nursery.start_soon(sends, a.peer, bytes(size))
                last = 0.0
                for pause in pauses:
                    await trio.sleep(pause)
                    assert result.is_pending
                    if take(b.peer, 50_000):
                        last = trio.current_time()
        assert result.value.reason == timer
        assert last + _T <= result.at <= last + _T + 1

    run(main)


async def _send_all(stream: trio.SocketStream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)


@given(pauses=st.lists(st.floats(0.1, 1.9), min_size=1, max_size=5))
@settings(deadline=None, max_examples=10)
def test_a_slow_reader_gets_all_bytes_of_a_handler_that_returned(
    pauses: list[float],
) -> None:
    """Law 14: a close with bytes unread would reset it."""
    data = some_bytes(0, _OURS)

    async def handler(conn: Connection) -> None:
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _OURS)
        conn.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _OURS)
        await conn.send_all(data)

    async def main() -> None:
        async with serving(handler, timeouts=Timeouts(linger=2)) as running:
            client = await running.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _THEIRS)
            got = bytearray()
            with trio.fail_after(1000):
                for pause in itertools.cycle(pauses):
                    await trio.sleep(pause)
                    with contextlib.suppress(trio.BrokenResourceError):
                        await client.send_all(
                            b"!"
                        )  # after a close this would be answered by RST
                    part = take(client)
                    if part is None:
                        break
                    got += part
            assert got == data
            await client.aclose()

    run(main)


async def test_a_close_does_not_linger_for_a_peer_that_takes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: bytes that it sends meanwhile do not extend the time."""
    with deep_on_this_machine() as link:
        transport = SharedSocketTransport(link.ours)
        await transport.send(bytes(_THEIRS))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_slowly, link.peer)
            await transport.discard(65536, 7)
            nursery.cancel_scope.cancel()
        transport.release()
    assert began + 7 <= trio.current_time() <= began + 8


async def _send_slowly(stream: trio.SocketStream) -> None:
    while True:
        await trio.sleep(0.4)
        await stream.send_all(b"x")


async def test_a_reset_waits_while_the_bytes_before_it_move(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 8 and 14: it comes after all bytes, though they take longer than 1 s."""
    with deep() as a, deep() as b:
        data = some_bytes(0, _OURS // 2)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await a.peer.send_all(data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            reset(a.peer)
            got = bytearray()
            while len(got) < len(data):
                await trio.sleep(0.9)
                got += take(b.peer) or b""
            assert got == data
            with pytest.raises(trio.BrokenResourceError):
                await b.peer.receive_some()
        assert result.value.reason is Reason.CLIENT_RESET


# -- A process that was stopped: when it goes on, much time has passed, and bytes that
# have arrived wait in the kernel.

MEDIA: tuple[RealMedium, ...] = (sockets, foreign)


def _send_now(stream: trio.SocketStream, data: bytes) -> None:
    with socket.socket(fileno=stream.socket.fileno()) as sock:
        assert sock.send(data) == len(data)
        sock.detach()


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("timer", ["idle", "half_closed", "first_byte"])
@pytest.mark.parametrize("who", [0, 1])
@given(times=st.floats(1, 20), schedule=st.random_module())
@settings(deadline=None, max_examples=10)
def test_bytes_that_wait_when_a_late_timer_runs_are_passed_on(
    medium: RealMedium, timer: str, who: int, times: float, schedule: object
) -> None:
    """Law 14: they have arrived while the process was stopped."""
    others = {"idle": 1000.0, "half_closed": 1000.0, "first_byte": math.inf}
    timeouts = Timeouts(**{**others, timer: _T})

    async def main() -> None:
        with medium() as a, medium() as b:
            source, sink = ((a, b), (b, a))[who]
            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
                if timer == "half_closed":
                    await sink.peer.send_eof()
                await trio.testing.wait_all_tasks_blocked(0.01)
                _stop(times * _T)
                _send_now(source.peer, b"here")
                assert await sink.peer.receive_some() == b"here"
                assert result.is_pending
                await source.peer.send_eof()
                await sink.peer.send_eof()
        assert result.value.reason.outcome == "ok"
        flow = (result.value.a_to_b, result.value.b_to_a)[who]
        assert (flow.delivered, flow.discarded) == (4, 0)

    run(main)


def _stop(seconds: float) -> None:
    """Stop the process, as it looks from inside."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    clock.jump(seconds)


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("what", ["eof", "reset"])
@given(schedule=st.random_module())
@settings(deadline=None, max_examples=10)
def test_an_eof_or_reset_that_waits_when_a_late_timer_runs_wins(
    medium: RealMedium, what: str, schedule: object
) -> None:
    """Law 15: the peer had ended it before any timer did."""

    async def main() -> None:
        with medium() as a, medium() as b:
            async with trio.open_nursery() as nursery:
                timeouts = Timeouts(idle=_T)
                result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
                await trio.testing.wait_all_tasks_blocked(0.01)
                _stop(2 * _T)
                if what == "reset":
                    reset(a.peer)
                else:
                    with socket.socket(fileno=a.peer.socket.fileno()) as sock:
                        sock.shutdown(socket.SHUT_WR)
                        sock.detach()
                    await b.peer.send_eof()
        reason = Reason.CLIENT_RESET if what == "reset" else Reason.CLIENT_CLOSED
        assert result.value.reason is reason

    run(main)


@pytest.mark.parametrize("medium", MEDIA)
@given(schedule=st.random_module())
@settings(deadline=None, max_examples=10)
def test_a_reader_that_has_read_when_a_late_timer_runs_has_not_stalled(
    medium: RealMedium, schedule: object
) -> None:
    """Law 14: its socket is writable again, so a send is about to go on."""

    async def main() -> None:
        with medium() as a, medium() as b:
            async with trio.open_nursery() as nursery:
                timeouts = Timeouts(write_stall=_T, idle=1000)
                result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
                data = some_bytes(0, 10_000_000)
                nursery.start_soon(_send_all_and_end, a.peer, data)
                await trio.testing.wait_all_tasks_blocked(0.01)
                _stop(2 * _T)
                with time_stands_still():
                    got = take(b.peer)
                    assert got
                    got += await receive_all(b.peer)
                assert got == data
                await b.peer.send_eof()
        assert result.value.reason is Reason.CLIENT_CLOSED

    run(main)


@pytest.mark.parametrize("timer", ["idle", "half_closed", "first_byte", "write_stall"])
@given(schedule=st.random_module())
@settings(deadline=None, max_examples=10)
def test_a_late_timer_does_not_end_a_handlers_wait_that_can_go_on(
    timer: str, schedule: object
) -> None:
    """Law 14: for handlers as for relays."""
    others = {"idle": 1000.0, "half_closed": 1000.0, "write_stall": 1000.0}
    timeouts = Timeouts(**{**others, timer: _T})
    much = some_bytes(0, 10_000_000)

    async def handler(conn: Connection) -> bytes:
        if timer == "half_closed":
            await conn.send_eof()
        if timer == "write_stall":
            await conn.send_all(much)
        return await conn.receive_some()

    async def main() -> None:
        async with serving(handler, timeouts=timeouts) as running:
            client = await running.connect()
            await trio.testing.wait_all_tasks_blocked(0.01)
            _stop(2 * _T)
            if timer == "write_stall":
                with time_stands_still():
                    got = take(client)
                    assert got
                    while len(got) < len(much):
                        got += await client.receive_some()
                assert got == much
            _send_now(client, b"here")
            await receive_all(client)
            await client.aclose()
        (report,) = running.reports
        assert (report.outcome, report.result) == ("ok", b"here")

    run(main)


async def test_a_late_timer_is_logged_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: so that the log explains why timers were late."""
    async with serving(_waits, timeouts=Timeouts(idle=_T)) as running:
        clients = [await running.connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        _stop(30)
        for client in clients:
            assert await receive_all(client) == b""
            await client.aclose()
    (said,) = caplog.messages
    assert said.startswith("a timer is 29.0 s late: ")
    assert {report.reason for report in running.reports} == {Reason.IDLE}


async def _waits(conn: Connection) -> None:
    await conn.receive_some()


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("timer", ["idle", "half_closed", "write_stall"])
async def test_a_timer_of_a_relay_looks_at_the_sockets_itself(
    way: str, timer: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 14: on a busy server the pump may run later than the timer."""
    others = {"idle": 1000.0, "half_closed": 1000.0, "write_stall": 1000.0}
    with sockets() as b, path(way):

        async def handler(conn: Connection) -> None:
            await relay(conn, b.ours)

        timeouts = Timeouts(**{**others, timer: _T})
        async with serving(handler, timeouts=timeouts) as running:
            client = await running.connect()
            if timer == "half_closed":
                await b.peer.send_eof()
            async with trio.open_nursery() as nursery:
                if timer == "write_stall":
                    nursery.start_soon(client.send_all, bytes(10_000_000))
                await trio.testing.wait_all_tasks_blocked(0.01)
                (conn,) = running.server.connections
                _stop(2 * _T)
                # In one step with the bytes: no other task has run.
                if timer == "write_stall":
                    assert take(b.peer)
                else:
                    _send_now(client, b"here")
                running_relay = lifecycle_of(conn).relay
                assert isinstance(running_relay, RelayRules)
                running_relay.on_timer(trio.current_time())
                assert running_relay.close_reason is None
                conn.abort()
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("timer", ["idle", "half_closed", "write_stall", "lifetime"])
async def test_a_timer_of_a_handler_looks_at_the_socket_itself(
    timer: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 14: except lifetime, a total, which no byte extends."""
    others = {"idle": 1000.0, "half_closed": 1000.0, "write_stall": 1000.0}

    async def handler(conn: Connection) -> None:
        if timer == "half_closed":
            await conn.send_eof()
        if timer == "write_stall":
            await conn.send_all(bytes(10_000_000))
        await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(**{**others, timer: _T})) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        (conn,) = running.server.connections
        _stop(2 * _T)
        if timer == "write_stall":
            assert take(client)
        else:
            _send_now(client, b"here")
        lifecycle_of(conn).on_timer(trio.current_time())
        ended = lifecycle_of(conn).close_reason is not None
        conn.abort()
        await trio.testing.wait_all_tasks_blocked()
    assert ended is (timer == "lifetime")


async def test_after_the_first_byte_there_may_be_no_timer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: if all other timers are infinite."""
    never = math.inf
    timeouts = Timeouts(first_byte=_T, idle=never, half_closed=never, write_stall=never)
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
            await a.peer.send_all(b"x")
            await trio.sleep(10 * _T)
            assert result.is_pending
            await a.peer.send_eof()
            await b.peer.send_eof()
    assert result.value.reason is Reason.CLIENT_CLOSED

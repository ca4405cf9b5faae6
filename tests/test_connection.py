"""Connections: how they close, when they are idle, which timer ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import socket
import ssl
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import is_reset, receive_all, receive_exactly, reset, run, serving
from trioserve import (
    Connection,
    Outcome,
    Phase,
    Reason,
    TcpAddress,
    Timeouts,
    current_connection,
    echo,
    proxy,
    relay,
)


class Oops(Exception):
    """The exception of a handler."""


async def was_reset_after_eof(stream: trio.SocketStream) -> bool:
    """Whether a RST has followed the EOF: then the first send fails."""
    assert await stream.receive_some() == b""
    try:
        await stream.send_all(b"x")
    except trio.BrokenResourceError:
        return True
    return False


# -- the close table


async def _returns(conn: Connection) -> None:
    await conn.send_all(b"bye")


async def _reads_to_eof(conn: Connection) -> None:
    async for _ in conn:
        pass
    await conn.send_all(b"bye")


async def _raises(conn: Connection) -> None:
    await conn.send_all(b"bye")
    raise Oops


async def _raises_inside(conn: Connection) -> None:
    async with conn:
        await conn.send_all(b"bye")
        raise Oops


async def _closes(conn: Connection) -> None:
    async with conn:
        await conn.send_all(b"bye")


async def _closes_twice(conn: Connection) -> None:
    await _closes(conn)
    await conn.aclose()
    conn.abort()


async def _aborts(conn: Connection) -> None:
    await conn.send_all(b"bye")
    conn.abort()
    conn.abort()
    with pytest.raises(trio.ClosedResourceError):
        await conn.receive_some()


async def _closes_forcefully(conn: Connection) -> None:
    await trio.aclose_forcefully(conn)


@pytest.mark.parametrize(
    ("handler", "resets", "reason"),
    [
        (_returns, False, Reason.SERVER_CLOSED),
        (_reads_to_eof, False, Reason.CLIENT_CLOSED),
        (_raises, True, Reason.HANDLER_ERROR),
        (_raises_inside, True, Reason.HANDLER_ERROR),
        (_closes, False, Reason.SERVER_CLOSED),
        (_closes_twice, False, Reason.SERVER_CLOSED),
        (_aborts, True, Reason.ABORTED),
        (_closes_forcefully, True, Reason.SERVER_CLOSED),
    ],
)
@pytest.mark.parametrize("unread", [0, 50_000])
async def test_how_it_closes(
    handler: Any, resets: bool, reason: Reason, unread: int, autojump_clock: object
) -> None:
    """Each row of the close table, with and without unread bytes."""
    async with serving(handler) as running:
        stream = await running.connect()
        if unread:
            await stream.send_all(bytes(unread))
        await trio.testing.wait_all_tasks_blocked()
        if handler is _reads_to_eof:
            await stream.send_eof()
        assert await is_reset(stream) == resets
        await stream.aclose()
    (report,) = running.reports
    assert report.reason is reason
    if not resets:
        assert report.bytes_sent == 3
        assert report.bytes_received == unread


async def test_lingering_discards_a_bounded_amount(autojump_clock: object) -> None:
    """Law 12: at most 64 KiB of a client that goes on sending."""
    async with serving(_returns) as running:
        stream = await running.connect()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(10_000))
    (report,) = running.reports
    assert report.bytes_received == report.bytes_discarded == 65536
    assert report.reason is Reason.SERVER_CLOSED
    assert report.phase is Phase.CLOSING


async def test_lingering_takes_a_bounded_time(autojump_clock: object) -> None:
    """Law 12: a client that never closes holds its token for ``linger`` seconds."""
    timeouts = Timeouts(linger=9, idle=5, half_closed=5)
    async with serving(_returns, timeouts=timeouts) as running:
        stream = await running.connect()
        assert await receive_all(stream) == b"bye"
        while running.server.statistics().open:
            await trio.sleep(0.5)
        assert trio.current_time() == pytest.approx(9, abs=0.5)
    assert running.reports[0].duration == 9


async def test_a_reset_while_lingering_is_the_clients_reset(
    autojump_clock: object,
) -> None:
    async with serving(_returns) as running:
        stream = await running.connect()
        assert await receive_exactly(stream, 3) == b"bye"
        reset(stream)
    assert running.reports[0].reason is Reason.CLIENT_RESET


async def _returns_much(conn: Connection) -> None:
    await conn.send_all(bytes(1_000_000))


async def _closes_and_goes_on(conn: Connection) -> None:
    await conn.send_all(b"bye")
    await conn.aclose()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("handler", [_returns, _closes, _closes_and_goes_on])
@pytest.mark.parametrize("end", ["drain", "cancel", "lifetime"])
async def test_a_lingering_close_is_not_cut(
    handler: Any, end: str, autojump_clock: object
) -> None:
    """Law 5: all bytes have arrived, so it ends as it would have."""
    timeouts = Timeouts(linger=math.inf, lifetime=7 if end == "lifetime" else math.inf)
    async with serving(handler, timeouts=timeouts) as running:
        stream = await running.connect()
        await receive_exactly(stream, 3)
        await trio.testing.wait_all_tasks_blocked()
        match end:
            case "drain":
                summary = await running.server.drain(within=1)
                assert (summary.cut, summary.finished) == (0, 1)
            case "cancel":
                running.scope.cancel()
            case _:
                await trio.sleep(7)
        await running.server.drain(within=0)
        assert await receive_all(stream) == b""
    (report,) = running.reports
    assert report.reason is Reason.SERVER_CLOSED
    assert report.outcome is Outcome.OK
    assert report.unacknowledged is None


async def test_a_lingering_close_with_bytes_under_way_is_cut(
    autojump_clock: object,
) -> None:
    """Law 5: some bytes have not arrived, and never will."""
    timeouts = Timeouts(linger=math.inf)
    async with serving(_returns_much, timeouts=timeouts) as running:
        stream = await running.connect()
        await receive_exactly(stream, 1)
        await trio.testing.wait_all_tasks_blocked()
        summary = await running.server.drain(within=1)
        assert await is_reset(stream)
    assert summary.cut == 1
    assert running.reports[0].reason is Reason.CUT


# -- timers


async def _receives(conn: Connection) -> None:
    async with conn:
        async for _ in conn:
            pass


async def _sends_for_ever(conn: Connection) -> None:
    async with conn:
        while True:
            await conn.send_all(bytes(100_000))


async def _half_closes(conn: Connection) -> None:
    async with conn:
        await conn.send_eof()
        await conn.send_eof()
        await conn.receive_some()


async def _computes(conn: Connection) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "timeouts", "reason", "after", "resets"),
    [
        (_receives, Timeouts(idle=7), Reason.IDLE, 7, False),
        (_receives, Timeouts(first_byte=6), Reason.FIRST_BYTE, 6, False),
        (
            _receives,
            Timeouts(first_byte=6, lifetime=20, idle=30),
            Reason.FIRST_BYTE,
            6,
            False,
        ),
        (_receives, Timeouts(lifetime=5), Reason.LIFETIME, 5, True),
        (_computes, Timeouts(lifetime=5, idle=1), Reason.LIFETIME, 5, True),
        (_sends_for_ever, Timeouts(write_stall=4), Reason.WRITE_STALL, 4, True),
        (_half_closes, Timeouts(half_closed=3), Reason.HALF_CLOSED, 3, True),
    ],
)
async def test_which_timer_ends_it(
    handler: Any,
    timeouts: Timeouts,
    reason: Reason,
    after: float,
    resets: bool,
    autojump_clock: object,
) -> None:
    """Law 12: each wait for a peer ends on time, with the timer's name."""
    async with serving(handler, timeouts=timeouts) as running:
        stream = await running.connect()
        while running.server.statistics().open or not running.reports:
            await trio.sleep(0.25)
        if handler is _half_closes:
            assert await was_reset_after_eof(stream)
        else:
            assert await is_reset(stream) == resets
    (report,) = running.reports
    assert (report.reason, report.duration) == (reason, after)
    assert report.outcome is Outcome.TIMEOUT
    assert report.termination_state == ("K-" if reason is Reason.LIFETIME else "cD")


@settings(deadline=None, max_examples=50)
@given(
    pauses=st.lists(st.integers(0, 68).map(lambda n: 0.05 + n / 10), max_size=8),
    first_byte=st.sampled_from([5.0, math.inf]),
)
def test_bytes_extend_inactivity_and_never_a_total(
    pauses: list[float], first_byte: float
) -> None:
    """Law 12: every byte restarts *idle*; none restarts *first byte* or *lifetime*."""
    timeouts = Timeouts(idle=7, first_byte=first_byte, lifetime=20)

    async def main() -> None:
        async with serving(_receives, timeouts=timeouts) as running:
            stream = await running.connect()
            try:
                for pause in pauses:
                    await trio.sleep(pause)
                    await stream.send_all(b"x")
            except trio.BrokenResourceError:
                pass
            while running.server.statistics().open or not running.reports:
                await trio.sleep(0.5)
        (report,) = running.reports
        last = sum(pauses)
        expected = [(20.0, Reason.LIFETIME)]
        if not pauses or pauses[0] > first_byte:
            expected.append((first_byte, Reason.FIRST_BYTE))
            last = 0
        expected.append((last + 7, Reason.IDLE))
        when, reason = min(expected)
        assert report.duration == pytest.approx(when)
        assert report.reason is reason

    run(main)


async def _echoes(conn: Connection) -> None:
    async for data in conn:
        await conn.send_all(data)


async def _half_closes_then(conn: Connection) -> None:
    await _answers(conn)
    await conn.send_eof()
    await conn.receive_some()


async def _answers(conn: Connection) -> None:
    for _ in range(5):
        await conn.send_all(await conn.receive_some())


async def _thinks(conn: Connection) -> None:
    await _answers(conn)
    await trio.sleep(100)
    await conn.receive_some()


async def _floods(conn: Connection) -> None:
    await _answers(conn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_some)
        while True:
            await conn.send_all(bytes(100_000))


@pytest.mark.parametrize(
    ("handler", "reason", "seconds"),
    [
        (_echoes, Reason.IDLE, 7),
        (_thinks, Reason.IDLE, 107),
        (_half_closes_then, Reason.HALF_CLOSED, 2),
        (_floods, Reason.WRITE_STALL, 3),
    ],
)
async def test_a_timer_is_exact_after_a_conversation(
    handler: Any, reason: Reason, seconds: float, autojump_clock: object
) -> None:
    """Law 12: an earlier wait's timer never makes this one late."""
    timeouts = Timeouts(idle=7, half_closed=2, write_stall=3)
    async with serving(handler, timeouts=timeouts) as running:
        stream = await running.connect()
        for pause in (0, 5.5, 4.5, 6.5, 0.5):
            await trio.sleep(pause)
            await stream.send_all(b"x")
            await receive_exactly(stream, 1)
        with trio.fail_after(200):
            while running.server.statistics().open or not running.reports:
                await trio.sleep(0.25)
    (report,) = running.reports
    assert (report.reason, report.duration) == (reason, 17 + seconds)


async def test_sent_bytes_restart_idle(autojump_clock: object) -> None:
    """Law 12: a client that receives is not idle, even if it sends nothing."""

    async def handler(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_some)
            for _ in range(3):
                await trio.sleep(5)
                await conn.send_all(b"news")

    async with serving(handler, timeouts=Timeouts(idle=7)) as running:
        stream = await running.connect()
        assert await receive_all(stream) == b"newsnewsnews"
        assert trio.current_time() == 22
    assert running.reports[0].reason is Reason.IDLE


@given(schedule=st.random_module())
@settings(deadline=None, max_examples=30)
def test_bytes_at_the_last_moment_do_not_make_it_a_reset(
    schedule: object,
) -> None:
    """It ends by FIN when idle, even with bytes that nobody reads."""

    async def main() -> None:
        async with serving(_receives, timeouts=Timeouts(idle=7)) as running:
            stream = await running.connect()
            await trio.sleep_until(7)
            with contextlib.suppress(BrokenPipeError):
                os.write(stream.socket.fileno(), b"late")
            assert not await is_reset(stream)
        assert running.reports[0].reason is Reason.IDLE

    run(main)


async def test_repeated_waits_do_not_extend_a_total(autojump_clock: object) -> None:
    """Law 12: *first byte* counts from accept, however often a handler waits."""

    async def handler(conn: Connection) -> None:
        for _ in range(20):
            with trio.move_on_after(1):
                await conn.receive_some()
                return

    async with serving(handler, timeouts=Timeouts(first_byte=5.5)) as running:
        stream = await running.connect()
        assert await receive_all(stream) == b""
        assert trio.current_time() == 5.5
    assert running.reports[0].reason is Reason.FIRST_BYTE


async def test_a_shielded_wait_is_ended(autojump_clock: object) -> None:
    """Law 12: a timer ends a wait that is shielded from cancellation."""

    async def handler(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(idle=3)) as running:
        stream = await running.connect()
        assert await receive_all(stream) == b""
        assert trio.current_time() == 3
    assert running.reports[0].reason is Reason.IDLE


async def test_an_idle_end_with_bytes_unread_is_a_reset(
    autojump_clock: object,
) -> None:
    """A client that has not taken all bytes must not see a clean end."""

    async def handler(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_some)
            with trio.move_on_after(1):
                await conn.send_all(bytes(20_000_000))

    async with serving(handler, timeouts=Timeouts(idle=3)) as running:
        stream = await running.connect()
        while running.server.statistics().open or not running.reports:
            await trio.sleep(0.25)
        assert await is_reset(stream)
    (report,) = running.reports
    assert report.reason is Reason.IDLE
    assert report.unacknowledged


# -- idle scopes


@settings(deadline=None, max_examples=80)
@given(
    arrives=st.sampled_from([math.inf, 0, 0.7, 3, 6]),
    young=st.booleans(),
    tail=st.integers(0, 3),
    random=st.random_module(),
)
def test_a_drain_ends_only_waits_for_a_message(
    arrives: float, young: bool, tail: int, random: object
) -> None:
    """Law 5: and never a message that has begun."""
    drain_at = 0.5 if young else 5.0
    got: list[bytes] = []

    async def handler(conn: Connection) -> None:
        if not young:
            assert await conn.receive_some(1) == b"!"
        line = b""
        with conn.idle():
            while len(line) < 1 + tail:
                line += await conn.receive_some()
        got.append(line)

    async def main() -> None:
        async with serving(handler) as running:
            stream = await running.connect()
            if not young:
                await stream.send_all(b"!")
            in_message = arrives <= (1 if young else drain_at)
            for when, what in sorted([(arrives, "send"), (drain_at, "drain")]):
                if when == math.inf:
                    continue
                await trio.sleep(when - trio.current_time())
                await trio.testing.wait_all_tasks_blocked()
                if what == "drain":
                    running.server.start_draining(within=50)
                    continue
                try:
                    for _ in range(1 + tail):
                        await stream.send_all(b"x")
                        await trio.testing.wait_all_tasks_blocked()
                except trio.BrokenResourceError:
                    assert not in_message
            await running.ended.wait()
        (report,) = running.reports
        if in_message:
            assert got == [b"x" * (1 + tail)]
            assert report.reason is Reason.SERVER_CLOSED
        else:
            assert got == [b""]
            assert report.reason is Reason.DRAINED

    run(main)


async def test_the_documented_idle_loop_drains_at_once(autojump_clock: object) -> None:
    async def handler(conn: Connection) -> None:
        while True:
            data = b""
            with conn.idle():
                data = await conn.receive_some()
            if not data:
                return
            await conn.send_all(data)

    async with serving(handler) as running:
        stream = await running.connect()
        for _ in range(3):
            await stream.send_all(b"x")
            await receive_exactly(stream, 1)
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(stream) == b""
        await stream.aclose()
        await running.ended.wait()
        assert trio.current_time() == 0
    assert running.reports[0].reason is Reason.DRAINED


@pytest.mark.parametrize("drains", [False, True])
async def test_idle_says_whether_a_drain_has_cancelled_it(
    drains: bool, autojump_clock: object
) -> None:
    said: list[bool] = []

    async def handler(conn: Connection) -> None:
        with conn.idle() as idle:
            assert not idle.cancelled_caught
            await conn.receive_some()
        said.append(idle.cancelled_caught)

    async with serving(handler) as running:
        stream = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        if not drains:
            await stream.send_all(b"x")
            await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
    assert said == [drains]


async def test_an_exception_passes_through_idle(autojump_clock: object) -> None:
    """Afterwards there may be another block, but not with the same value."""

    async def handler(conn: Connection) -> None:
        idle = conn.idle()
        with pytest.raises(KeyError), idle:
            raise KeyError
        with pytest.raises(RuntimeError, match="only be used"), idle:
            raise AssertionError
        with conn.idle():
            await conn.receive_some()

    async with serving(handler) as running:
        await (await running.connect()).send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()


async def test_bytes_that_arrived_before_a_drain_are_read(
    autojump_clock: object,
) -> None:
    """Also if the handler has not run since."""

    async def handler(conn: Connection) -> None:
        await conn.receive_some(1)
        await conn.draining.wait()
        data = b""
        with conn.idle():
            data = await conn.receive_some()
        await conn.send_all(data)

    async with serving(handler) as running:
        stream = await running.connect()
        await stream.send_all(b"!message")
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(stream) == b"message"


async def test_a_message_ended_by_a_reset_is_not_idle(
    autojump_clock: object,
) -> None:
    """The check for bytes does not swallow the error."""

    async def handler(conn: Connection) -> None:
        await conn.receive_some(1)
        await conn.draining.wait()
        with conn.idle():
            await conn.receive_some()

    async with serving(handler) as running:
        stream = await running.connect()
        await stream.send_all(b"!")
        await trio.testing.wait_all_tasks_blocked()
        reset(stream)
        running.server.start_draining()
    assert running.reports[0].reason is Reason.CLIENT_RESET


@pytest.mark.parametrize("arrives", ["nothing", "a byte", "EOF"])
async def test_idle_does_not_nest(arrives: str, autojump_clock: object) -> None:
    """Even after bytes were received in the outer block."""

    async def handler(conn: Connection) -> None:
        with conn.idle():
            if arrives != "nothing":
                assert await conn.receive_some() == (b"x" * (arrives == "a byte"))
            with pytest.raises(RuntimeError, match="entered already"), conn.idle():
                raise AssertionError

    async with serving(handler) as running:
        client = await running.connect()
        if arrives == "a byte":
            await client.send_all(b"x")
        elif arrives == "EOF":
            await client.send_eof()
        await trio.testing.wait_all_tasks_blocked()
    assert running.reports[0].outcome is Outcome.OK


# -- a stream like Trio's


async def test_it_passes_trios_stream_tests(autojump_clock: object) -> None:
    """Trio's own conformance test for half-closeable streams."""
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Connection](0)

        async def handler(conn: Connection) -> None:
            await send.send(conn)
            await trio.sleep_forever()

        async with serving(handler, timeouts=Timeouts(linger=0.001)) as running:

            async def make() -> Any:
                client = await running.connect()
                return await receive.receive(), client

            async def clogged() -> Any:
                conn, client = await make()
                for stream in (conn, client):
                    with trio.move_on_after(1):
                        while True:
                            await stream.send_all(bytes(100_000))
                return conn, client

            await trio.testing.check_half_closeable_stream(make, clogged)
            running.server.start_draining(within=0)
        nursery.cancel_scope.cancel()


async def test_it_has_a_trio_socket(autojump_clock: object) -> None:
    async def handler(conn: Connection) -> None:
        name = conn.socket.getpeername()
        assert conn.peer == TcpAddress(*name)
        option = socket.IPPROTO_TCP, socket.TCP_NODELAY
        assert conn.getsockopt(*option) == 1
        conn.setsockopt(*option, 0)
        assert conn.getsockopt(*option) == 0
        assert conn.getsockopt(*option, 4) == bytes(4)
        assert repr(conn) == f"<Connection 1 from {conn.peer}: data>"
        await conn.wait_send_all_might_not_block()
        with pytest.raises(TypeError, match="max_bytes must be an int"):
            await conn.receive_some("1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="max_bytes must be 1 or more"):
            await conn.receive_some(0)
        conn.socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await conn.receive_some()

    async with serving(handler) as running:
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
    assert running.reports[0].exception is None


async def test_there_is_no_current_connection_outside_handlers() -> None:
    with pytest.raises(LookupError):
        current_connection()


@pytest.mark.parametrize("ends", ["closed", "reset"])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("receive_some", ()),
        ("__anext__", ()),
        ("send_all", (b"x",)),
        ("wait_send_all_might_not_block", ()),
        ("send_eof", ()),
    ],
)
async def test_a_handler_that_ignores_errors_lets_others_run(
    method: str, arguments: tuple[bytes, ...], ends: str, autojump_clock: object
) -> None:
    """Law 1: each call fails, and each is a checkpoint."""
    steps = between = 0

    async def count() -> None:
        nonlocal steps
        while True:
            steps += 1
            await trio.lowlevel.checkpoint()

    async def handler(conn: Connection) -> None:
        nonlocal between
        if ends == "closed":
            conn.abort()
        else:
            with pytest.raises(trio.BrokenResourceError):
                await conn.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            before = steps
            for _ in range(10):
                with contextlib.suppress(
                    trio.BrokenResourceError, trio.ClosedResourceError
                ):
                    await getattr(conn, method)(*arguments)
            between = steps - before
            nursery.cancel_scope.cancel()

    async with serving(handler) as running:
        client = await running.connect()
        if ends == "reset":
            reset(client)
    assert between >= 9  # of ten calls


async def test_bytes_before_a_reset_are_counted(autojump_clock: object) -> None:
    """Law 4: exactly those that the kernel gave and took."""
    async with serving(echo) as running:
        stream = await running.connect()
        await stream.send_all(bytes(1000))
        await receive_exactly(stream, 1000)
        reset(stream)
    (report,) = running.reports
    assert (report.bytes_received, report.bytes_sent) == (1000, 1000)
    assert report.first_byte == 0


async def test_a_cancelled_send_counts_its_prefix(autojump_clock: object) -> None:
    """Law 4: the bytes that a cancelled ``send_all`` has sent arrive, and count."""
    size = 20_000_000

    async def handler(conn: Connection) -> None:
        with trio.move_on_after(1):
            await conn.send_all(bytes(size))
        conn.note(prefix=conn.bytes_sent)

    async with serving(handler) as running:
        stream = await running.connect()
        await trio.sleep(2)
        arrived = len(await receive_all(stream))
    (report,) = running.reports
    assert 0 < arrived < size
    assert report.notes["prefix"] == report.bytes_sent == arrived


# -- over other streams


class OneWay(trio.abc.Stream):
    """A stream that can't be half-closed, like TLS."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self.stream = stream
        self.closed_within: float | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        self.closed_within = trio.current_effective_deadline() - trio.current_time()
        await self.stream.aclose()


class OneListener(trio.abc.Listener[OneWay]):
    """Accepts one stream."""

    def __init__(self, kind: type[OneWay] = OneWay) -> None:
        self.client, theirs = trio.testing.memory_stream_pair()
        self.accepted = kind(theirs)
        self._streams = [self.accepted]

    async def accept(self) -> OneWay:
        if not self._streams:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self._streams.pop()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("raises", [False, True])
async def test_a_stream_without_half_close_is_closed_whole(
    raises: bool, autojump_clock: object
) -> None:
    """It gets ``linger`` seconds to close gracefully, or none after an exception."""

    async def handler(conn: Connection) -> None:
        with pytest.raises(AttributeError, match="no socket"):
            _ = conn.socket
        with pytest.raises(TypeError, match="OneWay can't send EOF"):
            await conn.send_eof()
        await conn.wait_send_all_might_not_block()
        await conn.send_all(b"bye")
        if raises:
            raise Oops

    listener = OneListener()
    async with serving(handler, listeners=[listener]) as running:
        assert await receive_all(listener.client) == b"bye"
        await trio.testing.wait_all_tasks_blocked()
        assert running.server.statistics().open == 0
    assert listener.accepted.closed_within == (-math.inf if raises else 2)


class _TakesItsTime(OneWay):
    """A stream that takes a second to close."""

    async def aclose(self) -> None:
        await trio.sleep(1)
        await super().aclose()


@pytest.mark.parametrize("ending", ["drain", "cancel"])
async def test_a_stream_that_closes_slowly_is_waited_for(
    ending: str, autojump_clock: object
) -> None:
    """Law 13: when serving has ended, it is closed."""
    listener = OneListener(_TakesItsTime)
    async with serving(
        _receives, listeners=[listener], timeouts=Timeouts(idle=5)
    ) as running:
        await trio.sleep(5.5)
        if ending == "cancel":
            running.scope.cancel()
        else:
            running.server.start_draining()
        await running.ended.wait()
        assert trio.current_time() == 6
    assert listener.accepted.closed_within is not None


async def test_an_idle_stream_is_closed_gracefully(autojump_clock: object) -> None:
    listener = OneListener()
    async with serving(
        _receives, listeners=[listener], timeouts=Timeouts(idle=5)
    ) as running:
        assert await receive_all(listener.client) == b""
        assert trio.current_time() == 5
    assert running.reports[0].reason is Reason.IDLE
    assert listener.accepted.closed_within == 2


async def test_an_exception_after_a_cut_is_kept(
    autojump_clock: object,
) -> None:
    """The reason stays; the exception is in the report."""

    async def handler(conn: Connection) -> None:
        try:
            await conn.receive_some()
        finally:
            raise Oops("on the way out")

    async with serving(handler) as running:
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining(0)
    (report,) = running.reports
    assert report.reason is Reason.CUT
    assert report.error == "Oops: on the way out"


async def test_a_close_that_was_cancelled_may_be_repeated(
    autojump_clock: object,
) -> None:
    """Cancelled in its graceful close, a handler may close it again."""

    async def handler(conn: Connection) -> None:
        with trio.move_on_after(1):
            await conn.aclose()
        await conn.aclose()

    async with serving(handler) as running:
        stream = await running.connect()
        assert await was_reset_after_eof(stream) is False
        await trio.sleep(2)
    assert running.reports[0].duration == 1


# -- several tasks, late handlers


def test_aclose_while_another_task_receives() -> None:
    """As in Trio: the receiver gets ClosedResourceError, the peer a FIN."""

    async def handler(conn: Connection) -> None:
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await conn.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await conn.send_all(b"good bye")
            await conn.aclose()

    async def main() -> None:
        async with serving(handler) as running:
            client = await running.connect()
            assert await receive_all(client) == b"good bye"
            await client.aclose()
        (report,) = running.reports
        assert report.exception is None, report.exception

    run(main)


@given(schedule=st.random_module())
@settings(deadline=None, max_examples=30)
def test_a_first_byte_that_has_arrived_is_not_late(schedule: object) -> None:
    """A handler that computes for longer than first_byte, with the byte there."""

    async def handler(conn: Connection) -> None:
        await trio.sleep(6)
        assert await conn.receive_some() == b"hello"

    async def main() -> None:
        async with serving(handler, timeouts=Timeouts(first_byte=5)) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b""
            await client.aclose()
        assert running.reports[0].outcome == "ok", running.reports

    run(main)


def test_half_closed_counts_from_the_half_close() -> None:
    """Another task already waits to receive; then EOF is sent, after a long time."""

    async def handler(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_some)
            await trio.sleep(100)
            await conn.send_eof()

    async def main() -> None:
        async with serving(handler, timeouts=Timeouts(half_closed=60)) as running:
            client = await running.connect()
            await trio.sleep(300)  # long enough
            await client.aclose()
        (report,) = running.reports
        assert (report.reason, report.duration) == (Reason.HALF_CLOSED, 160)

    run(main)


# -- what a handler holds


async def _shouts(conn: Connection) -> None:
    buffer = b""
    while True:
        data = b""
        with conn.idle(held=buffer):
            data = await conn.receive_some()
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            await conn.send_all(line.upper() + b"\n")


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from([b"a", b"\n", b"bc\n", b"d\ne"]), st.booleans()),
        max_size=8,
    ),
    drained_at=st.integers(0, 80),
)
def test_a_drain_ends_no_wait_for_the_rest_of_a_message(
    pieces: list[tuple[bytes, bool]], drained_at: int
) -> None:
    """Law 5: a part of a line that was received is not lost."""

    async def main() -> None:
        said = b""
        async with serving(_shouts) as running:
            client = await running.connect()

            async def drain() -> None:
                await trio.sleep(drained_at / 10 + 0.05)
                running.server.start_draining(100)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                with contextlib.suppress(trio.BrokenResourceError):
                    for piece, waits in pieces:
                        await client.send_all(piece)
                        said += piece
                        await trio.sleep(1.5 if waits else 0)
                    # Send the rest of a line that has begun.
                    if said[-1:] not in (b"", b"\n"):
                        await client.send_all(b"\n")
                        said += b"\n"
                with contextlib.suppress(trio.BrokenResourceError):
                    heard = await receive_all(client)
                    assert heard == said[: len(heard)].upper()
        (report,) = running.reports
        if report.reason is Reason.DRAINED:
            assert said[: report.bytes_received - report.bytes_discarded][-1:] in (
                b"",
                b"\n",
            )
            assert report.bytes_sent == report.bytes_received - report.bytes_discarded
        else:
            assert report.outcome is Outcome.PEER_ERROR

    run(main)


# -- whose doing it was


async def _says_it_in_its_own_words(conn: Connection) -> None:
    try:
        await conn.receive_some()
    except trio.BrokenResourceError as error:
        raise Oops("the client is lost") from error


async def _fails_while_it_handles_it(conn: Connection) -> None:
    try:
        await conn.receive_some()
    finally:
        _ = dict[str, str]()["nobody"]


async def _says_it_from_a_task(conn: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_says_it_in_its_own_words, conn)
        await trio.sleep_forever()


async def _says_it_of_a_group(conn: Connection) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_some)
            await trio.sleep_forever()
    except* trio.BrokenResourceError as errors:
        raise Oops("the client is lost") from errors


async def _goes_round_about(conn: Connection) -> None:
    try:
        await conn.receive_some()
    except trio.BrokenResourceError as error:
        mine = Oops("the client is lost")
        error.__context__ = mine
        raise mine from error


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (_says_it_in_its_own_words, "Oops: the client is lost"),
        (_fails_while_it_handles_it, "KeyError: 'nobody'"),
        (_says_it_from_a_task, "Oops: the client is lost"),
        (_says_it_of_a_group, "Oops: the client is lost"),
        (_goes_round_about, "Oops: the client is lost"),
    ],
)
async def test_an_error_caused_by_a_reset_is_the_clients(
    handler: Any, words: str, autojump_clock: object
) -> None:
    """Law 15: whatever the handler raises from it; its text is in the report."""
    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_RESET
    assert report.error == words


async def test_an_error_beside_a_reset_is_the_handlers(autojump_clock: object) -> None:
    """Law 15: the reset has not caused it."""

    async def handler(conn: Connection) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await conn.receive_some()
        raise Oops

    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
    assert running.reports[0].reason is Reason.HANDLER_ERROR


async def _begins_tls(conn: Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    await trio.SSLStream(conn, context, server_side=True).do_handshake()


async def _begins_tls_elsewhere(conn: Connection) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(await conn.receive_some())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    await trio.SSLStream(ours, context, server_side=True).do_handshake()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_begins_tls, Reason.CLIENT_RESET),
        (_begins_tls_elsewhere, Reason.HANDLER_ERROR),
    ],
)
async def test_a_tls_error_is_the_clients(
    handler: Any, reason: Reason, autojump_clock: object
) -> None:
    """Law 15: if its own TLS failed; the report has the text of the error."""
    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        assert await is_reset(client)
    (report,) = running.reports
    assert report.reason is reason
    if reason is Reason.CLIENT_RESET:
        assert "HTTP_REQUEST" in (report.error or "")


async def test_a_socket_that_the_handler_detaches_counts_as_closed(
    autojump_clock: object,
) -> None:
    """Law 15: that is not an error."""
    taken: list[socket.socket] = []

    async def handler(conn: Connection) -> None:
        taken.append(socket.socket(fileno=conn.socket.detach()))

    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        taken[0].send(b"mine")
        assert await receive_exactly(client, 4) == b"mine"
        taken[0].close()
    assert running.reports[0].reason is Reason.SERVER_CLOSED


# -- who may still be there


async def _echoes_as_we_do(conn: Connection) -> None:
    await relay(conn, conn)


@pytest.mark.parametrize("reason", [Reason.IDLE, Reason.FIRST_BYTE])
@pytest.mark.parametrize("handler", [_receives, echo, _echoes_as_we_do, "proxy"])
async def test_a_close_after_idle_does_not_linger(
    handler: Any, reason: Reason, autojump_clock: object
) -> None:
    """Law 12: it ends on time, by FIN, for handlers and relays."""
    timeouts = Timeouts(idle=6) if reason is Reason.IDLE else Timeouts(first_byte=6)
    async with serving(echo) as behind:
        serve = proxy(behind.address) if handler == "proxy" else handler
        async with serving(serve, timeouts=timeouts) as running:
            client = await running.connect()
            assert await receive_all(client) == b""
            assert trio.current_time() == 6
            await trio.testing.wait_all_tasks_blocked()
            assert not running.server.statistics().open
            (report,) = running.reports
    assert (report.reason, report.duration) == (reason, 6)


@pytest.mark.parametrize("timer", ["idle", "first_byte"])
async def test_a_goodbye_comes_before_the_fin_of_a_timer(
    timer: str, autojump_clock: object
) -> None:
    async def handler(conn: Connection) -> None:
        conn.goodbye = b"408"
        assert conn.goodbye == b"408"
        await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(**{timer: 5.0})) as running:
        client = await running.connect()
        assert await receive_all(client) == b"408"
    (report,) = running.reports
    assert (report.reason, report.bytes_sent) == (timer, 3)


@pytest.mark.parametrize("in_message", [False, True])
async def test_a_goodbye_comes_before_the_fin_of_a_drain(
    in_message: bool, autojump_clock: object
) -> None:
    """Only to a client that was idle; others get their answer."""

    async def handler(conn: Connection) -> None:
        conn.goodbye = b"421"
        with conn.idle():
            await conn.receive_some()
            await conn.draining.wait()
            await conn.send_all(b"answer")

    async with serving(handler) as running:
        client = await running.connect()
        if in_message:
            await client.send_all(b"?")
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(client) == (b"answer" if in_message else b"421")
        await client.aclose()
    (report,) = running.reports
    assert report.reason is (Reason.SERVER_CLOSED if in_message else Reason.DRAINED)


async def test_a_goodbye_is_sent_once_and_not_after_eof(autojump_clock: object) -> None:
    async def handler(conn: Connection) -> None:
        conn.goodbye = b"421"
        with conn.idle():
            await conn.receive_some()
        await conn.send_eof()

    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(client) == b""
        await client.aclose()
    assert running.reports[0].reason is Reason.DRAINED


async def test_a_client_that_is_reset_gets_no_goodbye(autojump_clock: object) -> None:
    async def handler(conn: Connection) -> None:
        conn.goodbye = b"408"
        await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(lifetime=5)) as running:
        client = await running.connect()
        assert await is_reset(client)


async def test_new_timeouts_apply_to_a_wait_that_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: shorter ones, and longer ones."""

    async def handler(conn: Connection) -> None:
        assert conn.timeouts.idle == 100
        await conn.receive_some()
        await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(idle=100)) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        (conn,) = running.server.connections
        conn.timeouts = dataclasses.replace(conn.timeouts, idle=1000)
        await trio.sleep(500)
        await client.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()
        conn.timeouts = dataclasses.replace(conn.timeouts, idle=5)
        assert await receive_all(client) == b""
        assert 505 <= trio.current_time() <= 506


async def test_a_reason_of_the_handlers_own_is_in_the_report(
    autojump_clock: object,
) -> None:
    async def handler(conn: Connection) -> None:
        conn.abort("bad\nhandshake")

    async with serving(handler) as running:
        assert await is_reset(await running.connect())
    (report,) = running.reports
    assert (report.reason, report.error) == (Reason.ABORTED, r"bad\nhandshake")


async def test_timeouts_of_a_closed_connection_start_no_timer(
    autojump_clock: object,
) -> None:
    """Law 13: nothing watches it."""
    kept: list[Connection] = []

    async def handler(conn: Connection) -> None:
        kept.append(conn)

    async with serving(handler) as running:
        assert await receive_all(await running.connect()) == b""
        running.server.timeouts = Timeouts(lifetime=7)
        for client in running.clients:
            await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        kept[0].timeouts = Timeouts(lifetime=3000)
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert kept[1].timeouts.lifetime == 7


async def test_a_stream_without_options_has_none(autojump_clock: object) -> None:
    class Bare(trio.abc.Stream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return b""

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            raise NotImplementedError

        async def wait_send_all_might_not_block(self) -> None:
            raise NotImplementedError

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    class Once(trio.abc.Listener[trio.abc.Stream]):
        accepted = False

        async def accept(self) -> trio.abc.Stream:
            if self.accepted:
                await trio.sleep_forever()
            self.accepted = True
            await trio.lowlevel.checkpoint()
            return Bare()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def handler(conn: Connection) -> None:
        with pytest.raises(AttributeError, match="no socket"):
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.note(asked=True)

    async with serving(handler, listeners=[Once()]) as running:
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(5)
    assert running.reports[0].notes == {"asked": True}

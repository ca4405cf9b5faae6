"""Relay: peers do anything, in any order, at any time, over any kind of stream."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from typing import Any, Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import trioserve
from links import (
    MEDIA,
    REAL_MEDIA,
    AnyLink,
    Medium,
    Peer,
    RealMedium,
    Whole,
    arrived,
    memory,
    narrow,
    sockets,
    some_bytes,
    tls12,
    tls13,
)
from support import (
    Result,
    Running,
    acknowledged,
    is_reset,
    open_fds,
    receive_all,
    receive_exactly,
    relay_with_timers,
    relayed,
    reset,
    run,
    serving,
    time_stands_still,
)
from sweep import Begin, sweep
from trioserve import (
    Connection,
    Flow,
    Outcome,
    Reason,
    RelayResult,
    Timeouts,
    relay,
)
from trioserve._pipes import DEEP_SIZE
from trioserve._relay import transport_of
from trioserve._transport import CHUNK


def _unsent(stream: trio.abc.Stream) -> int:
    """Bytes that the other end's kernel has not taken."""
    transport = transport_of(stream)
    count = transport.unsent()
    transport.release()
    assert count is not None
    return count


@contextlib.asynccontextmanager
async def _matchmaker(**options: Any) -> AsyncGenerator[Running]:
    """A server that relays its first client to its second."""
    first: Connection | None = None
    over = trio.Event()

    async def handler(conn: Connection) -> None:
        nonlocal first
        if first is None:
            first = conn
            await over.wait()
        else:
            try:
                await relay(first, conn)
            finally:
                over.set()

    async with serving(handler, **options) as running:
        yield running


async def _expect_eof_and_close(stream: trio.SocketStream) -> None:
    assert await receive_all(stream) == b""
    await stream.aclose()


# -- Scripts: acts of two peers, one at a time, and the outcome by a model.
#
# Waits are whole seconds and timeouts are not, so that nothing happens at the moment at
# which a timer runs out.


@dataclasses.dataclass(frozen=True)
class Step:
    what: Literal["send", "eof", "reset", "wait"]
    who: int = 0
    amount: int = 0


def _steps(*, resets: bool) -> st.SearchStrategy[list[Step]]:
    who = st.integers(0, 1)
    sizes = st.integers(1, 300) | st.integers(1, 150_000)
    kinds = [
        st.builds(Step, st.just("send"), who, sizes),
        st.builds(Step, st.just("send"), who, sizes),
        st.builds(Step, st.just("wait"), who, st.integers(1, 8)),
        st.builds(Step, st.just("wait"), who, st.integers(1, 8)),
        st.builds(Step, st.just("eof"), who),
    ]
    if resets:
        kinds.append(st.builds(Step, st.just("reset"), who))
    return st.lists(st.one_of(kinds), max_size=12)


_timers = st.integers(1, 15).map(lambda n: n + 0.5) | st.just(math.inf)
_finite = st.integers(1, 15).map(lambda n: n + 0.5)
_timeouts = st.builds(Timeouts, idle=_finite, half_closed=_finite, first_byte=_timers)


class Expected:
    """The expected outcome, by the simplest model."""

    def __init__(self, timeouts: Timeouts, *, resets: bool) -> None:
        self.timeouts = timeouts
        self.cut = "reset" if resets else "eof"
        self.now = self.moved_at = 0.0
        self.reason: Reason | None = None
        self.waited_for: str | None = None
        self.sent = [0, 0]
        self.undelivered = [False, False]
        self.tails = ["open", "open"]
        self.first: int | None = None
        self.ended = [False, False]  # has sent EOF
        self.gone = [False, False]  # has reset after that

    def step(self, step: Step) -> None:
        if step.what == "wait":
            self.wait(step.amount)
        elif not self.gone[step.who]:
            getattr(self, step.what)(step)

    def send(self, step: Step) -> None:
        if self.ended[step.who]:
            return
        other = 1 - step.who
        self.moved_at = self.now
        if self.gone[other]:
            self.undelivered[step.who] = True
            self.reset_by(other)
        else:
            self.sent[step.who] += step.amount

    def eof(self, step: Step) -> None:
        if self.ended[step.who]:
            return
        other = 1 - step.who
        self.ended[step.who] = True
        self.moved_at = self.now
        if self.first is None:
            self.first = step.who
        if self.gone[other]:
            self.reset_by(other)
            return
        self.tails[other] = "eof"
        if all(self.ended):
            normal = (Reason.CLIENT_CLOSED, Reason.SERVER_CLOSED)
            self.reason = normal[self.first]

    def reset(self, step: Step) -> None:
        if self.ended[step.who]:
            # The peer no longer reads; the next send to it fails.
            self.gone[step.who] = True
            if self.tails[step.who] == "open":
                self.tails[step.who] = "closed"
        else:
            self.reset_by(step.who)

    def reset_by(self, who: int) -> None:
        self.reason = (Reason.CLIENT_RESET, Reason.SERVER_RESET)[who]
        if self.tails[who] == "open":
            self.tails[who] = "closed"
        self.end_open_tails(self.cut)

    def wait(self, seconds: float) -> None:
        due, reason, side = self.due()
        if self.now + seconds < due:
            self.now += seconds
            return
        self.now, self.reason, self.waited_for = due, reason, side
        by_fin = reason in (Reason.IDLE, Reason.FIRST_BYTE)
        self.end_open_tails("eof" if by_fin else self.cut)

    def due(self) -> tuple[float, Reason, str]:
        timers: list[tuple[float, Reason, str]] = []
        if any(self.ended):
            waited_for = "client" if self.ended[1] else "target"
            due = self.moved_at + self.timeouts.half_closed
            half_closed = (due, Reason.HALF_CLOSED, waited_for)
            timers.append(half_closed)
        else:
            timers.append((self.moved_at + self.timeouts.idle, Reason.IDLE, "client"))
        if not any(self.sent) and not self.ended[0]:
            timers.append((self.timeouts.first_byte, Reason.FIRST_BYTE, "client"))
        return min(timers, key=lambda timer: timer[0])

    def end_open_tails(self, how: str) -> None:
        self.tails = [how if tail == "open" else tail for tail in self.tails]


async def _perform(peer: Peer, step: Step) -> None:
    match step.what:
        case "send":
            await peer.send(step.amount)
        case "eof":
            await peer.send_eof()
        case "reset":
            peer.reset()
        case "wait":
            pass


async def _play(medium: Medium, steps: list[Step], timeouts: Timeouts) -> None:
    """Let both peers perform the script, one act at a time, and compare."""
    with medium() as a, medium() as b, trio.fail_after(1000):
        await _play_on(a, b, steps, timeouts)


async def _play_on(
    a: AnyLink, b: AnyLink, steps: list[Step], timeouts: Timeouts
) -> None:
    peers = Peer(a.peer), Peer(b.peer)
    expected = Expected(timeouts, resets=a.resets)
    async with trio.open_nursery() as reading:
        for peer in peers:
            reading.start_soon(peer.read)
        async with trio.open_nursery() as relaying:
            running = Result(relaying, a.ours, b.ours, timeouts=timeouts)
            await trio.testing.wait_all_tasks_blocked()
            for step in [*steps, Step("wait", amount=1000)]:
                expected.step(step)
                if step.what == "wait" and expected.reason is None:
                    await trio.sleep_until(expected.now)
                await _perform(peers[step.who], step)
                if expected.reason is not None:
                    break
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        reading.cancel_scope.cancel()

    result = running.value
    assert (result.reason, result.waited_for) == (expected.reason, expected.waited_for)
    # A reset may wait a second for the bytes before it to be acknowledged.
    late = 1 if "reset" in result.reason else 0
    assert expected.now <= running.at <= expected.now + late
    assert [peer.tail for peer in peers] == expected.tails
    for who, flow in enumerate((result.a_to_b, result.b_to_a)):
        assert flow.received == flow.delivered + flow.discarded
        if not expected.undelivered[who]:
            assert flow.discarded == 0
            assert flow.received == expected.sent[who]
        assert peers[1 - who].received == peers[who].sent[: flow.delivered]


SECURE = (pytest.param(tls12, marks=pytest.mark.long("as in TLS 1.3")), tls13)


@pytest.mark.parametrize("medium", [*MEDIA, *SECURE])
@given(data=st.data(), timeouts=_timeouts, schedule=st.random_module())
@settings(deadline=None)
def test_a_relay_matches_the_model_of_its_script(
    medium: Medium, data: st.DataObject, timeouts: Timeouts, schedule: object
) -> None:
    """Laws 4, 7, 8, 11 and 12: every script has one outcome, over any stream."""
    steps = data.draw(_steps(resets="memory" not in medium.__name__))
    run(_play, medium, steps, timeouts)


# -- Chaos: the same, all at once; peers may stop reading too.


@st.composite
def _chaos(draw: st.DrawFn) -> list[tuple[str, int]]:
    whats = ["send", "send", "send", "eof", "reset", "wait", "stop reading", "read on"]
    return draw(
        st.lists(st.tuples(st.sampled_from(whats), st.integers(1, 300_000)), max_size=8)
    )


async def _run_wild(peer: Peer, steps: list[tuple[str, int]]) -> None:
    for what, amount in steps:
        match what:
            case "send":
                await peer.send(amount)
            case "eof":
                await peer.send_eof()
            case "reset":
                peer.reset()
            case "wait":
                await trio.sleep(amount / 50_000)
            case "stop reading":
                peer.stop_reading()
            case _:  # "read on"
                peer.read_on()


@pytest.mark.parametrize("medium", [*REAL_MEDIA, *SECURE])
@given(scripts=st.tuples(_chaos(), _chaos()), schedule=st.random_module())
@settings(deadline=None)
def test_whatever_peers_do_a_relay_ends_and_its_ledger_balances(
    medium: RealMedium, scripts: tuple[list[tuple[str, int]], ...], schedule: object
) -> None:
    """Laws 4, 9 and 12: two wild peers; every byte is counted, and it ends."""
    timeouts = Timeouts(idle=9.5, half_closed=7.5, write_stall=5.5)
    before = open_fds()

    async def main() -> None:
        with medium() as a, medium() as b:
            peers = Peer(a.peer), Peer(b.peer)
            async with trio.open_nursery() as nursery:
                for peer, steps in zip(peers, scripts, strict=True):
                    nursery.start_soon(peer.read)
                    nursery.start_soon(_run_wild, peer, steps)
                # Longer than all their waits and all timers together.
                with trio.fail_after(500):
                    result = await relay_with_timers(a.ours, b.ours, timeouts=timeouts)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        for flow, source, sink in (
            (result.a_to_b, peers[0], peers[1]),
            (result.b_to_a, peers[1], peers[0]),
        ):
            assert flow.received == flow.delivered + flow.discarded
            assert 0 <= flow.discarded <= (DEEP_SIZE if medium is sockets else CHUNK)
            assert flow.received <= len(source.sent)
            assert len(sink.received) <= flow.delivered
            assert source.sent.startswith(sink.received)
            if result.reason.outcome == "ok" and sink.may_read.is_set():
                assert flow.delivered == len(source.sent)

    run(main)
    assert open_fds() == before


# -- Law 8: resets


@pytest.mark.parametrize("medium", REAL_MEDIA)
@pytest.mark.parametrize("who", [0, 1])
@given(count=st.integers(0, 40_000), schedule=st.random_module())
@settings(deadline=None)
def test_a_reset_comes_after_the_bytes_before_it(
    medium: RealMedium, who: int, count: int, schedule: object
) -> None:
    """Law 8: every byte that was received before a reset is delivered before it."""

    async def main() -> None:
        with medium() as a, medium() as b:
            sender, receiver = (a, b)[who], (b, a)[who]
            peer = Peer(receiver.peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, a.ours, b.ours)
                await sender.peer.send_all(some_bytes(0, count))
                reset(sender.peer)
            await peer.read()
            assert peer.received == some_bytes(0, count)
            assert peer.tail == "reset"

    run(main)


@pytest.mark.parametrize("other_medium", REAL_MEDIA)
@pytest.mark.parametrize("medium", REAL_MEDIA)
@given(schedule=st.random_module())
@settings(deadline=None, max_examples=20)
def test_last_bytes_of_a_peer_that_takes_nothing_are_delivered(
    medium: RealMedium, other_medium: RealMedium, schedule: object
) -> None:
    """Law 8: whichever direction finds the end first."""

    async def main() -> None:
        with medium() as a, other_medium() as b:
            peer = Peer(b.peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, a.ours, b.ours)
                nursery.start_soon(peer.send, 30_000_000)
                await trio.testing.wait_all_tasks_blocked()
                # In one step, so that both directions find the end in the same turn.
                os.write(a.peer.socket.fileno(), b"last words")
                reset(a.peer)
                await peer.read()
            assert (bytes(peer.received), peer.tail) == (b"last words", "reset")

    run(main)


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_an_eof_for_a_peer_that_is_gone(medium: RealMedium) -> None:
    """Law 8: nobody reads there, so only sending the EOF finds it out."""
    with medium() as a, medium() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await b.peer.send_eof()
            assert await receive_all(a.peer) == b""
            reset(b.peer)
            await a.peer.send_eof()
        assert result.value.reason is Reason.SERVER_RESET


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_a_reset_that_waits_for_its_flush_stays_a_reset(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: no timer turns it into a clean end, however slow the other side is."""
    with medium() as a, sockets() as b:
        narrow(b.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours, timeouts=Timeouts(idle=10))
            # More than the peer ever takes, and not more than our kernel takes.
            sent = 0
            while _unsent(b.ours) < 8000:
                while _unsent(b.ours) < 8000:
                    sent += 1000
                    await a.peer.send_all(bytes(1000))
                    await trio.testing.wait_all_tasks_blocked()
                await acknowledged()
            await trio.sleep(9.5)
            reset(a.peer)
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.a_to_b.delivered == sent
        assert trio.current_time() == 10.5
        peer = Peer(b.peer)
        await peer.read()
        assert peer.tail == "reset"


# -- Law 9: backpressure


@pytest.mark.parametrize("medium", REAL_MEDIA)
@pytest.mark.parametrize("who", [0, 1])
async def test_a_peer_that_never_reads_costs_one_chunk(
    medium: RealMedium, who: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 9 and 12: it is reset exactly when write_stall runs out."""
    with medium() as a, medium() as b:
        sender, receiver = (a, b)[who], (b, a)[who]
        peer = Peer(sender.peer)
        narrow(receiver.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, 30_000_000)
            timeouts = Timeouts(write_stall=33)
            relaying = Result(nursery, a.ours, b.ours, timeouts=timeouts)
            await acknowledged()
        result = relaying.value
        # The first check, a second later, counts the bytes that were taken at first.
        assert 33 <= relaying.at <= 34
        assert result.reason is Reason.WRITE_STALL
        assert result.waited_for == ("target", "client")[who]
        flow = (result.a_to_b, result.b_to_a)[who]
        assert flow.received == flow.delivered + flow.discarded
        assert 0 < flow.discarded <= CHUNK <= 65536
        assert await is_reset(receiver.peer)


@pytest.mark.parametrize("medium", REAL_MEDIA)
@pytest.mark.parametrize("who", [0, 1])
async def test_idle_with_undelivered_bytes_is_a_reset(
    medium: RealMedium, who: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: and the side that took no bytes is the one waited for."""
    with medium() as a, medium() as b:
        sender, receiver = (a, b)[who], (b, a)[who]
        timeouts = Timeouts(idle=5, write_stall=30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(sender.peer).send, 30_000_000)
            result = await relay(a.ours, b.ours, timeouts=timeouts)
            nursery.cancel_scope.cancel()
        assert result.reason is Reason.IDLE
        assert 5 <= trio.current_time() <= 6
        assert result.waited_for == ("target", "client")[who]
        assert (result.a_to_b, result.b_to_a)[who].discarded > 0
        assert await is_reset(receiver.peer)


@pytest.mark.parametrize("medium", REAL_MEDIA)
@pytest.mark.parametrize("who", [0, 1])
async def test_half_closed_with_bytes_that_the_other_side_does_not_take(
    medium: RealMedium, who: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: one side has sent all, and the timer waits for the other to read."""
    with medium() as a, medium() as b:
        sender, receiver = (a, b)[who], (b, a)[who]
        narrow(receiver.peer)
        timeouts = Timeouts(half_closed=5, write_stall=30, idle=1000)
        async with trio.open_nursery() as nursery:
            await receiver.peer.send_eof()
            nursery.start_soon(Peer(sender.peer).send, 30_000_000)
            result = await relay(a.ours, b.ours, timeouts=timeouts)
            nursery.cancel_scope.cancel()
    assert result.reason is Reason.HALF_CLOSED
    assert result.waited_for == ("target", "client")[who]


@pytest.mark.parametrize("has_engine", [False, True])
@pytest.mark.parametrize("timer", ["write_stall", "idle"])
@pytest.mark.parametrize("end", ["reset", "eof", "nothing"])
async def test_a_timer_finds_the_reset_of_an_unread_side(
    has_engine: bool,
    timer: Literal["write_stall", "idle"],
    end: str,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 12: a side that reset while nothing was read from it is the reason."""
    if not has_engine:
        monkeypatch.setattr(trioserve._relay, "HAS_ENGINE", False)
    timeouts = Timeouts(idle=5) if timer == "idle" else Timeouts(write_stall=5)
    with sockets() as a, sockets() as b:
        narrow(b.peer)
        async with trio.open_nursery() as nursery:
            if end == "eof":
                await b.peer.send_eof()
                timeouts = dataclasses.replace(timeouts, half_closed=5)
            result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
            if end == "eof":
                assert await receive_all(a.peer) == b""
            # Until the other side takes no more bytes, and later ones stay unread.
            while arrived(a.ours.socket) < 10_000:
                await a.peer.send_all(bytes(10_000))
                # Less than the virtual clock needs to jump.
                await trio.testing.wait_all_tasks_blocked(0.0005)
            if end == "reset":
                reset(a.peer)
            elif end == "eof":
                a.peer.socket.close()
        assert result.value.a_to_b.discarded > 0
        if end == "reset":
            assert result.value.reason is Reason.CLIENT_RESET
            assert result.value.waited_for is None
            assert "reset" in (result.value.error or "")
        else:
            assert result.value.reason.outcome is Outcome.TIMEOUT
            assert result.value.error is None
        assert await is_reset(b.peer)


async def test_bytes_that_a_stalled_target_did_not_take_are_reported(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 4: they count as discarded."""

    async def handler(conn: Connection) -> RelayResult:
        with sockets() as target:
            return await relay(conn, target.ours)

    async with serving(handler, timeouts=Timeouts(write_stall=5)) as running:
        client = await running.connect()
        await Peer(client).send(30_000_000)
    (report,) = running.reports
    assert isinstance(report.result, RelayResult)
    assert report.reason is Reason.WRITE_STALL
    assert report.bytes_received == report.result.a_to_b.received
    assert report.bytes_discarded == report.result.a_to_b.discarded > 0


async def test_a_slow_reader_has_not_stalled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 12 and 14: every byte that is taken restarts write_stall."""
    with sockets() as a, sockets() as b:
        b.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(a.peer).send, 50_000_000)
            timeouts = Timeouts(write_stall=5, idle=6)
            result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
            for _ in range(5):
                await acknowledged()
                await trio.sleep(4)
                assert result.is_pending
                await b.peer.receive_some(50_000_000)
            await acknowledged()
        assert result.value.reason is Reason.WRITE_STALL
        assert 25 <= result.at <= 26  # checked once a second


# -- Law 10: chunking


@pytest.mark.parametrize("medium", MEDIA)
@given(
    data=st.binary(min_size=1, max_size=2000),
    cuts=st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=8),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_chunks_make_no_difference(
    medium: Medium, data: bytes, cuts: list[tuple[int, bool]], schedule: object
) -> None:
    """Law 10: the same bytes, ends and counts come out for any packets."""

    async def main() -> None:
        with medium() as a, medium() as b:
            peer = Peer(b.peer)
            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours)
                nursery.start_soon(peer.read)
                start = 0
                for end, pauses in [*sorted(cuts), (len(data), True)]:
                    await a.peer.send_all(data[start:end])
                    start = min(end, len(data))
                    if pauses:
                        await trio.testing.wait_all_tasks_blocked()
                await a.peer.send_eof()
                await trio.testing.wait_all_tasks_blocked()
                await b.peer.send_eof()
        flow = Flow(received=len(data), delivered=len(data), discarded=0)
        nothing = Flow(received=0, delivered=0, discarded=0)
        assert peer.received == data
        assert result.value == RelayResult(
            reason=Reason.CLIENT_CLOSED, a_to_b=flow, b_to_a=nothing
        )

    run(main)


# -- Law 12: timers (more of them in the scripts above)


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("who", [None, 0, 1])
async def test_a_byte_of_either_side_is_the_first(
    medium: Medium, who: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: first_byte is a total; a byte of either side ends it."""
    with medium() as a, medium() as b:
        async with trio.open_nursery() as nursery:
            timeouts = Timeouts(first_byte=10, idle=30)
            result = Result(nursery, a.ours, b.ours, timeouts=timeouts)
            await trio.sleep(3)
            if who is not None:
                await (a, b)[who].peer.send_all(b"x")
        if who is None:
            assert (result.value.reason, result.at) == (Reason.FIRST_BYTE, 10)
            assert result.value.waited_for == "client"
        else:
            assert (result.value.reason, result.at) == (Reason.IDLE, 33)


async def test_first_byte_counts_from_accept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: the time that a handler takes before the relay counts."""

    async def handler(conn: Connection) -> None:
        await trio.sleep(3)
        with sockets() as target:
            await relay(conn, target.ours)

    async with serving(handler, timeouts=Timeouts(first_byte=5)) as running:
        client = await running.connect()
        assert await receive_all(client) == b""
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.duration) == (Reason.FIRST_BYTE, 5)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_first_byte_that_has_arrived_is_not_late(schedule: object) -> None:
    """Law 12: it came in time; it was the handler who was busy with other things."""

    async def handler(conn: Connection) -> None:
        await trio.sleep(6)
        with sockets() as target:
            await target.peer.send_eof()
            await relay(conn, target.ours)
            assert await receive_all(target.peer) == b"hello"

    async def main() -> None:
        async with serving(handler, timeouts=Timeouts(first_byte=5)) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b""
            await client.aclose()
        assert running.reports[0].outcome == "ok"

    run(main)


# -- Sides that can't be closed by half


@pytest.mark.parametrize("medium", MEDIA)
async def test_a_side_that_cannot_send_eof_is_closed_instead(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 7: after all bytes; then there is nothing to wait for."""
    with medium() as a, medium() as b:
        await a.peer.send_all(b"the last words")
        await a.peer.send_eof()
        result = await relay(a.ours, Whole(b.ours))
        assert result.reason is Reason.CLIENT_CLOSED
        assert await receive_all(b.peer) == b"the last words"
        assert await receive_all(a.peer) == b""


@pytest.mark.parametrize("medium", MEDIA)
async def test_two_sides_that_cannot_send_eof(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 7: the end of one is the end of both."""
    with medium() as a, medium() as b:
        await b.peer.send_eof()
        result = await relay(Whole(a.ours), Whole(b.ours))
        assert result.reason is Reason.SERVER_CLOSED
        assert await receive_all(a.peer) == await receive_all(b.peer) == b""


@pytest.mark.parametrize("medium", MEDIA)
async def test_an_idle_side_that_cannot_send_eof_is_closed(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """When idle, both sides get EOF, or are closed."""
    with medium() as a, medium() as b:
        result = await relay(Whole(a.ours), b.ours, timeouts=Timeouts(idle=5))
        assert result.reason is Reason.IDLE
        assert await receive_all(a.peer) == await receive_all(b.peer) == b""


class _TakesItsTime(Whole):
    """A stream that takes a second to close, even if it is cancelled."""

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        await super().aclose()


async def test_a_side_that_closes_slowly_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 13: when a relay that resets its sides has ended, they are closed."""
    with sockets() as a, memory() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, _TakesItsTime(b.ours))
            await trio.testing.wait_all_tasks_blocked()
            reset(a.peer)
        assert (result.value.reason, result.at) == (Reason.CLIENT_RESET, 1)


# -- Echo


@pytest.mark.parametrize("medium", MEDIA)
async def test_a_stream_relayed_to_itself_is_an_echo(medium: Medium) -> None:
    """One pump, and one count."""
    with medium() as link:
        await link.peer.send_all(b"hello")
        await link.peer.send_eof()
        result = await relay(link.ours, link.ours)
        assert await receive_all(link.peer) == b"hello"
        assert result == RelayResult(
            reason=Reason.CLIENT_CLOSED,
            a_to_b=Flow(received=5, delivered=5, discarded=0),
            b_to_a=Flow(received=0, delivered=0, discarded=0),
        )


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_a_reset_ends_an_echo(medium: RealMedium) -> None:
    """Law 8: there is no other side."""
    with medium() as link:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, link.ours, link.ours)
            await trio.testing.wait_all_tasks_blocked()
            reset(link.peer)
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.error is not None
        assert result.value.error.startswith("ConnectionResetError: ")


# -- Misuse, closing, cancelling


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("who", [0, 1])
async def test_another_task_uses_a_stream(medium: Medium, who: int) -> None:
    """The relay raises, and leaves both open."""
    with medium() as a, medium() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon((a, b)[who].ours.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await relay(a.ours, b.ours)
            nursery.cancel_scope.cancel()
        await a.ours.send_all(b"still open")
        assert await receive_exactly(a.peer, 10) == b"still open"


async def test_a_connection_is_relayed_once_at_a_time() -> None:
    """The second relay raises, and the first one goes on."""
    results = list[RelayResult]()

    async def handler(conn: Connection) -> None:
        with memory() as a, memory() as b:
            async with trio.open_nursery() as nursery:
                first = Result(nursery, conn, a.ours)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await relay(conn, b.ours)
                await a.peer.send_all(b"goes on")
                await a.peer.aclose()
            results.append(first.value)

    async with serving(handler) as running:
        client = await running.connect()
        await client.send_eof()
        assert await receive_all(client) == b"goes on"
    (result,) = results
    assert result.b_to_a.delivered == 7


@pytest.mark.parametrize("who", [0, 1])
async def test_a_socket_that_was_closed_before(who: int) -> None:
    """The relay raises, and leaves the other one open."""
    with sockets() as a, sockets() as b:
        await (a, b)[who].ours.aclose()
        other = (b, a)[who]
        with pytest.raises(trio.ClosedResourceError):
            await relay(a.ours, b.ours)
        await other.ours.send_all(b"still open")
        assert await receive_exactly(other.peer, 10) == b"still open"


async def test_a_target_that_was_closed_before() -> None:
    """The relay raises, and leaves the connection open."""

    async def handler(conn: Connection) -> None:
        with sockets() as target:
            target.ours.socket.close()
            with pytest.raises(trio.ClosedResourceError):
                await relay(conn, target.ours)
        await conn.send_all(b"still open")

    async with serving(handler) as running:
        client = await running.connect()
        await client.send_eof()
        assert await receive_all(client) == b"still open"
        await client.aclose()


async def test_a_connection_that_was_closed_before() -> None:
    """The relay raises, and leaves the other one open."""

    async def handler(conn: Connection) -> None:
        conn.abort()
        with sockets() as target:
            for sides in ((conn, target.ours), (target.ours, conn)):
                with pytest.raises(trio.ClosedResourceError):
                    await relay(*sides)
            await target.ours.send_all(b"still open")
            assert await receive_exactly(target.peer, 10) == b"still open"

    async with serving(handler) as running:
        client = await running.connect()
        assert await is_reset(client)
        await client.aclose()
    assert running.reports[0].reason is Reason.ABORTED


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("who", [0, 1])
async def test_other_code_closes_one_side(medium: Medium, who: int) -> None:
    """The other side is reset, because no EOF was received."""
    with medium() as a, medium() as b:
        peer = Peer((b, a)[who].peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await trio.testing.wait_all_tasks_blocked()
            await (a, b)[who].ours.aclose()
        await peer.read()
        assert result.value.reason is Reason.ABORTED
        assert peer.tail == ("reset" if a.resets else "eof")


async def test_a_descriptor_that_was_reused_is_left_alone() -> None:
    """Law 1: closed by its owner, its number is that of another file."""
    with sockets() as a, sockets() as b, sockets() as stranger:
        number = a.ours.socket.fileno()
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await trio.testing.wait_all_tasks_blocked()
            a.ours.socket.close()
            os.dup2(stranger.ours.socket.fileno(), number)
        try:
            assert result.value.reason is Reason.ABORTED
            linger = stranger.ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert linger == bytes(8)
            await stranger.peer.send_all(b"still open")
            assert await receive_exactly(stranger.ours, 10) == b"still open"
        finally:
            os.close(number)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_descriptor_that_is_reused_while_bytes_arrive(schedule: object) -> None:
    """Law 1: woken for the old socket, the relay does not read from the new one."""

    async def main() -> None:
        with sockets() as a, sockets() as b, sockets() as stranger, sockets() as bell:
            ours, number = a.ours.socket, a.ours.socket.fileno()
            await stranger.peer.send_all(b"not yours")

            async def change_hands() -> None:
                await bell.ours.receive_some()
                ours.close()
                os.dup2(stranger.ours.socket.fileno(), number)

            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours)
                nursery.start_soon(change_hands)
                await trio.testing.wait_all_tasks_blocked()
                # In one step, so that both tasks wake up in the same turn.
                os.write(a.peer.socket.fileno(), b"hello")
                os.write(bell.peer.socket.fileno(), b"!")
            try:
                assert result.value.a_to_b.received in (0, 5)
                assert await stranger.ours.receive_some() == b"not yours"
            finally:
                os.close(number)

    run(main)


@pytest.mark.parametrize("medium", MEDIA)
async def test_cancelled_without_bytes_it_leaves_both_open(
    medium: Medium, autojump_clock: trio.testing.MockClock
) -> None:
    """They work as before, for example for another relay."""
    with medium() as a, medium() as b:
        for _ in range(2):
            with trio.move_on_after(1) as scope:
                await relay(a.ours, b.ours)
            assert scope.cancelled_caught
            for link in (a, b):
                await link.ours.send_all(b"there")
                assert await receive_exactly(link.peer, 5) == b"there"
                await link.peer.send_all(b"and back")
                assert await receive_exactly(link.ours, 8) == b"and back"


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_cancelled_with_bytes_it_resets_both(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """So that the peers don't see a clean end."""
    with medium() as a, medium() as b, trio.fail_after(60):
        peers = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers[0].send, 30_000_000)
            with trio.move_on_after(1) as scope:
                await relay(a.ours, b.ours)
        assert scope.cancelled_caught
        for peer in peers:
            await peer.read()
            assert peer.tail == "reset"


@pytest.mark.parametrize("medium", REAL_MEDIA)
def test_cancelled_at_any_step_it_keeps_the_contract(medium: RealMedium) -> None:
    """Laws 4, 8 and 13: no byte is lost without being counted."""
    before = open_fds()

    async def scenario(begin: Begin) -> None:
        with medium() as a, medium() as b:
            peers = Peer(a.peer), Peer(b.peer)
            sides = transport_of(a.ours), transport_of(b.ours)
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(peer.read)
                    nursery.start_soon(_say, peer)
                with trio.CancelScope() as scope:
                    begin(scope.cancel)
                    await relayed(*sides)
                held = (
                    sides[0].received != sides[1].sent
                    or sides[1].received != sides[0].sent
                )
                await trio.testing.wait_all_tasks_blocked()
                for side in sides:
                    assert side.closed == held
                    side.release()
                nursery.cancel_scope.cancel()
        for peer in peers:
            assert (peer.tail in ("reset", "eof")) if held else (peer.tail != "reset")
        if not scope.cancelled_caught:
            assert not held
            assert peers[0].received == peers[1].sent
            assert peers[1].received == peers[0].sent

    async def _say(peer: Peer) -> None:
        await peer.send(100_000)
        await peer.send_eof()

    assert sweep(scenario) > 50
    assert open_fds() == before


# -- Connections


async def test_two_connections_are_relayed_and_each_reports_its_side(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 4: the client of one report is the target of the other."""
    async with _matchmaker() as running:
        one, other = await running.connect(), await running.connect()
        await one.send_all(b"hello")
        assert await receive_exactly(other, 5) == b"hello"
        await other.send_all(b"good bye")
        await other.send_eof()
        assert await receive_all(one) == b"good bye"
        await one.send_eof()
        assert await receive_all(other) == b""
        await one.aclose()
        await other.aclose()
    first, second = sorted(running.reports, key=lambda report: report.id)
    assert first.reason is Reason.SERVER_CLOSED
    assert second.reason is Reason.CLIENT_CLOSED
    assert first.upstream is not None
    assert (first.bytes_received, first.upstream.bytes_received) == (5, 8)
    assert second.upstream is not None
    assert (second.bytes_received, second.upstream.bytes_received) == (8, 5)


async def test_a_timer_of_two_connections_blames_the_same_one_in_both_reports(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: the first one's client is the second one's target."""
    async with _matchmaker(timeouts=Timeouts(half_closed=7)) as running:
        one, other = await running.connect(), await running.connect()
        await other.send_eof()
        assert await is_reset(other)
        await one.aclose()
        await other.aclose()
    first, second = sorted(running.reports, key=lambda report: report.id)
    assert (first.reason, first.waited_for) == (Reason.HALF_CLOSED, "client")
    assert (second.reason, second.waited_for) == (Reason.HALF_CLOSED, "target")
    assert first.duration == second.duration == 7


async def test_two_relayed_connections_drain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 5: idle while the server drains, they end by FIN."""
    async with _matchmaker(timeouts=Timeouts(drain_idle=3)) as running:
        one, other = await running.connect(), await running.connect()
        await one.send_all(b"hello")
        assert await receive_exactly(other, 5) == b"hello"
        running.server.start_draining()
        async with trio.open_nursery() as nursery:
            for client in (one, other):
                nursery.start_soon(_expect_eof_and_close, client)
    assert {report.reason for report in running.reports} == {Reason.DRAINED}
    assert {report.duration for report in running.reports} == {3}


async def test_a_drain_does_not_end_a_relay_that_holds_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 5: they arrive, if they are taken before the deadline."""
    size = 10_000_000

    async def handler(conn: Connection) -> None:
        with sockets() as target:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, conn, target.ours)
                await conn.draining.wait()
                await trio.sleep(9)
                with time_stands_still():
                    await receive_exactly(target.peer, size)
                assert await receive_all(target.peer) == b""

    async with serving(handler, timeouts=Timeouts(drain_idle=2)) as running:
        client = await running.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(size))
            await trio.testing.wait_all_tasks_blocked()
            running.server.start_draining()
        assert await receive_all(client) == b""
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.bytes_discarded) == (Reason.DRAINED, 0)


async def test_a_relay_that_begins_while_draining_drains(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 5: it is late, not exempt."""

    async def handler(conn: Connection) -> None:
        await conn.draining.wait()
        await trio.sleep(1)
        with sockets() as target:
            await relay(conn, target.ours, drain_idle=2)

    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(client) == b""
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.duration) == (Reason.DRAINED, 3)


async def test_cancelled_with_two_connections_both_are_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 3 and 4: their reason is the cancellation, and the byte counts balance."""
    async with _matchmaker() as running:
        one, other = await running.connect(), await running.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(one).send, 30_000_000)
            await trio.testing.wait_all_tasks_blocked()
            running.scope.cancel()
        await one.aclose()
        await other.aclose()
    assert {report.reason for report in running.reports} == {Reason.CANCELLED}


async def test_after_a_relay_a_connection_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: and then it has its own timers again."""

    async def handler(conn: Connection) -> None:
        with sockets() as target, trio.move_on_after(10):
            await relay(conn, target.ours, timeouts=Timeouts(idle=20))
        await conn.receive_some()

    async with serving(handler, timeouts=Timeouts(idle=5)) as running:
        client = await running.connect()
        assert await receive_all(client) == b""
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.duration) == (Reason.IDLE, 15)


# -- whose errors a relay explains


class _Database:
    """Another resource of a handler, which can break."""

    async def ask(self) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("the database is gone")


@pytest.mark.parametrize("ends", ["well", "by a reset", "by its silence"])
async def test_an_error_beside_a_relay_is_the_handlers(
    ends: str, autojump_clock: object
) -> None:
    """Law 15: the end of the relay did not cause it."""

    async def handler(conn: Connection) -> None:
        with sockets() as target:
            if ends == "by a reset":
                reset(target.peer)
            elif ends == "well":
                await target.peer.send_eof()
            await relay(conn, target.ours, timeouts=Timeouts(idle=5))
            await _Database().ask()

    async with serving(handler) as running:
        client = await running.connect()
        if ends == "well":
            await client.send_eof()
        await is_reset(client)
    (report,) = running.reports
    assert report.reason is Reason.HANDLER_ERROR
    assert report.error == "BrokenResourceError: the database is gone"


async def _sends_to_the_client(conn: Connection, _: trio.abc.Stream) -> None:
    await conn.send_all(b"x")


async def _receives_from_the_target(_: Connection, target: trio.abc.Stream) -> None:
    await target.receive_some()


async def _receives_from_both(conn: Connection, target: trio.abc.Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_some)
        nursery.start_soon(target.receive_some)


async def _relays_again(conn: Connection, target: trio.abc.Stream) -> None:
    await relay(conn, target)


async def _says_it_otherwise(conn: Connection, target: trio.abc.Stream) -> None:
    try:
        await conn.send_all(b"x")
    except trio.ClosedResourceError:
        raise trio.BrokenResourceError("in other words") from None


async def _speaks_tls(conn: Connection, target: trio.abc.Stream) -> None:
    context = ssl.create_default_context()
    await trio.SSLStream(conn, context, server_hostname="a.test").do_handshake()


async def _flushes_a_stream_over_it(conn: Connection, target: trio.abc.Stream) -> None:
    stapled = trio.StapledStream(conn, conn)
    await stapled.send_all(b"x")


@pytest.mark.parametrize(
    "goes_on",
    [
        _sends_to_the_client,
        _receives_from_the_target,
        _receives_from_both,
        _relays_again,
        _says_it_otherwise,
        _speaks_tls,
        _flushes_a_stream_over_it,
    ],
)
@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_a_handler_that_goes_on_after_a_reset_relay_is_not_blamed(
    goes_on: Any, medium: RealMedium, autojump_clock: object
) -> None:
    """Law 15: the target is; later errors of the streams follow from that."""

    async def handler(conn: Connection) -> None:
        with medium() as target:
            reset(target.peer)
            await relay(conn, target.ours)
            await goes_on(conn, target.ours)

    async with serving(handler) as running:
        assert await is_reset(await running.connect())
    (report,) = running.reports
    assert report.reason is Reason.SERVER_RESET
    assert "ConnectionResetError" in (report.error or "")


async def test_an_error_beside_an_ended_connection_is_the_handlers(
    autojump_clock: object,
) -> None:
    """Law 15: beside a reset it is the reason, beside a cut it is kept."""

    async def handler(conn: Connection) -> None:
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                await conn.receive_some()
        finally:
            with trio.CancelScope(shield=True):
                await _Database().ask()

    async with serving(handler) as running:
        client = await running.connect()
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining(0)
    by_reset, by_cut = running.reports
    assert (by_reset.reason, by_cut.reason) == (Reason.HANDLER_ERROR, Reason.CUT)
    assert by_reset.error == by_cut.error == "BrokenResourceError: the database is gone"

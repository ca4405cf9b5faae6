"""The engine: it relays between sockets like a task for each direction.

test_relay.py tests relays by the engine and by tasks. Here the two are compared, and
there are tests of what only the engine has: stale events, pipes, and relays that share
one task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import gc
import math
import os
import select
import socket
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    REAL_MEDIA,
    Peer,
    RealLink,
    RealMedium,
    Sockets,
    arrived,
    foreign,
    narrow,
    roomy,
    sockets,
    some_bytes,
    trio_stream,
)
from support import (
    PanicError,
    Result,
    is_reset,
    no_free_fd,
    open_fds,
    receive_all,
    receive_exactly,
    relay_between,
    relayed,
    reset,
    run,
    serving,
    virtual_clock,
)
from sweep import Begin, sweep
from trioserve import Connection, Flow, Reason, RelayResult, Timeouts, relay
from trioserve._engine import Engine
from trioserve._engine_pump import EnginePump
from trioserve._engine_run import start_pumps, stop_pumps
from trioserve._errors import chain_of
from trioserve._pipes import DEEP_SIZE, MOST, Pipe, Pipes
from trioserve._polled_pump import PolledPump, RelayCallbacks
from trioserve._relay import transport_of
from trioserve._relay_engine import EngineRelay
from trioserve._relay_rules import RelayRules
from trioserve._socket_transport import SocketTransport
from trioserve._transport import CHUNK, Transport

BULK = 1_000_000


class Counted(Pipes):
    """Pipes that count how often none could be had."""

    denied = 0

    def take(self) -> Pipe | None:
        pipe = super().take()
        self.denied += pipe is None
        return pipe


@contextlib.contextmanager
def started(relay: RelayCallbacks, *pumps: PolledPump[Any]) -> Generator[None]:
    """The engine moves bytes during the block."""
    engine = Engine.of_this_run()
    start_pumps(engine, relay, pumps)
    try:
        yield
    finally:
        stop_pumps(engine, pumps)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    """Law 13: after each test no descriptor of the engine is open."""
    before = open_fds()
    yield
    assert open_fds() == before


def _tasks() -> int:
    """The number of engine tasks of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    names = [t.name for n in root.child_nurseries for t in n.child_tasks]
    return names.count("trioserve engine")


def _write(stream: trio.SocketStream, data: bytes) -> None:
    """Send without a checkpoint, so that several arrive in one poll."""
    assert os.write(stream.socket.fileno(), data) == len(data)


def _hang_up(stream: trio.SocketStream) -> None:
    """Send EOF without a checkpoint."""
    stream.socket.shutdown(socket.SHUT_WR)


async def _settle() -> None:
    """Wait until nothing happens; for less than the virtual clock needs to jump."""
    await trio.testing.wait_all_tasks_blocked(0.0005)


async def _talk(a: Sockets, b: Sockets) -> None:
    """Check that bytes pass both ways."""
    await a.peer.send_all(b"there")
    assert await receive_exactly(b.peer, 5) == b"there"
    await b.peer.send_all(b"and back")
    assert await receive_exactly(a.peer, 8) == b"and back"


class Heard:
    """Callbacks that record their calls."""

    def __init__(self) -> None:
        self.quiet = False
        self.told: list[str] = []

    def on_eof(self, pump: PolledPump[Any]) -> None:
        pump.update_interest()
        self.told.append("eof")

    def on_error(self, transport: Transport) -> None:
        self.told.append("error")

    def on_closed(self) -> None:
        self.told.append("closed")

    def on_failure(self, error: BaseException) -> None:
        self.told.append(repr(error))

    def on_backpressure(self, pump: PolledPump[Any], now: float) -> None:
        self.told.append("backpressure")

    def on_activity(self, now: float) -> None:
        self.told.append("activity")


@contextlib.contextmanager
def _sides(*links: RealLink) -> Generator[list[Transport]]:
    """The transports over our ends of some links."""
    transports = [transport_of(link.ours) for link in links]
    try:
        yield transports
    finally:
        for transport in transports:
            transport.release()


@contextlib.contextmanager
def _paired(a: Sockets, b: Sockets, relay: Heard) -> Generator[list[EnginePump]]:
    """Two pumps that the engine runs, without a relay."""
    with _sides(a, b) as (one, other):
        there, back = _pumps(one, other)
        with started(relay, there, back):
            yield [there, back]


def _pumps(one: Transport, other: Transport) -> tuple[EnginePump, EnginePump]:
    """A pump for each direction."""
    assert isinstance(one, SocketTransport)
    assert isinstance(other, SocketTransport)
    there, back = EnginePump(one, other), EnginePump(other, one)
    return there, back


# -- Law 11: the same story by the engine and by tasks.
#
# Each peer performs its acts one after another: a send that blocks delays its next act.
# All tasks are blocked before the next act. Waits are whole seconds and timeouts are
# not.


@dataclasses.dataclass(frozen=True)
class Act:
    what: Literal["send", "eof", "reset", "stop reading", "read on", "wait"]
    who: int = 0
    amount: int = 0


_who = st.integers(0, 1)
_small = st.integers(1, 300)
_amounts = _small | st.integers(1, 200_000) | st.integers(BULK, 2 * BULK)
_acts = st.one_of(
    st.builds(Act, st.just("send"), _who, _amounts),
    st.builds(Act, st.just("send"), _who, _amounts),
    st.builds(Act, st.just("wait"), _who, st.integers(1, 8)),
    st.builds(Act, st.just("wait"), _who, st.integers(1, 8)),
    st.builds(Act, st.just("stop reading"), _who),
    st.builds(Act, st.just("read on"), _who),
    st.builds(Act, st.just("eof"), _who),
    st.builds(Act, st.just("reset"), _who),
)
_half = st.integers(1, 15).map(lambda n: n + 0.5)
_timeouts = st.builds(Timeouts, idle=_half, half_closed=_half)


def _alone(act: Act) -> list[Act]:
    return [act]


def _clogs(who: int, amount: int) -> list[Act]:
    return [Act("stop reading", who), Act("send", 1 - who, amount)]


class Actor(Peer):
    """A peer that performs its acts, one after another."""

    stream: trio.SocketStream

    def __init__(self, stream: trio.SocketStream, sent: bytes = b"") -> None:
        super().__init__(stream)
        self.sent.extend(sent)
        self.acts_left = 0
        self._tell, self._told = trio.open_memory_channel[Act](math.inf)

    def tell(self, act: Act) -> None:
        match act.what:
            case "send" | "eof":
                self.acts_left += 1
                self._tell.send_nowait(act)
            case "reset":
                self.reset()
            case "stop reading":
                self.stop_reading()
            case "read on":
                self.read_on()
            case _:  # "wait"
                pass

    async def receive(self) -> bytes | bytearray:
        # A peer that must not read takes not even a byte, or its window would open
        # a bit at some later time.
        while self.stream.socket.fileno() >= 0:
            await trio.lowlevel.wait_readable(self.stream.socket)
            if self.may_read.is_set():
                break
            await self.may_read.wait()
        return await self.stream.receive_some(10_000)

    async def act(self) -> None:
        with self._tell, self._told:
            async for act in self._told:
                if act.what == "send":
                    await self.send(act.amount)
                else:
                    await self.send_eof()
                self.acts_left -= 1


class Script:
    """The acts of two peers, and which parts of the outcome TCP leaves open.

    Attributes:
      reads: which peers read.
      clogged: whether a peer sends to one that doesn't read, and more bytes than fit
        into all buffers on the way.
    """

    def __init__(self) -> None:
        self.reads = [True, True]
        self.clogged = [False, False]
        self.gone = [False, False]
        self._clogged_once = [False, False]
        self._lost = [False, False]
        self._ended = [False, False]

    def next(self, act: Act) -> Act:
        """The next act, with an amount that certainly fits into the buffers or not."""
        who, other = act.who, 1 - act.who
        match act.what:
            case "send" if not self.reads[other]:
                if act.amount < BULK:
                    act = dataclasses.replace(act, amount=min(act.amount, 300))
                else:
                    act = dataclasses.replace(act, amount=act.amount + 5 * BULK)
                    self.clogged[who] = self._clogged_once[who] = True
            case "reset":
                # Bytes on their way in either direction, and unread ones, are lost.
                self.gone[who] = True
                self._lost[who] |= self._clogged_once[who]
                self._lost[other] |= self._clogged_once[other] or not self.reads[who]
            case "stop reading":
                self.reads[who] = False
            case "read on":
                self.reads[who] = True
                self.clogged[other] = False
            case "eof":
                self._ended[who] = True
            case _:
                pass
        if act.what == "send":
            self._lost[who] |= self.gone[other]
        return act

    def leaves_open(self, who: int) -> bool:
        """Whether TCP leaves open how many bytes of ``who`` arrived."""
        return self._lost[who] or self.clogged[who]

    def leaves_open_the_tail(self, who: int) -> bool:
        """Whether TCP leaves open if ``who`` finds an EOF or a reset at the end."""
        return self._ended[1 - who] and not self.reads[who]


@dataclasses.dataclass
class Story:
    """The outcome of a script."""

    script: Script
    result: RelayResult
    at: float
    peers: list[Actor]

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self.result.a_to_b, self.result.b_to_a

    def check(self, holds: int) -> None:
        """Check everything that does not depend on buffers."""
        for who, flow in enumerate(self.flows):
            source, sink = self.peers[who], self.peers[1 - who]
            assert flow.received == flow.delivered + flow.discarded
            assert 0 <= flow.discarded <= holds
            assert source.sent.startswith(sink.received)
            if not self.script.leaves_open(who):
                assert flow.discarded == 0
                assert len(sink.received) == flow.delivered

    def check_is(self, other: Story) -> None:
        """Check that it is the same, except where TCP leaves it open."""
        for name in ("reason", "waited_for", "limit"):
            ours, theirs = getattr(self.result, name), getattr(other.result, name)
            assert ours == theirs
        for who in (0, 1):
            mine, its = self.peers[who], other.peers[who]
            if not self.script.leaves_open_the_tail(who):
                assert mine.tail == its.tail
            if not self.script.leaves_open(1 - who):
                assert mine.received == its.received
            if not self.script.leaves_open(who):
                assert self.flows[who] == other.flows[who]


async def _tell(
    medium: RealMedium, first: bytes, acts: list[Act], timeouts: Timeouts
) -> Story:
    """Run the script over that medium."""
    with medium() as a, medium() as b, trio.fail_after(1000):
        for link in (a, b):
            # Fixed, because the buffer would grow while the peer reads.
            link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        peers = [Actor(a.peer, first), Actor(b.peer)]
        script = Script()
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(peer.read)
                nursery.start_soon(peer.act)
            running = Result(nursery, a.ours, b.ours, first=first, timeouts=timeouts)
            await _settle()
            for act in acts:
                was_clogged = script.clogged[1 - act.who]
                act = script.next(act)
                if act.what == "wait":
                    await trio.sleep(act.amount)
                peers[act.who].tell(act)
                await _settle()
                if act.what == "read on" and was_clogged:
                    await _caught_up(peers[1 - act.who], peers[act.who])
                if any(script.gone):
                    # The reset may wait for the bytes before it to be acknowledged.
                    await trio.sleep(1)
                    await _settle()
                if not running.is_pending:
                    break
            while running.is_pending:
                await trio.sleep(1)
            # The last bytes on their way show how it ended.
            for peer in peers:
                peer.read_on()
            await _settle()
            nursery.cancel_scope.cancel()
    return Story(script, running.value, running.at, peers)


async def _caught_up(sender: Actor, receiver: Actor) -> None:
    """Wait until sent bytes have arrived, if they can: the kernel has its own clock."""
    for _ in range(300):
        if not sender.acts_left and receiver.received == sender.sent:
            break
        await trio.sleep(1)
    await _settle()


def _compare(first: int, acts: list[Act], timeouts: Timeouts) -> list[Story]:
    stories: list[Story] = []
    for medium, holds in ((foreign, CHUNK), (sockets, DEEP_SIZE), (roomy, DEEP_SIZE)):
        story = run(_tell, medium, some_bytes(0, first), acts, timeouts)
        story.check(max(holds, first))
        stories.append(story)
    for story in stories[1:]:
        story.check_is(stories[0])
    return stories


@given(
    first=st.just(0) | st.integers(1, 300) | st.integers(1, 2 * BULK),
    acts=st.lists(_acts, max_size=12),
    timeouts=_timeouts,
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_both_ways_do_the_same_at_the_same_time(
    first: int, acts: list[Act], timeouts: Timeouts, schedule: object
) -> None:
    """Law 11: the peers get the same bytes, the results are equal, at the same time.

    A peer that doesn't read is sent few bytes here: the kernel decides when the last
    byte fits into its buffers, by its own clock.
    """
    reads = [True, True]
    for number, act in enumerate(acts):
        if act.what in ("stop reading", "read on"):
            reads[act.who] = act.what == "read on"
        elif act.what == "send" and not reads[1 - act.who]:
            acts[number] = dataclasses.replace(act, amount=min(act.amount, 300))
    portable, *others = _compare(first, acts, timeouts)
    for story in others:
        # A reset may wait a second for the bytes before it to be acknowledged.
        late = 1 if "reset" in story.result.reason else 0
        assert abs(story.at - portable.at) <= late


@pytest.mark.nightly("megabytes in each example, on three data paths")
@given(
    first=st.just(0) | st.integers(1, 300) | st.integers(1, 2 * BULK),
    parts=st.lists(
        st.builds(_alone, _acts) | st.builds(_clogs, _who, st.integers(BULK, 2 * BULK)),
        max_size=8,
    ),
    schedule=st.random_module(),
)
@settings(deadline=None, max_examples=30)
def test_both_ways_do_the_same_when_peers_do_not_read(
    first: int, parts: list[list[Act]], schedule: object
) -> None:
    """Law 11: peers and results get the same, except where TCP leaves it open.

    That is how many bytes have arrived at a peer that didn't read, or was gone: it
    depends on buffers, which differ between engine and tasks. There are no timers, and
    at the end all peers read on and send EOF.
    """
    acts = [act for part in parts for act in part]
    for what in ("read on", "eof"):
        acts += [Act(what, 0), Act(what, 1)]
    never = dict.fromkeys(("idle", "half_closed", "write_stall"), math.inf)
    _compare(first, acts, Timeouts(**never))


# -- Bytes that were received before


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_bytes_that_were_received_before_go_first(medium: RealMedium) -> None:
    """Law 4: and count as received."""
    with medium() as a, medium() as b:
        await a.peer.send_all(b" and the rest")
        await a.peer.send_eof()
        await b.peer.send_eof()
        result = await relay(a.ours, b.ours, first=b"a header")
        assert await receive_all(b.peer) == b"a header and the rest"
        assert result.a_to_b == Flow(received=21, delivered=21, discarded=0)


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_many_bytes_that_were_received_before_wait_their_turn(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 9: while they are held, no byte is read."""
    first = some_bytes(0, 5_000_000)
    with medium() as a, medium() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(a.peer).send, 30_000_000)
            timeouts = Timeouts(write_stall=5)
            result = await relay(a.ours, b.ours, first=first, timeouts=timeouts)
        assert result.reason is Reason.WRITE_STALL
        assert result.a_to_b.received == len(first)


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_many_bytes_that_were_received_before_arrive_unchanged(
    medium: RealMedium,
) -> None:
    """Law 10: in however many parts the sink takes them."""
    first = some_bytes(0, 5_000_000)
    with medium() as a, medium() as b:
        async with trio.open_nursery() as nursery:
            Result(nursery, a.ours, b.ours, first=first)
            assert await receive_exactly(b.peer, len(first)) == first
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("medium", REAL_MEDIA)
async def test_bytes_that_were_received_before_are_a_first_byte(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: the first_byte timer does not run."""
    with medium() as a, medium() as b:
        timeouts = Timeouts(first_byte=5, idle=7)
        result = await relay(a.ours, b.ours, first=b"hello", timeouts=timeouts)
        assert (result.reason, trio.current_time()) == (Reason.IDLE, 7)


async def test_bytes_that_were_received_before_when_another_task_sends() -> None:
    """The relay raises and resets both, because they are lost; the next works."""
    with sockets() as a, sockets() as b, _sides(a, b) as sides:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_much, sides[1])
            await _settle()
            with pytest.raises(trio.BusyResourceError, match="sending"):
                await relayed(*sides, first=b"hello")
        assert await is_reset(a.peer)
        assert await is_reset(b.peer)
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            await _talk(a, b)
            nursery.cancel_scope.cancel()
    await _settle()
    assert _tasks() == 0


async def _send_much(side: Transport) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await side.send(bytes(30_000_000))


# -- Stale events, closed sockets


@pytest.mark.parametrize("again", ["nobody", "another relay"])
async def test_a_descriptor_reused_between_two_events_of_a_poll(
    again: str,
) -> None:
    """Law 1: the first event closes the socket of the second."""
    with contextlib.ExitStack() as stack:
        a, b, c, d, stranger, e = (stack.enter_context(sockets()) for _ in range(6))
        number = c.ours.socket.fileno()
        await stranger.peer.send_all(b"not yours")
        heard = Heard()

        class Hands(Heard):
            def on_eof(self, pump: PolledPump[Any]) -> None:
                pump.update_interest()
                c.ours.socket.close()
                os.dup2(stranger.ours.socket.fileno(), number)
                mine = stack.enter_context(socket.socket(fileno=number))
                if again == "another relay":
                    here, there = SocketTransport(mine), transport_of(e.ours)
                    stack.callback(there.release)
                    stack.enter_context(started(heard, *_pumps(here, there)))

        async with trio.open_nursery() as nursery:
            hands = Hands()
            stack.enter_context(_paired(a, b, hands))
            result = Result(nursery, c.ours, d.ours)
            await _settle()
            # In one step, so that one poll has both, in this order.
            _hang_up(a.peer)
            _write(c.peer, b"hello")
        assert result.value.reason is Reason.ABORTED
        assert result.value.a_to_b.received == 0
        if again == "another relay":
            assert await receive_exactly(e.peer, 9) == b"not yours"
        else:
            assert await receive_exactly(stranger.ours, 9) == b"not yours"
        assert heard.told == hands.told == []


@pytest.mark.parametrize("what", ["stream", "socket"])
@pytest.mark.parametrize("busy", [False, True])
async def test_a_stream_that_is_closed_ends_its_relay_and_no_other(
    what: str,
    busy: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: also while it holds bytes for a sink that takes none."""
    with roomy() as a, roomy() as b, sockets() as c, sockets() as d:
        peer = Peer(a.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            nursery.start_soon(relay, c.ours, d.ours)
            if busy:
                nursery.start_soon(peer.send, 30_000_000)
            await _settle()
            if what == "stream":
                await b.ours.aclose()
            else:
                b.ours.socket.close()
            await _settle()
            assert not result.is_pending
            await _talk(c, d)
            nursery.cancel_scope.cancel()
        assert result.value.reason is Reason.ABORTED
        assert (result.value.a_to_b.discarded > 0) is busy
        await peer.read()
        assert peer.tail == "reset"


async def test_a_connection_that_is_aborted_ends_its_relay_and_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: by another task, with bytes under way."""
    connections: list[Connection] = []

    async def handler(conn: Connection) -> None:
        connections.append(conn)
        with sockets() as target:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Peer(target.peer).send, 30_000_000)
                await relay(conn, target.ours)

    async with serving(handler) as running:
        client = await running.connect()
        with sockets() as a, sockets() as b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, a.ours, b.ours)
                await receive_exactly(client, 100_000)
                connections[0].abort()
                await _talk(a, b)
                nursery.cancel_scope.cancel()
        assert await is_reset(client)
    assert running.reports[0].reason is Reason.ABORTED


class Steps(trio.abc.Instrument):
    """Counts the steps of the engine; ``after`` is called after each."""

    def __init__(self, after: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        self._after = after

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == "trioserve engine":
            self.count += 1
            self._after()


def _close_what_is_closed(sock: trio.socket.SocketType) -> None:
    with contextlib.suppress(OSError):
        sock.close()


@pytest.mark.parametrize("copied", [False, True])
async def test_a_descriptor_closed_by_other_code_harms_only_its_relay(
    copied: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: its relay may end in any way; the engine doesn't spin."""
    with contextlib.ExitStack() as stack:
        a, b, c, d = (stack.enter_context(sockets()) for _ in range(4))
        number = a.ours.socket.fileno()
        # When its owner closes it too, the number is free.
        stack.callback(_close_what_is_closed, a.ours.socket)

        async def relay_it() -> None:
            with contextlib.suppress(OSError):
                await relay(a.ours, b.ours, timeouts=Timeouts(idle=5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_it)
            nursery.start_soon(relay, c.ours, d.ours)
            await _settle()
            if copied:
                # A duplicate, as in a program that was started meanwhile: epoll keeps
                # the connection while it is open.
                stack.callback(os.close, os.dup(number))
            os.close(number)
            _write(a.peer, b"hello")
            await _talk(c, d)
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(steps)
            assert steps.count < 10
            await trio.sleep(10)
            await _talk(c, d)
            nursery.cancel_scope.cancel()


# -- Cancelling


@pytest.mark.untraced
@pytest.mark.parametrize("shielded", [False, True])
def test_cancelled_at_any_step_it_leaves_nothing(shielded: bool) -> None:
    """Laws 4 and 13: with bulk in pipes; if it is shielded, it is not cancelled."""
    before = open_fds()

    async def scenario(begin: Begin) -> None:
        engine = Engine.of_this_run()
        with roomy() as a, roomy() as b, _sides(a, b) as sides:
            peers = Peer(a.peer), Peer(b.peer)
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(peer.read)
                    nursery.start_soon(_say, peer)
                with trio.CancelScope() as scope:
                    begin(scope.cancel)
                    with trio.CancelScope(shield=shielded):
                        await relayed(*sides)
                held = (
                    sides[0].received != sides[1].sent
                    or sides[1].received != sides[0].sent
                )
                await _settle()
                for side in sides:
                    assert side.closed == held
                    assert side.receiving_since == side.sending_since == math.inf
                nursery.cancel_scope.cancel()
            assert engine.pipes.lent == 0
            assert _tasks() == 0
        if shielded:
            assert not held
            assert peers[0].received == peers[1].sent
            assert peers[1].received == peers[0].sent

    async def _say(peer: Peer) -> None:
        await peer.send(400_000)
        await peer.send_eof()

    assert sweep(scenario) > 20
    assert open_fds() == before


async def _move(running: RelayRules) -> None:
    running.attach()
    await running.move()


async def test_a_cancellation_after_the_end_does_not_hide_it() -> None:
    """It comes after the last event."""
    with sockets() as a, sockets() as b, _sides(a, b) as (one, other):
        running = relay_between(one, other)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_move, running)
                await _settle()
                running.stop_moving()
                scope.cancel()
        running.detach()
        assert not scope.cancelled_caught


async def _fill_kernel(a: Sockets, b: Sockets) -> int:
    """Send more than b's peer takes, and not more than the kernel on our side takes.

    Wait until bytes are really held, and not just acknowledged late.
    """
    narrow(b.peer)
    sent = 0
    with _sides(b) as (side,):
        while (side.unsent() or 0) < 5000:
            sent += 1000
            await a.peer.send_all(bytes(1000))
            await _settle()
    return sent


async def test_cancelled_while_a_reset_is_passed_on_the_error_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: later receives raise it, and not BusyResourceError."""
    with sockets() as a, sockets() as b, _sides(a, b) as sides:
        async with trio.open_nursery() as nursery:

            async def relay_them() -> None:
                with trio.move_on_after(5):
                    await relayed(*sides)

            nursery.start_soon(relay_them)
            await _settle()
            await _fill_kernel(a, b)
            await trio.sleep(4.5)
            reset(a.peer)
        assert not sides[0].closed
        with pytest.raises(trio.BrokenResourceError):
            await sides[0].receive()


# -- Exceptions


async def test_an_exception_in_one_relay_comes_out_of_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 1: and no other is affected."""

    def on_eof(self: EngineRelay, pump: PolledPump[Any]) -> None:
        raise RuntimeError("a bug")

    with sockets() as a, sockets() as b, sockets() as c, sockets() as d:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, c.ours, d.ours)
            await _settle()
            with monkeypatch.context() as patch:
                patch.setattr(EngineRelay, "on_eof", on_eof)
                await a.peer.send_eof()
                with pytest.raises(RuntimeError, match="a bug"):
                    await relay(a.ours, b.ours)
            await _talk(c, d)
            nursery.cancel_scope.cancel()
    assert Engine.of_this_run().pipes.lent == 0


class _Strange:
    """A socket that fails in a way that no socket does."""

    def __init__(self, below: socket.socket, error: BaseException) -> None:
        self._below = below
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def recv_into(self, buffer: bytearray) -> int:
        raise self._error


@pytest.mark.parametrize(
    "error", [RuntimeError("strange"), PanicError("strange")], ids=repr
)
async def test_a_strange_socket_harms_nobody_else(error: BaseException) -> None:
    """Law 1: only its relay fails."""
    heard = Heard()
    with sockets() as a, sockets() as b, sockets() as c, sockets() as d:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, c.ours, d.ours)
            with _paired(a, b, heard) as (there, _):
                await _settle()
                sock = there.source.sock
                there.source.sock = _Strange(sock, error)  # type: ignore[assignment]
                _write(a.peer, b"hello")
                await _settle_without(lambda: not heard.told)
                there.source.sock = sock
            await _talk(c, d)
            nursery.cancel_scope.cancel()
    assert heard.told[0] == repr(error)


def test_keyboard_interrupt_is_not_a_relays_failure() -> None:
    """It passes through the engine and ends the program."""
    error = KeyboardInterrupt()

    async def main() -> None:
        with sockets() as a, sockets() as b:
            with _paired(a, b, Heard()) as (there, _):
                await _settle()
                there.source.sock = _Strange(there.source.sock, error)  # type: ignore[assignment]
                _write(a.peer, b"hello")
                await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as failed:
        trio.run(main)
    assert error in list(chain_of(failed.value))


async def _settle_without(pending: Callable[[], bool]) -> None:
    """Wait, although the engine may get the same event again and again."""
    with trio.fail_after(60):
        while pending():
            await trio.lowlevel.checkpoint()


async def test_bytes_and_eof_of_many_in_one_poll_do_not_mix() -> None:
    """Law 1: each gets its own."""
    with contextlib.ExitStack() as stack:
        links = [
            (stack.enter_context(sockets()), stack.enter_context(sockets()))
            for _ in range(30)
        ]
        async with trio.open_nursery() as nursery:
            results = [Result(nursery, a.ours, b.ours) for a, b in links]
            await _settle()
            for number, (a, b) in enumerate(links):
                _write(a.peer, b"%d there" % number)
                _write(b.peer, b"%d back" % number)
                if number % 3 == 0:
                    _hang_up(a.peer)
                    _hang_up(b.peer)
                elif number % 3 == 1:
                    reset(a.peer)
            for number, (a, b) in enumerate(links):
                there, back = b"%d there" % number, b"%d back" % number
                assert await receive_exactly(b.peer, len(there)) == there
                if number % 3 == 0:
                    assert await receive_exactly(a.peer, len(back)) == back
                elif number % 3 == 1:
                    assert await is_reset(b.peer)
            await _settle()
            for number, result in enumerate(results):
                assert result.is_pending is (number % 3 == 2)
            nursery.cancel_scope.cancel()


async def test_held_bytes_are_not_overwritten_by_those_of_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: all pumps receive into one buffer."""
    engine = Engine.of_this_run()
    engine.pipes = Pipes(most=0)
    with sockets() as a, sockets() as b, sockets() as c, sockets() as d:
        sender = Peer(a.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(relay, c.ours, d.ours)
            nursery.start_soon(sender.send, 5 * BULK)
            await _settle()
            await c.peer.send_all(bytes(CHUNK))
            assert await receive_exactly(d.peer, CHUNK) == bytes(CHUNK)
            assert await receive_exactly(b.peer, 5 * BULK) == sender.sent
            nursery.cancel_scope.cancel()


# -- Ends


async def test_last_bytes_of_a_peer_that_takes_nothing_are_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: the send that finds the reset hides neither them nor the reset."""
    with sockets() as a, sockets() as b:
        narrow(a.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            peer = Peer(b.peer)
            nursery.start_soon(peer.send, 30_000_000)
            await _settle()
            # In one step: one poll has both.
            _write(a.peer, b"last words")
            reset(a.peer)
            await peer.read()
        assert (bytes(peer.received), peer.tail) == (b"last words", "reset")
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.a_to_b.delivered == 10
        assert result.value.b_to_a.discarded > 0


async def test_bytes_of_a_peer_that_is_gone_wait_for_a_late_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: a failed send to it does not drop them."""
    with sockets() as a, sockets() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            nursery.start_soon(sender.send, 5 * BULK)
            await _settle()
            reset(a.peer)
            await b.peer.send_all(b"too late")
            await trio.sleep(5)
            assert result.is_pending
            nursery.start_soon(receiver.read)
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.a_to_b.discarded == 0
        assert result.value.b_to_a == Flow(received=8, delivered=0, discarded=8)
        assert len(receiver.received) == result.value.a_to_b.delivered
        assert sender.sent.startswith(receiver.received)
        assert receiver.tail == "reset"


async def test_bulk_that_arrived_before_a_reset_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: also through a pipe; no byte of it is discarded."""
    engine = Engine.of_this_run()
    with roomy() as a, roomy() as b:
        peer = Peer(b.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            nursery.start_soon(peer.read)
            sender = Peer(a.peer)
            await sender.send(BULK)
            await _settle()
            assert engine.pipes.flows == 1
            await sender.send(50_000)
            reset(a.peer)
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.a_to_b.discarded == 0
        assert len(peer.received) == result.value.a_to_b.delivered
        assert sender.sent.startswith(peer.received)
        assert len(peer.received) >= BULK
        assert peer.tail == "reset"


async def test_an_error_that_was_known_before_is_not_eof() -> None:
    """Law 8: the kernel reports it once, and EOF from then on."""
    with sockets() as a, sockets() as b, _sides(a, b) as sides:
        _write(a.peer, b"last words")
        reset(a.peer)
        with pytest.raises(trio.BrokenResourceError):
            await sides[0].send(b"hello")
        result = await relayed(*sides)
        assert result.reason is Reason.CLIENT_RESET
        peer = Peer(b.peer)
        await peer.read()
        assert (bytes(peer.received), peer.tail) == (b"last words", "reset")


async def test_a_reset_is_the_reason_whatever_happens_right_after_it() -> None:
    """Law 8: even before the task that waits for the relay has run."""
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await _settle()
            steps = Steps(b.ours.socket.close)
            trio.lowlevel.add_instrument(steps)
            reset(a.peer)
        trio.lowlevel.remove_instrument(steps)
        assert result.value.reason is Reason.CLIENT_RESET


async def test_the_last_eof_is_left_to_the_close() -> None:
    """Law 7: a close sends it; the first EOF was passed on at once."""
    with sockets() as a, sockets() as b, _sides(a, b) as sides:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_relay_and_close, sides)
            await a.peer.send_eof()
            assert await receive_all(b.peer) == b""
            await b.peer.send_all(b"good bye")
            assert await receive_exactly(a.peer, 8) == b"good bye"
            await b.peer.send_eof()
            assert await receive_all(a.peer) == b""


async def _relay_and_close(sides: list[Transport]) -> None:
    result = await relayed(*sides, closes_b=True)
    assert result.reason is Reason.CLIENT_CLOSED
    assert [side.sent_eof for side in sides] == [False, True]
    for side in sides:
        side.close()


@pytest.mark.parametrize("misuse", ["sent EOF", "sends"])
async def test_another_task_writes_to_a_side(
    misuse: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The relay can't deliver there: it ends, and its error says why."""
    with sockets() as a, sockets() as b, _sides(a, b) as sides:
        outcome: list[object] = []

        async def relay_them() -> None:
            try:
                outcome.append((await relayed(*sides)).reason)
            except trio.BusyResourceError as error:
                outcome.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_them)
            await _settle()
            if misuse == "sends":
                nursery.start_soon(_send_much, sides[1])
                await _settle()
            else:
                await sides[1].send_eof()
            _write(a.peer, b"hello")
            await _settle()
            nursery.cancel_scope.cancel()
        expected = "another task is sending" if misuse == "sends" else Reason.ABORTED
        assert outcome == [expected]


# -- Pipes


async def test_bulk_is_spliced_and_small_messages_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 10: the receiver can't tell."""
    engine = Engine.of_this_run()
    engine.pipes = pipes = Counted()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            for _ in range(2):
                await sender.send(2 * BULK)
                await _settle()
                assert engine.pipes.flows == 1
                for _ in range(20):
                    await sender.send(100)
                    await _settle()
                assert engine.pipes.flows == 0
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()
    assert pipes.denied == 0


async def test_messages_larger_than_the_buffer_are_not_bulk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However many there are: bulk has several large reads in a row."""
    engine = Engine.of_this_run()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            for _ in range(10):
                await sender.send(CHUNK + 100)
                await _settle()
                assert engine.pipes.flows == 0
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_bulk_restarts_the_idle_timer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: also bytes that were never copied into this process."""
    engine = Engine.of_this_run()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours, timeouts=Timeouts(idle=5))
            nursery.start_soon(receiver.read)
            await sender.send(BULK)
            for _ in range(4):
                await trio.sleep(3)
                assert engine.pipes.flows == 1
                await sender.send(CHUNK)
        assert (result.value.reason, result.at) == (Reason.IDLE, 17)
        assert receiver.received == sender.sent


@contextlib.asynccontextmanager
async def _stalled(
    a: Sockets, b: Sockets, nursery: trio.Nursery, **options: Any
) -> AsyncGenerator[tuple[Peer, Result]]:
    """A relay whose pipe holds bytes that b's peer doesn't take, and EOF after them."""
    engine = Engine.of_this_run()
    lent = engine.pipes.lent
    sender = Peer(a.peer)
    result = Result(nursery, a.ours, b.ours, **options)

    async def send() -> None:
        await sender.send(5 * BULK)
        await sender.send_eof()

    nursery.start_soon(send)
    await _settle()
    assert engine.pipes.lent == lent + 1
    yield sender, result


async def test_eof_with_bytes_in_the_pipe_comes_after_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 7: however slowly, and in however small parts."""
    with roomy() as a, roomy() as b:
        receiver = Peer(b.peer)
        async with trio.open_nursery() as nursery:
            async with _stalled(a, b, nursery) as (sender, result):
                await trio.sleep(1)
                nursery.start_soon(receiver.read)
                await _settle()
                await b.peer.send_eof()
        assert receiver.received == sender.sent
        assert receiver.tail == "eof"
        flow = Flow(received=5 * BULK, delivered=5 * BULK, discarded=0)
        assert result.value == RelayResult(
            reason=Reason.CLIENT_CLOSED,
            a_to_b=flow,
            b_to_a=Flow(received=0, delivered=0, discarded=0),
        )


async def test_reset_with_bytes_in_the_pipe_discards_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 4 and 13: they are counted, and appear nowhere else."""
    with roomy() as a, roomy() as b, roomy() as c, roomy() as d:
        receiver = Peer(d.peer)
        async with trio.open_nursery() as nursery:
            # Another relay, so that the engine and its pipes go on.
            nursery.start_soon(relay, c.ours, d.ours)
            nursery.start_soon(receiver.read)
            await _settle()
            before = open_fds()
            async with _stalled(a, b, nursery) as (stalled, result):
                reset(b.peer)
            await stalled.read()
            assert stalled.tail == "reset"
            # Three of the four sockets are closed, and the pipe.
            assert open_fds() == before - 3
            assert Engine.of_this_run().pipes.lent == 0
            sender = Peer(c.peer)
            await sender.send(BULK)
            await _settle()
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()
        flow = result.value.a_to_b
        assert result.value.reason is Reason.SERVER_RESET
        assert 0 < flow.discarded <= DEEP_SIZE
        assert flow.received == flow.delivered + flow.discarded


@pytest.mark.parametrize("who", [0, 1])
async def test_a_peer_that_never_reads_costs_one_pipe(
    who: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 9 and 12: it is reset when write_stall runs out."""
    with roomy() as a, roomy() as b:
        sides = ((a, b), (b, a))[who]
        taken, taken_at = -1, 0.0

        async def look() -> None:
            # On a busy machine, its kernel goes on to take bytes for a while.
            nonlocal taken, taken_at
            while True:
                if (count := arrived(sides[1].peer.socket)) != taken:
                    taken, taken_at = count, trio.current_time()
                await trio.sleep(0.25)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(sides[0].peer).send, 30_000_000)
            nursery.start_soon(look)
            result = await relay(a.ours, b.ours, timeouts=Timeouts(write_stall=33))
            ended_at = trio.current_time()
            nursery.cancel_scope.cancel()
        flow = (result.a_to_b, result.b_to_a)[who]
        assert result.reason is Reason.WRITE_STALL
        # The relay looks each second: the bytes that were taken last count then.
        assert taken_at + 33 - 0.25 <= ended_at <= taken_at + 34
        assert CHUNK < flow.discarded <= DEEP_SIZE
        assert await is_reset(sides[1].peer)


async def test_a_kind_of_socket_that_cannot_be_spliced_is_copied(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Each direction tries once; no byte is lost by that."""
    tried = 0

    def splice(*_: object, **__: object) -> int:
        nonlocal tried
        tried += 1
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "splice", splice)
    engine = Engine.of_this_run()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            await sender.send(5 * BULK)
            await _settle()
            assert (tried, engine.pipes.lent) == (1, 0)
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_unix_sockets_are_relayed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Messages and bulk, and the end of both directions."""
    with contextlib.ExitStack() as stack:
        streams = [trio_stream(s) for _ in range(2) for s in socket.socketpair()]
        for stream in streams:
            stack.callback(stream.socket.close)
        theirs, ours, ours_too, theirs_too = streams
        sender, receiver = Peer(theirs), Peer(theirs_too)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, ours, ours_too)
            for peer in (sender, receiver):
                nursery.start_soon(peer.read)
            for count in (10, 5 * BULK, 10):
                await sender.send(count)
                await receiver.send(count)
                await _settle()
            await receiver.send_eof()
            await sender.send_eof()
        assert receiver.received == sender.sent
        assert sender.received == receiver.sent
        assert result.value.reason is Reason.SERVER_CLOSED
        assert result.value.a_to_b.delivered == 5 * BULK + 20


async def test_a_unix_peer_that_closes_with_bytes_unread_is_a_reset() -> None:
    """Law 8: after the bytes that it has sent."""
    with contextlib.ExitStack() as stack:
        streams = [trio_stream(s) for _ in range(2) for s in socket.socketpair()]
        for stream in streams:
            stack.callback(stream.socket.close)
        theirs, ours, ours_too, theirs_too = streams
        async with trio.open_nursery() as nursery:
            result = Result(nursery, ours, ours_too)
            _write(theirs_too, b"never read")
            await _settle()
            _write(theirs, b"last words")
            theirs.socket.close()
            assert await receive_exactly(theirs_too, 10) == b"last words"
        assert result.value.reason is Reason.CLIENT_RESET


async def test_any_number_of_flows_share_a_pipe(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: it is in use only while bytes are in it."""
    engine = Engine.of_this_run()
    engine.pipes = Counted(most=1)
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            flows = []
            for number in range(MOST + 1):
                a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
                flows.append((Peer(a.peer), Peer(b.peer)))
                nursery.start_soon(relay, a.ours, b.ours)
                nursery.start_soon(flows[-1][1].read)
                for sender, _ in flows[-2:]:
                    await sender.send(BULK)
                await _settle()
                assert (engine.pipes.flows, engine.pipes.lent) == (number + 1, 0)
            for sender, receiver in flows:
                assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_bulk_is_copied_when_all_pipes_hold_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: their number is bounded, and all bytes arrive."""
    engine = Engine.of_this_run()
    engine.pipes = pipes = Counted(most=3)
    async with contextlib.AsyncExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
                await stack.enter_async_context(_stalled(a, b, nursery))
            assert pipes.denied == 0
            a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
            sender, receiver = Peer(a.peer), Peer(b.peer)
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            await sender.send(2 * BULK)
            await _settle()
            assert pipes.denied > 1
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_many_flows_at_once_move_less_each(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: a message among them waits for 16 MiB, and not for 1 MiB of each."""
    asked: list[int] = []
    fill = Pipe.fill

    def note(pipe: Pipe, source: int, most: int) -> int:
        asked.append(most)
        return fill(pipe, source, most)

    monkeypatch.setattr(Pipe, "fill", note)
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            flows = []
            for _ in range(32):
                a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
                flows.append((Peer(a.peer), Peer(b.peer)))
                nursery.start_soon(relay, a.ours, b.ours)
                nursery.start_soon(flows[-1][1].read)
            await flows[0][0].send(BULK)
            await _settle()
            assert max(asked) == 16_777_216
            for sender, _ in flows[1:]:
                await sender.send(BULK)
            await _settle()
            asked.clear()
            for sender, _ in flows:
                assert isinstance(sender.stream, trio.SocketStream)
                _write(sender.stream, data := some_bytes(len(sender.sent), CHUNK))
                sender.sent += data
            await _settle()
            assert asked == [16_777_216 // 32] * 32
            for sender, receiver in flows:
                assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


_flow = st.integers(0, 3)
_moves = st.one_of(
    st.tuples(st.just("send"), _flow, _amounts),
    st.tuples(st.just("send"), _flow, st.integers(BULK, 2 * BULK)),
    st.tuples(st.sampled_from(["stop reading", "read on"]), _flow, st.just(0)),
    st.tuples(st.just("wait"), _flow, st.just(0)),
)


@given(most=st.integers(1, 3), moves=st.lists(_moves, min_size=4, max_size=16))
@settings(deadline=None, max_examples=30)
def test_flows_that_share_pipes_never_share_bytes(
    most: int, moves: list[tuple[str, int, int]]
) -> None:
    """Laws 1 and 4: with slow sinks, and pipes that are taken from them."""

    async def main() -> None:
        Engine.of_this_run().pipes = Pipes(most=most)
        with contextlib.ExitStack() as stack:
            flows = []
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
                    sender, receiver = Actor(a.peer), Peer(b.peer)
                    flows.append((sender, receiver))
                    nursery.start_soon(relay, a.ours, b.ours)
                    nursery.start_soon(receiver.read)
                    nursery.start_soon(sender.act)
                    # So that each has other bytes at the same time.
                    sender.tell(Act("send", amount=number + 1))
                for what, number, amount in moves:
                    sender, receiver = flows[number]
                    match what:
                        case "send":
                            sender.tell(Act("send", amount=amount))
                        case "stop reading":
                            receiver.stop_reading()
                        case "read on":
                            receiver.read_on()
                        case _:
                            await trio.sleep(1.1)  # a pipe may be taken now
                    await _settle()
                for sender, receiver in flows:
                    receiver.read_on()
                    sender.tell(Act("eof"))
                while any(receiver.tail == "open" for _, receiver in flows):
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()
            for sender, receiver in flows:
                assert receiver.tail == "eof"
                assert receiver.received == sender.sent

    run(main)


async def test_a_pipe_that_does_not_move_is_given_to_another_flow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 4: bytes in it are not lost, nor out of order."""
    engine = Engine.of_this_run()
    engine.pipes = pipes = Counted(most=1)
    with roomy() as a, roomy() as b, roomy() as c, roomy() as d:
        slow, receiver = Peer(b.peer), Peer(d.peer)
        async with trio.open_nursery() as nursery:
            async with _stalled(a, b, nursery) as (stalled, _):
                nursery.start_soon(relay, c.ours, d.ours)
                nursery.start_soon(receiver.read)
                sender = Peer(c.peer)
                await trio.sleep(0.9)
                await sender.send(BULK)
                await _settle()
                denied = pipes.denied
                assert denied > 1
                await trio.sleep(0.2)
                # It fails once more, and then takes that pipe.
                await sender.send(5 * BULK)
                await _settle()
                assert pipes.denied == denied + 1
                assert engine.pipes.lent == 0
                assert receiver.received == sender.sent
                nursery.start_soon(slow.read)
                await _settle()
                assert slow.received == stalled.sent
                assert len(slow.received) == 5 * BULK
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("asks", ["another relay", "its own other direction"])
@pytest.mark.parametrize(
    ("mode", "reason"),
    [(os.O_WRONLY, Reason.ABORTED), (os.O_RDONLY, Reason.RESOURCE)],
    ids=["fails", "is empty"],
)
async def test_a_pipe_that_can_not_be_emptied_ends_its_relay(
    mode: int,
    reason: Reason,
    asks: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 1 and 4: and not the relay that would get the pipe."""
    engine = Engine.of_this_run()
    engine.pipes = Pipes(most=1)
    with contextlib.ExitStack() as stack:
        a, b, c, d = (stack.enter_context(roomy()) for _ in range(4))
        async with trio.open_nursery() as nursery:
            async with _stalled(a, b, nursery) as (_, stalled):
                other = Result(nursery, c.ours, d.ours)
                (pipe,) = engine.pipes.borrowed.values()
                # Other code closes the number and reuses it.
                nothing = os.open(os.devnull, mode)
                os.dup2(nothing, pipe.reader)
                os.close(nothing)
                await trio.sleep(2)
                one, two = (c, d) if asks == "another relay" else (b, a)
                sender, receiver = Peer(one.peer), Peer(two.peer)
                nursery.start_soon(receiver.read)
                await sender.send(BULK)
                await _settle()
                assert stalled.value.reason is reason
                assert stalled.value.a_to_b.discarded > 0
                assert engine.pipes.lent == len(engine.pipes.borrowed)
                if asks == "another relay":
                    assert receiver.received == sender.sent
                else:
                    await _talk(c, d)
                assert other.is_pending
            nursery.cancel_scope.cancel()


async def test_a_pipe_that_drains_slowly_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A pipe is taken only from a flow that has moved no byte for a second."""
    engine = Engine.of_this_run()
    engine.pipes = pipes = Counted(most=1)
    with roomy() as a, roomy() as b, roomy() as c, roomy() as d:
        receiver = Peer(d.peer)
        async with trio.open_nursery() as nursery:
            async with _stalled(a, b, nursery) as (_, _):
                nursery.start_soon(relay, c.ours, d.ours)
                nursery.start_soon(receiver.read)
                sender = Peer(c.peer)
                await trio.sleep(0.9)
                (pipe,) = engine.pipes.borrowed.values()
                filled = pipe.filled
                while pipe.filled == filled:
                    await receive_exactly(b.peer, 10_000)
                    await _settle()
                assert 0 < pipe.filled < filled
                await trio.sleep(0.9)
                denied = pipes.denied
                await sender.send(2 * BULK)
                await _settle()
                assert pipes.denied > denied + 1
            nursery.cancel_scope.cancel()


async def test_out_of_descriptors_bulk_is_copied(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: a pipe is optional; bytes move without one."""
    engine = Engine.of_this_run()
    engine.pipes = pipes = Counted()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            await _settle()
            with no_free_fd():
                await sender.send(BULK)
                await _settle()
            assert receiver.received == sender.sent
            assert engine.pipes.lent == 0
            assert pipes.denied > 0
            nursery.cancel_scope.cancel()


async def test_an_echo_of_bulk(autojump_clock: trio.testing.MockClock) -> None:
    """One direction and one pipe; the pump is its own ``back``."""
    with roomy() as link:
        peer = Peer(link.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, link.ours, link.ours)
            nursery.start_soon(peer.read)
            await peer.send(5 * BULK)
            await peer.send_eof()
        assert peer.received == peer.sent
        assert result.value.a_to_b.delivered == 5 * BULK


async def test_an_echo_that_nobody_takes_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: there is no other pump to find its end."""
    with roomy() as link:
        async with trio.open_nursery() as nursery:
            async with _stalled(link, link, nursery) as (_, result):
                reset(link.peer)
        assert result.value.reason is Reason.CLIENT_RESET
        assert result.value.a_to_b.discarded > 0


# -- The engine's own life


async def test_the_engine_ends_with_the_last_relay_and_starts_again() -> None:
    """Law 13: no task and no descriptor is left, and no relay notices."""
    before = open_fds()
    for _ in range(3):
        with sockets() as a, sockets() as b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, a.ours, b.ours)
                await _talk(a, b)
                assert _tasks() == 1
                await a.peer.send_eof()
                await b.peer.send_eof()
        await _settle()
        assert _tasks() == 0
        assert open_fds() == before


def test_a_relay_in_a_system_task_runs_until_the_end_of_the_run() -> None:
    """When system tasks are cancelled, one may still have bytes to deliver."""
    finished = False

    async def finish() -> None:
        nonlocal finished
        with sockets() as a, sockets() as b:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(relay, a.ours, b.ours)
                        await _talk(a, b)
                        nursery.cancel_scope.cancel()
                finished = True

    async def main() -> None:
        trio.lowlevel.spawn_system_task(finish)
        await trio.testing.wait_all_tasks_blocked()

    trio.run(main, clock=virtual_clock())
    assert finished


async def test_the_engine_runs_while_it_is_acquired() -> None:
    """A server need not start it for every connection."""
    engine = Engine.of_this_run()
    engine.acquire()
    steps: list[trio.lowlevel.Task] = []
    for _ in range(3):
        with sockets() as a, sockets() as b:
            await a.peer.send_eof()
            await b.peer.send_eof()
            await relay(a.ours, b.ours)
        await _settle()
        root = trio.lowlevel.current_root_task()
        assert root is not None
        steps += [
            task
            for nursery in root.child_nurseries
            for task in nursery.child_tasks
            if task.name == "trioserve engine"
        ]
    assert len(steps) == 3
    assert len(set(steps)) == 1
    engine.release()
    await _settle()
    assert _tasks() == 0


async def test_a_server_acquires_the_engine_at_its_start() -> None:
    """If descriptors run out later, its connections are still relayed."""

    async def handler(conn: Connection) -> None:
        with no_free_fd():
            await relay(conn, conn)

    async with serving(handler) as running:
        client = await running.connect()
        await client.send_all(b"hello")
        await client.send_eof()
        assert await receive_all(client) == b"hello"
        await client.aclose()


async def test_a_relay_that_ends_before_the_engine_has_run() -> None:
    """Law 13: the engine's task has nothing to do, and ends."""
    with sockets() as a, sockets() as b:
        with _paired(a, b, Heard()):
            assert _tasks() == 1
        await _settle()
        assert _tasks() == 0


async def test_a_relay_that_has_ended_moves_no_more() -> None:
    """And another end does nothing."""
    with sockets() as a, sockets() as b, _sides(a, b) as (one, other):
        running = relay_between(one, other)
        running.attach()
        running.stop_moving()
        running.stop_moving()
        await running.move()
        running.detach()
    await _settle()
    assert _tasks() == 0


async def test_an_ended_run_keeps_no_reference_to_its_relay() -> None:
    """It is freed without a garbage collection."""
    with sockets() as a, sockets() as b, _sides(a, b) as (one, other):
        there, back = _pumps(one, other)
        heard = Heard()
        with started(heard, there, back):
            await _talk(a, b)
        kept = weakref.ref(heard)
        gc.disable()
        try:
            del heard
            await _settle()  # let the engine's task end, which refers to the run
            assert kept() is None
        finally:
            gc.enable()


async def test_one_stream_is_not_relayed_twice_at_once() -> None:
    """The second relay raises, and the first goes on."""
    with sockets() as a, sockets() as b, sockets() as c:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            await _settle()
            for sides in ((a, c), (c, a), (c, b), (a, b), (b, a), (a, a)):
                with pytest.raises(trio.BusyResourceError):
                    await relay(sides[0].ours, sides[1].ours)
            await _talk(a, b)
            nursery.cancel_scope.cancel()
        await c.ours.send_all(b"still open")
        assert await receive_exactly(c.peer, 10) == b"still open"


@pytest.mark.parametrize("state", ["holds bytes", "closed by half"])
async def test_one_stream_is_not_relayed_twice_whatever_the_first_waits_for(
    state: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: also if the first does not wait for bytes of that side."""
    with sockets() as a, sockets() as b, sockets() as c:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            if state == "holds bytes":
                nursery.start_soon(sender.send, 5 * BULK)
            else:
                await a.peer.send_eof()
            await _settle()
            for sides in ((a, c), (c, a)):
                with pytest.raises(trio.BusyResourceError), trio.fail_after(1):
                    await relay(sides[0].ours, sides[1].ours)
            nursery.start_soon(receiver.read)
            await _settle()
            assert receiver.received == sender.sent
            await b.peer.send_all(b"and back")
            assert await receive_exactly(a.peer, 8) == b"and back"
            assert result.is_pending
            nursery.cancel_scope.cancel()


async def test_two_streams_over_one_descriptor_are_one_stream() -> None:
    """The relay raises, and leaves it open."""
    with sockets() as a:
        twin = trio_stream(socket.socket(fileno=a.ours.socket.fileno()))
        with pytest.raises(trio.BusyResourceError):
            await relay(a.ours, twin)
        twin.socket.detach()
        await a.ours.send_all(b"still open")
        assert await receive_exactly(a.peer, 10) == b"still open"


async def test_out_of_descriptors_the_engine_does_not_start() -> None:
    """Law 15: the relay's error says so, and the next relay works."""
    with sockets() as a, sockets() as b:
        with no_free_fd():
            result = await relay(a.ours, b.ours)
        assert (result.reason, result.error) == (
            Reason.RESOURCE,
            "OSError: [Errno 24] Too many open files",
        )
        assert await is_reset(a.peer)
        assert await is_reset(b.peer)
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            await _talk(a, b)
            nursery.cancel_scope.cancel()


def test_two_runs_in_two_threads_have_two_engines() -> None:
    """Law 1: they share nothing."""
    meet = threading.Barrier(2, timeout=60)
    engines: list[Engine] = []
    outcomes: list[bytes] = []

    async def main(name: int) -> None:
        with roomy() as a, roomy() as b:
            sender, receiver = Peer(a.peer), Peer(b.peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, a.ours, b.ours)
                nursery.start_soon(receiver.read)
                engine = Engine.of_this_run()
                engines.append(engine)
                for _ in range(3):
                    await sender.send(BULK + name)
                    await _settle()
                    assert engine.pipes.flows
                    meet.wait()
                assert receiver.received == sender.sent
                outcomes.append(bytes(receiver.received))
                nursery.cancel_scope.cancel()

    threads = [threading.Thread(target=run, args=(main, name)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({id(engine) for engine in engines}) == 2
    assert sorted(map(len, outcomes)) == [3 * BULK, 3 * BULK + 3]


@pytest.mark.parametrize("told", [False, True])
async def test_an_epoll_that_other_code_closes(
    told: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: relays end with that error or go on; new ones work."""
    make, epolls = select.epoll, list[select.epoll]()

    def epoll() -> select.epoll:
        epolls.append(make())
        return epolls[-1]

    monkeypatch.setattr(select, "epoll", epoll)
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(sockets()) for _ in range(6)]
        pairs = list(zip(links[::2], links[1::2], strict=True))
        failures: list[Exception] = []

        async def relay_them(one: Sockets, other: Sockets) -> None:
            try:
                await relay(one.ours, other.ours)
            except (OSError, trio.ClosedResourceError) as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for pair in pairs[:2]:
                nursery.start_soon(relay_them, *pair)
            await _settle()
            number = epolls[0].fileno()
            if told:
                trio.lowlevel.notify_closing(number)
            # Other code closes the number and reuses it.
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, number)
            os.close(nothing)
            await _settle()
            nursery.start_soon(relay_them, *pairs[2])
            await _talk(*pairs[2])
            if not told:
                for pair in pairs[:2]:
                    await _talk(*pair)
            assert len(failures) == (2 if told else 0)
            nursery.cancel_scope.cancel()
    epolls.clear()


async def test_bytes_that_circulate_without_end_let_others_run() -> None:
    """Law 1: though there is always an event."""
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, b.peer, a.peer)
            Result(nursery, a.ours, b.ours, first=b"round and round")
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_a_bulk_flow_does_not_delay_fifty_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In each turn each flow with bytes gets its share."""
    with contextlib.ExitStack() as stack:
        a, b = stack.enter_context(roomy()), stack.enter_context(roomy())
        others = [
            (stack.enter_context(sockets()), stack.enter_context(sockets()))
            for _ in range(50)
        ]
        sender, receiver = Peer(a.peer), Peer(b.peer)
        turns: list[tuple[int, int]] = []

        def after_a_turn() -> None:
            """How many of those that had a byte to pass have passed it."""
            passed = 0
            for _, other in others:
                fd = other.peer.socket.fileno()
                with contextlib.suppress(BlockingIOError):
                    passed += len(os.read(fd, 10))
            for number in range(passed):
                _write(others[number][0].peer, b"!")
            turns.append((passed, engine.pipes.flows))

        async with trio.open_nursery() as nursery:
            engine = Engine.of_this_run()
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            for one, other in others:
                nursery.start_soon(relay, one.ours, other.ours)
            await _settle()
            steps = Steps(after_a_turn)
            for one, _ in others:
                _write(one.peer, b"!")
            trio.lowlevel.add_instrument(steps)
            await sender.send(5 * BULK)
            trio.lowlevel.remove_instrument(steps)
            while receiver.received != sender.sent:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert len(turns) > 5
    assert {passed for passed, _ in turns} == {50}
    assert any(flows for _, flows in turns)


# -- What an event may turn out to be, and what becomes of a flow that goes on


async def test_an_event_without_bytes_changes_nothing() -> None:
    """Law 1: it is a hint; for both ways of receiving, and for a full sink."""
    heard = Heard()
    with roomy() as a, roomy() as b, _paired(a, b, heard) as (there, back):
        engine = Engine.of_this_run()
        there.on_readable(engine, trio.current_time())
        assert there.received == 0
        async with trio.open_nursery() as nursery:
            sender = Peer(a.peer)
            nursery.start_soon(sender.send, 5 * BULK)
            await _settle()
            assert engine.pipes.lent == 1
            assert there.blocked
            delivered = there.delivered
            back.on_event(engine, select.EPOLLOUT, trio.current_time())
            assert (there.blocked, there.delivered) == (True, delivered)
            await receive_exactly(b.peer, 5 * BULK)
            await _settle()
        assert not there.blocked
        there.on_readable(engine, trio.current_time())
        assert there.received == there.delivered == 5 * BULK
    assert set(heard.told) == {"backpressure"}


def _unsent_limit(stream: trio.SocketStream) -> int:
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
    limit = stream.getsockopt(socket.IPPROTO_TCP, lowat)
    assert isinstance(limit, int)
    return limit


async def test_the_kernel_may_hold_more_for_a_long_bulk_flow(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """When the flow ends, the socket option is as before."""
    monkeypatch.setattr("trioserve._engine_pump.UNCAP_AFTER", 3 * BULK)
    with roomy() as a, roomy() as b:
        limit = _unsent_limit(b.ours)
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            for _ in range(2):
                await sender.send(BULK)
                await _settle()
                assert _unsent_limit(b.ours) == limit
                await sender.send(4 * BULK)
                await _settle()
                assert _unsent_limit(b.ours) != limit
                for _ in range(20):
                    await sender.send(100)
                    await _settle()
                assert _unsent_limit(b.ours) == limit
                assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_a_receiver_that_stops_leaves_no_more_than_a_megabyte_unsent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: however much has gone before, and however large the buffers may grow."""
    with sockets() as a, sockets() as b:
        b.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BULK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            sender = Peer(a.peer)
            nursery.start_soon(sender.send, 100 * BULK)
            await receive_exactly(b.peer, 80 * BULK)
            await _settle()
            assert _unsent_limit(b.ours) == 1_048_576
            assert _not_sent(b.ours) < 2 * 1_048_576
            nursery.cancel_scope.cancel()


def _not_sent(stream: trio.SocketStream) -> int:
    siocoutqnsd = 0x894B  # linux/sockios.h
    answer = fcntl.ioctl(stream.socket.fileno(), siocoutqnsd, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


@pytest.mark.parametrize(("size", "spliced"), [(46_000, 1), (10_000, 0)])
async def test_reads_that_do_not_fill_the_buffer_are_bulk(
    size: int, spliced: int, autojump_clock: trio.testing.MockClock
) -> None:
    """With eight flows at full speed, each read brings 46 KiB."""
    engine = Engine.of_this_run()
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a.ours, b.ours)
            nursery.start_soon(receiver.read)
            for _ in range(20):
                await sender.send(size)
                await _settle()
            assert engine.pipes.flows == spliced
            assert receiver.received == sender.sent
            nursery.cancel_scope.cancel()


async def test_a_sink_that_breaks_while_bulk_is_on_its_way() -> None:
    """Law 8: an error of splice(2) is reported like one of send(2)."""
    with roomy() as a, roomy() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            nursery.start_soon(a.peer.send_all, bytes(BULK))
            await receive_exactly(b.peer, BULK)
            await _settle()
            assert Engine.of_this_run().pipes.flows == 1
            # In one step, and in this order.
            _write(a.peer, b"too late")
            reset(b.peer)
        assert result.value.reason is Reason.SERVER_RESET
        assert result.value.a_to_b.discarded == 8


async def test_a_detached_descriptor_that_was_closed_counts_as_closed() -> None:
    """Law 1: even if a duplicate of it is open."""
    with sockets() as a, sockets() as b:
        async with trio.open_nursery() as nursery:
            result = Result(nursery, a.ours, b.ours)
            await _settle()
            number = a.ours.socket.detach()
            copy = os.dup(number)
            os.close(number)
            _write(a.peer, b"anybody there?")
        os.close(copy)
        assert result.value.reason is Reason.ABORTED


@pytest.mark.parametrize("how", ["detached", "closed with a copy"])
async def test_a_detached_descriptor_with_an_event_for_both_pumps(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: EPOLLOUT ends its relay, and then no pump receives from it."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(sockets()) for _ in range(4)]
        a, b, c, d = links
        one = SocketTransport(socket.socket(fileno=a.ours.socket.detach()))
        other = transport_of(b.ours)
        stack.callback(other.release)
        async with trio.open_nursery() as nursery:
            results: list[RelayResult] = []

            async def relay_it() -> None:
                results.append(await relayed(one, other))

            nursery.start_soon(relay_it)
            nursery.start_soon(relay, c.ours, d.ours)
            nursery.start_soon(Peer(b.peer).send, 30_000_000)
            await trio.sleep(1)
            assert one.sending_since < math.inf
            number = one.sock.fileno()
            if how == "detached":
                stack.callback(os.close, one.sock.detach())
            else:
                stack.callback(os.close, os.dup(number))
                os.close(number)
            # In one step, so that one event has EPOLLIN and EPOLLOUT.
            _write(a.peer, b"more")
            with contextlib.suppress(BlockingIOError):
                while os.read(a.peer.socket.fileno(), 1_000_000):
                    pass
            await _settle()
            assert [result.reason for result in results] == [Reason.ABORTED]
            await _talk(c, d)
            nursery.cancel_scope.cancel()


async def test_a_descriptor_number_that_another_relay_has(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 1: closed by other code and reused; both relays end without harm."""
    with sockets() as a, sockets() as b, sockets() as c, sockets() as d:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def first() -> None:
                with scope:
                    await relay(a.ours, b.ours)

            nursery.start_soon(first)
            await _settle()
            number = a.ours.socket.fileno()
            os.close(number)
            mine = socket.socket(fileno=os.dup(c.ours.socket.fileno()))
            assert mine.fileno() == number
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(mine))
            nursery.start_soon(relay, stream, d.ours)
            await _settle()
            scope.cancel()
            await _settle()
            await c.peer.send_all(b"still here")
            assert await receive_exactly(d.peer, 10) == b"still here"
            nursery.cancel_scope.cancel()
        a.ours.socket.detach()
        await stream.aclose()


async def test_urgent_data_among_bulk_is_not_eof(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 1 and 7: splice(2) stops at its mark, however often it is called."""
    with roomy() as a, roomy() as b:
        sender, receiver = Peer(a.peer), Peer(b.peer)
        with socket.socket(fileno=os.dup(a.peer.socket.fileno())) as raw:
            async with trio.open_nursery() as nursery:
                result = Result(nursery, a.ours, b.ours)
                nursery.start_soon(receiver.read)
                await sender.send(2 * BULK)
                await _settle()
                assert Engine.of_this_run().pipes.flows == 1
                # In one step, so that the mark has arrived before the next poll.
                raw.send(b"before")
                raw.send(b"!", socket.MSG_OOB)
                raw.send(b"after")
                await _settle()
                assert result.is_pending
                assert receiver.received.endswith(b"beforeafter")
                nursery.cancel_scope.cancel()

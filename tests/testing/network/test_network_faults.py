"""Faults of TCP in memory: late bytes, slices, cuts and ends, at exact times."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio._core._run import _r

from links import some_bytes
from support import receive_all, receive_exactly
from trioserve.faults import Faults, Impairment, Termination
from trioserve.testing import Event, MemoryNetwork, MemoryStream, stream_pair

Call = Callable[[], Awaitable[object]]


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """It jumps without delay: there is no kernel to wait for."""
    return trio.testing.MockClock(autojump_threshold=0)


async def result(call: Call, seconds: float = 10) -> object:
    """The result of a call, the errno of its error, or ``"waits"``."""
    with trio.move_on_after(seconds):
        try:
            return await call()
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, OSError)
            return error.__cause__.errno
    return "waits"


def sends(stream: MemoryStream, data: bytes) -> Call:
    return lambda: stream.send_all(data)


# -- time


async def test_bytes_and_eof_arrive_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: latency=2s, slow_close=5s")
    await client.send_all(b"one")
    await trio.sleep(1)
    await client.send_all(b"two")
    await client.send_eof()
    assert await server.receive_some() == b"one"
    assert trio.current_time() == 2
    assert await server.receive_some() == b"two"
    assert trio.current_time() == 3
    assert await server.receive_some() == b""
    assert trio.current_time() == 8
    await server.send_all(b"at once")
    assert await client.receive_some() == b"at once"
    assert trio.current_time() == 8
    assert server.applied_faults == ("latency=2s", "slow_close=5s")
    assert client.applied_faults == ()


async def test_bytes_that_are_due_are_received_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="latency=1s")
    await client.send_all(b"one")
    await client.send_all(b"two")
    await trio.sleep(5)
    assert await server.receive_some() == b"onetwo"
    assert trio.current_time() == 5


async def test_a_reset_does_not_overtake_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: latency=1s, bandwidth=3/s")
    await client.send_all(b"abc")
    client.reset()
    assert await receive_exactly(server, 3) == b"abc"
    assert trio.current_time() == 2
    assert await result(server.receive_some) == errno.ECONNRESET
    assert trio.current_time() == 2


async def test_a_closed_peer_is_noticed_after_a_round_trip(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """FIN ends a waiting receive, and the RST for its data a waiting send."""
    client, server = stream_pair(buffer=1, faults="up: latency=1s; down: latency=3s")
    told = list[tuple[object, float]]()

    async def note(call: Call) -> None:
        told.append((await result(call), trio.current_time()))

    await server.aclose()
    nursery.start_soon(note, client.receive_some)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(note, sends(client, b"xyz"))
    await trio.sleep(9)
    assert told == [(b"", 3), (errno.EPIPE, 4)]


async def test_a_reset_arrives_when_it_is_due_even_if_no_call_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="latency=3s")
    await server.aclose()
    await client.send_all(b"x")
    await trio.sleep(7)
    assert await result(sends(client, b"y")) == errno.EPIPE


async def test_a_reset_ends_a_receive_that_waits_for_late_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: latency=9s; down: reset@2s")
    await client.send_all(b"x")
    assert await result(server.receive_some) == errno.ECONNRESET
    assert trio.current_time() == 2


async def test_bytes_pass_no_faster_than_the_bandwidth(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    client, server = stream_pair(faults="bandwidth=1000/s")
    nursery.start_soon(client.send_all, bytes(2500))
    await receive_exactly(server, 2500)
    assert trio.current_time() == pytest.approx(2.5)


@given(begin=st.floats(0, 1e6), later=st.floats(0, 1e6))
@settings(deadline=None)
def test_bytes_without_latency_arrive_at_once_at_any_time(
    begin: float, later: float
) -> None:
    """Rounding of the clock's numbers does not matter."""

    async def main() -> None:
        await trio.sleep(begin)
        client, server = stream_pair(faults="down: latency=1s")
        await trio.sleep(later)
        await client.send_all(b"x")
        now = trio.current_time()
        assert await server.receive_some() == b"x"
        assert trio.current_time() == now

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# -- slices and cuts


async def test_bytes_behind_a_cut_come_only_with_a_receive_that_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    events = list[tuple[str, object]]()

    def watch(event: Event) -> None:
        if event.stream.name == "server 1":
            events.append((event.kind, event.data))

    network = MemoryNetwork(faults="cut@3", on_event=watch)
    listener = network.listen()
    client = await network.connect(listener)
    server = await listener.accept()
    await client.send_all(b"abcdef")
    await client.send_all(b"ghi")
    await client.send_eof()
    assert await server.receive_some(2) == b"ab"
    assert await server.receive_some() == b"c"
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.receive_some()
    assert await server.receive_some() == b"defghi"
    assert await server.receive_some() == b""
    assert events == [
        ("accept", None),
        ("receive", b"ab"),
        ("receive", b"c"),
        ("cancelled", None),
        ("wait_receive", None),
        ("receive", b"defghi"),
        ("receive_eof", None),
    ]


async def test_bytes_behind_a_cut_have_arrived(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A close before they are received is a reset."""
    client, server = stream_pair(faults="cut@3")
    await client.send_all(b"abcdef")
    assert await server.receive_some() == b"abc"
    await server.aclose()
    assert await result(client.receive_some) == errno.ECONNRESET


@given(
    cuts=st.lists(st.integers(1, 59), unique=True).map(sorted),
    chunks=st.lists(st.integers(1, 20), min_size=1),
)
@settings(deadline=None)
def test_slices_do_not_depend_on_how_bytes_were_sent(
    cuts: list[int], chunks: list[int]
) -> None:
    async def pieces(sizes: list[int]) -> list[bytes]:
        faults = Faults(up=Impairment(slice=(1, 9), cuts=tuple(cuts)))
        client, server = stream_pair(faults=faults, seed="s")
        position = 0
        for size in sizes:
            await client.send_all(some_bytes(position, min(size, 60 - position)))
            position = min(60, position + size)
        await client.send_all(some_bytes(position, 60 - position))
        await client.aclose()
        return [bytes(data) async for data in server]

    async def main() -> None:
        received = await pieces(chunks)
        assert b"".join(received) == some_bytes(0, 60)
        assert received == await pieces([60])
        assert max(map(len, received)) <= 9

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# -- terminations


@pytest.mark.parametrize("when", ["4", "1s"])
@pytest.mark.parametrize(
    ("kind", "server_sees", "client_sees", "client_sends"),
    [
        ("stall", "waits", b"down", "waits"),
        ("vanish", "waits", "waits", "waits"),
        ("reset", errno.ECONNRESET, errno.ECONNRESET, errno.ECONNRESET),
        ("close", b"", b"", errno.EPIPE),
        ("eof", b"", b"down", None),
    ],
)
async def test_a_termination_ends_a_connection(
    when: str,
    kind: str,
    server_sees: object,
    client_sees: object,
    client_sends: object,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After these bytes, or at this time; bytes sent later are lost."""
    client, server = stream_pair(buffer=9, faults=f"up: {kind}@{when}")
    await client.send_all(b"four" + (b"more" if when == "4" else b""))
    await trio.sleep(1)
    assert await server.receive_some() == b"four"
    assert await result(server.receive_some, 2) == server_sees
    if server_sees != errno.ECONNRESET and kind != "close":
        await server.send_all(b"down")
    assert await result(client.receive_some, 2) == client_sees
    assert await result(sends(client, bytes(99)), 2) == client_sends
    assert server.applied_faults == (f"{kind}@{when}",)
    # Closing works in each of these states.
    await client.aclose()
    await server.aclose()


async def test_late_bytes_are_lost_at_a_timed_eof(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(buffer=9, faults="up: latency=2s, eof@3s")
    await client.send_all(b"in time")
    await trio.sleep(2)
    await client.send_all(b"too late")
    assert await receive_all(server) == b"in time"
    assert trio.current_time() == 3
    await client.send_all(bytes(99))


async def test_a_send_that_waits_for_room_fails_at_a_timed_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, _ = stream_pair(buffer=9, faults="up: close@1s")
    assert await result(sends(client, bytes(99))) == errno.EPIPE
    assert trio.current_time() == 1


async def test_a_stalled_connection_may_still_be_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: stall, reset@5s")
    await client.send_all(b"lost")
    client.reset()
    assert await result(server.receive_some) == errno.ECONNRESET
    assert trio.current_time() == 5
    assert server.applied_faults == ("stall@0", "reset@5s")


async def test_after_a_reset_no_other_fault_applies(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: reset@1s; down: eof@2s")
    await trio.sleep(3)
    for stream in (client, server):
        assert await result(stream.receive_some) == errno.ECONNRESET


async def test_a_reset_after_a_termination_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: latency=5s, eof@2s")
    client.reset()
    for _ in range(2):
        assert await result(server.receive_some) == b""
        assert trio.current_time() == 2


async def test_eof_after_a_termination_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(faults="up: slow_close=9s, stall@5s")
    await client.send_eof()
    assert await result(server.receive_some, 20) == "waits"


async def test_a_refused_connect_fails_at_once() -> None:
    network = MemoryNetwork(faults="refuse")
    listener = network.listen(backlog=1)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await network.connect(listener)
    client = await network.connect(listener, faults="")
    server = await listener.accept()
    await client.send_all(b"hello")
    assert await server.receive_some() == b"hello"


async def test_a_pair_that_is_refused_is_reset() -> None:
    for stream in stream_pair(faults="refuse"):
        assert await result(stream.receive_some) == errno.ECONNRESET


async def test_each_connection_of_a_network_draws_from_its_own_seed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def times(network: MemoryNetwork, seed: str | None = None) -> list[bytes]:
        listener = network.listen()
        client = await network.connect(listener, seed=seed)
        server = await listener.accept()
        await client.send_all(bytes(1000))
        await client.aclose()
        return [bytes(data) async for data in server]

    one, same, other = [
        MemoryNetwork(faults="slice=1..200", seed=seed) for seed in (1, 1, 2)
    ]
    first, second = await times(one), await times(one)
    assert first != second
    assert [await times(same), await times(same)] == [first, second]
    assert await times(other) != first
    assert await times(one, "s") == await times(other, "s")


# -- any faults


seconds = st.integers(0, 20).map(lambda tenths: tenths / 10)
terminations = st.builds(
    Termination,
    kind=st.sampled_from(["stall", "vanish", "reset", "close", "eof"]),
    bytes=st.integers(0, 300),
) | st.builds(
    Termination,
    kind=st.sampled_from(["stall", "vanish", "reset", "close", "eof"]),
    seconds=seconds,
)
impairments = st.builds(
    Impairment,
    latency=st.sampled_from([2.0, 3.0]),
    jitter=seconds,
    bandwidth=st.none() | st.integers(50, 5000),
    slice=st.none() | st.tuples(st.integers(1, 20), st.integers(20, 90)),
    cuts=st.lists(st.integers(1, 300)).map(tuple),
    slow_close=seconds,
    terminations=st.lists(terminations, max_size=2).map(tuple),
)


@given(
    faults=st.builds(Faults, up=impairments, down=impairments),
    counts=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    buffer=st.integers(1, 100),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_under_any_faults_a_prefix_arrives_and_runs_repeat(
    faults: Faults,
    counts: tuple[int, int],
    buffer: int,
    seed: int,
) -> None:
    """In both directions; all bytes and then EOF, unless the connection ends before."""

    async def send(stream: MemoryStream, count: int) -> None:
        async def call() -> None:
            await stream.send_all(some_bytes(0, count))
            await stream.send_eof()

        await result(call, 10_000)

    async def receive(stream: MemoryStream, count: int) -> None:
        received = b""
        while isinstance(data := await result(stream.receive_some, 10_000), bytes):
            received += data
            if not data:
                break
        assert received == some_bytes(0, len(received))
        ends = faults.up.terminations + faults.down.terminations
        assert (received, data) == (some_bytes(0, count), b"") or ends

    async def main() -> list[object]:
        log = list[object]()
        network = MemoryNetwork(
            buffer=buffer,
            faults=faults,
            seed=seed,
            on_event=lambda event: log.append(
                (trio.current_time(), event.stream.name, event.kind, event.data)
            ),
        )
        listener = network.listen()
        streams = await network.connect(listener), await listener.accept()
        async with trio.open_nursery() as nursery:
            for stream, out, back in zip(streams, counts, counts[::-1], strict=True):
                nursery.start_soon(send, stream, out)
                nursery.start_soon(receive, stream, back)
        for stream in streams:
            await stream.aclose()
            log.append(stream.applied_faults)
        return log

    def run() -> list[object]:
        _r.seed(seed)  # Trio draws its schedule from this.
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert run() == run()

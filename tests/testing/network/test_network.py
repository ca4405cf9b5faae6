"""TCP in memory: both ends, buffers, errors, listeners and events."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import some_bytes
from support import receive_all, receive_exactly, serving
from sweep import Begin, sweep
from trioserve import Connection, Limits, log_reports
from trioserve.testing import Event, MemoryNetwork, MemoryStream, stream_pair

Pair: TypeAlias = tuple[MemoryStream, MemoryStream]
T = TypeVar("T")


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """It jumps without delay: there is no kernel to wait for."""
    return trio.testing.MockClock(autojump_threshold=0)


def run(main: Callable[[], Awaitable[T]]) -> T:
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _clogged_pair(faults: str = "") -> Pair:
    streams = stream_pair(buffer=1, faults=faults)
    for stream in streams:
        await stream.send_all(b"x")
    return streams


@pytest.mark.parametrize(
    "faults",
    [
        "",
        "slice=500..5000",
        "cut@1",
        "latency=50ms+-20ms",
        "latency=1s, slow_close=5s",
        pytest.param(
            "bandwidth=100KiB/s, slice=2000/10ms", marks=pytest.mark.long("many steps")
        ),
    ],
)
async def test_a_stream_is_a_half_closeable_stream(
    faults: str, autojump_clock: trio.testing.MockClock
) -> None:
    """By Trio's own check of such streams, with any faults that lose no bytes."""

    async def pair() -> Pair:
        return stream_pair(faults=faults)

    async def clogged_pair() -> Pair:
        return await _clogged_pair(faults)

    await trio.testing.check_half_closeable_stream(pair, clogged_pair)


async def _code(call: Callable[[], object]) -> int | None:
    """The errno of the error that a call raises."""
    with pytest.raises(trio.BrokenResourceError) as caught:
        await call()  # type: ignore[misc]
    assert isinstance(caught.value.__cause__, OSError)
    return caught.value.__cause__.errno


# -- FIN, RST and close


async def test_a_half_close_leaves_the_other_half_in_both_orders() -> None:
    client, server = stream_pair()
    await client.send_all(b"request")
    await client.send_eof()
    assert await receive_all(server) == b"request"
    await server.send_all(b"answer")
    await server.aclose()
    assert await receive_all(client) == b"answer"
    await client.aclose()


async def test_bytes_sent_before_a_close_arrive_before_eof() -> None:
    client, server = stream_pair()
    await client.send_all(b"all of it")
    await client.aclose()
    assert await receive_all(server) == b"all of it"


async def test_bytes_sent_before_a_reset_arrive_before_it() -> None:
    client, server = stream_pair()
    await client.send_all(b"all of it")
    client.reset()
    client.reset()
    assert await receive_exactly(server, 9) == b"all of it"
    for _ in range(2):
        assert await _code(server.receive_some) == errno.ECONNRESET
        assert await _code(lambda: server.send_all(b"x")) == errno.ECONNRESET
    assert await _code(server.send_eof) == errno.ENOTCONN


async def test_closing_with_unread_bytes_resets() -> None:
    client, server = stream_pair()
    await client.send_all(b"never read")
    await server.aclose()
    assert await _code(client.receive_some) == errno.ECONNRESET


async def test_the_first_send_to_a_closed_peer_succeeds_and_the_next_breaks() -> None:
    client, server = stream_pair()
    await server.aclose()
    await client.send_all(b"succeeds")
    assert await _code(lambda: client.send_all(b"breaks")) == errno.EPIPE
    assert await client.receive_some() == b""


async def test_data_for_a_peer_that_half_closed_and_closed_causes_a_reset() -> None:
    client, server = stream_pair()
    await client.send_eof()
    await client.aclose()
    await server.send_all(b"answer")
    assert await server.receive_some() == b""
    assert await _code(lambda: server.send_all(b"more")) == errno.EPIPE


async def test_after_fin_in_both_directions_there_is_no_reset() -> None:
    events = list[str]()
    network = MemoryNetwork(on_event=lambda event: events.append(event.kind))
    listener = network.listen()
    client = await network.connect(listener)
    server = await listener.accept()
    await client.send_all(b"unread")
    await client.send_eof()
    await server.send_eof()
    server.reset()
    assert await client.receive_some() == b""
    await client.send_eof()
    assert "reset" not in events


async def test_a_reset_after_the_peer_has_closed_changes_nothing() -> None:
    client, server = stream_pair()
    await client.aclose()
    server.reset()
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()


@pytest.mark.parametrize("expired", [True, False])
async def test_closing_in_a_cancelled_scope_resets(
    expired: bool, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = stream_pair()
    with trio.CancelScope() as scope:
        if expired:
            scope.deadline = trio.current_time()
        else:
            scope.cancel()
        await client.aclose()
    assert await _code(server.receive_some) == errno.ECONNRESET


async def test_closing_before_a_deadline_does_not_reset() -> None:
    client, server = stream_pair()
    with trio.move_on_after(100):
        await client.aclose()
    assert await server.receive_some() == b""


async def test_nothing_is_sent_after_eof_or_a_close() -> None:
    client, server = stream_pair()
    await client.send_eof()
    await client.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    await client.wait_send_all_might_not_block()
    await server.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await server.send_eof()


async def test_send_eof_now_comes_after_the_bytes_that_a_waiting_send_has_sent(
    nursery: trio.Nursery,
) -> None:
    """The rest of the send fails, as with shutdown(2) from another thread."""
    client, server = stream_pair(buffer=3)
    codes = list[int | None]()

    async def send() -> None:
        codes.append(await _code(lambda: client.send_all(b"abcdef")))

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(2):
        client.send_eof_now()
    assert await receive_all(server) == b"abc"
    assert codes == [errno.EPIPE]
    server.reset()
    server.send_eof_now()


# -- calls that wait


async def _blocked(nursery: trio.Nursery, call: Callable[[], object]) -> trio.Event:
    """Start a call that waits until its side is closed; the event is set then."""
    closed = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()  # type: ignore[misc]
        closed.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    return closed


async def test_closing_wakes_the_receiver_and_the_sender(
    nursery: trio.Nursery,
) -> None:
    _, server = await _clogged_pair()
    await receive_exactly(server, 1)
    receiving = await _blocked(nursery, server.receive_some)
    sending = await _blocked(nursery, lambda: server.send_all(b"x"))
    server.reset()
    await receiving.wait()
    await sending.wait()


async def test_a_reset_wakes_the_receiver_and_the_sender(nursery: trio.Nursery) -> None:
    client, server = stream_pair(buffer=1)
    await server.send_all(b"x")
    codes = list[int | None]()

    async def note(call: Callable[[], object]) -> None:
        codes.append(await _code(call))

    nursery.start_soon(note, server.receive_some)
    nursery.start_soon(note, lambda: server.send_all(b"y"))
    await trio.testing.wait_all_tasks_blocked()
    client.reset()
    await trio.testing.wait_all_tasks_blocked()
    assert codes == [errno.ECONNRESET] * 2


async def test_eof_wakes_the_receiver(nursery: trio.Nursery) -> None:
    client, server = stream_pair()
    nursery.start_soon(client.send_eof)
    assert await server.receive_some() == b""


async def test_two_tasks_do_not_receive_at_once(nursery: trio.Nursery) -> None:
    _, server = stream_pair()
    await _blocked(nursery, server.receive_some)
    with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
        await server.receive_some()
    server.reset()


# -- buffers


async def test_a_send_waits_for_room_and_has_sent_a_prefix_when_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(buffer=100)
    with trio.move_on_after(1) as scope:
        await client.send_all(some_bytes(0, 1000))
    assert scope.cancelled_caught
    await client.aclose()
    assert await receive_all(server) == some_bytes(0, 100)


@given(
    buffer=st.integers(1, 50),
    sends=st.lists(st.integers(0, 100), max_size=8),
    receives=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_bytes_arrive_in_order_and_at_most_a_buffer_is_in_flight(
    buffer: int, sends: list[int], receives: list[int], schedule: object
) -> None:
    sent = received = 0

    def watch(event: Event) -> None:
        nonlocal sent, received
        if event.kind == "send":
            sent += len(event.data or b"")
        elif event.kind == "receive":
            received += len(event.data or b"")
        assert 0 <= sent - received <= buffer

    async def send(client: MemoryStream) -> None:
        position = 0
        for count in sends:
            await client.send_all(some_bytes(position, count))
            position += count
        await client.aclose()

    async def main() -> None:
        network = MemoryNetwork(buffer=buffer, on_event=watch)
        listener = network.listen()
        client = await network.connect(listener)
        server = await listener.accept()
        data = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client)
            turn = 0
            while part := await server.receive_some(receives[turn % len(receives)]):
                assert len(part) <= receives[turn % len(receives)]
                data += part
                turn += 1
        assert data == some_bytes(0, sum(sends))

    run(main)


def test_a_receive_cancelled_at_any_step_has_taken_nothing() -> None:
    async def scenario(begin: Begin) -> None:
        client, server = stream_pair()
        taken = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"hello")
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                while len(taken) < 5:
                    taken += await server.receive_some(2)
        while len(taken) < 5:
            taken += await server.receive_some()
        assert taken == b"hello"

    assert sweep(scenario) >= 3


def test_a_send_cancelled_at_any_step_has_sent_a_prefix() -> None:
    async def scenario(begin: Begin) -> None:
        client, server = stream_pair(buffer=3)
        got = bytearray()

        async def read() -> None:
            async for data in server:
                got.extend(data)

        returned = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                for _ in range(3):
                    await client.send_all(some_bytes(returned, 5))
                    returned += 5
            await client.aclose()
        assert got == some_bytes(0, len(got))
        assert returned <= len(got) <= returned + 5

    assert sweep(scenario) >= 5


def test_a_connection_without_a_buffer_is_an_error() -> None:
    """The error comes when it is made, before a client waits in a queue."""
    for make in (stream_pair, MemoryNetwork):
        with pytest.raises(ValueError, match="must be 1 byte or more"):
            make(buffer=0)


async def test_a_receive_of_nothing_is_an_error() -> None:
    client, _ = stream_pair()
    with pytest.raises(ValueError, match="1 or more"):
        await client.receive_some(0)


# -- stall and vanish


async def test_bytes_from_a_stalled_end_never_arrive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair(buffer=12)
    await client.send_all(b"before")
    client.stall()
    with trio.move_on_after(1) as sending:
        await client.send_all(bytes(100))
    assert sending.cancelled_caught
    await server.send_all(b"downstream: ")
    assert await receive_exactly(client, 12) == b"downstream: "
    assert await server.receive_some() == b"before"
    client.reset()
    with trio.move_on_after(1) as receiving:
        await server.receive_some()
    assert receiving.cancelled_caught


async def test_nothing_passes_after_a_vanish(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = stream_pair()
    server.vanish()
    await server.aclose()
    await client.send_all(b"not acknowledged")
    with trio.move_on_after(1) as receiving:
        await client.receive_some()
    assert receiving.cancelled_caught


# -- listeners


async def test_clients_are_accepted_in_the_order_in_which_they_connected(
    nursery: trio.Nursery,
) -> None:
    network = MemoryNetwork()
    listener = network.listen("web")
    accepted = list[str]()

    async def accept() -> None:
        for _ in range(3):
            accepted.append((await listener.accept()).name)

    nursery.start_soon(accept)
    await trio.testing.wait_all_tasks_blocked()
    names = [(await network.connect(listener)).name for _ in range(3)]
    await trio.testing.wait_all_tasks_blocked()
    assert names == ["client 1", "client 2", "client 3"]
    assert accepted == ["web 1", "web 2", "web 3"]
    assert repr(listener) == "<MemoryListener web>"


async def test_a_connect_waits_while_the_queue_is_full(
    nursery: trio.Nursery,
) -> None:
    network = MemoryNetwork()
    listener = network.listen(backlog=1)
    connected = list[str]()

    async def connect() -> None:
        connected.append((await network.connect(listener)).name)

    for _ in range(3):
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
    assert connected == ["client 1"]
    assert (await listener.accept()).name == "server 1"
    await trio.testing.wait_all_tasks_blocked()
    assert connected == ["client 1", "client 2"]
    nursery.cancel_scope.cancel()


async def test_a_closed_listener_resets_waiting_clients_and_refuses_new_ones(
    nursery: trio.Nursery,
) -> None:
    network = MemoryNetwork()
    listener = network.listen(backlog=1)
    client = await network.connect(listener)
    refused = list[int]()

    async def connect() -> None:
        with pytest.raises(ConnectionRefusedError):
            await network.connect(listener)
        refused.append(1)

    for _ in range(2):
        nursery.start_soon(connect)
    await trio.testing.wait_all_tasks_blocked()
    await listener.aclose()
    await listener.aclose()
    assert await _code(client.receive_some) == errno.ECONNRESET
    await connect()
    await trio.testing.wait_all_tasks_blocked()
    assert len(refused) == 3
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_closing_a_listener_wakes_the_accept(nursery: trio.Nursery) -> None:
    listener = MemoryNetwork().listen()
    closed = await _blocked(nursery, listener.accept)
    with pytest.raises(trio.BusyResourceError, match="another task is accepting"):
        await listener.accept()
    await listener.aclose()
    await closed.wait()


async def test_trioserve_serves_a_memory_listener(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The client gets FIN when the handler returns, and RST when it fails."""

    async def handler(connection: Connection) -> None:
        async for data in connection:
            await connection.send_all(data)
            assert data != b"fail"

    network = MemoryNetwork()
    listener = network.listen()
    async with serving(
        handler,
        listeners=[listener],
        limits=Limits(max_connections=1, when_full="refuse"),
        collector=log_reports,
    ):
        client = await network.connect(listener)
        await client.send_all(b"hello")
        refused = await network.connect(listener)
        assert await receive_all(refused) == b""
        await refused.aclose()
        await client.send_eof()
        assert await receive_all(client) == b"hello"
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        client = await network.connect(listener)
        await client.send_all(b"fail")
        assert await receive_exactly(client, 4) == b"fail"
        assert await _code(client.receive_some) == errno.ECONNRESET
    with pytest.raises(ConnectionRefusedError):
        await network.connect(listener)


# -- events


async def test_on_event_gets_each_event_of_each_stream(nursery: trio.Nursery) -> None:
    events = list[tuple[str, str, object]]()

    def watch(event: Event) -> None:
        events.append((event.stream.name, event.kind, event.data))

    network = MemoryNetwork(buffer=4, on_event=watch)
    listener = network.listen()
    client = await network.connect(listener)
    server = await listener.accept()
    assert repr(client) == "<MemoryStream client 1>"
    nursery.start_soon(client.send_all, b"hello")
    await trio.testing.wait_all_tasks_blocked()
    assert await server.receive_some() == b"hell"
    await trio.testing.wait_all_tasks_blocked()
    assert await server.receive_some() == b"o"
    with trio.CancelScope() as scope:
        scope.cancel(reason="enough")
        await server.receive_some()
    await client.send_eof()
    assert await server.receive_some() == b""
    server.reset()
    for _ in range(2):
        await _code(client.receive_some)
    await client.aclose()
    assert events == [
        ("client 1", "connect", None),
        ("server 1", "accept", None),
        ("client 1", "send", b"hell"),
        ("client 1", "wait_send", None),
        ("server 1", "receive", b"hell"),
        ("client 1", "send", b"o"),
        ("server 1", "receive", b"o"),
        ("server 1", "cancelled", "enough"),
        ("client 1", "send_eof", None),
        ("server 1", "receive_eof", None),
        ("server 1", "close", None),
        ("server 1", "reset", None),
        ("client 1", "receive_reset", None),
        ("client 1", "close", None),
    ]


async def test_a_listener_belongs_to_one_network() -> None:
    listener = MemoryNetwork().listen("elsewhere")
    with pytest.raises(ValueError, match="<MemoryListener elsewhere> is not of this"):
        await MemoryNetwork().connect(listener)

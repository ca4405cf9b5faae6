"""A relay with faults: they are applied as asked, and the laws of relays hold."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.strategies import impairments
from links import Peer, Whole, narrow, sockets, some_bytes
from support import (
    Running,
    is_reset,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
    serving,
)
from sweep import Begin, sweep
from test_docs import ROOT, table
from trioserve import (
    Connection,
    Outcome,
    Phase,
    Reason,
    Timeouts,
    echo,
    proxy,
)
from trioserve.faults import Faults

FAULTS = ROOT / "docs" / "faults.md"


@contextlib.asynccontextmanager
async def faulty_proxy(
    faults: str | Faults,
    target: Callable[[Connection], Awaitable[object]] = echo,
    *,
    seed: int = 0,
    **options: Any,
) -> AsyncGenerator[tuple[Running, Running]]:
    """A proxy that applies faults, and its target."""
    async with serving(target) as there:
        handler = proxy(there.address, faults=faults, seed=seed)
        async with serving(handler, **options) as running:
            yield running, there


@pytest.mark.parametrize("text", ["latency", "up:reset@x"])
def test_faults_that_cannot_be_parsed_are_an_error_at_once(text: str) -> None:
    """The error comes before a client connects."""
    with pytest.raises(ValueError, match=f"in '{text}'|in 'reset@x'"):
        proxy("127.0.0.1:1", faults=text)


@pytest.mark.parametrize("faults", [None, "", Faults()])
async def test_without_faults_nothing_is_applied(
    faults: str | Faults | None, autojump_clock: trio.testing.MockClock
) -> None:
    """It is the usual relay."""
    async with serving(echo) as there:
        async with serving(proxy(there.address, faults=faults)) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await client.aclose()
    (report,) = running.reports
    assert report.faults == ()


# -- time


async def test_latency_is_what_was_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In both directions, for each message and for EOF."""
    async with faulty_proxy("up:latency=3s; down:latency=500ms") as (running, _):
        client = await running.connect()
        began = trio.current_time()
        for n in range(1, 4):
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            assert trio.current_time() - began == n * 3.5
        await client.send_eof()
        assert await receive_all(client) == b""
        assert trio.current_time() - began == 4 * 3.5
        await client.aclose()
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.faults == ("up:latency=3s", "down:latency=500ms")


async def test_latency_does_not_limit_throughput(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Many messages are in flight at the same time."""
    data = some_bytes(0, 3_000_000)
    async with faulty_proxy("latency=2s") as (running, _):
        client = await running.connect()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            assert await receive_exactly(client, len(data)) == data
        assert trio.current_time() - began == 4
        await client.aclose()


async def test_the_bytes_in_flight_are_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 9: to 16 MiB in each direction, and to less with a low bandwidth."""
    for faults, most in (("up:latency=1h", 17e6), ("up:bandwidth=1/s", 140e3)):
        async with faulty_proxy(faults, timeouts=Timeouts(drain=0)) as (running, _):
            client = await running.connect()
            with trio.move_on_after(30):
                await client.send_all(bytes(30_000_000))
            (conn,) = running.server.connections
            assert most - 2e6 < conn.bytes_received < most
        (report,) = running.reports
        assert report.reason is Reason.CUT


async def test_bandwidth_is_what_was_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In one direction, from the first byte to the last."""
    data = some_bytes(0, 200)
    async with faulty_proxy("down:bandwidth=10/s") as (running, _):
        client = await running.connect()
        began = trio.current_time()
        await client.send_all(data)
        await client.send_eof()
        assert await receive_exactly(client, 100) == data[:100]
        assert trio.current_time() - began == pytest.approx(10)
        assert await receive_all(client) == data[100:]
        assert trio.current_time() - began == pytest.approx(20)
        await client.aclose()
    (report,) = running.reports
    assert report.faults == ("down:bandwidth=10/s",)


async def test_a_waiting_receiver_gets_slices(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No receive is longer than a slice, and none crosses a cut."""
    data = some_bytes(0, 1000)
    async with faulty_proxy("down:slice=2..9, cut@500") as (running, _):
        client = await running.connect()
        await client.send_all(data)
        await client.send_eof()
        pieces = [piece async for piece in client]
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= 9
        assert any(b"".join(pieces[:n]) == data[:500] for n in range(len(pieces)))
        await client.aclose()


async def test_each_connection_draws_its_own_faults_from_the_seed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The seed and the connection's number decide them."""

    async def pieces(seed: int) -> list[list[int]]:
        seen = list[list[int]]()
        async with faulty_proxy("down:slice=1..9/1s", seed=seed) as (running, _):
            for _ in range(2):
                client = await running.connect()
                await client.send_all(bytes(50))
                await client.send_eof()
                seen.append([len(piece) async for piece in client])
                await client.aclose()
        return seen

    first, second = await pieces(7)
    assert first != second
    assert await pieces(7) == [first, second]
    assert first not in await pieces(8)


async def test_a_slow_close_delays_only_fin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """FIN comes later; the bytes before it do not."""
    async with faulty_proxy("up:slow_close=7s") as (running, _):
        client = await running.connect()
        began = trio.current_time()
        await client.send_all(b"hello")
        await client.send_eof()
        assert await receive_exactly(client, 5) == b"hello"
        assert trio.current_time() == began
        assert await receive_all(client) == b""
        assert trio.current_time() == began + 7
        await client.aclose()
    (report,) = running.reports
    assert report.faults == ("up:slow_close=7s",)
    assert report.outcome is Outcome.OK


# -- terminations


class _Target:
    """Receives all bytes and notes how they end; sends a welcome after a second."""

    def __init__(self) -> None:
        self.received = b""
        self.end = "open"

    async def __call__(self, conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, conn)
            await trio.sleep(1)
            with contextlib.suppress(trio.BrokenResourceError):
                await conn.send_all(b"welcome")
        await trio.sleep(9)

    async def _read(self, conn: Connection) -> None:
        try:
            async for data in conn:
                self.received += data
            self.end = "eof"
        except trio.BrokenResourceError:
            self.end = "reset"


@pytest.mark.parametrize(
    ("faults", "to_client", "client_end", "to_target", "target_end"),
    [
        ("up:reset@3", b"", "reset", b"hel", "reset"),
        ("down:reset@3", b"wel", "reset", b"hello", "reset"),
        ("reset@4s", b"welcome", "reset", b"hello", "reset"),
        ("up:close@3", b"", "eof", b"hel", "eof"),
        ("down:close@3", b"wel", "eof", b"hello", "eof"),
        ("close@4s", b"welcome", "eof", b"hello", "eof"),
        ("down:stall@1; close@4s", b"w", "eof", b"hello", "eof"),
        ("up:eof@3; reset@4s", b"welcome", "reset", b"hel", "eof"),
        ("up:latency=2s, reset@4s", b"welcome", "reset", b"hello", "reset"),
        ("up:latency=5s, reset@4s", b"welcome", "reset", b"", "reset"),
        ("up:stall@0, reset@4s", b"welcome", "reset", b"", "reset"),
        ("down:stall@500ms, close@4s", b"", "eof", b"hello", "eof"),
    ],
)
async def test_a_termination_ends_the_connection(
    faults: str,
    to_client: bytes,
    client_end: str,
    to_target: bytes,
    target_end: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Both ends get what came before it, and then RST or FIN."""
    target = _Target()
    async with faulty_proxy(faults, target) as (running, _):
        peer = Peer(await running.connect())
        await peer.stream.send_all(b"hello")
        await peer.read()
        assert (bytes(peer.received), peer.tail) == (to_client, client_end)
        await peer.stream.aclose()
    (report,) = running.reports
    assert (target.received, target.end) == (to_target, target_end)
    assert (report.reason, report.outcome) == (Reason.FAULT, Outcome.ABORTED)
    assert (report.phase, report.termination_state) == (Phase.DATA, "PD")
    assert {item.partition("=")[0] for item in report.faults}


@pytest.mark.parametrize("faults", ["up:eof@3", "up:eof@2s"])
async def test_bytes_after_an_eof_are_discarded(
    faults: str, autojump_clock: trio.testing.MockClock
) -> None:
    """However many there are; the other direction continues."""

    async def target(conn: Connection) -> None:
        async for _ in conn:
            pass
        await trio.sleep(5)
        await conn.send_all(b"that is enough")

    async with faulty_proxy(faults, target) as (running, _):
        client = await running.connect()
        await client.send_all(b"hel")
        await trio.sleep(3)
        await client.send_all(bytes(5_000_000))
        assert await receive_all(client) == b"that is enough"
        await client.aclose()
    (report,) = running.reports
    assert report.faults == (faults,)
    assert report.outcome is Outcome.OK
    assert report.upstream is not None
    assert report.upstream.bytes_sent == 3
    assert report.bytes_discarded == 5_000_000


async def test_the_first_termination_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While a reset waits for the bytes before it, no other termination applies."""
    was_reset = False

    async def target(conn: Connection) -> None:
        nonlocal was_reset
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        await trio.sleep(1.5)
        await conn.send_all(b"four")
        await trio.sleep(0.1)
        try:
            async for _ in conn:
                pass
        except trio.BrokenResourceError:
            was_reset = True

    async with faulty_proxy("up:reset@1s; down:close@4", target) as (running, _):
        client = await running.connect()
        await trio.sleep(0.5)
        with contextlib.suppress(trio.BrokenResourceError):
            await client.send_all(bytes(300_000))
        await trio.sleep(5)
    assert was_reset
    (report,) = running.reports
    assert report.reason is Reason.FAULT


async def test_a_reset_after_an_injected_eof_is_noticed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The client has not sent that EOF; its reset ends the relay."""
    async with faulty_proxy("up:eof@0", _Target()) as (running, _):
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 7) == b"welcome"
        reset(client)
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_RESET


async def test_a_stall_blocks_the_sender_and_counts_as_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 9 and 12: the sender waits, and a timer ends the connection."""
    async with faulty_proxy("up:stall@3", timeouts=Timeouts(idle=60)) as (running, _):
        client = await running.connect()
        narrow(client)
        with trio.move_on_after(30) as waits:
            await client.send_all(bytes(10_000_000))
        assert waits.cancelled_caught
        assert await receive_exactly(client, 3) == bytes(3)
        assert await is_reset(client)
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.IDLE, 60)
    assert report.faults == ("up:stall@3",)
    assert report.upstream is not None
    assert report.upstream.bytes_sent == 3
    assert report.bytes_received < 100_000


@pytest.mark.parametrize(
    "faults", ["up:vanish@5", "down:vanish@2s", "up:stall@0; down:vanish@2s"]
)
async def test_after_a_vanish_neither_end_sees_the_other_close(
    faults: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Until a timer ends the connection."""
    target = _Target()
    timeouts = Timeouts(idle=60)
    async with faulty_proxy(faults, target, timeouts=timeouts) as (running, there):
        client = await running.connect()
        await client.send_all(b"hello")
        await trio.sleep(30)
        await client.send_eof()
        await trio.sleep(20)
        assert target.end == "open"
        there.server.connections[0].abort()
        with trio.move_on_after(5):
            await receive_all(client)
            raise AssertionError  # pragma: no cover
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_all(client)
        assert trio.current_time() >= 60
        await client.aclose()
    (report,) = running.reports
    assert report.reason is Reason.IDLE
    assert "; ".join(report.faults) == faults


async def test_refuse_resets_the_client_and_dials_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The target sees no connection."""
    async with faulty_proxy("refuse; latency=1s") as (running, there):
        # The reset may come before the connect has returned.
        with pytest.raises((OSError, trio.BrokenResourceError)):
            await receive_all(await running.connect())
    (report,) = running.reports
    assert (report.reason, report.faults) == (Reason.FAULT, ("refuse",))
    assert (report.attempts, there.reports) == ((), [])


# -- Toxiproxy's toxics


class _Seen:
    """The bytes that a client gets back, when it gets them, and how they end."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.end = ""
        self.ended = 0.0

    async def see(self, faults: str, sent: bytes, *, eof: bool) -> None:
        began = trio.current_time()
        async with faulty_proxy(faults) as (running, _):
            client = await running.connect()
            await client.send_all(sent)
            if eof:
                await client.send_eof()
            try:
                async for data in client:
                    self.pieces.append((trio.current_time() - began, bytes(data)))
                self.end = "eof"
            except trio.BrokenResourceError:
                self.end = "reset"
            self.ended = trio.current_time() - began
            await client.aclose()

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def first(self) -> float:
        return self.pieces[0][0]

    @property
    def last(self) -> float:
        return self.pieces[-1][0]


_SENT = some_bytes(0, 5000)
#: For each toxic: whether the client sends EOF, and a check of its effect.
_TOXICS: dict[str, tuple[bool, Callable[[_Seen], bool]]] = {
    "latency": (True, lambda s: (s.data, s.first, s.ended) == (_SENT, 1, 1)),
    "bandwidth": (True, lambda s: (s.data, round(s.ended, 3)) == (_SENT, 1)),
    "slow_close": (True, lambda s: (s.data, s.last, s.ended) == (_SENT, 0, 1)),
    "timeout": (False, lambda s: (s.data, s.end, s.ended) == (b"", "eof", 1)),
    "reset_peer": (False, lambda s: (s.data, s.end, s.ended) == (_SENT, "reset", 1)),
    "slicer": (
        True,
        lambda s: (
            s.data == _SENT
            and all(32 <= len(data) <= 96 for _, data in s.pieces[:-1])
            and len(s.pieces[-1][1]) <= 96
        ),
    ),
    "limit_data": (False, lambda s: (s.data, s.end) == (_SENT[:4096], "eof")),
}


@pytest.mark.parametrize("row", table(FAULTS, "toxic"), ids=lambda row: row[0])
async def test_each_toxic_of_toxiproxy_has_an_equal_fault(
    row: tuple[str, str, str], autojump_clock: trio.testing.MockClock
) -> None:
    """The fault in the page's table has the toxic's effect."""
    toxic, _, words = (cell.strip("`") for cell in row)
    eof, is_right = _TOXICS[toxic]
    seen = _Seen()
    await seen.see(words, _SENT, eof=eof)
    assert is_right(seen), vars(seen)


def test_the_page_has_all_toxics() -> None:
    """Each once."""
    assert [row[0].strip("`") for row in table(FAULTS, "toxic")] == list(_TOXICS)


# -- the laws of relays


async def test_a_reset_comes_after_the_bytes_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 8: both are in flight."""

    async def target(conn: Connection) -> None:
        await conn.send_all(b"some of")
        conn.abort()

    async with faulty_proxy("down:latency=3s, slice=1/1s", target) as (running, _):
        client = await running.connect()
        assert await receive_exactly(client, 7) == b"some of"
        assert trio.current_time() == 9
        assert await is_reset(client)
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.bytes_sent) == (Reason.SERVER_RESET, 7)


async def test_a_client_that_resets_while_bytes_are_in_flight_ends_the_relay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Bytes that can't be delivered are discarded."""
    async with faulty_proxy("down:slice=1/1s, stall@4") as (running, _):
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 2) == b"he"
        reset(client)
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_RESET
    assert report.upstream is not None
    assert report.upstream.bytes_discarded in (2, 3)


async def test_a_drain_cuts_a_connection_with_delayed_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 5: and the report says how many bytes were in flight."""
    async with faulty_proxy("up:latency=1h") as (running, _):
        client = await running.connect()
        await client.send_all(b"hello")
        await trio.testing.wait_all_tasks_blocked(0.002)
        await running.server.drain(within=3)
        assert await is_reset(client)
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.CUT, 3)
    assert report.bytes_discarded == 5


async def test_a_client_that_cannot_get_fin_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As with TLS: it is closed instead of getting FIN."""

    class Once(trio.abc.Listener[Whole]):
        def __init__(self, stream: Whole) -> None:
            self.streams = [stream]

        async def accept(self) -> Whole:
            if not self.streams:
                await trio.sleep_forever()
            return self.streams.pop()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    for faults, reason in (
        ("down:close@3", Reason.FAULT),
        ("down:eof@3", Reason.SERVER_CLOSED),
    ):
        with sockets() as link:
            listeners = [Once(Whole(link.ours))]
            async with faulty_proxy(faults, listeners=listeners) as (running, _):
                await link.peer.send_all(b"hello")
                assert await receive_all(link.peer) == b"hel"
                await trio.testing.wait_all_tasks_blocked()
            (report,) = running.reports
            assert report.reason is reason


_seconds = st.sampled_from([0.0, 0.25, 3.0])


@given(
    faults=st.builds(
        Faults,
        up=impairments(_seconds),
        down=impairments(_seconds),
    ),
    how=st.sampled_from(["wait", "close", "reset", "leave"]),
    count=st.integers(0, 200),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_under_any_faults_the_ledger_balances_and_nothing_is_left(
    faults: Faults, how: str, count: int, schedule: object
) -> None:
    """Laws 3, 4 and 13: the client closes, resets or leaves meanwhile."""
    before = open_fds()

    async def talk(client: trio.SocketStream) -> None:
        peer = Peer(client)
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.read)
                await peer.send(count)
                if how == "wait":
                    await peer.send_eof()
                elif how == "reset":
                    peer.reset()
                elif how == "leave":
                    nursery.cancel_scope.cancel()
        assert some_bytes(0, count).startswith(peer.received)
        await client.aclose()

    async def main() -> None:
        async with faulty_proxy(faults) as (running, there):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(talk, await running.connect())
        for report in running.reports + there.reports:
            assert report.outcome is not Outcome.HANDLER_ERROR, report

    run(main)
    assert open_fds() == before


@pytest.mark.parametrize(
    "faults",
    [
        "latency=1s, slice=2/1s, slow_close=1s",
        "up:eof@2; down:latency=1s",
        "up:close@4; down:latency=1s",
        "down:reset@4",
        "up:vanish@3, reset@3s",
    ],
)
def test_a_drain_after_any_step_leaves_nothing(faults: str) -> None:
    """Laws 3, 4 and 13: it cuts while bytes or a termination are in flight."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with faulty_proxy(faults) as (running, _):
            client = await running.connect()
            begin(lambda: running.server.start_draining(0))
            with contextlib.suppress(trio.BrokenResourceError):
                with trio.move_on_after(9):
                    await client.send_all(b"hello")
                    await client.send_eof()
                    await receive_all(client)
            await client.aclose()
        assert open_fds() == before

    assert sweep(scenario) > 10

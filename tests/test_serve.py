"""Serving: isolation, the limit, one report each, stopping."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import open_stream_to_socket_listener as connect_to

import trioserve
from support import (
    Running,
    is_reset,
    one_of_each,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
    serving,
    time_stands_still,
)
from sweep import Begin, sweep
from trioserve import (
    Connection,
    ConnectionReport,
    Handler,
    Limits,
    Outcome,
    Reason,
    Timeouts,
    current_connection,
    echo,
)

# -- Law 1: isolation


class Oops(Exception):
    """The exception of a handler."""


def _group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("several", errors)


def _stray_cancelled() -> BaseException:
    """A Cancelled without a cancelled scope."""

    caught: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                caught.append(cancelled)
                raise

    trio.run(main)
    return caught[0]


@pytest.mark.parametrize(
    "error",
    [
        Oops("no"),
        _group(Oops(), _group(ValueError())),
        MemoryError(),
        GeneratorExit(),
        _stray_cancelled(),
        _group(_stray_cancelled(), Oops()),
        trio.BrokenResourceError(),
        trio.ClosedResourceError(),
        OSError(9, "bad"),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_exception_ends_only_its_own_connection(
    error: BaseException, autojump_clock: object
) -> None:
    """Law 1: whatever a handler raises resets its connection, and no other."""

    async def handler(conn: Connection) -> None:
        if await conn.receive_some() == b"raise":
            raise error
        await conn.send_all(b"fine")

    async with serving(handler) as running:
        good, bad = await running.connect(), await running.connect()
        await bad.send_all(b"raise")
        assert await is_reset(bad)
        await good.send_all(b"x")
        assert await receive_all(good) == b"fine"
        await good.aclose()
    by_id = {report.id: report for report in running.reports}
    assert by_id[2].outcome is Outcome.HANDLER_ERROR
    assert by_id[2].exception is error
    assert by_id[1].outcome is Outcome.OK


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("grouped", [0, 1, 2])
async def test_keyboard_interrupt_ends_the_server(
    kind: type[BaseException], grouped: int
) -> None:
    """Law 1: it and SystemExit only, after all reports."""

    async def handler(conn: Connection) -> None:
        if await conn.receive_some() == b"end":
            ends = [kind() for _ in range(grouped)]
            raise _group(Oops(), *ends) if grouped else kind()
        await trio.sleep_forever()

    running = None
    ends = [kind] * max(1, grouped)
    with pytest.RaisesGroup(*ends, flatten_subgroups=True):
        async with serving(handler, report_buffer=math.inf) as running:
            await running.connect()
            second = await running.connect()
            await second.send_all(b"end")
            await running.ended.wait()
    assert running is not None
    running.check_over()
    assert {r.id: r.reason for r in running.reports} == {
        1: Reason.CANCELLED,
        2: Reason.HANDLER_ERROR,
    }


@pytest.mark.parametrize("serves", [trio.serve_listeners, trioserve.serve])
async def test_keyboard_interrupt_is_in_one_group_as_in_trio(serves: Any) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        raise SystemExit(3)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def client() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with await connect_to(listeners[0]) as stream:
                await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        with pytest.RaisesGroup(SystemExit):
            await serves(handler, listeners)


async def test_a_reset_is_not_the_handlers_error(autojump_clock: object) -> None:
    """Law 1: a client's RST ends a naive handler, and the client is blamed."""

    async def naive(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with serving(naive) as running:
        bad, good = await running.connect(), await running.connect()
        await bad.send_all(b"x")
        await receive_exactly(bad, 1)
        reset(bad)
        await good.send_all(b"still here")
        assert await receive_exactly(good, 10) == b"still here"
        await good.aclose()
    first, second = sorted(running.reports, key=lambda r: r.id)
    assert first.reason is Reason.CLIENT_RESET
    assert second.reason is Reason.CLIENT_CLOSED
    assert "ConnectionResetError" in str(first.error)


@settings(deadline=None, max_examples=50)
@given(
    tempers=st.lists(
        st.sampled_from(["quick", "silent", "reset", "raise", "half", "leave", "late"]),
        max_size=12,
    ),
    random=st.random_module(),
)
def test_clients_do_not_affect_each_other(tempers: list[str], random: object) -> None:
    """Law 1: among clients of every behaviour, each polite one gets its bytes."""

    async def handler(conn: Connection) -> None:
        async for data in conn:
            if data.startswith(b"raise"):
                raise Oops
            await conn.send_all(data)

    async def client(running: Running, temper: str) -> None:
        stream = await running.connect()
        match temper:
            case "reset":
                await stream.send_all(b"x")
                reset(stream)
            case "raise":
                await stream.send_all(b"raise")
                assert await is_reset(stream)
            case "leave":
                await stream.aclose()
            case "silent":
                await trio.sleep(3)
                await stream.aclose()
            case _:
                if temper == "late":
                    await trio.sleep(1)
                await stream.send_all(b"hello")
                if temper == "half":
                    await stream.send_eof()
                assert await receive_exactly(stream, 5) == b"hello"
                await stream.aclose()

    async def main() -> None:
        async with serving(handler, limits=Limits(max_connections=3)) as running:
            async with trio.open_nursery() as nursery:
                for temper in tempers:
                    nursery.start_soon(client, running, temper)
            # A client that left may still be in the kernel's queue, behind silent ones.
            while running.server.statistics().closed < len(tempers):
                await trio.sleep(1)
        outcomes = sorted(report.outcome for report in running.reports)
        assert outcomes.count(Outcome.HANDLER_ERROR) == tempers.count("raise")
        assert outcomes.count(Outcome.PEER_ERROR) == tempers.count("reset")

    run(main)


# -- Law 2: the limit


@settings(deadline=None, max_examples=40)
@given(
    limit=st.integers(1, 4),
    listeners=st.integers(1, 3),
    churn=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 2), st.booleans()), max_size=20
    ),
    random=st.random_module(),
)
def test_the_limit_is_exact(
    limit: int, listeners: int, churn: list[tuple[int, float, bool]], random: object
) -> None:
    """Law 2: never more than N, over all listeners; after any churn, N fit again."""
    inside = most = 0

    async def handler(conn: Connection) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            await conn.send_all(b"!")
            await conn.receive_some()
        finally:
            inside -= 1

    async def client(running: Running, index: int, stays: float, rude: bool) -> None:
        stream = await running.connect(index % listeners)
        await receive_exactly(stream, 1)
        assert running.server.statistics().tokens_used <= limit
        await trio.sleep(stays)
        if rude:
            reset(stream)
        else:
            await stream.aclose()

    async def main() -> None:
        async with serving(
            handler,
            addresses=("127.0.0.1:0",) * listeners,
            limits=Limits(max_connections=limit),
        ) as running:
            async with trio.open_nursery() as nursery:
                for index, stays, rude in churn:
                    nursery.start_soon(client, running, index, stays, rude)
            # Exactly N fit again.
            streams = [await running.connect() for _ in range(limit + 1)]
            for stream in streams[:limit]:
                await receive_exactly(stream, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert running.server.statistics().open == limit == inside
            for stream in streams:
                await stream.aclose()
        assert most <= limit

    run(main)


@pytest.mark.parametrize("taken", range(3))
async def test_no_listener_starves_another(taken: int, autojump_clock: object) -> None:
    """Law 2: with one token, an idle listener does not keep it from the busy one."""
    async with serving(
        echo, addresses=("127.0.0.1:0",) * 3, limits=Limits(max_connections=1)
    ) as running:
        async with await running.connect(taken) as stream:
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"


async def test_the_limit_changes_while_it_serves(autojump_clock: object) -> None:
    """Law 2: a lower limit closes nothing, 0 pauses, a higher one admits waiters."""
    async with serving(echo, limits=Limits(max_connections=2)) as running:
        first, second = await running.connect(), await running.connect()
        for stream in (first, second):
            await stream.send_all(b"x")
            await receive_exactly(stream, 1)
        running.server.limits = Limits(max_connections=0)
        await first.send_all(b"y")
        assert await receive_exactly(first, 1) == b"y"
        third = await running.connect()
        await third.send_all(b"z")
        await first.aclose()
        await second.aclose()
        with trio.move_on_after(100) as patience:
            await third.receive_some()
        assert patience.cancelled_caught
        running.server.limits = Limits(max_connections=1)
        assert await receive_exactly(third, 1) == b"z"
        await third.aclose()


@pytest.mark.parametrize("refusal", [b"", b"busy\n", None])
async def test_a_refused_client_gets_the_refusal(
    refusal: bytes | None, autojump_clock: object
) -> None:
    """Law 2: without a token a client is refused as configured, and reported."""
    limits = Limits(max_connections=1, when_full="refuse", refusal=refusal)
    async with serving(echo, limits=limits) as running:
        inside = await running.connect()
        await inside.send_all(b"x")
        await receive_exactly(inside, 1)
        for hello in (b"", b"hello"):
            if refusal is None:
                with contextlib.suppress(ConnectionResetError):
                    assert await is_reset(await running.connect())
                continue
            outside = await running.connect()
            if hello:
                await outside.send_all(hello)
            assert await receive_all(outside) == refusal
            await outside.aclose()
        await inside.aclose()
        await trio.testing.wait_all_tasks_blocked()
        again = await running.connect()
        await again.send_all(b"x")
        assert await receive_exactly(again, 1) == b"x"
        await again.aclose()
    refused = [r for r in running.reports if r.reason is Reason.LIMIT]
    assert len(refused) == 2
    assert all(r.bytes_sent == len(refusal or b"") for r in refused)
    assert {r.termination_state for r in refused} == {"PR"}


async def test_lingering_refusals_are_bounded(autojump_clock: object) -> None:
    """Law 12: refused clients that do not read cost a bounded time and number."""
    limits = Limits(max_connections=0, when_full="refuse", refusal=b"busy\n")
    async with serving(echo, limits=limits) as running:
        for _ in range(2):
            streams = [await running.connect() for _ in range(70)]
            await trio.testing.wait_all_tasks_blocked()
            assert running.server.statistics().open == 64
            started = trio.current_time()
            while running.server.statistics().open:
                await trio.sleep(0.1)
            assert trio.current_time() - started == pytest.approx(2, abs=0.2)
            for stream in streams:
                await stream.aclose()
    assert len(running.reports) == 140


async def test_a_lingering_refusal_is_cut(autojump_clock: object) -> None:
    """Law 1: at the deadline, like any other connection."""
    limits = Limits(max_connections=0, when_full="refuse", refusal=b"busy\n")
    timeouts = Timeouts(linger=1000)
    async with serving(echo, limits=limits, timeouts=timeouts) as running:
        stream = await running.connect()
        await receive_exactly(stream, 5)
        await stream.send_all(b"but why?")
        # The task of the refusal is about to run when it is cut.
        summary = await running.server.drain(within=0)
    assert running.reports[0].reason is Reason.LIMIT
    assert summary.refused == 1


# -- Law 3: one record


@settings(deadline=None, max_examples=40)
@given(
    operations=st.lists(
        st.sampled_from(
            ["connect", "talk", "close", "reset", "limit", "refuse", "wait", "kill"]
        ),
        max_size=25,
    ),
    buffer=st.sampled_from([0, 1, 3, 100]),
    ending=st.sampled_from(["drain", "cancel", "cut"]),
    random=st.random_module(),
)
def test_each_connection_has_one_report(
    operations: list[str], buffer: int, ending: str, random: object
) -> None:
    """Law 3: accepted = open + closed, closed = collected + buffered + lost, always."""

    async def main() -> None:
        killed = trio.Event()
        collected: list[ConnectionReport] = []

        async def collector(
            reports: trio.MemoryReceiveChannel[ConnectionReport],
        ) -> None:
            async with trio.open_nursery() as nursery:

                async def take() -> None:
                    async for report in reports:
                        collected.append(report)
                        await trio.sleep(0.5)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(take)
                await killed.wait()
                raise Oops

        streams: list[trio.SocketStream] = []
        async with serving(
            echo,
            limits=Limits(max_connections=3),
            collector=collector,
            report_buffer=buffer,
        ) as running:
            server = running.server
            watcher = _Watcher(running)
            trio.lowlevel.add_instrument(watcher)
            for operation in operations:
                match operation:
                    case "connect":
                        streams.append(await running.connect())
                    case "talk" if streams:
                        with contextlib.suppress(trio.BrokenResourceError):
                            await streams[-1].send_all(b"x")
                    case "close" if streams:
                        await streams.pop(0).aclose()
                    case "reset" if streams:
                        reset(streams.pop())
                    case "limit":
                        server.limits = Limits(max_connections=1)
                    case "refuse":
                        server.limits = Limits(max_connections=2, when_full="refuse")
                    case "kill":
                        killed.set()
                    case _:
                        await trio.sleep(1)
            if ending == "cancel":
                running.scope.cancel()
            else:
                server.start_draining(0 if ending == "cut" else None)
            await running.ended.wait()
            trio.lowlevel.remove_instrument(watcher)
            for stream in streams:
                await stream.aclose()
            assert not watcher.wrong
            assert server.statistics().collected == len(collected)
            running.reports, running.collects = collected, True

    logging.disable()
    try:
        run(main)
    finally:
        logging.disable(logging.NOTSET)


class _Watcher(trio.abc.Instrument):
    """Checks law 3 after every step of every task."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.wrong: list[BaseException] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            self.running.check()
        except AssertionError as error:
            self.wrong.append(error)


async def test_a_stuck_collector_is_given_cleanup_seconds(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 5: a collector that never takes a report does not delay the end."""

    async def collector(_: object) -> None:
        await trio.sleep_forever()

    async with serving(echo, collector=collector) as running:
        await (await running.connect()).aclose()
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        summary = await running.server.drain()
        assert trio.current_time() - started == 5
    assert summary.reports_lost == running.server.statistics().lost == 1
    assert "did not end within 5 s" in caplog.text


@pytest.mark.parametrize("lent", [False, True])
async def test_a_collector_that_cannot_be_cancelled_is_named(
    lent: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Laws 3 and 5: drain() returns without it, and its remaining reports are lost."""
    release = trio.Event()

    async def collector(reports: Any) -> None:
        async for _ in reports:
            with trio.CancelScope(shield=True):
                await release.wait()

    async with trio.open_nursery() as nursery:
        options: dict[str, Any] = {"handler_nursery": nursery} if lent else {}
        async with serving(echo, collector=collector, **options) as running:
            for _ in range(3):
                await (await running.connect()).aclose()
                await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
            summary = await running.server.drain()
            assert trio.current_time() - started == 5 + 1
            assert not running.ended.is_set()
            running.check()
            release.set()
    (where,) = summary.stuck
    assert where.startswith("the collector in ")
    assert f"collector at {__file__}:" in where
    assert summary.reports_lost == running.server.statistics().lost == 2
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "can't be cancelled in " + where.removeprefix("the collector in ") in (
        record.getMessage()
    )


@pytest.mark.parametrize("closes", [False, True])
async def test_a_dead_collector_costs_reports_and_nothing_else(
    autojump_clock: object, caplog: pytest.LogCaptureFixture, closes: bool
) -> None:
    """Law 1: a collector that raises is logged once, and serving goes on."""

    async def collector(
        reports: trio.MemoryReceiveChannel[ConnectionReport],
    ) -> None:
        if closes:
            await reports.receive()
            await reports.aclose()
            return
        async with reports:
            await reports.receive()
            raise Oops("full disk")

    async with serving(echo, collector=collector) as running:
        for _ in range(3):
            stream = await running.connect()
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
        stats = running.server.statistics()
        assert (stats.collected, stats.lost) == (1, 2)
        assert len(caplog.records) == 1
        assert ("returned" if closes else "Oops: full disk") in caplog.text


async def test_a_collector_may_end_the_program() -> None:
    """A collector's KeyboardInterrupt propagates."""

    async def collector(reports: Any) -> None:
        await reports.receive()
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with serving(echo, collector=collector) as running:
            await (await running.connect()).aclose()
            await running.ended.wait()


async def test_a_report_counts_the_others_that_were_open(
    autojump_clock: object,
) -> None:
    """Without its own connection."""
    async with serving(echo) as running:
        clients = [await running.connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        for client in clients:
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
    assert [report.open_at_close for report in running.reports] == [2, 1, 0]


async def test_reports_left_in_the_channel_are_lost(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 3: and counted."""
    enough = trio.Event()

    async def collector(
        reports: trio.MemoryReceiveChannel[ConnectionReport],
    ) -> None:
        async with reports:
            await reports.receive()
            await enough.wait()

    async with serving(echo, collector=collector) as running:
        for _ in range(3):
            await (await running.connect()).aclose()
            await trio.testing.wait_all_tasks_blocked()
        enough.set()
        await trio.testing.wait_all_tasks_blocked()
        stats = running.server.statistics()
        assert (stats.collected, stats.buffered, stats.lost) == (1, 0, 2)
    assert "2 already" in caplog.text


async def test_results_and_notes_are_reported(autojump_clock: object) -> None:
    """A handler's return value and notes are in the report; escaped in as_dict."""

    async def handler(conn: Connection) -> str:
        assert current_connection() is conn
        conn.note(user="bob", tries=1)
        conn.note(tries=2, evil="\x1b[31m\n")
        assert conn.notes["tries"] == 2
        with pytest.raises(ValueError, match="more than 32 notes"):
            conn.note(**{f"n{i}": i for i in range(40)})
        return "result"

    async with serving(handler) as running:
        await (await running.connect()).aclose()
    (report,) = running.reports
    assert report.result == "result"
    assert report.as_dict()["notes"] == {
        "user": "bob",
        "tries": 2,
        "evil": "\\x1b[31m\\n",
    }


# -- Laws 5, 6: stopping


@pytest.mark.parametrize("shielded", [False, True])
async def test_the_deadline_cuts_by_reset(
    autojump_clock: object, shielded: bool
) -> None:
    """Law 5: at the deadline every wait on our streams ends, shielded or not."""

    async def handler(conn: Connection) -> None:
        async with conn:
            with trio.CancelScope(shield=shielded):
                await conn.receive_some()

    async with serving(handler) as running:
        stream = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        summary = await running.server.drain(within=7)
        assert trio.current_time() - started == 7
        assert await is_reset(stream)
        await stream.aclose()
    assert (summary.cut, summary.finished, summary.stuck) == (1, 0, ())
    assert not summary.clean
    assert running.reports[0].reason is Reason.CUT
    assert running.reports[0].termination_state == "K-"
    assert running.reports[0].draining


async def test_a_drain_can_only_be_tightened(autojump_clock: object) -> None:
    """Law 5: a second drain brings the deadline forward, never back."""
    async with serving(_wait_for_ever) as running:
        stream = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        with trio.move_on_after(1):
            await running.server.drain(within=100, reason="first")
        running.server.start_draining(within=9, reason="later")
        summary = await running.server.drain(within=1000)
        assert trio.current_time() - started == 10
        await stream.aclose()
    assert summary.reason == "first"
    assert summary.seconds == 10
    assert running.summary == summary


async def _wait_for_ever(conn: Connection) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("shorter", [None, 0, 2])
async def test_the_report_says_why_it_was_cut(
    shorter: float | None, autojump_clock: object
) -> None:
    """Law 5: the deadline of the drain, or the call that brought it forward."""

    async def wait(conn: Connection) -> None:
        await conn.receive_some()

    async with serving(wait, timeouts=Timeouts(drain=5, lame_duck=1)) as running:
        client = await running.connect()
        running.server.start_draining(reason="first")
        running.server.start_draining(1000, reason="later")
        if shorter is not None:
            await trio.sleep(1.5)
            running.server.start_draining(shorter, reason="in a\nhurry")
        assert await is_reset(client)
    (report,) = [r for r in running.reports if r.reason is Reason.CUT]
    if shorter is None:
        assert (report.limit, report.error, report.duration) == (6, None, 6)
    else:
        assert (report.limit, report.duration) == (None, 1.5 + shorter)
        assert report.error == r"cut short: in a\nhurry"


async def test_a_task_that_does_not_end_is_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 5: reports and tokens are settled after drain + cleanup seconds."""
    release = trio.Event()

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    async def handler(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stubborn)
            nursery.start_soon(trio.sleep_forever)

    async with serving(handler) as running:
        stream = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        summary = await running.server.drain(within=3)
        assert trio.current_time() - started == 8
        assert running.server.statistics().tokens_used == 0
        assert not running.ended.is_set()
        running.check_over()
        release.set()
        await stream.aclose()
    (where,) = summary.stuck
    assert where.startswith("conn-1 127.0.0.1:")
    assert "stubborn" in where
    assert f"{__file__}:" in where
    assert len(running.reports) == 1


async def test_a_few_stuck_tasks_are_logged_and_all_are_in_the_summary(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    release = trio.Event()

    async def handler(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    async with serving(handler) as running:
        for _ in range(13):
            await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        summary = await running.server.drain(within=0)
        release.set()
    assert len(summary.stuck) == 13
    still = [m for m in caplog.messages if m.startswith("still running after cleanup")]
    assert len(still) == 11
    assert still[-1] == "still running after cleanup: 3 others"


async def test_a_connection_that_ends_in_time_is_not_cut(
    autojump_clock: object,
) -> None:
    """Law 5: a transfer that ends before the deadline is complete, closed by FIN."""
    size = 3_000_000

    async def handler(conn: Connection) -> None:
        await conn.draining.wait()
        await trio.sleep(5)
        await conn.send_all(bytes(size))

    async with serving(handler) as running:
        stream = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        await trio.sleep(6)
        with time_stands_still():
            assert len(await receive_all(stream)) == size
        await stream.aclose()
    assert running.summary.clean  # type: ignore[attr-defined]
    assert running.reports[0].reason is Reason.SERVER_CLOSED


async def test_the_summary_counts_from_the_start_of_the_drain(
    autojump_clock: object,
) -> None:
    """Law 5: earlier connections are in the statistics only."""
    async with serving(echo) as running:
        first, _ = await running.connect(), await running.connect()
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        summary = await running.server.drain()
    assert (summary.open_at_start, summary.finished) == (1, 1)
    assert (summary.refused, summary.cut) == (0, 0)


@settings(deadline=None, max_examples=30)
@given(
    waiting=st.integers(0, 8),
    free=st.integers(0, 3),
    ending=st.sampled_from(["drain", "cancel"]),
    random=st.random_module(),
)
def test_no_client_in_the_queue_is_reset(
    waiting: int, free: int, ending: str, random: object
) -> None:
    """Law 6: at the end each is served or refused."""

    async def main() -> None:
        async with serving(echo, limits=Limits(max_connections=0)) as running:
            streams = [await running.connect() for _ in range(waiting)]
            for stream in streams:
                await stream.send_all(b"hello")
            await trio.testing.wait_all_tasks_blocked()
            # The accept loop does not run between these two.
            running.server.limits = Limits(max_connections=free)
            if ending == "drain":
                running.server.start_draining()
            else:
                running.scope.cancel()
            answers: list[bytes] = []
            for stream in streams:
                try:
                    answers.append(await receive_all(stream))
                except trio.BrokenResourceError:
                    answers.append(b"RST")
                await stream.aclose()
            await running.ended.wait()
            served = answers.count(b"hello")
            assert running.server.statistics().accepted == waiting
            if ending == "drain":
                assert served == min(waiting, free)
                assert answers.count(b"") == waiting - served
            reasons = [r.reason for r in running.reports]
            assert reasons.count(Reason.STOPPING) == answers.count(b"")

    run(main)


async def test_the_lame_duck_still_accepts(autojump_clock: object) -> None:
    """Law 6: for ``lame_duck`` seconds a draining server serves as before."""
    async with serving(echo, timeouts=Timeouts(lame_duck=10)) as running:
        running.server.start_draining()
        running.server.start_draining()  # changes nothing
        assert not running.server.draining.is_set()
        await trio.sleep(9)
        stream = await running.connect()
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        assert await receive_all(stream) == b""
        assert trio.current_time() == 11
        await stream.aclose()
    assert running.reports[0].reason is Reason.DRAINED


async def test_an_earlier_deadline_ends_the_lame_duck(autojump_clock: object) -> None:
    """Law 5: if the deadline is brought forward."""
    async with serving(_wait_for_ever, timeouts=Timeouts(lame_duck=10)) as running:
        await running.connect()
        running.server.start_draining()
        summary = await running.server.drain(within=1)
        assert trio.current_time() == 1
    assert summary.cut + summary.refused == 1


@pytest.mark.parametrize("shielded", [False, True])
async def test_cancelling_resets_and_reports(
    shielded: bool, autojump_clock: object
) -> None:
    """Law 3: cancelled from outside, every connection is reset and reported."""

    async def handler(conn: Connection) -> None:
        with trio.CancelScope(shield=shielded):
            await conn.receive_some()

    async with serving(handler) as running:
        streams = [await running.connect() for _ in range(20)]
        await trio.testing.wait_all_tasks_blocked()
        running.scope.cancel()
        await running.ended.wait()
        for stream in streams:
            assert await is_reset(stream)
        summary = await running.server.drain()
    assert (summary.open_at_start, summary.cut) == (20, 20)
    assert {report.reason for report in running.reports} == {Reason.CANCELLED}
    assert {report.unacknowledged for report in running.reports} == {0}


async def test_invalid_deadlines_raise() -> None:
    async with serving(echo) as running:
        for within in (-1, math.nan):
            with pytest.raises(ValueError, match="within must be 0 or more"):
                running.server.start_draining(within)


# -- Law 13, and cancel everywhere


@pytest.mark.untraced
@pytest.mark.parametrize(
    "kind", one_of_each([("proxy",), ("echo",), ("wrapped proxy",)])
)
@pytest.mark.parametrize("how", ["cancel", "drain", "cut", "abort"])
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_stopped_at_every_step_nothing_is_left(kind: str, how: str, end: str) -> None:
    """Law 13: of a connection's life; a proxied one has no task for most of it."""

    async def client(running: Running) -> None:
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            stream = await running.connect()
            await stream.send_all(b"hello")
            await stream.receive_some()
            await stream.send_all(bytes(200_000))
            if end == "rst":
                reset(stream)
            else:
                await stream.send_eof()
                await receive_all(stream)

    def abort_all(running: Running) -> None:
        for conn in running.server.connections:
            conn.abort()

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as behind:
            proxied = trioserve.proxy(behind.address)

            async def wrapped(conn: Connection) -> object:
                return await proxied(conn)

            handlers: dict[str, Handler] = {
                "echo": echo,
                "proxy": proxied,
                "wrapped proxy": wrapped,
            }
            handler = handlers[kind]
            async with serving(handler, limits=Limits(max_connections=2)) as running:
                stops: dict[str, Callable[[], object]] = {
                    "cancel": running.scope.cancel,
                    "drain": running.server.start_draining,
                    "cut": partial(running.server.start_draining, 0),
                    "abort": partial(abort_all, running),
                }
                begin(stops[how])
                await client(running)
                running.check()
            assert proxied.targets()[0].open == 0
        behind.check_over()
        assert open_fds() == before

    assert sweep(scenario) > 20


# -- What is left when handlers are not as simple as they look


async def test_a_reset_found_by_a_handlers_task_is_the_clients() -> None:
    """Law 1: though it comes out of the handler's nursery in a group."""

    async def handler(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_some)
            nursery.start_soon(trio.sleep_forever)

    async with serving(handler) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
    assert running.reports[0].reason is Reason.CLIENT_RESET


async def test_a_stuck_relay_has_its_byte_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 3 and 4: held bytes are in the report, though it never ends."""
    released = trio.Event()

    class Deaf(trio.abc.Stream):
        """It sends more than a kernel takes, receives nothing, can't be cancelled."""

        async def wait(self, *_: object) -> None:
            with trio.CancelScope(shield=True):
                await released.wait()

        send_all = wait  # type: ignore[assignment]
        wait_send_all_might_not_block = aclose = wait

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            return bytes(2**25)

    async def handler(conn: Connection) -> None:
        await trioserve.relay(conn, Deaf())

    async with serving(handler, timeouts=Timeouts(drain=1, cleanup=1)) as running:
        client = await running.connect()
        await client.send_all(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        summary = await running.server.drain()
        (report,) = running.reports
        released.set()
    assert len(summary.stuck) == 1
    assert report.bytes_discarded == 5
    assert report.upstream is not None
    assert report.upstream.bytes_received == 2**25
    assert report.upstream.bytes_discarded == 2**25 - report.bytes_sent > 0


def test_an_ended_connection_leaves_no_garbage() -> None:
    """Law 13: it is freed without a garbage collection."""

    async def main() -> None:
        async with (
            serving(echo) as behind,
            serving(trioserve.proxy(behind.address)) as running,
        ):
            gc.disable()
            try:
                for _ in range(2):
                    gc.collect()  # garbage from before
                    for _ in range(5):
                        client = await running.connect()
                        await client.send_all(b"hello")
                        assert await receive_exactly(client, 5) == b"hello"
                        await client.send_eof()
                        assert await receive_all(client) == b""
                        await client.aclose()
                    await trio.testing.wait_all_tasks_blocked()
                assert gc.collect() == 0
            finally:
                gc.enable()

    run(main)


async def test_an_async_on_start_is_an_error(autojump_clock: object) -> None:
    """Also one that returns an awaitable."""

    async def late(_: Connection) -> None:
        raise AssertionError

    def on_start(conn: Connection) -> Awaitable[None]:
        return late(conn)

    async with serving(echo, on_start=on_start) as running:
        assert await is_reset(await running.connect())
    (report,) = running.reports
    assert report.reason is Reason.HANDLER_ERROR
    assert "on_start" in (report.error or "")


async def test_on_start_is_called_before_the_handler(autojump_clock: object) -> None:
    """In the connection's task; an exception in it is the handler's."""
    seen: list[str] = []

    def on_start(conn: Connection) -> None:
        assert current_connection() is conn
        seen.append(f"start {conn.id}")
        if conn.id == 2:
            raise ValueError("no")

    async def handler(conn: Connection) -> None:
        seen.append(f"handler {conn.id}")

    async with serving(handler, on_start=on_start) as running:
        assert await receive_all(await running.connect()) == b""
        assert await is_reset(await running.connect())
    assert seen == ["start 1", "handler 1", "start 2"]
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons == {1: "server_closed", 2: "handler_error"}

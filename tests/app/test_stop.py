"""What each signal does to a server."""

from __future__ import annotations

import math
import signal

import pytest
import trio
import trio.testing

from app.scene import Scene, service, stuck_until, until_eof
from trioserve import (
    Timeouts,
)
from trioserve.app import _stop


async def test_sigusr1_logs_the_status(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        scene.signal(signal.SIGUSR1)
        assert " 1 of 3 tokens, " in await scene.lines.until("status: 1 open")
        assert ": data, " in await scene.lines.until("  conn-1 127.0.0.1:")
        await scene.lines.until("tasks:")
        await scene.lines.until("conn-1 ")
        # It goes on serving.
        await client.send_eof()
        assert await client.receive_some() == b""
        scene.signal(signal.SIGTERM)
    assert scene.code == 0


@pytest.fixture
def no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal counts, however soon it follows the one before."""
    monkeypatch.setattr(_stop, "_DUPLICATE", 0.0)


@pytest.fixture
def all_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal counts as a duplicate of the one before, however late it is."""
    monkeypatch.setattr(_stop, "_DUPLICATE", math.inf)


@pytest.mark.usefixtures("no_duplicates")
async def test_a_lame_duck_accepts_until_a_second_signal(scene: Scene) -> None:
    timeouts = Timeouts(lame_duck=1000.0, drain=5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(timeouts=timeouts))
        port = (await scene.connect()).socket.getpeername()[1]
        scene.signal(signal.SIGTERM)
        assert "up to 16m45s" in await scene.lines.until("draining")
        client = await trio.open_tcp_stream("127.0.0.1", port)
        async with client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            scene.signal(signal.SIGINT)
    assert scene.code == 3


async def test_connections_that_do_not_end_in_time_are_cut(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof, timeouts=Timeouts(drain=0.0)))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        scene.signal(signal.SIGTERM)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    assert scene.code == 3
    assert scene.lines.seen[-2].startswith("stopped in ")
    assert scene.lines.seen[-2].endswith(": 0 finished, 1 cut, 0 refused")


async def test_a_signal_twice_at_once_counts_as_one(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        scene.signal(signal.SIGTERM)
        scene.signal(signal.SIGTERM)
        await trio.sleep(0.29)
        scene.signal(signal.SIGTERM)
        await trio.sleep(0.1)
        assert not any("cutting" in line for line in scene.lines.seen)
        scene.signal(signal.SIGTERM)
        await scene.lines.until("cutting 1 connection")
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    (ended,) = [line for line in scene.lines.seen if " cut/cut " in line]
    assert ended.endswith("(cut short: a second signal, SIGTERM)")


@pytest.mark.usefixtures("all_duplicates")
async def test_two_stop_signals_at_once_count_as_one(scene: Scene) -> None:
    """A terminal and a supervisor may both send one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            scene.signal(number)
        scene.signal(signal.SIGUSR1)
        await scene.lines.until("tasks:")
        await client.send_eof()
        assert await client.receive_some() == b""
    assert not any("cutting" in line for line in scene.lines.seen)
    assert scene.code == 0


@pytest.mark.usefixtures("all_duplicates")
async def test_sigquit_cuts_at_once_after_another_signal(scene: Scene) -> None:
    """Signals right after it do not end the process."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        for number in (signal.SIGTERM, *[signal.SIGQUIT] * 2, signal.SIGINT):
            scene.signal(number)
        await scene.lines.until("cutting 1 connection")
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    assert scene.code == 3
    assert scene.left == []


async def test_sigquit_logs_the_status_and_cuts(scene: Scene) -> None:
    timeouts = Timeouts(lame_duck=1000.0, drain=1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof, timeouts=timeouts))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        scene.signal(signal.SIGQUIT)
        await scene.lines.until("status: 1 open")
        await scene.lines.until("tasks:")
        await scene.lines.until("cutting 1 connection")
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    (ended,) = [line for line in scene.lines.seen if " cut/cut " in line]
    assert ended.endswith("(cut short: SIGQUIT)")
    assert scene.code == 3
    assert not scene.left


@pytest.mark.usefixtures("no_duplicates")
async def test_sigquit_after_a_signal_cuts_and_a_third_one_exits(scene: Scene) -> None:
    release = trio.Event()
    scene.when_left = release.set
    timeouts = Timeouts(drain=1000.0, cleanup=1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(stuck_until(release), timeouts=timeouts))
        client = await scene.connect()
        await client.receive_some()
        scene.signal(signal.SIGTERM)
        await scene.lines.until("draining")
        scene.signal(signal.SIGQUIT)
        await scene.lines.until("tasks:")
        await scene.lines.until("cutting")
        scene.signal(signal.SIGINT)
    assert scene.left == [3]
    assert scene.code == 3


@pytest.mark.usefixtures("no_duplicates")
async def test_a_second_signal_cuts(scene: Scene) -> None:
    forever = Timeouts(drain=float("inf"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof, timeouts=forever))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        scene.signal(signal.SIGTERM)
        assert "for as long as it takes" in await scene.lines.until("draining")
        scene.signal(signal.SIGINT)
        await scene.lines.until("cutting 1 connection")
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    assert scene.code == 3


@pytest.mark.usefixtures("no_duplicates")
async def test_a_third_signal_exits_at_once(scene: Scene) -> None:
    release = trio.Event()
    scene.when_left = release.set
    timeouts = Timeouts(drain=1000.0, cleanup=1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(stuck_until(release), timeouts=timeouts))
        client = await scene.connect()
        await client.receive_some()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            scene.signal(number)
    assert scene.left == [3]
    assert scene.code == 3

from __future__ import annotations

import collections

import pytest
import trio
import trio.testing

from support import receive_exactly, serving
from trioserve import Limits, Timeouts, echo
from trioserve.app.monitor import _sampler
from trioserve.app.monitor._sampler import Sampler, Snapshot


async def test_it_samples_at_intervals(
    autojump_clock: trio.testing.MockClock,
) -> None:
    snapshots: list[Snapshot] = []
    async with serving(echo, limits=Limits(max_connections=7)) as running:
        async with trio.open_nursery() as nursery:
            sampler = Sampler(running.server)
            nursery.start_soon(sampler.run, snapshots.append)
            await trio.sleep(1.2)
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await trio.sleep(1.5)
            nursery.cancel_scope.cancel()
        client.socket.close()
    assert [snapshot.elapsed for snapshot in snapshots] == [0, 0.5, 1, 1.5, 2, 2.5]
    # Compared with the newest sample that is at least a second old.
    assert [snapshot.seconds for snapshot in snapshots] == [0, 0.5, 1, 1, 1, 1]
    rates = [snapshot.rate("accepted") for snapshot in snapshots]
    assert rates == [0, 0, 0, 1, 1, 0]
    assert snapshots[3].rate("bytes_received") == 5
    assert snapshots[-1].now.open == 1
    assert snapshots[-1].waiting == 0


async def test_a_sample_right_after_another_has_the_same_rates(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(echo) as running:
        sampler = Sampler(running.server)
        await trio.sleep(1)
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        assert [sampler.sample().rate("bytes_sent") for _ in range(3)] == [5, 5, 5]
        client.socket.close()


async def test_a_drain_counts_down(autojump_clock: trio.testing.MockClock) -> None:
    def left() -> float | None:
        return sampler.sample().drain_left

    async with serving(echo, timeouts=Timeouts(drain=25)) as running:
        sampler = Sampler(running.server)
        assert left() is None
        running.server.start_draining()
        await running.server.draining.wait()
        assert left() == 25
        await trio.sleep(10)
        assert left() == 15
        await trio.sleep(30)
        assert left() == 0


async def test_it_samples_less_often_when_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    ticks = iter(range(1000))

    def thread_time() -> float:
        return next(ticks) * 0.02

    snapshots = collections.deque[Snapshot](maxlen=100)
    async with serving(echo) as running:
        monkeypatch.setattr(_sampler, "thread_time", thread_time)
        with trio.move_on_after(9):
            await Sampler(running.server).run(snapshots.append)
    assert [round(snapshot.elapsed, 6) for snapshot in snapshots] == [0, 2, 4, 6, 8]

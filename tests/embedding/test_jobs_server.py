"""The jobs of the examples, over loopback sockets, and the table of their reports."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from examples.embedding import jobs_server
from examples.embedding.jobs_server import MAX_LINE, collector, derive, handler
from support import Running, is_reset, receive_all, receive_exactly, reset, serving
from trioserve import ConnectionReport, Phase, Reason, Timeouts

pytestmark = pytest.mark.long

_KEY_SIZE = len(derive(b"")) + 1


@asynccontextmanager
async def serving_jobs(
    path: Path, timeouts: Timeouts | None = None
) -> AsyncGenerator[Running, None]:
    handle = partial(handler, limiter=trio.CapacityLimiter(2))
    collect = partial(collector, path=path)
    async with serving(handle, collector=collect, timeouts=timeouts) as running:
        yield running


class Gate:
    """Jobs that wait in their threads until they may go on.

    Attributes:
      most: how many have waited at once.
    """

    def __init__(self) -> None:
        self.most = self._waiting = 0
        self._lock = threading.Lock()
        self._is_open = threading.Event()
        self._began = threading.Semaphore(0)

    def derive(self, password: bytes) -> bytes:
        with self._lock:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        self._began.release()
        self._is_open.wait()
        with self._lock:
            self._waiting -= 1
        return password.upper()

    async def wait(self, jobs: int) -> None:
        """Wait until this many more have begun."""
        for _ in range(jobs):
            await trio.to_thread.run_sync(self._began.acquire)

    def open(self) -> None:
        self._is_open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Generator[Gate, None, None]:
    gate = Gate()
    monkeypatch.setattr(jobs_server, "derive", gate.derive)
    yield gate
    gate.open()


def rows(path: Path, columns: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        query = f"SELECT {columns} FROM reports ORDER BY accepted_at"
        return database.execute(query).fetchall()


async def test_each_line_is_a_job_and_each_connection_a_row(tmp_path: Path) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path) as running:
        for lines in ([b"secret", b""], [], [b"secret"]):
            client = await running.connect()
            await client.send_all(b"".join(line + b"\n" for line in lines))
            await client.send_eof()
            keys = b"".join(derive(line) + b"\n" for line in lines)
            assert await receive_all(client) == keys
    assert rows(path, "reason, jobs") == [
        ("client_closed", 2),
        ("client_closed", 0),
        ("client_closed", 1),
    ]
    assert rows(path, "error") == [(None,)] * 3


async def test_threads_are_limited_over_all_connections(
    tmp_path: Path, gate: Gate
) -> None:
    async with serving_jobs(tmp_path / "reports.db") as running:
        clients = [await running.connect() for _ in range(5)]
        for client in clients:
            await client.send_all(b"x\n")
        await gate.wait(2)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
        for client in clients:
            assert await receive_exactly(client, 2) == b"X\n"
            await client.send_eof()
    assert gate.most == 2


async def test_a_drain_waits_for_jobs_and_for_half_a_line(
    tmp_path: Path, gate: Gate
) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path) as running:
        client = await running.connect()
        await client.send_all(b"one\ntw")
        await gate.wait(1)
        running.server.start_draining()
        await running.server.draining.wait()
        gate.open()
        assert await receive_exactly(client, 4) == b"ONE\n"
        await client.send_all(b"o\n")
        assert await receive_exactly(client, 4) == b"TWO\n"
        assert await receive_all(client) == b""
        await client.aclose()
        assert (await running.server.drain()).clean
    assert rows(path, "reason, jobs") == [("drained", 2)]


async def test_a_job_that_outlives_the_drain_is_left_and_its_client_reset(
    tmp_path: Path, gate: Gate
) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path) as running:
        client = await running.connect()
        await client.send_all(b"one\n")
        await gate.wait(1)
        summary = await running.server.drain(within=0)
        assert await is_reset(client)
        assert (summary.cut, summary.stuck) == (1, ())
    assert rows(path, "reason, jobs") == [("cut", 0)]


async def test_a_client_that_vanishes_is_a_row_and_affects_no_other(
    tmp_path: Path, gate: Gate
) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path) as running:
        gone, other = await running.connect(), await running.connect()
        await gone.send_all(b"x\n" * 1000)
        await gate.wait(1)
        reset(gone)
        gate.open()
        await other.send_all(b"y\n")
        assert await receive_exactly(other, 2) == b"Y\n"
        await other.send_eof()
    assert rows(path, "reason") == [("client_reset",), ("client_closed",)]


async def test_a_slow_client_is_ended_and_a_row(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path, Timeouts(idle=5)) as running:
        client = await running.connect()
        await client.send_all(b"half a line")
        assert await receive_all(client) == b""
    assert rows(path, "reason, jobs") == [("idle", 0)]


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no end", "end"])
async def test_the_length_of_a_line_is_limited(
    end: bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "reports.db"
    async with serving_jobs(path) as running:
        client = await running.connect()
        await client.send_all(bytes(MAX_LINE + 1) + end)
        assert await receive_all(client) == b""
    assert rows(path, "jobs") == [(0,)]


async def test_waiting_reports_are_written_in_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()

    def write(path: Path, batch: Sequence[ConnectionReport]) -> None:
        sizes.append(len(batch))

    monkeypatch.setattr(jobs_server, "write", write)
    monkeypatch.setattr(jobs_server, "MAX_BATCH", 4)
    send, receive = trio.open_memory_channel[ConnectionReport](10)
    for number in range(10):
        send.send_nowait(
            ConnectionReport(
                id=number,
                listener="",
                peer="",
                local="",
                accepted_at=0,
                duration=0,
                reason=Reason.CLIENT_CLOSED,
                phase=Phase.DATA,
            )
        )
    send.close()
    await collector(receive, path=tmp_path / "reports.db")
    assert sizes == [4, 4, 2]


async def test_a_write_that_fails_ends_the_collector_and_serving_goes_on(
    tmp_path: Path,
) -> None:
    async with serving_jobs(tmp_path / "missing" / "reports.db") as running:
        for _ in range(2):
            client = await running.connect()
            await client.send_all(b"x\n")
            await client.send_eof()
            assert len(await receive_all(client)) == _KEY_SIZE

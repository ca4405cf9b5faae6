"""Jobs in threads, and reports in a SQLite table.

``python jobs_server.py 7001 reports.db`` serves until SIGTERM or SIGINT. Each line is
a password, and the answer is its key; a thread derives it in some milliseconds. A
limiter bounds how many threads compute at once, for all connections together. The
collector writes reports in batches, in a thread: connections never wait for the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sqlite3
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trioserve import Connection, ConnectionReport, Server, serve_tcp

MAX_LINE: Final = 1000  # bytes
MAX_THREADS: Final = 4
MAX_BATCH: Final = 500  # reports in one transaction
ROUNDS: Final = 20_000

TABLE: Final = """CREATE TABLE IF NOT EXISTS reports (
    accepted_at REAL, peer TEXT, reason TEXT, error TEXT, duration REAL, jobs INTEGER
)"""


def derive(password: bytes) -> bytes:
    """The job: it computes, and does not know connections."""
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", ROUNDS).hex().encode()


async def handler(conn: Connection, *, limiter: trio.CapacityLimiter) -> None:
    """Answer each line in turn, and note how many were answered."""
    jobs, rest = 0, b""
    while True:
        data = b""
        with conn.idle(held=rest):
            data = await conn.receive_some(MAX_LINE)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        if any(len(line) > MAX_LINE for line in [*lines, rest]):
            conn.note(error="the line is too long")
            break
        for line in lines:
            # Abandoned if the connection ends: nothing else needs its result.
            key = await trio.to_thread.run_sync(
                derive, line, limiter=limiter, abandon_on_cancel=True
            )
            await conn.send_all(key + b"\n")
            jobs += 1
            conn.note(jobs=jobs)


def write(path: Path, reports: Sequence[ConnectionReport]) -> None:
    """Add rows to the table, all or none. Runs in a thread."""
    rows = [
        (r.accepted_at, r.peer, r.reason, r.error, r.duration, r.notes.get("jobs", 0))
        for r in reports
    ]
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(TABLE)
        database.executemany("INSERT INTO reports VALUES (?, ?, ?, ?, ?, ?)", rows)


async def collector(
    reports: trio.MemoryReceiveChannel[ConnectionReport], *, path: Path
) -> None:
    """Write all available reports in one batch; more come while the thread writes."""
    async for report in reports:
        batch = [report]
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while len(batch) < MAX_BATCH:
                batch.append(reports.receive_nowait())
        await trio.to_thread.run_sync(write, path, batch)


async def main(port: int, path: Path) -> None:
    handle = partial(handler, limiter=trio.CapacityLimiter(MAX_THREADS))
    serve = partial(serve_tcp, collector=partial(collector, path=path))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, handle, port)
            print("listening on", *server.addresses, flush=True)
            await anext(signals)
            print(await server.drain(within=20, reason="signal"))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), Path(sys.argv[2]))

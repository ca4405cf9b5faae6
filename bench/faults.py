"""The command ``python -m bench.faults``: faults as asked for, and as seen.

Redis's own benchmark measures the latency, and curl the bandwidth, through a proxy
that was asked for some. Nothing here judges the result.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from .programs import LOAD_CORES, PATIENCE, PROXY_CORES, find, free_port, running

_LATENCIES = (2, 10, 50, 200)  #: milliseconds
_BANDWIDTHS = (16, 128, 1024, 8192, 32768)  #: KiB/s
_SECONDS = 2.0
_LATE = "down:latency=20ms"


class Row(NamedTuple):
    """One figure, as asked for and as seen."""

    faults: str
    unit: str
    asked: float
    seen: float

    def __str__(self) -> str:
        numbers = (
            f"{self.asked:>9.2f} | {self.seen:>9.2f} | {self.seen / self.asked:.3f}"
        )
        return f"| `{self.faults}` | {self.unit} | {numbers} |"


def main() -> None:
    """Print a table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser("python -m bench.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one row of each")
    quick = parser.parse_args().quick
    missing = [p for p in ("redis-server", "redis-benchmark", "curl") if not find(p)]
    if missing:
        sys.exit(f"bench.faults: not installed: {', '.join(missing)}")
    print("| faults | unit | asked | seen | seen / asked |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for row in _rows(Path(name), quick=quick):
            print(row, flush=True)


def _rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    seconds = 0.2 if quick else _SECONDS
    with _redis(folder) as port:
        for asked in _LATENCIES[:1] if quick else _LATENCIES:
            faults = f"up:latency={asked}ms"
            with _proxy(port, faults, folder) as proxy:
                count = max(5, int(seconds * 1000 / asked))
                yield Row(faults, "ms", asked, _redis_latency(proxy, count))
    with _http(folder) as port:
        for asked in _BANDWIDTHS[2:3] if quick else _BANDWIDTHS:
            faults = f"down:bandwidth={asked}KiB/s"
            size = int(asked * 1024 * seconds)
            with _proxy(port, faults, folder) as proxy:
                yield Row(faults, "KiB/s", asked, _speed(proxy, size, folder))
        # Latency must not lower throughput: what is asked for is that without it.
        size = int(20e6 * seconds)
        fast = list[float]()
        for faults, begins_after in (("down:slow_close=1ms", 0), (_LATE, 0.02)):
            with _proxy(port, faults, folder) as proxy:
                fast.append(
                    max(_speed(proxy, size, folder, begins_after) for _ in "123")
                )
        yield Row(_LATE, "KiB/s", *fast)


def _redis_latency(port: int, count: int) -> float:
    """The median of round trips, in milliseconds."""
    printed = _output(
        *("redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "--csv"),
        *("-t", "ping_mbulk", "-c", "1", "-n", str(count)),
    )
    heading, row = csv.reader(printed.splitlines())
    return float(dict(zip(heading, row, strict=True))["p50_latency_ms"])


def _speed(port: int, size: int, folder: Path, begins_after: float = 0.0) -> float:
    """KiB/s of a download, from the moment at which the first byte could arrive."""
    with (folder / "file").open("wb") as file:
        file.truncate(size)
    printed = _output(
        *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*"),
        *("--output", str(folder / "downloaded")),
        *("--write-out", "%{size_download} %{time_total} %{time_pretransfer}"),
        f"http://127.0.0.1:{port}/file",
    )
    count, total, begin = map(float, printed.split())
    return count / 1024 / (total - begin - begins_after)


def _output(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE)
    if ran.returncode:
        sys.exit(f"bench.faults: {command[0]} failed: {ran.stderr.strip()}")
    return ran.stdout


@contextlib.contextmanager
def _proxy(target: int, faults: str, folder: Path) -> Generator[int]:
    port = free_port()
    addresses = f"127.0.0.1:{port}", f"127.0.0.1:{target}"
    command = [sys.executable, "-m", "trioserve", "proxy", *addresses]
    options = ["--fault", faults, "--log-connections", "none"]
    with running([*command, *options], port, PROXY_CORES, folder):
        yield port


@contextlib.contextmanager
def _redis(folder: Path) -> Generator[int]:
    port = free_port()
    command = [find("redis-server") or "", "--port", str(port), "--save", ""]
    with running(command, port, LOAD_CORES, folder):
        yield port


@contextlib.contextmanager
def _http(folder: Path) -> Generator[int]:
    port = free_port()
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(server, port, LOAD_CORES, folder):
        yield port


if __name__ == "__main__":
    main()

"""A proxy that injects faults, as Redis, curl and plain sockets see it.

``python -m bench.faults`` measures how exact delays and rates are. Here nothing is
faster than asked for, and everything arrives.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from real.tools import (
    PATIENCE,
    Process,
    Record,
    Serve,
    Start,
    Target,
    all_of,
    needs,
    on_free_port,
    random_bytes,
    receive,
    sha256,
)

pytestmark = pytest.mark.long

_EVERYTHING = (
    "latency=5ms+-2ms, bandwidth=4MiB/s, slice=10..60000, cut@7, slow_close=1ms"
)


@pytest.fixture
def redis(start: Start, tmp_path: Path) -> int:
    """The port of a Redis server."""
    _, port = on_free_port(
        lambda port: start(
            *("redis-server", "--port", str(port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(tmp_path)),
        ),
        "Ready to accept connections",
    )
    return port


def _redis_cli(port: int, *words: str, data: bytes = b"") -> bytes:
    client = subprocess.run(
        ["redis-cli", "-h", "127.0.0.1", "-p", str(port), *words],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
    )
    return client.stdout + client.stderr


@needs("redis-server", "redis-benchmark")
def test_redis_sees_the_latency_that_was_asked_for(redis: int, serve: Serve) -> None:
    proxy = serve("proxy", f"127.0.0.1:{redis}", "--fault", "up:latency=20ms")
    benchmark = subprocess.run(
        [
            *("redis-benchmark", "-h", "127.0.0.1", "-p", str(proxy.port), "--csv"),
            *("-t", "ping_mbulk", "-c", "5", "-n", "50"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    fastest = float(benchmark.stdout.splitlines()[1].split(",")[3].strip('"'))
    assert fastest >= 20
    served = [report for report in proxy.stop() if report["bytes_received"]]
    assert {tuple(report["faults"]) for report in served} == {("up:latency=20ms",)}


@needs("redis-server", "redis-cli")
def test_a_value_comes_back_through_all_faults_that_change_no_byte(
    redis: int, serve: Serve
) -> None:
    proxy = serve("proxy", f"127.0.0.1:{redis}", "--fault", _EVERYTHING, "--seed", "7")
    value = random_bytes(1_000_000)
    assert _redis_cli(proxy.port, "-x", "SET", "key", data=value) == b"OK\n"
    got = _redis_cli(proxy.port, "--raw", "GET", "key")
    assert sha256(got) == sha256(value + b"\n")
    for report in proxy.stop():
        assert report["outcome"] == "ok"
        assert {item.split("=")[0] for item in report["faults"]} >= {
            "up:latency",
            "up:bandwidth",
            "down:latency",
            "down:bandwidth",
        }


@needs("redis-server", "redis-cli")
def test_redis_sees_a_reset(redis: int, serve: Serve) -> None:
    proxy = serve("proxy", f"127.0.0.1:{redis}", "--fault", "down:reset@3")
    assert b"reset by peer" in _redis_cli(proxy.port, "PING")
    reports = proxy.stop()
    assert {report["reason"] for report in reports} == {"fault"}
    assert {tuple(report["faults"]) for report in reports} == {("down:reset@3",)}


@needs("curl")
def test_curl_sees_at_most_the_bandwidth_and_gets_all_of_the_file(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    content = random_bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    http = _http(start, tmp_path)
    proxy = serve("proxy", http, "--fault", "down:bandwidth=600000/s")
    downloaded = tmp_path / "downloaded"
    curl = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*"),
            *("--output", str(downloaded), "--write-out", "%{time_total}"),
            f"http://{proxy.address}/file",
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert curl.returncode == 0, curl.stderr
    assert sha256(downloaded.read_bytes()) == sha256(content)
    assert float(curl.stdout) >= 0.5
    (report,) = proxy.stop()
    assert report["faults"] == ["down:bandwidth=600000/s"]


@needs("curl")
def test_curl_sees_that_a_download_was_closed_too_early(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(random_bytes(300_000))
    proxy = serve("proxy", _http(start, tmp_path), "--fault", "down:close@100KiB")
    curl = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", f"http://{proxy.address}/file"],
        capture_output=True,
        timeout=PATIENCE,
    )
    assert curl.returncode == 18  # only a part of the file, and then EOF
    assert _bytes_sent(proxy.stop()) == 100 * 1024


def _http(start: Start, folder: Path) -> str:
    server: Process = start(
        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"),
        *("--directory", str(folder)),
    )
    found = re.search(r" port (\d+) ", server.until("Serving HTTP"))
    assert found
    return f"127.0.0.1:{found[1]}"


def _bytes_sent(reports: list[Record]) -> int:
    (report,) = reports
    assert (report["reason"], report["faults"]) == ("fault", ["down:close@102400"])
    return int(report["bytes_sent"])


@pytest.mark.parametrize(
    ("faults", "to_server", "server_is_reset"),
    [
        ("up:reset@1000", 1000, True),
        ("up:close@1000", 1000, False),
        ("up:eof@1000; reset@10m", 1000, False),
        ("up:slice=1..99", 9000, False),
    ],
)
def test_both_ends_see_what_was_asked_for(
    faults: str, to_server: int, server_is_reset: bool, serve: Serve, target: Target
) -> None:
    proxy = serve("proxy", target.address, "--fault", faults)
    data = random_bytes(9000)
    client, server = target.through(proxy)
    with client, server:
        client.sendall(data)
        with contextlib.suppress(OSError):  # it may already have been reset
            client.shutdown(socket.SHUT_WR)
        seen = receive(server)
        assert seen.reset is server_is_reset
        assert (seen.count, seen.sha256) == (to_server, all_of(data[:to_server]).sha256)
        server.close()
        assert receive(client).reset is (server_is_reset)
    (report,) = proxy.stop()
    assert report["faults"]


def test_faults_are_logged_and_reported(serve: Serve, target: Target) -> None:
    proxy = serve("proxy", target.address, "--fault", "up:stall@5", "--drain", "0")
    said = proxy.event("faults")
    assert (said["level"], said["faults"], said["seed"]) == ("warning", "up:stall@5", 0)

"""Redis behind the proxy: its own counters are compared with the reports."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from real.tools import (
    PATIENCE,
    Process,
    Record,
    Serve,
    Start,
    Trioserve,
    connect,
    needs,
    on_free_port,
    random_bytes,
    receive_exactly,
    sha256,
    total,
)

_INFO = b"INFO stats\r\n"

pytestmark = [needs("redis-server"), pytest.mark.long]


@pytest.fixture
def redis(start: Start, tmp_path: Path) -> tuple[Process, int]:
    """The server, and its port."""
    return on_free_port(
        lambda port: start(
            *("redis-server", "--port", str(port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(tmp_path)),
        ),
        "Ready to accept connections",
    )


@pytest.fixture
def proxy(redis: tuple[Process, int], serve: Serve) -> Trioserve:
    _, port = redis
    return serve("proxy", f"127.0.0.1:{port}")


@needs("redis-benchmark")
def test_every_connection_and_byte_of_a_benchmark_is_reported(
    redis: tuple[Process, int], proxy: Trioserve
) -> None:
    benchmark = subprocess.run(
        [
            *("redis-benchmark", "-h", "127.0.0.1", "-p", str(proxy.port), "--csv"),
            *("-t", "ping,set,get", "-c", "20", "-n", "3000", "-d", "100"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert benchmark.returncode == 0, benchmark.stderr
    assert all(f'"{name}"' in benchmark.stdout for name in ("SET", "GET"))
    assert len(_reports_as_redis_has_them(proxy)) > 60
    server, _ = redis
    server.terminate()
    assert server.wait() == 0


@needs("redis-cli")
def test_a_value_comes_back_as_it_was_set(proxy: Trioserve) -> None:
    for value in (b"", bytes(range(256)), random_bytes(20_000_000)):
        assert _redis_cli(proxy.port, "-x", "SET", "key", data=value) == b"OK\n"
        got = _redis_cli(proxy.port, "--raw", "GET", "key")
        assert sha256(got) == sha256(value + b"\n")
    assert len(_reports_as_redis_has_them(proxy)) == 6 + 1


@needs("redis-cli")
def test_a_long_pipeline_has_a_reply_for_each_command(proxy: Trioserve) -> None:
    commands = b"".join(b"SET key:%d %d\r\n" % (n, n * n) for n in range(100_000))
    output = _redis_cli(proxy.port, "--pipe", data=commands)
    assert output.splitlines()[-1] == b"errors: 0, replies: 100000"
    assert _redis_cli(proxy.port, "DBSIZE") == b"100000\n"
    assert _redis_cli(proxy.port, "GET", "key:99999") == b"9999800001\n"
    assert len(_reports_as_redis_has_them(proxy)) == 3 + 1


@needs("redis-cli")
def test_a_subscriber_gets_every_message_even_while_the_proxy_drains(
    start: Start, redis: tuple[Process, int], proxy: Trioserve
) -> None:
    _, port = redis
    subscriber = start("redis-cli", "-p", str(proxy.port), "SUBSCRIBE", "news")
    subscriber.until("subscribe")
    assert subscriber.until("") == "news"
    assert subscriber.until("") == "1"

    _publish(proxy.port, "early")
    _hear(subscriber, "early")
    proxy.terminate()
    proxy.event("draining")
    _publish(port, "late")
    _hear(subscriber, "late")
    subscriber.terminate()
    assert proxy.event("drained")["cut"] == 0
    assert proxy.wait() == 0
    heard, published = sorted(proxy.reports(), key=lambda report: int(report["id"]))
    assert heard["reason"] == published["reason"] == "client_closed"
    assert heard["draining"]


def _publish(port: int, word: str) -> None:
    # A thousand messages, each of which reaches the one subscriber.
    commands = "".join(f"PUBLISH news {word}:{n}\n" for n in range(1000))
    assert _redis_cli(port, data=commands.encode()) == 1000 * b"1\n"


def _hear(subscriber: Process, word: str) -> None:
    for n in range(1000):
        message = [subscriber.until("") for _ in range(3)]
        assert message == ["message", "news", f"{word}:{n}"]


def _redis_cli(port: int, *words: str, data: bytes = b"") -> bytes:
    client = subprocess.run(
        ["redis-cli", "-h", "127.0.0.1", "-p", str(port), *words],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert client.returncode == 0, client.stderr
    return client.stdout


def _reports_as_redis_has_them(proxy: Trioserve) -> list[Record]:
    # All reports, including that of this question, if Redis counted the same. It is
    # asked last, through the proxy: only the answer is not yet in its counters.
    info, answer_size = _info(proxy.port)
    reports = proxy.stop()
    assert len(reports) == info["total_connections_received"]
    assert total(reports, "bytes_received") == info["total_net_input_bytes"]
    sent = total(reports, "bytes_sent")
    assert sent == info["total_net_output_bytes"] + answer_size
    assert total(reports, "bytes_discarded") == 0
    assert total(reports, "upstream_bytes_discarded") == 0
    assert {report["reason"] for report in reports} == {"client_closed"}
    return reports


def _info(port: int) -> tuple[dict[str, int], int]:
    # Redis's counters, and the size of this answer in bytes.
    with connect(port) as client:
        client.sendall(_INFO)
        head = b""
        while not head.endswith(b"\r\n"):
            head += receive_exactly(client, 1)
        body = receive_exactly(client, int(head[1:]) + 2)
    pairs = (line.split(":") for line in body.decode().split() if ":" in line)
    wanted = {name: int(value) for name, value in pairs if name.startswith("total_")}
    return wanted, len(head) + len(body)

"""Redis behind the proxy: its own counters are the other side of the ledger."""

from __future__ import annotations

import subprocess
from pathlib import Path

from real.tools import (
    PATIENCE,
    Serve,
    Start,
    connect,
    needs,
    on_free_port,
    receive_exactly,
    total,
)

_INFO = b"INFO stats\r\n"


@needs("redis-server", "redis-benchmark")
def test_every_connection_and_byte_of_a_benchmark_is_reported(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    redis, port = on_free_port(
        lambda port: start(
            *("redis-server", "--port", str(port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(tmp_path)),
        ),
        "Ready to accept connections",
    )
    proxy = serve("proxy", f"127.0.0.1:{port}")
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
    # Asked last, and through the proxy: only the answer is not yet in it.
    info, answer_size = _info(proxy.port)
    reports = proxy.stop()

    assert len(reports) == info["total_connections_received"] > 60
    assert total(reports, "bytes_received") == info["total_net_input_bytes"]
    sent = total(reports, "bytes_sent")
    assert sent == info["total_net_output_bytes"] + answer_size
    assert total(reports, "bytes_discarded") == 0
    assert total(reports, "upstream_bytes_discarded") == 0
    assert {report["reason"] for report in reports} == {"client_closed"}
    redis.terminate()
    assert redis.wait() == 0


def _info(port: int) -> tuple[dict[str, int], int]:
    # Redis's counters, and how many bytes it took to say them.
    with connect(port) as client:
        client.sendall(_INFO)
        head = b""
        while not head.endswith(b"\r\n"):
            head += receive_exactly(client, 1)
        body = receive_exactly(client, int(head[1:]) + 2)
    pairs = (line.split(":") for line in body.decode().split() if ":" in line)
    wanted = {name: int(value) for name, value in pairs if name.startswith("total_")}
    return wanted, len(head) + len(body)

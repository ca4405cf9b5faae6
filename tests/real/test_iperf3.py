"""iperf3 behind the proxy: as fast as the machine allows, and counted by both ends.

It opens two connections: one for control, whose bytes it does not report, and one
for data. Each begins with 37 bytes from the client that name the test, and are not
in its counts.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from real.tools import (
    PATIENCE,
    Record,
    Serve,
    Start,
    Trioserve,
    needs,
    on_free_port,
)

_COOKIE = 37

#: Two blocks of 1 MiB, half a second apart: at the end of the second, the last block
#: has had half a second to arrive, more than any busy machine needs.
_PACED = ("--length", "1M", "--bitrate", "16M")

pytestmark = [
    pytest.mark.long,
    needs("iperf3"),
    pytest.mark.parametrize("back", [False, True], ids=["forward", "reverse"]),
]


@pytest.fixture
def proxy(start: Start, serve: Serve) -> Trioserve:
    _, port = on_free_port(
        lambda port: start(
            *("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port)),
            "--forceflush",
        ),
        "Server listening",
    )
    return serve("proxy", f"127.0.0.1:{port}")


def test_a_paced_stream_has_the_same_count_everywhere(
    proxy: Trioserve, *, back: bool
) -> None:
    sent, received = _iperf3(proxy, *_PACED, back=back)
    data = _data_connection(proxy.stop(), back=back)
    assert sent == received == 2 * 1024 * 1024
    assert data["outcome"] == "ok"
    there, here = (_COOKIE, sent) if back else (_COOKIE + sent, 0)
    assert data["bytes_received"] == data["upstream_bytes_sent"] == there
    assert data["upstream_bytes_received"] == data["bytes_sent"] == here


def test_at_full_speed_every_byte_is_accounted_for(
    proxy: Trioserve, *, back: bool
) -> None:
    # When the time is over, iperf3's receiver closes without having read
    # everything, which resets the stream. So each must have had at least as
    # much as the next, and the last difference is what it left unread.
    sent, received = _iperf3(proxy, back=back)
    data = _data_connection(proxy.stop(), back=back)
    if back:
        assert data["bytes_received"] == data["upstream_bytes_sent"] == _COOKIE
        taken, given = data["upstream_bytes_received"], data["bytes_sent"]
    else:
        assert data["upstream_bytes_received"] == data["bytes_sent"] == 0
        taken = data["bytes_received"] - _COOKIE
        given = data["upstream_bytes_sent"] - _COOKIE
    assert sent >= taken >= given >= received > 1_000_000


def _iperf3(proxy: Trioserve, *options: str, back: bool) -> tuple[int, int]:
    # Run for a second; return what its sender and its receiver counted.
    client = subprocess.run(
        [
            *("iperf3", "--client", "127.0.0.1", "--port", str(proxy.port)),
            *("--time", "1", "--json", *options, *(["--reverse"] if back else [])),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    result: dict[str, Any] = json.loads(client.stdout)
    assert "error" not in result
    assert client.returncode == 0
    return result["end"]["sum_sent"]["bytes"], result["end"]["sum_received"]["bytes"]


def _data_connection(reports: list[Record], *, back: bool) -> Record:
    assert len(reports) == 2
    field = "bytes_sent" if back else "bytes_received"
    control, data = sorted(reports, key=lambda report: int(report[field]))
    assert control["outcome"] == "ok"
    assert control["bytes_discarded"] == control["upstream_bytes_discarded"] == 0
    return data

"""An HTTP server behind the proxy, and curl, which counts its bytes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from real.tools import (
    PATIENCE,
    Process,
    Record,
    Serve,
    Start,
    Trioserve,
    needs,
    random_bytes,
)

_SIZE = 5_000_000
_SIZES = "size_request size_header size_download num_connects"


@pytest.fixture
def content() -> bytes:
    return random_bytes(_SIZE)


@pytest.fixture
def http(start: Start, tmp_path: Path, content: bytes, version: str) -> Process:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(content)
    return start(
        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"),
        *("--protocol", version, "--directory", str(root)),
    )


@pytest.fixture
def proxy(http: Process, serve: Serve) -> Trioserve:
    found = re.search(r" port (\d+) ", http.until("Serving HTTP"))
    assert found
    return serve("proxy", f"127.0.0.1:{found[1]}")


@needs("curl")
@pytest.mark.parametrize("version", ["HTTP/1.1"], ids=["keep-alive"])
def test_two_downloads_over_one_connection_are_one_report(
    proxy: Trioserve, content: bytes, tmp_path: Path
) -> None:
    moved = _download_twice(proxy, content, tmp_path)
    reports = proxy.stop()
    assert [m["num_connects"] for m in moved] == [1, 0]
    assert [_bytes(report) for report in reports] == [_sum(moved)]
    assert [report["reason"] for report in reports] == ["client_closed"]


@needs("curl")
@pytest.mark.parametrize("version", ["HTTP/1.0"], ids=["close"])
def test_two_downloads_over_two_connections_are_two_reports(
    proxy: Trioserve, content: bytes, tmp_path: Path
) -> None:
    moved = _download_twice(proxy, content, tmp_path)
    reports = sorted(proxy.stop(), key=lambda report: int(report["id"]))
    assert [m["num_connects"] for m in moved] == [1, 1]
    assert [_bytes(report) for report in reports] == [_sum([m]) for m in moved]
    # Both know where the content ends, and either may close first.
    assert [report["outcome"] for report in reports] == ["ok", "ok"]


def _download_twice(
    proxy: Trioserve, content: bytes, tmp_path: Path
) -> list[Mapping[str, int]]:
    # Both in one run of curl; return what it measured for each.
    downloads = [tmp_path / "1", tmp_path / "2"]
    url = f"http://{proxy.address}/file"
    targets = [word for file in downloads for word in ("--output", str(file), url)]
    record = ",".join(f'"{name}":%{{{name}}}' for name in _SIZES.split())
    curl = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*"),
            *("--write-out", f"{{{record}}}\\n", *targets),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert curl.returncode == 0, curl.stderr
    for download in downloads:
        expected = hashlib.sha256(content).digest()
        assert hashlib.sha256(download.read_bytes()).digest() == expected
    moved = [json.loads(line) for line in curl.stdout.splitlines()]
    assert [m["size_download"] for m in moved] == [_SIZE, _SIZE]
    return moved


def _sum(moved: list[Mapping[str, int]]) -> tuple[int, int]:
    # Bytes to and from the server: requests, headers and content.
    return (
        sum(m["size_request"] for m in moved),
        sum(m["size_header"] + m["size_download"] for m in moved),
    )


def _bytes(report: Record) -> tuple[int, int]:
    return report["bytes_received"], report["bytes_sent"]

"""An HTTP server behind the proxy, and curl, which measures what it moved."""

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
def http(start: Start, tmp_path: Path, content: bytes) -> Process:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(content)
    return start(
        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"),
        *("--protocol", "HTTP/1.1", "--directory", str(root)),
    )


@pytest.fixture
def proxy(http: Process, serve: Serve) -> Trioserve:
    found = re.search(r" port (\d+) ", http.until("Serving HTTP"))
    assert found
    return serve("proxy", f"127.0.0.1:{found[1]}")


@needs("curl")
@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "close"])
def test_downloads_are_whole_and_their_bytes_are_reported(
    proxy: Trioserve, content: bytes, tmp_path: Path, *, keep_alive: bool
) -> None:
    downloads = [tmp_path / "1", tmp_path / "2"]
    options = [] if keep_alive else ["--header", "Connection: close"]
    moved = _curl(f"http://{proxy.address}/file", downloads, *options)
    reports = sorted(proxy.stop(), key=lambda report: int(report["id"]))

    for download in downloads:
        expected = hashlib.sha256(content).digest()
        assert hashlib.sha256(download.read_bytes()).digest() == expected
    assert [m["size_download"] for m in moved] == [_SIZE, _SIZE]
    assert [m["num_connects"] for m in moved] == ([1, 0] if keep_alive else [1, 1])
    if keep_alive:
        assert [_bytes(reports[0])] == [_sum(moved)]
        assert reports[0]["reason"] == "client_closed"
    else:
        assert [_bytes(report) for report in reports] == [_sum([m]) for m in moved]
        assert [r for r in reports if r["outcome"] != "ok"] == []
    assert len(reports) == (1 if keep_alive else 2)


def _curl(
    url: str, downloads: list[Path], *options: str
) -> list[Mapping[str, int]]:
    # Download it so often, in one run; what curl measured for each.
    record = ",".join(f'"{name}":%{{{name}}}' for name in _SIZES.split())
    targets = [word for file in downloads for word in ("--output", str(file), url)]
    curl = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*"),
            *("--write-out", f"{{{record}}}\\n", *options, *targets),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert curl.returncode == 0, curl.stderr
    return [json.loads(line) for line in curl.stdout.splitlines()]


def _sum(moved: list[Mapping[str, int]]) -> tuple[int, int]:
    # Bytes to and from the server: requests, headers and content.
    return (
        sum(m["size_request"] for m in moved),
        sum(m["size_header"] + m["size_download"] for m in moved),
    )


def _bytes(report: Record) -> tuple[int, int]:
    return report["bytes_received"], report["bytes_sent"]

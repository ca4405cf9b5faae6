"""The benchmark runs and its tables can be read. No speed is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from real.tools import PATIENCE, needs

ROOT = Path(__file__).parents[1]

pytestmark = [
    needs("redis-server", "redis-benchmark", "stdbuf", "setpriv"),
    pytest.mark.long("a server and a client for each peer and each work"),
]


def bench(*options: str, module: str = "bench") -> str:
    """What ``python -m bench`` prints."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def rows(printed: str, work: str) -> list[dict[str, str]]:
    """The table of a work, a row for each peer."""
    section = printed.partition(f"## `{work}`\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *others = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in others]


def test_a_quick_run_has_figures_of_every_peer_and_its_report_can_be_repeated(
    tmp_path: Path,
) -> None:
    raw = tmp_path / "raw.json"
    printed = bench("--quick", "--json", str(raw))
    peers = list(json.loads(raw.read_text())["peers"])
    assert {"trio", "trioserve"} <= set(peers)
    for work, unit in (("messages-64", "round trip"), ("connections", "connection")):
        table = rows(printed, work)
        assert [row["peer"] for row in table] == peers
        for row in table:
            for figure in (f"{unit}s/s", f"CPU us per {unit}", "p50 ms", "p99 ms"):
                assert float(row[figure]) > 0, row
            assert float(row["cost / trio"]) > 0
    assert "## Failed" not in printed
    assert bench("--read", str(raw)) == printed


@needs("haproxy", "openssl")
@pytest.mark.parametrize(
    ("works", "peers"),
    [
        (
            {"tls-messages-64": "CPU us per round trip"},
            ["haproxy-tls", "asyncio-tls", "trio-tls", "trioserve-tls"],
        ),
        pytest.param(
            {
                "tls-down-8": "CPU ms per GB",
                "tls-full": "CPU us per connection",
                "tls-resumed": "CPU us per connection",
            },
            ["haproxy-tls", "trioserve-tls"],
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_works_over_tls_have_figures_of_every_peer(
    works: dict[str, str], peers: list[str]
) -> None:
    options = ["--rounds", "1", "--seconds", "0.1", "--peers", *peers]
    printed = bench("--only", *works, *options)
    for work, figure in works.items():
        table = rows(printed, work)
        assert [row["peer"] for row in table] == peers
        for row in table:
            assert float(row[figure]) > 0, row
            assert float(row["cost / haproxy-tls"]) > 0
    assert "## Failed" not in printed


def test_runs_of_the_kit_are_measured() -> None:
    lines = bench("--rounds", "1", module="bench.kit").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:-2]]
    assert len(rows) == 11
    for _, milliseconds, ratio in rows:
        assert float(milliseconds) > 0
        assert float(ratio) > 0
    assert lines[-1].startswith("A whole check: ")


@needs("curl")
def test_faults_are_measured() -> None:
    heading, _, *lines = bench("--quick", module="bench.faults").splitlines()
    assert heading == "| faults | unit | asked | seen | seen / asked |"
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == [
        "`up:latency=2ms`",
        "`down:bandwidth=1024KiB/s`",
        "`down:latency=20ms`",
    ]
    for _, _, asked, seen, ratio in cells:
        assert float(seen) / float(asked) == pytest.approx(float(ratio), abs=0.01)

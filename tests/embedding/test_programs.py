"""Each program of examples/embedding is short, runs, and drains at a signal."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from real.tools import PATIENCE, Process
from test_docs import ROOT

pytestmark = pytest.mark.long

PROGRAMS = sorted((ROOT / "examples" / "embedding").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_program_serves_until_a_signal(program: Path, tmp_path: Path) -> None:
    assert len(program.read_text().splitlines()) <= 120
    words = [str(tmp_path / "reports.db")] if program.stem == "jobs_server" else []
    process = Process(sys.executable, str(program), "0", *words)
    try:
        found = re.search(r":(\d+)", process.until("listening on"))
        assert found
        address = ("127.0.0.1", int(found[1]))
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000)
            process.terminate()
            process.until("DrainSummary(reason='signal'")
        assert process.wait() == 0
    finally:
        process.kill()
    assert "cut=0" in process.lines[-1]


def test_the_page_for_embedders_links_each_of_them() -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    linked = re.findall(r"\(\.\./examples/embedding/(\w+\.py)\)", page)
    assert sorted(linked) == [program.name for program in PROGRAMS]

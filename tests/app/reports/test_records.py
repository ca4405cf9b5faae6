from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sample_reports import make_report
from trioserve import Attempt, ConnectionReport, Phase, Reason, Upstream
from trioserve.app._values import format_time
from trioserve.app.reports._records import Record, parse_record, read_records


def line(*without: str, **changes: Any) -> bytes:
    """A line as it is written, without some fields and with others changed."""
    fields = make_report().as_dict() | changes
    kept = {name: value for name, value in fields.items() if name not in without}
    return json.dumps(kept).encode() + b"\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "connections.jsonl"


def test_a_report_comes_back_as_it_was_written() -> None:
    """Every field but the state, which follows from the others."""
    full = make_report(
        reason=Reason.WRITE_STALL,
        phase=Phase.DATA,
        waited_for="target",
        target="db:5432",
        attempts=[
            Attempt(address="10.0.0.2:5432", seconds=0.5, error="OSError: no"),
            Attempt(address="10.0.0.3:5432", seconds=0.25),
        ],
        queued=0.5,
        connect=1.5,
        first_byte=2.5,
        bytes_received=1,
        bytes_sent=2,
        bytes_discarded=3,
        unacknowledged=4,
        upstream=Upstream(
            bytes_received=5, bytes_sent=6, bytes_discarded=7, unacknowledged=8
        ),
        limit=60.0,
        error="wrong",
        faults=["up:latency=1s", "down:reset@4096"],
        draining=True,
        open_at_close=9,
        notes={"user": "bob", "n": 1},
    )
    record = parse_record(json.dumps(full.as_dict()).encode())
    known = full.as_dict()
    known["attempts"] = full.attempts
    known["faults"] = ("up:latency=1s", "down:reset@4096")
    del known["state"]
    assert record._asdict() == known | {"attempts": tuple(full.attempts)}


def test_a_record_has_every_field_that_a_report_has() -> None:
    fields = {field.name for field in dataclasses.fields(ConnectionReport)}
    fields |= {f"upstream_{field.name}" for field in dataclasses.fields(Upstream)}
    fields -= {"exception", "result", "upstream"}
    assert set(Record._fields) == fields | {"outcome"}


@pytest.mark.parametrize("reason", Reason)
def test_the_outcome_is_that_of_the_reason(reason: Reason) -> None:
    record = parse_record(line("outcome", reason=reason))
    assert record.outcome == reason.outcome
    assert record.ended_well is (reason.outcome == "ok")
    assert parse_record(line(reason=reason, outcome="what?")) == record


def test_words_of_a_newer_version_are_kept() -> None:
    record = parse_record(
        line(reason="moon", outcome="sky", phase="x", waited_for="y", z=1)
    )
    assert (record.reason, record.outcome) == ("moon", "sky")
    assert (record.phase, record.waited_for) == ("x", "y")
    assert parse_record(line("outcome", reason="moon")).outcome == "unknown"


def test_fields_that_an_older_version_did_not_write_are_none() -> None:
    record = parse_record(b'{"id": 1, "reason": "idle"}')
    assert record == Record(id=1, reason="idle", outcome="timeout")
    assert record.peer is None
    assert record.host is None


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("10.0.0.9:4242", "10.0.0.9"),
        ("[fe80::1%eth0]:1", "fe80::1%eth0"),
        ("unix:", "unix:"),
        ("unix:/run/a:1", "unix:/run/a:1"),
        ("MemoryListener", "MemoryListener"),
    ],
)
def test_a_host_has_no_port(peer: str, host: str) -> None:
    assert Record(id=1, reason="idle", outcome="timeout", peer=peer).host == host


@pytest.mark.parametrize(
    "text",
    [
        b"hello",
        b"[]",
        b"7",
        b"{}",
        b'{"id": 1}',
        b'{"reason": "idle"}',
        b'{"id": 1, "reason": null}',
        line()[:-9],
        b"\xff" + line(),
        line(peer="\xfc").decode("unicode-escape").encode("latin-1"),
        b"\0" * 64,
        b"[" * 100_000,
        line(id="1"),
        line(id=True),
        line(id=-1),
        line(id=1.0),
        line(id=1 << 64),
        line(peer=5),
        line(duration="1"),
        line(duration=-1),
        line(duration=True),
        line(duration=float("nan")),
        line(duration=float("inf")),
        line(duration=10**400),
        line(accepted_at=1e12),
        line(draining=1),
        line(faults={}),
        line(faults=[1]),
        line(attempts={}),
        line(attempts=[1]),
        line(attempts=[{"address": "a:1"}]),
        line(attempts=[{"seconds": 1}]),
        line(attempts=[{"address": "a:1", "seconds": 1, "error": 1}]),
        line(notes=[]),
    ],
)
def test_a_line_that_is_not_a_report_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_record(text)


@given(st.binary() | st.text().map(str.encode))
def test_no_line_breaks_the_reader(text: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_record(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(Record._fields), _JSON)
def test_no_value_breaks_the_reader(field: str, value: object) -> None:
    with contextlib.suppress(ValueError):
        parse_record(line(**{field: value}))


def test_the_reports_of_a_file_come_in_order(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(line(id=1) + b"\n  \r\n" + line(id=2) + line(id=3).rstrip())
    assert [record.id for record in read_records(str(file))] == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_lines_that_are_not_reports_are_skipped_and_counted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(b"hello\n" + line(id=1) + line(id="x") + line(id=2)[:-5])
    assert [record.id for record in read_records(str(file))] == [1]
    assert capsys.readouterr().err == (
        f"trioserve: warning: skipped lines of {file} that are not complete"
        " reports: 3\n"
    )


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_huge_line_is_skipped_as_one_line(
    end: bytes, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(line(id=1) + b"x" * (20 << 20) + end)
    tracemalloc.start()
    try:
        assert [record.id for record in read_records(str(file))] == [1]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 << 20
    assert capsys.readouterr().err.endswith(": 1\n")


def test_the_line_after_a_huge_one_is_read(file: Path) -> None:
    file.write_bytes(b"{" + b" " * (1 << 20) + line() + line(id=2))
    assert [record.id for record in read_records(str(file))] == [2]


def test_an_empty_file_has_no_reports(file: Path) -> None:
    file.touch()
    assert list(read_records(str(file))) == []


def complaint(path: object) -> str:
    with pytest.raises(click.ClickException) as caught:
        list(read_records(str(path)))
    assert caught.value.exit_code == 1
    return caught.value.message


def test_a_file_without_reports_is_an_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("ts=2026 level=info\n" * 3)
    assert complaint(file) == (
        f"there is no report in {file}; give a file that --reports wrote"
    )
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"can't read {tmp_path}: Is a directory"
    missing = tmp_path / "a\x1b[2J"
    assert complaint(missing) == (
        f"can't read {tmp_path}/a\\x1b[2J: No such file or directory"
    )


def test_an_error_while_reading_is_an_error() -> None:
    """Nothing is mapped at address 0."""
    assert (
        complaint("/proc/self/mem") == "can't read /proc/self/mem: Input/output error"
    )


def test_a_file_without_permission_is_an_error(file: Path) -> None:
    file.touch(0o200)
    user = os.geteuid()
    if user == 0:  # root may read everything, and become another user for a moment
        for folder in file.parents[:3]:
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        assert complaint(file) == f"can't read {file}: Permission denied"
    finally:
        os.seteuid(user)


def test_a_dash_is_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(line(id=5) + b"{"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [record.id for record in read_records("-")] == [5]
    assert "lines of stdin" in capsys.readouterr().err
    assert not stdin.closed


def test_a_closed_stdin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert complaint("-") == "can't read stdin: Bad file descriptor"


def test_every_time_that_is_read_can_be_written() -> None:
    assert format_time(1_760_000_000.25) == "2025-10-09 08:53:20 UTC"
    latest = parse_record(line(accepted_at=1e11, duration=1e11))
    assert format_time((latest.accepted_at or 0) + (latest.duration or 0))

"""Targets with options, and what balancing logs and tells."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest

from app.invoked import error_of, invoke
from app.process import Start
from app.sample_reports import make_report
from app.test_network_options import service_of
from support import run, serving
from trioserve import Health, Reason, Target, TargetState, TcpAddress, echo
from trioserve.app import _run
from trioserve.app._service import Service
from trioserve.app._target_options import health_of
from trioserve.app.output._log import Log
from trioserve.app.output._output import Output
from trioserve.app.output._status import status_fields, status_text
from trioserve.app.reports._explain import explain_record
from trioserve.app.reports._records import parse_record

DOWN = TargetState(
    target=Target(TcpAddress("db", 5432), weight=3),
    up=False,
    drained=True,
    seconds=12.5,
    open=2,
    connected=7,
    failed=3,
    connect=0.004,
    error="ConnectionRefusedError: [Errno 111] Connection refused",
    retry=3.25,
)
UP = TargetState(
    target=Target(TcpAddress("db", 5433), backup=True),
    up=True,
    drained=False,
    seconds=None,
    open=0,
    connected=0,
    failed=0,
    connect=None,
    error=None,
    retry=None,
)


def test_the_route_names_the_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        assert not any(state.open for state in service.states())
        return 0

    monkeypatch.setattr(_run, "main", main)
    targets = ("a:1?weight=2", "b:2?backup")
    for options in ((), ("--balance", "random")):
        assert invoke("proxy", ":0", *targets, *options).exit_code == 0
    first, random = services
    assert first.route == "a:1?weight=2, then b:2?backup"
    assert random.route == "a:1?weight=2, b:2?backup (random)"
    assert first.target_addresses == [TcpAddress("a", 1), TcpAddress("b", 2)]


def test_echo_has_no_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(monkeypatch)
    assert (service.route, tuple(service.states())) == ("", ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a:1?weight=0"],
            "'weight=0' in 'a:1?weight=0' is not a weight; use weight=1",
        ),
        (["a:1?heavy"], "'heavy' in 'a:1?heavy' is not an option of a target; use"),
        (["fe80::1:1"], "is ambiguous"),
        (["[fe80::1]:1?backup"], "like [fe80::1%eth0]:1"),
        (["a:1", "--balance", "best"], "--balance: 'best' is not one of 'first',"),
        (["a:1", "--fall", "0"], "--fall: '0' is not a whole number of 1 or more"),
        (["a:1", "--pause", "never"], "--pause: must not be 'never'"),
        (["a:1", "--max-per-target", "0"], "--max-per-target: '0' is not a whole"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    assert message in error_of(invoke("proxy", ":0", *words))


def test_a_long_pause_is_the_longest_one() -> None:
    assert health_of(3, 60) == Health(fall=3, pause=60, max_pause=60)
    assert health_of(2, 5) == Health(fall=2, pause=5, max_pause=30)


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(monkeypatch, command="proxy", TRIOSERVE_BALANCE="source")
    assert service.balance == "source"


def test_a_target_that_is_left_out_is_logged() -> None:
    """Law 15: with why, and when it is tried again; that it is up is known already."""
    lines: list[str] = []
    output = Output(Log(lines.append, "text"), log_writer=None)  # type: ignore[arg-type]
    for _ in range(9):
        output.target_changed(DOWN)
    output.target_changed(UP)
    assert len(lines) == 5
    assert lines[0].endswith(
        "warning: db:5432?weight=3 is left out for 3.2s while another target is up:"
        " ConnectionRefusedError: [Errno 111] Connection refused"
    )


def test_the_status_has_the_targets() -> None:
    async def main() -> None:
        async with serving(echo) as running:
            lines = list(status_text(running.server, 0, [UP, DOWN]))
            fields = status_fields(running.server, 0, [UP, DOWN])
        heading, up, down = lines[1:4]
        assert heading == "targets:"
        assert up == "  db:5433?backup: up, 0 open, 0 connected, 0 failed"
        assert down == (
            "  db:5432?weight=3: down for 12.5s, drained, 2 open, 7 connected, 3"
            " failed, usually in 4.0ms; tried again in 3.2s; last error:"
            " ConnectionRefusedError: [Errno 111] Connection refused"
        )
        assert json.loads(json.dumps(fields)) == fields
        assert fields["targets"][1] == {
            "target": "db:5432?weight=3",
            "up": False,
            "drained": True,
            "seconds": 12.5,
            "open": 2,
            "connected": 7,
            "failed": 3,
            "connect": 0.004,
            "error": DOWN.error,
            "retry": 3.25,
        }

    run(main)


def test_explain_knows_a_full_target() -> None:
    report = make_report(reason=Reason.TARGET_FULL, target="db:5432", limit=20)
    record = parse_record(json.dumps(report.as_dict()).encode())
    text = "\n".join(explain_record(record))
    assert "(--max-per-target 20), so the client was reset." in text


def test_a_command_that_balances(start: Start, tmp_path: Path) -> None:
    """Two targets that answer, one that refuses; a line of log, and the status."""
    path = tmp_path / "reports"
    one, other = start("echo", "127.0.0.1:0"), start("echo", "127.0.0.1:0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        targets = [f"127.0.0.1:{echo.port()}" for echo in (one, other)]
        bad = f"127.0.0.1:{unused.getsockname()[1]}"
        options = ["--balance", "round-robin", "--fall", "2", "--pause", "1m"]
        words = ("proxy", "127.0.0.1:0", f"{targets[0]}?weight=2", bad, targets[1])
        proxy = start(*words, *options, "--log", "json", "--reports", str(path))
        ready = json.loads(proxy.err.until('"event":"listening"'))
        assert ready["balance"] == "round-robin"
        port = int(ready["addresses"].rpartition(":")[2])
        for _ in range(20):
            with proxy.connect(port) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
        left_out = json.loads(proxy.err.until('"event":"target-left-out"'))
        assert (left_out["target"], left_out["level"]) == (bad, "warning")
        assert 60 <= left_out["seconds"] <= 66
        proxy.signal(signal.SIGUSR1)
        status = json.loads(proxy.err.until('"event":"status"'))
        states = {each["target"]: each for each in status["targets"]}
        assert states[bad]["failed"] == 2
        assert not states[bad]["up"]
        counts = [states[target]["connected"] for target in states if target != bad]
        assert sum(counts) == 20
        assert counts[0] >= 12
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0
    summed = invoke("reports", str(path)).stdout
    assert re.search(rf"{bad} +2 +2\n", summed)

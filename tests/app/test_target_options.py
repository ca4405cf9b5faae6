"""Targets with options, and what balancing logs and tells."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import socket
from pathlib import Path

import pytest

from app.invoked import error_of, invoke
from app.process import Start, say_hello
from app.sample_reports import make_report
from app.scene import service as make_service
from app.test_network_options import service_of
from support import run, serving
from trioserve import (
    Attempt,
    Health,
    Reason,
    SrvRecords,
    Target,
    TargetFile,
    TargetState,
    TcpAddress,
    echo,
)
from trioserve.app import _run
from trioserve.app._service import Service
from trioserve.app._target_options import take_health
from trioserve.app._values import parse_bytes
from trioserve.app.output._log import Log
from trioserve.app.output._output import Output
from trioserve.app.output._status import status_fields, status_text
from trioserve.app.reports._explain import explain_record
from trioserve.app.reports._records import parse_record

DOWN = TargetState(
    target=Target(TcpAddress("db", 5432), weight=3),
    up=False,
    drained=True,
    gone=True,
    seconds=12.5,
    open=2,
    connected=7,
    failed=3,
    connect=0.004,
    connect_p50=0.003,
    connect_p99=0.0214,
    error="ConnectionRefusedError: [Errno 111] Connection refused",
    retry=3.25,
    checks=0,
    checks_failed=0,
)
UP = TargetState(
    target=Target(TcpAddress("db", 5433), backup=True),
    up=True,
    drained=False,
    gone=False,
    seconds=None,
    open=0,
    connected=0,
    failed=0,
    connect=None,
    connect_p50=None,
    connect_p99=None,
    error=None,
    retry=None,
    checks=9,
    checks_failed=2,
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
        (["a:1", "--check", "0"], "--check: must be more than 0, and not 'never'"),
        (["a:1", "--check", "never"], "--check: must be more than 0, and not 'never'"),
        (["a:1", "--slow-start", "never"], "--slow-start: must not be 'never'"),
        (["a:1", "--rise", "0"], "--rise: '0' is not a whole number of 1 or more"),
        (["a:1", "--check-expect", "x"], "--check-expect need --check TIME"),
        (
            ["a:1", "--check", "1", "--check-send", "x"],
            "--check-send needs --check-expect: an answer to wait for",
        ),
        (
            ["a:1", "--check-send", r"a\qb"],
            r"--check-send: '\\q' in 'a\\qb' is not a byte; use \r, \n, \t, \0, \xHH,",
        ),
        (["file:none"], "file:none: can't read it: No such file or directory"),
        (["file:"], "'' is not the path of a file: use file:PATH"),
        (["file:{bad}"], "line 2: 'db' has no port"),
        (["file:{local}"], "needs the name of an interface, like [fe80::1%eth0]:1"),
        (["--sni", "a.test=file:{bad}"], "line 2: 'db' has no port"),
        (["dns://10.0.0.1:80"], "host '10.0.0.1' is not a name; leave dns:// out"),
        (["srv://a b"], "'srv://a b' is not the name of a service; use one like srv:"),
        (["a:1?priority=x"], "'priority=x' in 'a:1?priority=x' is not a priority; use"),
        (["a:1", "--max-per-target", "0"], "--max-per-target: '0' is not a whole"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    files = {"bad": "db:1\ndb\n", "local": "[fe80::1]:1?backup\n"}
    paths = {name: tmp_path / name for name in files}
    for name, content in files.items():
        paths[name].write_text(content)
    words = [re.sub(r"{(\w+)}", lambda m: str(paths[m[1]]), word) for word in words]
    assert message in error_of(invoke("proxy", ":0", *words))


def test_a_service_has_the_targets_of_its_files(tmp_path: Path) -> None:
    """In words, it is the file."""
    path = tmp_path / "targets"
    path.write_text("a:1\nb:2\n")
    file = TargetFile(str(path))
    made = make_service(targets=(file,), named_targets=(("c.test", file),))
    assert made.route == f"file:{path}"
    assert [str(target) for target in made.all_targets] == ["a:1", "b:2"] * 2
    path.unlink()
    assert made.all_targets == ()
    assert make_service(targets=(SrvRecords("a.test"),)).all_targets == ()


@pytest.mark.usefixtures("traced")
def test_a_file_of_targets_is_replaced_under_load(start: Start, tmp_path: Path) -> None:
    """Law 1: no client fails, old connections go on, and SIGHUP reads it at once."""
    path = tmp_path / "targets"

    def write(*ports: int) -> None:
        new = tmp_path / "new"
        new.write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
        new.replace(path)

    ports = [start("echo", "127.0.0.1:0").port() for _ in range(2)]
    write(ports[0])
    proxy = start("proxy", "127.0.0.1:0", f"file:{path}", "--log", "json")
    ready = json.loads(proxy.err.until('"event":"listening"'))
    assert ready["target"] == f"file:{path}"
    port = int(ready["addresses"].rpartition(":")[2])
    with proxy.connect(port) as old:
        say_hello(old)
        for number in range(1, 21):
            write(ports[number % 2])
            proxy.signal(signal.SIGHUP)
            for _ in range(5):
                with proxy.connect(port) as client:
                    say_hello(client)
            proxy.err.until('has 1 target now: 1 new, 1 gone"')
        say_hello(old)
        write(ports[1])
        proxy.err.until('1 new, 1 gone"')  # without a signal
        path.write_text("nonsense")
        proxy.signal(signal.SIGHUP)
        proxy.err.until("'nonsense' has no port")
        proxy.signal(signal.SIGUSR1)
        status = json.loads(proxy.err.until('"event":"status"'))
        gone = {each["target"]: each["gone"] for each in status["targets"]}
        assert gone == {f"127.0.0.1:{ports[0]}": True, f"127.0.0.1:{ports[1]}": False}
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0


def test_a_long_pause_is_the_longest_one() -> None:
    long = take_health({"fall": 3, "pause": 60})
    assert long == Health(fall=3, pause=60, max_pause=60)
    assert take_health({"fall": 2, "pause": 5}) == Health(fall=2, pause=5, max_pause=30)


def test_the_options_of_checks() -> None:
    options = {
        "check": 2.0,
        "rise": 4,
        "slow_start": 30.0,
        "check_send": parse_bytes(r"PING\r\n"),
        "check_expect": parse_bytes("+PONG"),
        "idle": 5.0,
    }
    assert take_health(options) == Health(
        check=2,
        rise=4,
        slow_start=30,
        check_send=b"PING\r\n",
        check_expect=b"+PONG",
    )
    assert options == {"idle": 5.0}


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(monkeypatch, command="proxy", TRIOSERVE_BALANCE="source")
    assert service.balance == "source"


def test_a_target_that_is_left_out_is_logged() -> None:
    """Law 15: with why, and when it is tried again; that it is up is known already."""
    lines: list[str] = []
    output = Output(Log(lines.append, "text"), log_writer=None)  # type: ignore[arg-type]
    for _ in range(9):
        output.target_changed(DOWN)
    output.target_changed(dataclasses.replace(UP, checks=0))
    assert len(lines) == 5
    assert lines[0].endswith(
        "warning: db:5432?weight=3 is left out for 3.2s while another target is up:"
        " ConnectionRefusedError: [Errno 111] Connection refused"
    )


def test_what_checks_say_is_logged() -> None:
    """Law 15: once, although the address was known to be down, too."""
    lines: list[str] = []
    output = Output(Log(lines.append, "text"), log_writer=None)  # type: ignore[arg-type]
    address = DOWN.target.address
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    output.attempt(address, Attempt(address=str(address), seconds=0.0, error=refused))
    checked = dataclasses.replace(DOWN, checks=3, checks_failed=3, retry=None)
    output.target_changed(checked)
    output.target_changed(dataclasses.replace(checked, up=True, error=None))
    output.attempt(address, Attempt(address=str(address), seconds=0.0))
    down, out, up = (line.partition(" ")[2].strip() for line in lines)
    assert down == f"warning: db:5432 does not answer: {refused}"
    assert out == (
        "warning: db:5432?weight=3 is left out until its checks pass while another"
        f" target is up: {refused}"
    )
    assert up == "db:5432 answers again"


def test_a_target_whose_checks_pass_again_and_again_is_suppressed() -> None:
    lines: list[str] = []
    output = Output(Log(lines.append, "text"), log_writer=None)  # type: ignore[arg-type]
    for _ in range(9):
        output.target_changed(dataclasses.replace(UP, checks=3))
    assert len(lines) == 5


def test_the_status_has_the_targets() -> None:
    async def main() -> None:
        async with serving(echo) as running:
            lines = list(status_text(running.server, 0, [UP, DOWN]))
            fields = status_fields(running.server, 0, [UP, DOWN])
        heading, up, down = lines[1:4]
        assert heading == "targets:"
        assert up == (
            "  db:5433?backup: up, 0 open, 0 connected, 0 failed; 9 checks, 2 failed"
        )
        assert down == (
            "  db:5432?weight=3: down for 12.5s, drained, gone from its list, 2 open, 7"
            " connected, 3 failed, usually in 4.0ms, p50 3.0ms, p99 21ms; tried again"
            " in 3.2s; last error: ConnectionRefusedError: [Errno 111] Connection"
            " refused"
        )
        assert json.loads(json.dumps(fields)) == fields
        assert fields["targets"][1] == {
            "target": "db:5432?weight=3",
            "up": False,
            "drained": True,
            "gone": True,
            "seconds": 12.5,
            "open": 2,
            "connected": 7,
            "failed": 3,
            "connect": 0.004,
            "connect_p50": 0.003,
            "connect_p99": 0.0214,
            "error": DOWN.error,
            "retry": 3.25,
            "checks": 0,
            "checks_failed": 0,
        }

    run(main)


def test_explain_knows_a_full_target() -> None:
    report = make_report(reason=Reason.TARGET_FULL, target="db:5432", limit=20)
    record = parse_record(json.dumps(report.as_dict()).encode())
    text = "\n".join(explain_record(record))
    assert "(--max-per-target 20), so the client was reset." in text


def test_explain_knows_drained_targets() -> None:
    error = "NoRoomError: [Errno 110] no target had room within 5 s: all are drained"
    report = make_report(reason=Reason.TARGET_FULL, target="db:5432", error=error)
    record = parse_record(json.dumps(report.as_dict()).encode())
    text = "\n".join(explain_record(record))
    assert "and none had room in time, so the client was reset." in text
    assert "all are drained" in text


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


def test_a_command_that_checks(start: Start) -> None:
    """Law 15: without a client, it finds out who serves, and says so at once."""
    good = start("echo", "127.0.0.1:0")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bad = f"127.0.0.1:{bound.getsockname()[1]}"
        options = ["--check", "50ms", "--rise", "3", "--log", "json"]
        options += ["--check-send", r"PING\r\n", "--check-expect", r"PING\r"]
        targets = f"127.0.0.1:{good.port()}", bad
        proxy = start("proxy", "127.0.0.1:0", *targets, *options)
        left_out = json.loads(proxy.err.until('"event":"target-left-out"'))
        assert (left_out["target"], left_out["seconds"]) == (bad, None)
        assert left_out["error"].startswith("check: ConnectionRefusedError")
        bound.listen()
        wrong = "check: TimeoutError"
        while True:
            proxy.signal(signal.SIGUSR1)
            status = json.loads(proxy.err.until('"event":"status"'))
            states = {each["target"]: each for each in status["targets"]}
            if str(states[bad]["error"]).startswith(wrong):
                break
        assert states[targets[0]]["up"]
        assert states[targets[0]]["checks_failed"] == 0
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0


@pytest.mark.usefixtures("traced")
def test_a_target_whose_checks_pass_again_is_logged(start: Start) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{bound.getsockname()[1]}"
        words = ("proxy", "127.0.0.1:0", target, "--check", "50ms", "--log", "json")
        proxy = start(*words)
        proxy.err.until('"event":"target-left-out"')
        bound.listen()
        up = json.loads(proxy.err.until('"event":"target-up"'))
        assert up["address"] == target
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0

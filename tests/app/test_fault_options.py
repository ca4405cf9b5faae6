"""The options that inject faults, directly or from a file."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import click
import pytest
from click.testing import Result

from app.invoked import invoke
from app.process import Start
from app.sample_reports import make_report
from trioserve import Reason
from trioserve.app import _run
from trioserve.app._service import Service
from trioserve.app.output._log import Log
from trioserve.app.reports._explain import explain_record
from trioserve.app.reports._records import parse_record
from trioserve.faults import parse_faults


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """The services that the command would run."""
    asked: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        asked.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    return asked


def _proxy(*options: str, **env: str) -> Result:
    return invoke("proxy", ":0", "a:1", *options, **env)


def test_faults_and_seed_come_from_options_or_the_environment(
    services: list[Service],
) -> None:
    assert _proxy().exit_code == 0
    assert _proxy("--fault", "up: reset", "--seed", "7").exit_code == 0
    assert _proxy(TRIOSERVE_FAULT="refuse", TRIOSERVE_SEED="-3").exit_code == 0
    assert [(str(service.faults), service.seed) for service in services] == [
        ("", 0),
        ("up:reset@0", 7),
        ("refuse", -3),
    ]


def test_a_file_has_both_and_the_option_overrides_its_seed(
    services: list[Service], tmp_path: Path
) -> None:
    file = tmp_path / "case.json"
    file.write_text('{"faults": "down:eof@5", "seed": 9, "peers": []}')
    assert _proxy("--fault", f"@{file}").exit_code == 0
    assert _proxy("--fault", f"@{file}", "--seed", "0").exit_code == 0
    file.write_text('{"faults": "down:eof@5"}')
    assert _proxy("--fault", f"@{file}").exit_code == 0
    assert [service.seed for service in services] == [9, 0, 0]
    assert {service.faults for service in services} == {parse_faults("down:eof@5")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON; use an object like"),
        ("[" * 10**6, "is not JSON; use an object like"),
        ("\xff", "is not JSON; use an object like"),
        ("[]", "there are no faults in"),
        ('{"seed": 7}', "there are no faults in"),
        ('{"faults": 7}', "there are no faults in"),
        ('{"faults": ""}', "there are no faults in"),
        ('{"faults": "", "seed": true}', "there are no faults in"),
        ('{"faults": "", "seed": "7"}', "there are no faults in"),
        ('{"faults": "lag=5\\u001b"}', "'lag=5\\x1b' is not a fault; use latency="),
    ],
)
def test_a_file_without_faults_is_an_error_of_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "case.json"
    file.write_bytes(content.encode("latin-1"))
    result = _proxy("--fault", f"@{file}")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip("\n").isprintable()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    result = _proxy("--fault", f"@{tmp_path}")
    assert f"--fault: can't read {tmp_path}: Is a directory" in result.stderr


def test_settings_show_faults_and_seed() -> None:
    words = ["help", "settings", "proxy", ":0", "a:1", "--fault", "latency=50ms"]
    shown = invoke(*words).stdout
    assert re.search(r"^--fault +latency=50ms ", shown, re.MULTILINE)
    assert "0, or the seed in the file" in shown


@pytest.mark.usefixtures("traced")
def test_a_proxy_warns_of_its_faults_and_reports_list_those_applied(
    start: Start,
) -> None:
    target = f"127.0.0.1:{start('echo', '127.0.0.1:0').port()}"
    options = ["--fault", "down:reset@3", "--seed", "7", "--reports", "-"]
    proxy = start("proxy", "127.0.0.1:0", target, *options, "--log", "text")
    port = int(proxy.err.until("trioserve proxy: ").split(" -> ")[0].split(":")[-1])
    loud = proxy.err.until("warning")
    assert loud.endswith(
        "this proxy breaks connections on purpose: down:reset@3 (seed 7)"
    )
    with proxy.connect(port) as client:
        client.sendall(b"hello")
        assert client.recv(3) == b"hel"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    report = json.loads(proxy.out.until("{"))
    assert (report["reason"], report["faults"]) == ("fault", ["down:reset@3"])
    assert "faults: down:reset@3" in proxy.err.until("aborted/fault")
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0


def test_faults_of_a_connection_are_explained() -> None:
    report = make_report(reason=Reason.FAULT, faults=["up:latency=1s", "up:reset@3"])
    record = parse_record(json.dumps(report.as_dict()).encode())
    text = click.unstyle("\n".join(explain_record(record)))
    assert "An injected fault ended it." in text
    assert "Broken on purpose: up:latency=1s, up:reset@3." in text
    assert "Next: see how both ends react: it was broken on purpose." in text


def test_the_log_says_which_faults_were_applied() -> None:
    lines: list[str] = []
    log = Log(lines.append, "text")
    log.connection(make_report(faults=["down:latency=1s"]))
    log.connection(make_report())
    assert ["faults: down:latency=1s" in line for line in lines] == [True, False]

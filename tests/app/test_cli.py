"""The command line, as far as it needs no server."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trioserve
from app.invoked import error_of, invoke
from trioserve import Timeouts
from trioserve.app._cli import cli
from trioserve.app._program import say
from trioserve.app._topics import TOPICS
from trioserve.app._values import format_duration, parse_duration


@pytest.mark.parametrize(
    ("command", "env", "code", "message"),
    [
        ("echo unix:/no/folder/a --log json", {}, 1, "folder does not exist"),
        ("echo --log=json --idle soon", {}, 2, "'soon' is not a duration"),
        ("echo --idel 5 --log json", {}, 2, "no such option '--idel'"),
        ("proxy --log json", {}, 2, "LISTEN is missing"),
        ("echo unix:/no/folder/a", {"TRIOSERVE_LOG": "json"}, 1, "does not exist"),
        ("echo 1 --log text --log json", {"TRIOSERVE_LOG": "text"}, 2, "bare port"),
    ],
)
def test_an_error_is_an_event_if_the_log_is_logfmt_or_json(
    command: str, env: dict[str, str], code: int, message: str
) -> None:
    result = invoke(*command.split(), **env)
    assert result.exit_code == code
    record = json.loads(result.stderr)
    assert message in record.pop("message")
    assert record.pop("ts")
    assert record == {"level": "error", "event": "error"}
    result = invoke(*command.replace("json", "logfmt").split(), **env)
    assert result.exit_code == code
    if not env:
        assert " level=error event=error message=" in result.stderr


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("echo 7000 --log text", {}),
        ("echo 7000 --log haproxy", {"TRIOSERVE_LOG": "json"}),
        ("echo 7000 --log xml", {}),
        ("echo 7000 --log", {}),
        ("ecoh --log json", {"TRIOSERVE_LOG": "json"}),
        ("reports /no/file", {"TRIOSERVE_LOG": "json"}),
        ("--log json", {}),
    ],
)
def test_an_error_is_text_otherwise(command: str, env: dict[str, str]) -> None:
    result = invoke(*command.split(), **env)
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("trioserve: error: ")


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_without_a_command_it_prints_help(args: list[str]) -> None:
    result = invoke(*args)
    assert result.exit_code == 0
    assert "trioserve echo" in result.stdout
    assert "Commands:" in result.stdout


COMMANDS = list(cli.commands)


def test_the_command_help_and_the_option_print_the_same() -> None:
    assert invoke("help").stdout == invoke("--help").stdout
    for command in COMMANDS:
        assert invoke("help", command).stdout == invoke(command, "--help").stdout


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_a_page(topic: str) -> None:
    result = invoke("help", topic)
    assert result.exit_code == 0
    assert result.stdout.startswith(TOPICS[topic])
    assert all(len(line) <= 80 for line in TOPICS[topic].splitlines())
    assert topic in invoke("--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help_with_examples_before_options(
    command: str, option: str
) -> None:
    result = invoke(command, option)
    assert result.exit_code == 0
    examples, options = result.stdout.split("Options:")
    lines = examples.splitlines()
    assert sum(f"trioserve {command}" in line for line in lines[3:]) == 2
    assert all(len(line) <= 80 for line in lines)
    assert "--help" in options


def test_only_the_proxy_has_connect() -> None:
    assert "--connect TIME" in invoke("proxy", "-h").stdout
    assert "--connect TIME" not in invoke("echo", "-h").stdout


def test_the_version_is_printed() -> None:
    result = invoke("--version")
    version = importlib.metadata.version("trioserve")
    assert result.stdout == f"trioserve {version}\n"
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("echo 7000", "bare port; did you mean 127.0.0.1:7000"),
        ("echo http://a:1", "unknown scheme 'http'"),
        ("echo a:65536", "out of range: 0 to 65535"),
        ("echo a", "has no port; did you mean a:80?"),
        ("proxy :1 a", "has no port; did you mean a:80?"),
        ("proxy :1 :2", "target ':2' has no host; did you mean 127.0.0.1:2?"),
        ("proxy :1 a:1 a:0", "target 'a:0' has port 0: it can't be dialed"),
        ("proxy :1 unix:a?mode=600", "for listening; did you mean unix:a?"),
        ("proxy", "LISTEN is missing; usage: trioserve proxy [OPTIONS]"),
        ("proxy :1", "TARGET is missing; usage: trioserve proxy [OPTIONS]"),
        ("echo a:1 b:2", "unexpected extra argument (b:2); usage: trioserve echo"),
        ("echo --idle 5x", "--idle: '5x' is not a duration; use 500ms, 10s"),
        ("echo --idle 1h1h", "--idle: '1h1h' is not a duration; use 500ms, 10s"),
        ("proxy :1 xn--:80", "'xn--' is not a host name: "),
        ("echo --idle -5", "--idle: '-5' is negative; use 0 or more"),
        ("echo --idle 0", "--idle: must be more than 0; 'never' means no limit"),
        ("echo --max-connections -1", "connections: '-1' is not a whole number of"),
        (
            "echo --max-connections 0",
            "connections: '0' is not a whole number of 1 or more",
        ),
        ("echo --per-peer x", "--per-peer: 'x' is not a whole number of 1 or more"),
        ("proxy :1 a:1 --fault lag", "--fault: 'lag' in 'lag' is not a fault; use"),
        ("proxy :1 a:1 --fault @/no", "--fault: can't read /no: No such file or"),
        ("proxy :1 a:1 --seed x", "--seed: 'x' is not a whole number"),
        ("echo --fault reset", "no such option '--fault'"),
        ("echo --when-full no", "'no' is not one of 'wait', 'refuse'"),
        ("echo --when-full backlog", "'backlog' is not one of 'wait', 'refuse'"),
        ("echo --log xml", "'xml' is not one of 'text', 'logfmt', 'json', 'haproxy'"),
        ("echo *:80", "host '*' has a '*' in it"),
        ("echo 10.0.0.300:1", "host '10.0.0.300' is not an IPv4 address"),
        ("echo a..b:1", "'a..b' is not a host name: nothing before or between"),
        ("proxy :1 a..b:1", "'a..b' is not a host name: nothing before or"),
        ("echo --listen .:1", "'.' is not a host name: nothing before or"),
        ("echo unix:a?mode=600 --listen unix:./a?mode=660", "give one mode"),
        ("echo --per-peer-prefix 129", "129 is not in the range 1<=x<=128"),
        ("echo app.sock", "has no port; did you mean unix:app.sock?"),
        ("echo a:1,b:2", "is more than one address; write a space between them"),
        ("echo 10.0.0.1:1:10.0.0.2:2", "is more than one address; write a space"),
        ("echo --wait 5", "'--wait'; 'trioserve echo --help' lists them"),
        ("echo --idel 5", "no such option '--idel'; did you mean '--idle'?"),
        ("--nope", "no such option '--nope'; 'trioserve --help' lists them"),
        ("echo --idle", "--idle requires an argument"),
        ("proxy :1 a:1 --check --rise 2", "--check: needs TIME; '--rise' is the next"),
        (
            "proxy :1 a:1 --check --rise=2",
            "--check: needs TIME; '--rise=2' is the next",
        ),
        ("echo --idle --live", "--idle: needs TIME; '--live' is the next option"),
        ("echo --reports --live", "--reports: needs FILE; '--live' is the next option"),
        ("echo --deny --live", "--deny: needs NETWORK; '--live' is the next option"),
        ("proxy :1 --sni --live", "--sni: needs NAME=TARGET; '--live' is the next"),
        ("echo --rate --per-peer 3", "--rate: needs N/TIME; '--per-peer' is the next"),
        ("echo --idle --help", "--idle: needs TIME; '--help' is the next option"),
        ("echo --idle --idel", "--idle: '--idel' is not a duration; use 500ms, 10s"),
        ("echo --log --live", "'--live' is not one of 'text', 'logfmt', 'json',"),
        ("echo --live=3", "--live does not take a value"),
        ("ecoh", "no such command 'ecoh'; did you mean 'echo'?"),
        ("xyz", "no such command 'xyz'; use proxy, echo, demo, "),
        ("help adresses", "no such topic 'adresses'; did you mean 'addresses'?"),
        ("help xyz", "no such topic 'xyz'; use addresses, access, faults, settings, "),
        ("help signals logs", "got unexpected extra argument (logs)"),
        ("help settings demo", "no such serving command 'demo'; use proxy or echo"),
        ("help settings proxy :1", "TARGET is missing; usage: trioserve proxy"),
        ("--idle 5 echo", "--idle goes after the command: trioserve proxy ... --idle"),
        ("a:1 b:2", "'a:1' is not a command; did you mean 'proxy a:1 b:2'?"),
        ("help settings echo --idle x", "--idle: 'x' is not a duration"),
        ("completion tcsh", "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        ("demo --clients 0", "0 is not in the range"),
        ("demo --seconds 0", "0.0 is not in the range"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_write_instead(
    args: str, said: str
) -> None:
    result = invoke(*args.split())
    assert said in error_of(result)
    assert result.exit_code == 2


def _report(**fields: Any) -> str:
    return json.dumps({"id": 1, "reason": "idle", "limit": 5.0, **fields}) + "\n"


def test_reports_are_explained_and_summed_up(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text(_report(peer="10.0.0.1:1") + _report(id=2) + '{"id": 3, "rea')
    explained = invoke("explain", str(path))
    assert explained.stdout.startswith("connection 1: timeout/idle\n  10.0.0.1:1 conn")
    assert explained.stdout.count("(--idle 5s)") == 2
    assert "that are not complete reports: 1\n" in explained.stderr
    one = invoke("explain", str(path), "--id", "2")
    assert one.stdout.startswith("connection 2: timeout/idle\n")
    assert one.stdout.count("connection ") == 1
    assert invoke("reports", str(path)).stdout.startswith("connections: 2\n")
    summed_up = json.loads(invoke("reports", str(path), "--json").stdout)
    assert summed_up["schema"] == "trioserve.reports/1"
    assert summed_up["connections"] == 2


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("command", ["explain", "reports"])
def test_a_file_that_cannot_be_read_or_written_is_an_error(
    command: str, tmp_path: Path
) -> None:
    missing = invoke(command, str(tmp_path / "missing"))
    assert error_of(missing) == (
        f"can't read {tmp_path / 'missing'}: No such file or directory"
    )
    assert missing.exit_code == 1
    full = subprocess.run(
        f"{sys.executable} -m trioserve {command} - > /dev/full",
        shell=True,
        input=_report(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert full.stderr == (
        "trioserve: error: can't write to stdout: No space left on device\n"
    )
    assert full.returncode == 1


@pytest.mark.parametrize("command", ["explain", "reports"])
def test_a_reader_may_close_the_pipe_early(command: str, tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text("".join(_report(id=number) for number in range(1, 500)))
    done = subprocess.run(
        f"{sys.executable} -m trioserve {command} {path} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_pipe_without_a_reader_is_not_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Click ends the command then, without a message."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(BrokenPipeError):
        say("hello")
    with pytest.raises(BrokenPipeError):  # it is tried again
        stdout.close()


def test_a_wrong_value_in_the_environment_names_its_variable() -> None:
    result = invoke("echo", TRIOSERVE_IDLE="soon")
    assert error_of(result).endswith("(from TRIOSERVE_IDLE)")
    assert result.exit_code == 2


def test_a_carriage_return_at_the_end_of_a_variable_is_ignored(tmp_path: Path) -> None:
    """As in a file of settings that was written on Windows."""
    values = {
        "TRIOSERVE_REPORTS": f"{tmp_path}/reports",
        "TRIOSERVE_IDLE": "5m",
        "TRIOSERVE_LOG": "json",
        "TRIOSERVE_LIVE": "yes",
        "TRIOSERVE_MAX_CONNECTIONS": "7",
        "TRIOSERVE_LISTEN": "127.0.0.1:1 unix:a",
        "TRIOSERVE_SEED": "3",
        "TRIOSERVE_FAULT": "reset@7",
        "TRIOSERVE_PORT_FILE": "",
    }
    from_windows = {name: f"{value}\r" for name, value in values.items()}
    args = ("help", "settings", "proxy")
    assert invoke(*args, **from_windows).stdout == invoke(*args, **values).stdout


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--reports", "is empty; give the name of a file"),
        ("--port-file", "is empty; give the name of a file"),
        ("--fault", "there is no fault; use one like 'latency=50ms'"),
    ],
)
def test_an_empty_option_is_an_error_that_names_it(option: str, said: str) -> None:
    result = invoke("proxy", "127.0.0.1:0", "127.0.0.1:1", option, "")
    assert error_of(result) == f"{option}: {said}"
    assert result.exit_code == 2


@pytest.mark.parametrize("option", ["--reports", "--port-file"])
def test_a_file_name_with_a_control_character_is_refused(option: str) -> None:
    result = invoke("echo", "127.0.0.1:0", option, "rep\r")
    assert error_of(result) == (
        f"{option}: 'rep\\r' has a control character; give the name of a file without"
        " one"
    )
    assert result.exit_code == 2


@pytest.mark.parametrize("args", ["echo [fe80::1]:0", "proxy :0 [FEBF::1:2]:80"])
def test_a_link_local_address_needs_an_interface(args: str) -> None:
    result = invoke(*args.split())
    assert "is a link-local address, and needs the name of an interface," in (
        error_of(result)
    )
    assert result.exit_code == 2


def test_reports_that_cannot_be_written_are_an_error_at_the_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "no" / "reports"
    result = invoke("echo", ":0", "--reports", str(path))
    assert error_of(result) == (
        f"can't write reports to {path}: No such file or directory"
    )
    assert result.exit_code == 1


def test_defaults_are_shown_exactly() -> None:
    for field in dataclasses.fields(Timeouts):
        default = getattr(Timeouts(), field.name)
        assert parse_duration(format_duration(default)) == default


def test_python_m_trioserve_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trioserve", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(Path(trioserve.__file__).parent), run_name="__main__")
    assert caught.value.code == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.usefixtures("traced")
def test_importing_main_runs_nothing() -> None:
    code = "import trioserve.__main__; print('imported')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "imported\n"


def test_the_command_imports_what_it_runs_lazily() -> None:
    code = "import sys, trioserve.app; print('trioserve.app._run' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

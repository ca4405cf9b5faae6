"""``--allow`` and ``--deny``, in the order of the command line."""

from __future__ import annotations

import shlex
import signal
import socket

import pytest

from app.invoked import error_of, invoke
from app.process import Start
from trioserve.app import _run
from trioserve.app._service import Service


def rules_of(line: str, monkeypatch: pytest.MonkeyPatch, **env: str) -> tuple[str, ...]:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    assert invoke("echo", ":0", *shlex.split(line), **env).exit_code == 0
    return tuple(services[0].layers.access)


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("", []),
        ("--allow 10.0.0.0/8", ["allow 10.0.0.0/8"]),
        (
            "--deny 10.0.0.7 --allow 10.0.0.0/8 --deny=::1 --idle 5 --allow all",
            ["deny 10.0.0.7/32", "allow 10.0.0.0/8", "deny ::1/128", "allow all"],
        ),
        (
            "--allow 10.0.0.0/8 --allow unix --deny 192.0.2.7",
            ["allow 10.0.0.0/8", "allow unix", "deny 192.0.2.7/32"],
        ),
    ],
)
def test_the_order_of_rules_is_that_of_the_command_line(
    line: str, rules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(rules_of(line, monkeypatch)) == rules


def test_rules_of_the_environment_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the command line adds decides first, and nothing is forgotten."""
    env = {"TRIOSERVE_ALLOW": "10.0.0.0/8 ::1", "TRIOSERVE_DENY": "10.0.0.7"}
    theirs = ["deny 10.0.0.7/32", "allow 10.0.0.0/8", "allow ::1/128"]
    assert list(rules_of("", monkeypatch, **env)) == theirs
    ours = list(rules_of("--deny 10.0.0.8 --allow unix", monkeypatch, **env))
    assert ours == ["deny 10.0.0.8/32", "allow unix", *theirs]


@pytest.mark.parametrize("name", ["TRIOSERVE_ALLOW", "TRIOSERVE_DENY"])
def test_an_empty_variable_lets_nobody_in(name: str) -> None:
    said = error_of(invoke("echo", ":0", **{name: " "}))
    assert f"{name} is empty; unset it" in said


@pytest.mark.parametrize("line", ["", "--deny ::1"])
def test_an_error_in_a_variable_names_it(line: str) -> None:
    env = {"TRIOSERVE_DENY": "10.0.0.1 localhost"}
    said = error_of(invoke("echo", ":0", *line.split(), **env))
    assert said.startswith("--deny: 'localhost' is not a network")
    assert said.endswith("(from TRIOSERVE_DENY)")


def test_a_rule_that_can_not_match_is_an_error() -> None:
    line = "echo :0 --allow 10.0.0.0/8 --deny 10.0.0.7"
    said = error_of(invoke(*line.split()))
    assert said.startswith("'deny 10.0.0.7/32' never matches")


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ("10.0.0.7/8", "has bits of a host; did you mean 10.0.0.0/8 or 10.0.0.7?"),
        ("localhost", "'localhost' is not a network; write an IPv4 or IPv6 address"),
        ("", "'' is empty"),
        ("10.0.0.1 10.0.0.2", "is more than one network; repeat the option for each"),
    ],
)
def test_an_error_names_the_option(network: str, error: str) -> None:
    said = error_of(invoke("echo", ":0", "--deny", network))
    assert said.startswith("--deny: ")
    assert error in said


def test_a_client_that_is_denied_is_refused(start: Start) -> None:
    echo = start("echo", "127.0.0.1:0", "--deny", "127.0.0.2", "--allow", "127.0.0.0/8")
    with echo.connect(port := echo.port()) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
    with socket.create_connection(
        ("127.0.0.1", port), timeout=60, source_address=("127.0.0.2", 0)
    ) as client:
        assert client.recv(1) == b""
    assert " level=info " in echo.err.until("reason=denied")
    echo.signal(signal.SIGTERM)
    assert echo.code() == 0

"""`--sni`: targets by server name, through the command."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

import pytest
import trio
import trustme

from app.invoked import error_of, invoke
from app.process import Start
from trioserve.app import _run
from trioserve.app._service import Service
from wire.hellos import hello, named


def service_of(monkeypatch: pytest.MonkeyPatch, *words: str, **env: str) -> Service:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    assert invoke("proxy", ":0", *words, **env).exit_code == 0
    return services[0]


def test_targets_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(
        monkeypatch,
        *("a:1", "--sni", "Git.example=b:2", "--sni", "*.example=unix:/run/a=b"),
        *("--sni", "git.example=c:3?weight=2"),
    )
    assert [str(target) for target in service.targets] == ["a:1"]
    assert service.route == "a:1"
    assert service.routes == {
        "git.example": "b:2, then c:3?weight=2",
        "*.example": "unix:/run/a=b",
    }
    assert [str(target) for target in service.all_targets] == [
        "a:1", "b:2", "unix:/run/a=b", "c:3?weight=2",
    ]  # fmt: skip
    balanced = service_of(
        monkeypatch,
        *("--sni", "a.example=b:2", "--sni", "a.example=c:3", "--balance", "random"),
    )
    assert balanced.routes == {"a.example": "b:2, c:3 (random)"}


def test_each_target_has_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(
        monkeypatch, "a:1", "--sni", "a.example=b:2", "--sni", "b.example=c:3"
    )

    async def states() -> list[str]:
        return [str(state.target) for state in service.states()]

    assert trio.run(states) == ["b:2", "c:3", "a:1"]


def test_the_environment_sets_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(monkeypatch, TRIOSERVE_SNI="a.example=b:2 b.example=c:3")
    assert service.targets == ()
    assert service.routes == {"a.example": "b:2", "b.example": "c:3"}


def test_help_settings_shows_them() -> None:
    shown = invoke("help", "settings", "proxy", TRIOSERVE_SNI="A.example=b:2")
    assert re.search(r"^--sni +a\.example=b:2 ", shown.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "TARGET is missing; usage: trioserve proxy [OPTIONS] LISTEN TARGET..."),
        (
            ["--sni", "a.example"],
            "--sni: 'a.example' has no '='; use NAME=TARGET, like",
        ),
        (["--sni", "*=b:1"], "for all other names, give b:1 as TARGET"),
        (["--sni", "=b:1"], "--sni: '' is not a server name; use a host name, or"),
        (["--sni", "10.0.0.1=b:1"], "--sni: '10.0.0.1' is not a server name: clients"),
        (["--sni", "a.=b:1"], "--sni: 'a.' has a dot at its end; leave it out"),
        (["--sni", "a=b"], "'b' has no port; did you mean b:80?"),
        (["--sni", "a=:1"], "the target ':1' has no host; did you mean 127.0.0.1:1?"),
        (
            ["--sni", "ü=a:1", "--sni", "xn--tda=a:1"],
            "--sni: the server name 'xn--tda' is there",
        ),
    ],
)
def test_an_error_is_one_line(words: list[str], error: str) -> None:
    result = invoke("proxy", ":0", *words)
    assert error in error_of(result)
    assert result.exit_code == 2


def test_echo_does_not_have_it() -> None:
    assert "no such option '--sni'" in error_of(invoke("echo", "--sni", "a=b:1"))


class TlsServer:
    """Answers each client with its name and what it has sent, over TLS."""

    def __init__(self, authority: trustme.CA, name: str) -> None:
        self._name = name.encode()
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                if not client.recv(1, socket.MSG_PEEK):
                    return
                with self._context.wrap_socket(client, server_side=True) as tls:
                    tls.sendall(self._name + b": " + tls.recv(100))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        socket.create_connection(self._listener.getsockname(), timeout=60).close()
        self._thread.join(60)
        self._listener.close()


@pytest.mark.usefixtures("traced")
def test_tls_servers_behind_one_proxy(start: Start, tmp_path: Path) -> None:
    """The client verifies each by its name."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    reports = tmp_path / "reports.jsonl"

    with (
        TlsServer(authority, "git.example") as git,
        TlsServer(authority, "*.apps.example") as apps,
    ):
        proxy = start(
            *("proxy", "127.0.0.1:0", "--log", "logfmt", "--log-connections", "all"),
            *("--sni", f"git.example=127.0.0.1:{git.port}"),
            *("--sni", f"*.apps.example=127.0.0.1:{apps.port}"),
            *("--reports", str(reports)),
        )
        address = "127.0.0.1", proxy.port()
        assert f' sni="git.example=127.0.0.1:{git.port},*.apps' in proxy.err.seen[-1]

        def answer(name: str) -> bytes:
            with (
                socket.create_connection(address, timeout=60) as client,
                context.wrap_socket(client, server_hostname=name) as tls,
            ):
                tls.sendall(b"hello")
                return tls.recv(100)

        assert answer("git.example") == b"git.example: hello"
        assert answer("a.apps.example") == b"*.apps.example: hello"
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            answer("other.example")
        said = proxy.err.until("reason=no_route")
        assert " server_name=other.example " in said
        with socket.create_connection(address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                plain.recv(100)
        said = proxy.err.until("reason=bad_client_hello")
        assert ' error="it began with HTTP without TLS" ' in said
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0
    found = [json.loads(line) for line in reports.read_text().splitlines()]
    assert [(each["server_name"], each["reason"]) for each in found[2:]] == [
        ("other.example", "no_route"),
        (None, "bad_client_hello"),
    ]
    explained = invoke("explain", str(reports)).stdout
    assert ", asked for other.example, at " in explained
    assert "add it with --sni NAME=TARGET" in explained
    assert "like https:// and unlike http://" in explained


def test_without_a_name_to_the_other_targets(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(60)
        port = target.getsockname()[1]
        proxy = start(
            *("proxy", "127.0.0.1:0", f"127.0.0.1:{port}", "--log", "logfmt"),
            *("--sni", "git.example=127.0.0.1:1"),
        )
        address = "127.0.0.1", proxy.port()
        for data in (hello(), hello(named(b"other.example"))):
            with socket.create_connection(address) as client:
                client.sendall(data + b"more")
                served, _ = target.accept()
                with served:
                    received = b""
                    while len(received) < len(data) + 4:
                        received += served.recv(4096)
                    assert received == data + b"more"
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0

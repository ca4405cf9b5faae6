"""Options of sockets, rates and the PROXY protocol, and what they do."""

from __future__ import annotations

import json
import math
import shlex
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from app.invoked import error_of, invoke
from app.process import Start
from trioserve import SocketOptions
from trioserve.app import _run
from trioserve.app._network_options import rate
from trioserve.app._service import Service
from wire.headers import v2

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"


def service_of(
    monkeypatch: pytest.MonkeyPatch, line: str = "", command: str = "echo", **env: str
) -> Service:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    targets = [":1"] if command == "proxy" else []
    words = [command, ":0", *map("a".__add__, targets), *shlex.split(line)]
    assert invoke(*words, **env).exit_code == 0
    return services[0]


def test_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(monkeypatch)
    assert service.sockets == SocketOptions()
    assert service.layers.accept_proxy == service.layers.direct_access == ()
    assert (service.backlog, service.reuse_port) == (None, False)
    assert service.limits.rate_per_peer is None
    assert service.timeouts.handshake == 10


def test_options_become_values(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(
        monkeypatch,
        "--keepalive 5m --user-timeout 30s --backlog 7 --reuse-port --rate 100/1m"
        " --handshake 3 --accept-proxy 10.0.0.0/8 --accept-proxy ::ffff:192.0.2.1"
        " --deny-direct 10.0.0.7 --allow-direct 10.0.0.0/8 --allow 192.0.2.0/24",
    )
    assert service.sockets == SocketOptions(keepalive=300, user_timeout=30)
    assert (service.backlog, service.reuse_port) == (7, True)
    assert service.limits.rate_per_peer == (100, 60)
    assert service.timeouts.handshake == 3
    assert service.layers.accept_proxy == ("10.0.0.0/8", "192.0.2.1/32")
    assert service.layers.direct_access == ("deny 10.0.0.7/32", "allow 10.0.0.0/8")
    assert service.layers.access == ("allow 192.0.2.0/24",)


def test_the_environment_sets_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(
        monkeypatch,
        "--allow-direct ::1",
        TRIOSERVE_KEEPALIVE="never",
        TRIOSERVE_RATE="5/s",
        TRIOSERVE_ACCEPT_PROXY="10.0.0.1 unix",
        TRIOSERVE_ALLOW_DIRECT="10.0.0.0/8",
        TRIOSERVE_DENY_DIRECT="10.0.0.7",
        TRIOSERVE_REUSE_PORT="1",
    )
    assert service.sockets.keepalive == math.inf
    assert service.limits.rate_per_peer == (5, 1)
    assert service.layers.accept_proxy == ("10.0.0.1/32", "unix")
    assert service.layers.direct_access == (
        "allow ::1/128", "deny 10.0.0.7/32", "allow 10.0.0.0/8",
    )  # fmt: skip
    assert service.reuse_port


@pytest.mark.parametrize(
    ("text", "count", "seconds", "said"),
    [
        ("100/1m", 100, 60, "100/1m"),
        ("5/s", 5, 1, "5/1s"),
        ("5/500ms", 5, 0.5, "5/500ms"),
        ("7/90", 7, 90, "7/1m30s"),
    ],
)
def test_a_rate_is_a_number_and_a_time(
    text: str, count: int, seconds: float, said: str
) -> None:
    found = rate(text)
    assert (found.count, found.seconds) == (count, seconds)
    assert str(found) == said
    assert rate(said) == found


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("--rate 100", "--rate: '100' has no time; use N/TIME, like 100/1m"),
        ("--rate 0/1s", "--rate: '0' is not a whole number of 1 or more"),
        ("--rate 5/never", "--rate: the time in '5/never' is not more than 0 and fin"),
        ("--rate 5/0", "--rate: the time in '5/0' is not more than 0 and finite"),
        ("--rate 5/x", "--rate: 'x' is not a duration; use 500ms"),
        (
            "--keepalive 0",
            "--keepalive: must be more than 0 and at most 32767, or 'never', not 0.0",
        ),
        ("--user-timeout 30d", "--user-timeout: must be more than 0 and at most"),
        ("--user-timeout soon", "--user-timeout: 'soon' is not a duration"),
        ("--handshake 0", "--handshake: must be more than 0; 'never' means no limit"),
        ("--backlog 0", "--backlog: '0' is not a whole number of 1 or more"),
        ("--accept-proxy lb", "--accept-proxy: 'lb' is not a network; write an IPv4"),
        ("--accept-proxy 10.0.0.1/8", "has bits of a host; did you mean 10.0.0.0/8"),
        ("--allow-direct lb", "--allow-direct: 'lb' is not a network"),
        (
            "--allow-direct 10.0.0.0/8 --deny-direct 10.0.0.7",
            "'deny 10.0.0.7/32' never matches",
        ),
        ("--send-proxy v3", "--send-proxy: 'v3' is not one of 'v1', 'v2'"),
        (
            "--source here",
            "--source: 'here' is not an IP address; use one of",
        ),
        ("--source fe80::1%lo", "--source: 'fe80::1%lo' has a zone; leave it out"),
    ],
)
def test_an_error_is_one_line(line: str, error: str) -> None:
    assert error in error_of(invoke("proxy", ":0", "a:1", *line.split()))


def exchanged(port: int, data: bytes, **options: Any) -> bytes:
    """Send bytes and EOF; what comes back."""
    address = ("127.0.0.1", port)
    with socket.create_connection(address, timeout=60, **options) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while more := client.recv(4096):
            received += more
        return received


@pytest.mark.usefixtures("traced")
def test_a_client_is_known_through_two_proxies(start: Start, tmp_path: Path) -> None:
    """Declared to the second by the first, which a header has declared it to."""
    reports = tmp_path / "reports.jsonl"
    trusted = ("--accept-proxy", "127.0.0.1", "--log", "logfmt")
    echo = start("echo", "127.0.0.1:0", *trusted, "--reports", str(reports))
    proxy = start(
        *("proxy", "127.0.0.1:0", f"127.0.0.1:{echo.port()}", *trusted),
        *("--send-proxy", "v2", "--source", "127.0.0.1", "--allow-direct", "127.0.0.1"),
    )
    port = proxy.port()
    assert ' direct_access="allow 127.0.0.1/32" ' in proxy.err.seen[-1]
    assert " accept_proxy=127.0.0.1/32 " in proxy.err.seen[-1]
    assert exchanged(port, LINE + b"hello") == b"hello"
    for process in (proxy, echo):
        process.signal(signal.SIGTERM)
        assert process.code() == 0
    (report,) = map(json.loads, reports.read_text().splitlines())
    assert report["peer"] == "192.0.2.1:56324"
    assert report["local"] == "198.51.100.2:443"
    assert report["direct_peer"].startswith("127.0.0.1:")
    result = invoke("explain", str(reports), "--id", "1")
    assert f"through {report['direct_peer']}," in result.stdout


@pytest.mark.usefixtures("traced")
def test_a_missing_header_is_explained(start: Start, tmp_path: Path) -> None:
    reports = tmp_path / "reports.jsonl"
    echo = start(
        *("echo", "127.0.0.1:0", "--accept-proxy", "127.0.0.1"),
        *("--reports", str(reports), "--log", "logfmt"),
    )
    port = echo.port()
    with pytest.raises(ConnectionResetError):
        exchanged(port, b"GET / HTTP/1.1\r\n\r\n")
    assert exchanged(port, v2(0x20, 0)) == b""  # a health check, which is not logged
    said = echo.err.until("reason=bad_proxy_header")
    assert 'error="there is no PROXY header"' in said
    echo.signal(signal.SIGTERM)
    assert echo.code() == 0
    result = invoke("explain", str(reports), "--id", "1")
    assert "HAProxy: send-proxy; nginx: proxy_protocol on" in result.stdout


@pytest.mark.usefixtures("traced")
def test_the_text_at_the_start_says_what_is_expected(start: Start) -> None:
    options = ("--accept-proxy", "10.0.0.5", "--deny-direct", "10.0.0.9")
    echo = start("echo", "127.0.0.1:0", *options, "--rate", "9/m", "--log", "text")
    echo.err.until("9/1m new ones from one peer, others are refused")
    echo.err.until("direct: deny 10.0.0.9/32; the first match decides")
    echo.err.until("PROXY:  each connection from 10.0.0.5/32 must begin with a header")
    echo.signal(signal.SIGTERM)
    assert echo.code() == 0


def test_two_processes_share_a_port(start: Start) -> None:
    first = start("echo", "127.0.0.1:0", "--reuse-port", "--backlog", "10")
    second = start("echo", f"127.0.0.1:{(port := first.port())}", "--reuse-port")
    assert second.port() == port
    for process in (first, second):
        process.signal(signal.SIGTERM)
        assert process.code() == 0

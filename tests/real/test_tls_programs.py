"""TLS with HAProxy, nginx, Redis and PostgreSQL: as clients, and as targets."""

from __future__ import annotations

import functools
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certificates import Authority
from real.balancers import start_haproxy, start_nginx, stream_module
from real.test_proxy_protocol import connected
from real.tools import (
    PATIENCE,
    Process,
    Record,
    Serve,
    Start,
    Target,
    all_of,
    needs,
    on_free_port,
    program,
    random_bytes,
    receive,
    receive_exactly,
    send,
    sha256,
)
from shell import free_port

pytestmark = pytest.mark.long("other programs as TLS clients and servers")

DATA = random_bytes(3_000_000)
MORE = random_bytes(2_000_000, seed=2)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


# -- load balancers

HAPROXY = """
defaults
    mode tcp
    timeout connect 60s
    timeout client 60s
    timeout server 60s
listen all
    bind 127.0.0.1:{port} {bind}
    server one {server} {options}
"""

NGINX = """
error_log stderr;
events {{}}
stream {{
    server {{
        listen 127.0.0.1:{port} {listen};
        proxy_pass {server};
        {options}
    }}
}}
"""


def haproxy(
    server: str, folder: Path, start: Start, *, bind: str = "", options: str = ""
) -> tuple[Process, int]:
    port = free_port()
    text = HAPROXY.format(port=port, bind=bind, server=server, options=options)
    return start_haproxy(text, folder, start), port


def nginx(
    server: str, folder: Path, start: Start, *, listen: str = "", options: str = ""
) -> tuple[Process, int]:
    if stream_module() is None:
        pytest.skip("nginx has no stream module")
    port = free_port()
    text = NGINX.format(port=port, listen=listen, server=server, options=options)
    return start_nginx(text, folder, start), port


def haproxy_as_client(
    server: str, authority: Authority, version: str, start: Start
) -> tuple[Process, int]:
    ca = f"ca-file {authority.path} verify required verifyhost localhost"
    options = f"ssl {ca} sni str(localhost) force-tlsv{version.replace('.', '')}"
    return haproxy(server, authority.folder.parent, start, options=options)


def nginx_as_client(
    server: str, authority: Authority, version: str, start: Start
) -> tuple[Process, int]:
    options = f"""
        proxy_ssl on;
        proxy_ssl_protocols TLSv{version};
        proxy_ssl_trusted_certificate {authority.path};
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
    """
    return nginx(server, authority.folder.parent, start, options=options)


def haproxy_as_server(
    server: str, authority: Authority, version: str, start: Start
) -> tuple[Process, int]:
    bind = f"ssl crt {authority.issue('localhost')}"
    bind += f" force-tlsv{version.replace('.', '')}"
    return haproxy(server, authority.folder.parent, start, bind=bind)


def nginx_as_server(
    server: str, authority: Authority, version: str, start: Start
) -> tuple[Process, int]:
    cert = authority.issue("localhost")
    options = f"""
        ssl_certificate {cert};
        ssl_certificate_key {cert};
        ssl_protocols TLSv{version};
    """
    return nginx(server, authority.folder.parent, start, listen="ssl", options=options)


VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])

Begin = Callable[[str, Authority, str, Start], tuple[Process, int]]


def converse(
    client: socket.socket, target: Target, first: str, threads: ThreadPoolExecutor
) -> None:
    """Every byte arrives, in both directions, whichever end sends EOF first."""
    with target.accept() as server:
        sending = threads.submit(client.sendall, DATA)
        assert receive_exactly(server, len(DATA)) == DATA
        sending.result(PATIENCE)
        if first == "client":
            client.shutdown(socket.SHUT_WR)
            assert receive(server) == all_of(b"")
        receiving = threads.submit(receive, client)
        send(server, MORE)
        assert receiving.result(PATIENCE) == all_of(MORE)
        if first == "target":
            client.shutdown(socket.SHUT_WR)
            assert receive(server) == all_of(b"")


def check(report: Record, facts: Record, version: str) -> None:
    """The report of a conversation, and what TLS has agreed on."""
    assert report["outcome"] == "ok", report
    assert (report["bytes_received"], report["bytes_sent"]) == (len(DATA), len(MORE))
    assert facts["version"] == f"TLSv{version}"
    assert facts["sni"] == "localhost"


@VERSIONS
@pytest.mark.parametrize(
    ("begin", "first", "options"),
    [
        pytest.param(haproxy_as_client, "client", [], marks=needs("haproxy")),
        pytest.param(haproxy_as_client, "target", [], marks=needs("haproxy")),
        # It answers a close_notify with a FIN only.
        pytest.param(
            *(nginx_as_client, "target", ["--tls-allow-truncation"]),
            marks=needs("nginx"),
        ),
    ],
)
def test_a_load_balancer_is_the_client(
    begin: Begin,
    first: str,
    options: list[str],
    version: str,
    authority: Authority,
    serve: Serve,
    start: Start,
    target: Target,
    threads: ThreadPoolExecutor,
) -> None:
    """It verifies the chain and the name."""
    cert = authority.issue("localhost")
    proxy = serve("proxy", target.address, "--tls-cert", cert, *options)
    balancer, port = begin(proxy.address, authority, version, start)
    with connected(balancer, ("127.0.0.1", port)) as client:
        converse(client, target, first, threads)
    (report,) = proxy.stop()
    check(report, report["tls"], version)


@VERSIONS
@pytest.mark.parametrize(
    ("begin", "first"),
    [
        pytest.param(haproxy_as_server, "client", marks=needs("haproxy")),
        pytest.param(haproxy_as_server, "target", marks=needs("haproxy")),
        # It has no half-close over TLS: see below.
        pytest.param(nginx_as_server, "target", marks=needs("nginx")),
    ],
)
def test_a_load_balancer_is_the_target(
    begin: Begin,
    first: str,
    version: str,
    authority: Authority,
    serve: Serve,
    start: Start,
    target: Target,
    threads: ThreadPoolExecutor,
) -> None:
    """The proxy verifies it."""
    balancer, port = begin(target.address, authority, version, start)
    where = f"tls://127.0.0.1:{port}?ca={authority.path}&sni=localhost"
    proxy = serve("proxy", where)
    with connected(balancer, ("127.0.0.1", port)):
        pass  # it listens
    with connected(proxy, ("127.0.0.1", proxy.port)) as client:
        converse(client, target, first, threads)
    (report,) = proxy.stop()
    check(report, report["upstream_tls"], version)


@needs("nginx")
@pytest.mark.parametrize("options", [[], ["--tls-allow-truncation"]])
def test_a_half_close_of_nginx_is_a_truncation(
    options: list[str],
    authority: Authority,
    serve: Serve,
    start: Start,
    target: Target,
    threads: ThreadPoolExecutor,
) -> None:
    """It sends a FIN for it, and no close_notify."""
    cert = authority.issue("localhost")
    proxy = serve("proxy", target.address, "--tls-cert", cert, *options)
    folder = authority.folder.parent
    half = "proxy_ssl on; proxy_half_close on;"
    balancer, port = nginx(proxy.address, folder, start, options=half)
    with connected(balancer, ("127.0.0.1", port)) as client, target.accept() as server:
        send(client, b"question")
        if options:
            assert receive(server) == all_of(b"question")
            send(server, b"answer")
            assert receive(client) == all_of(b"answer")
        else:
            assert receive(server).reset
    (report,) = proxy.stop()
    assert report["reason"] == ("client_closed" if options else "client_reset")


# -- Redis


def redis_server(folder: Path, start: Start, *options: str) -> int:
    """Its port, which stands for PORT in the options."""

    def begin(port: int) -> Process:
        return start(
            *(program("redis-server"), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no"),
            *(word.replace("PORT", str(port)) for word in options),
        )

    return on_free_port(begin, "Ready to accept connections")[1]


def check_redis(port: int, *options: str) -> None:
    """A value comes back as it was set, and each command of many has its reply."""

    def ask(*words: str, data: bytes = b"") -> bytes:
        done = subprocess.run(
            [program("redis-cli"), "-p", str(port), *options, *words],
            input=data,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ask("-x", "SET", "key", data=DATA) == b"OK\n"
    assert sha256(ask("--raw", "GET", "key")) == sha256(DATA + b"\n")
    commands = b"".join(b"SET key:%d %d\r\n" % (n, n * n) for n in range(20_000))
    said = ask("--pipe", data=commands)
    assert said.splitlines()[-1] == b"errors: 0, replies: 20000"


@functools.cache
def _redis_has_tls() -> bool:
    said = subprocess.run(["redis-cli", "--help"], capture_output=True, text=True)
    return "--tls " in said.stdout


@pytest.fixture
def _redis_with_tls() -> None:
    if not _redis_has_tls():
        pytest.skip("Redis was built without TLS")


@needs("redis-server", "redis-cli")
@pytest.mark.usefixtures("_redis_with_tls")
@pytest.mark.parametrize("options", [[], ["--tls-allow-truncation"]])
def test_redis_cli_is_the_client(
    options: list[str],
    authority: Authority,
    serve: Serve,
    start: Start,
    tmp_path: Path,
) -> None:
    """It ends without a close_notify."""
    port = redis_server(tmp_path, start, "--port", "PORT")
    cert = authority.issue("localhost", "127.0.0.1")
    proxy = serve("proxy", f"127.0.0.1:{port}", "--tls-cert", cert, *options)
    check_redis(proxy.port, "--tls", "--cacert", authority.path, "--sni", "localhost")
    reports = proxy.stop()
    ends = "client_closed" if options else "client_reset"
    assert {report["reason"] for report in reports} == {ends}
    assert {report["tls"]["sni"] for report in reports} == {"localhost"}


@needs("redis-server", "redis-cli")
@pytest.mark.usefixtures("_redis_with_tls")
@pytest.mark.parametrize("option", ["", "&allow-truncation"])
def test_redis_is_the_target(
    option: str, authority: Authority, serve: Serve, start: Start, tmp_path: Path
) -> None:
    """It verifies the proxy's certificate, too. It ends without a close_notify."""
    ca, cert = authority.path, authority.issue("localhost")
    port = redis_server(
        *(tmp_path, start, "--port", "0", "--tls-port", "PORT"),
        *("--tls-cert-file", cert, "--tls-key-file", cert),
        *("--tls-ca-cert-file", ca, "--tls-auth-clients", "yes"),
    )
    tls = f"tls://127.0.0.1:{port}?ca={ca}&sni=localhost&cert={cert}"
    proxy = serve("proxy", tls + option)
    check_redis(proxy.port)
    reports = proxy.stop()
    assert {report["upstream_tls"]["version"] for report in reports} == {"TLSv1.3"}
    for report in reports:
        if option:
            assert report["outcome"] == "ok"
            continue
        assert report["reason"] == "server_reset"
        assert "it ended without close_notify" in report["error"]

"""TLS clients of other makes through ``trioserve proxy --tls-cert``."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certificates import Authority
from real.tools import (
    PATIENCE,
    Serve,
    Start,
    Target,
    all_of,
    needs,
    random_bytes,
    receive,
    send,
)

pytestmark = pytest.mark.long("other programs")

DATA = random_bytes(3_000_000)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


@needs("curl")
@pytest.mark.parametrize("version", ["--tlsv1.2", "--tlsv1.3"])
def test_curl_downloads_and_uploads(
    version: str, authority: Authority, serve: Serve, start: Start, tmp_path: Path
) -> None:
    """It verifies the name and the chain, and its certificate is verified."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    http = start(
        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"),
        *("--directory", str(root)),
    )
    found = re.search(r" port (\d+) ", http.until("Serving HTTP"))
    assert found
    clients = Authority(authority.folder)
    proxy = serve(
        *("proxy", f"127.0.0.1:{found[1]}"),
        *("--tls-cert", authority.issue("localhost"), "--tls-client-ca", clients.path),
        *("--tls-allow-san", "web.example.org"),
    )
    cert = clients.issue("web.example.org")
    copy = tmp_path / "copy"
    subprocess.run(
        ["curl", "-sSf", version, "--cacert", authority.path, "--cert", cert,
         "-o", copy, f"https://localhost:{proxy.port}/file"],
        check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert copy.read_bytes() == DATA
    (report,) = proxy.stop()
    assert report["outcome"] in ("ok", "peer_error")
    assert report["tls"]["names"] == ["DNS:web.example.org"]
    assert report["bytes_sent"] > len(DATA)


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_uploads_and_downloads(
    version: str, authority: Authority, serve: Serve, target: Target
) -> None:
    """Every byte, in both directions."""
    proxy = serve("proxy", target.address, "--tls-cert", authority.issue("localhost"))
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", proxy.address, version, "-quiet",
         "-servername", "localhost", "-CAfile", authority.path,
         "-verify_return_error"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert client.stdin
    assert client.stdout
    try:
        server = target.accept()
        with server, ThreadPoolExecutor(1) as threads:
            writing = threads.submit(client.stdin.write, DATA)
            received = b""
            while len(received) < len(DATA):
                received += server.recv(1 << 20)
            writing.result(PATIENCE)
            assert received == DATA
            reading = threads.submit(client.stdout.read)
            server.sendall(DATA)
            server.shutdown(socket.SHUT_WR)
            assert reading.result(PATIENCE) == DATA
            client.wait(PATIENCE)
            server.recv(1)
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
    (report,) = proxy.stop()
    assert (report["bytes_received"], report["bytes_sent"]) == (len(DATA), len(DATA))
    assert report["tls"]["sni"] == "localhost"


@needs("openssl")
@pytest.mark.parametrize(
    ("options", "alert"),
    [
        (["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "protocol version"),
        (["-tls1_2", "-cipher", "AES128-GCM-SHA256"], "handshake failure"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"], "handshake failure"),
    ],
)
def test_nothing_old_is_spoken(
    options: list[str], alert: str, authority: Authority, serve: Serve
) -> None:
    """No TLS below 1.2, no cipher without forward secrecy or AEAD; by an alert."""
    echo = serve("echo", "--tls-cert", authority.issue("localhost"))
    said = subprocess.run(
        ["openssl", "s_client", "-connect", echo.address, *options],
        input=b"", capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert f"alert {alert}" in said.stderr.decode()
    (report,) = echo.stop()
    assert report["reason"] == "tls_failed"


def test_pythons_own_tls_and_a_session_that_is_resumed(
    authority: Authority, serve: Serve, target: Target
) -> None:
    proxy = serve("proxy", target.address, "--tls-cert", authority.issue("localhost"))
    context = authority.client_context()
    session: ssl.SSLSession | None = None
    for _ in range(2):
        raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE)
        with context.wrap_socket(
            raw, server_hostname="localhost", session=session
        ) as client:
            server = target.accept()
            with server:
                send(server, b"hello")
                assert client.recv(5) == b"hello"
                session = client.session
                client.sendall(b"good bye")
                server.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
                client.unwrap()
                assert receive(server) == all_of(b"good bye")
    reports = proxy.stop()
    assert [report["tls"]["resumed"] for report in reports] == [False, True]
    assert {report["outcome"] for report in reports} == {"ok"}

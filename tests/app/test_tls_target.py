"""``tls://`` on the command line, with TLS at both ends."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from app.invoked import error_of, invoke
from app.process import PATIENCE, Start
from certificates import Authority
from test_tls import client_over
from test_tls_targets import VERSIONS, server_context

DATA = bytes(range(256)) * 400


@contextmanager
def target(context: ssl.SSLContext, first: str) -> Generator[int]:
    """A target that answers at EOF, or ends first and then expects the same bytes.

    After its own end, an ``ssl.SSLSocket`` gives no more bytes; so it is over a pair of
    buffers.
    """
    failed: list[Exception] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            sock, _ = listener.accept()
            sock.settimeout(PATIENCE)
            with sock:
                _serve(sock, context, first)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        yield listener.getsockname()[1]
        thread.join(PATIENCE)
    assert failed == []


def _serve(sock: socket.socket, context: ssl.SSLContext, first: str) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)

    def flush() -> None:
        sock.sendall(outgoing.read())

    def fill() -> None:
        flush()
        incoming.write(sock.recv(65536))

    def end() -> None:
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        flush()

    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            fill()
    flush()
    if first == "target":
        tls.write(DATA)
        end()
    received = b""
    while len(received) < len(DATA):
        try:
            received += tls.read(65536)
        except ssl.SSLWantReadError:
            fill()
    assert received == DATA
    if first == "client":
        tls.write(DATA)
        end()
    while sock.recv(65536):
        pass


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("first", ["client", "target"])
def test_each_side_ends_its_own_direction(
    first: str, version: ssl.TLSVersion, start: Start, tmp_path: Path
) -> None:
    """Every byte arrives, in both orders, through a command with TLS on both sides."""
    authority = Authority(tmp_path)
    cert, ca = authority.issue("localhost"), authority.path
    reports = tmp_path / "reports.jsonl"
    with target(server_context(cert, version, ca), first) as port:
        place = f"tls://127.0.0.1:{port}?ca={ca}&sni=localhost&cert={cert}"
        proxy = start(
            *("proxy", "127.0.0.1:0", place, "--tls-cert", cert),
            *("--log", "logfmt", "--reports", str(reports)),
        )
        address = "127.0.0.1", proxy.port()

        async def client() -> bytes:
            context = authority.client_context()
            context.maximum_version = version
            stream = await trio.open_tcp_stream(*address)
            tls = client_over(stream, context)
            await tls.handshake()
            received = b""
            if first == "client":
                await tls.send(DATA)
                await tls.send_eof()
            while more := await tls.receive():
                received += more
            if first == "target":
                await tls.send(DATA)
                await tls.send_eof()
            tls.close()
            return received

        assert trio.run(client) == DATA
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0
    (line,) = reports.read_text().splitlines()
    report = json.loads(line)
    closed = {"client": "client_closed", "target": "server_closed"}
    assert report["reason"] == closed[first]
    assert report["bytes_received"] == report["bytes_sent"] == len(DATA)
    assert report["upstream_tls"]["sni"] == "localhost"
    assert report["upstream_tls"]["version"] == version.name.replace("_", ".")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("tls://db:1?ca=none.pem", "ca: can't read 'none.pem': No such file or dir"),
        ("tls://db:1?cert={ca}", "has no private key in it, in PEM"),
        ("tls://db:1?verify=maybe", "is not an option of a target; use weight=N, prio"),
        ("tls://[fe80::1]:1", "needs the name of an interface"),
    ],
)
def test_what_can_not_be_used_is_named(place: str, said: str, tmp_path: Path) -> None:
    place = place.format(ca=Authority(tmp_path).path)
    result = invoke("proxy", ":0", place)
    assert said in error_of(result)
    assert result.exit_code == 2

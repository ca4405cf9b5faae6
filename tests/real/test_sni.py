"""Real TLS clients through `--sni`: what they send first is read, and nothing is lost.

OpenSSL's own server is the target. Their hellos are also fed byte by byte.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from real.tools import (
    PATIENCE,
    Process,
    Serve,
    Start,
    needs,
    on_free_port,
    program,
)
from trioserve.wire._client_hello import ClientHello, ClientHelloReader

pytestmark = pytest.mark.long("other programs as TLS clients and servers")

NAME = "git.example.org"

#: Programs that connect to a port of this machine by TLS, and ask for NAME.
CLIENTS = {
    "openssl": "openssl s_client -connect 127.0.0.1:PORT -servername NAME",
    "openssl, TLS 1.2": "openssl s_client -connect 127.0.0.1:PORT -servername NAME"
    " -tls1_2",
    "openssl, many protocols": "openssl s_client -connect 127.0.0.1:PORT"
    f" -servername NAME -alpn {','.join(f'protocol-{n}' for n in range(400))}",
    "curl": "curl -s --connect-to ::127.0.0.1:PORT https://NAME/",
    "curl, HTTP/1.1": "curl -s --http1.1 --connect-to ::127.0.0.1:PORT https://NAME/",
    "wget": "wget -qO- https://localhost:PORT/",
}


def command(text: str, port: int) -> list[str]:
    words = text.replace("PORT", str(port)).replace("NAME", NAME).split()
    return [program(words[0]), *words[1:]]


def first_bytes(text: str) -> bytes:
    """What a client sends before it has an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        words = command(text, listener.getsockname()[1])
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:  # fmt: skip
            served, _ = listener.accept()
            with served:
                served.settimeout(PATIENCE)
                reader = ClientHelloReader()
                while reader.feed(served.recv(65536)) is None:
                    pass
            client.kill()
    return bytes(reader.data)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=name, marks=needs(text.partition(" ")[0]))
        for name, text in CLIENTS.items()
    ],
)
def test_what_a_client_sends_first_is_read_byte_by_byte(text: str) -> None:
    data = first_bytes(text)
    reader = ClientHelloReader()
    for at in range(len(data) - 1):
        assert reader.feed(data[at : at + 1]) is None
    asked = "localhost" if text.startswith("wget") else NAME
    assert reader.feed(data[-1:]) == ClientHello(asked)


def output(words: Sequence[str], request: str = "") -> str:
    """What a program prints when it gets this as its input."""
    done = subprocess.run(
        words, input=request, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.stdout + done.stderr


@needs("openssl", "curl")
def test_openssl_and_curl_through_a_proxy(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    """Certificates are verified; a resumed session has its ticket in the hello."""
    authority = trustme.CA()
    trusted, key = str(tmp_path / "ca.pem"), str(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(trusted)
    authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(key)
    (tmp_path / "big").write_text(100_000 * "0123456789")

    def s_server(port: int) -> Process:
        openssl = (program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}")
        options = ("-cert", key, "-key", key, "-WWW")
        return start("env", f"--chdir={tmp_path}", *openssl, *options)

    _, target = on_free_port(s_server, "ACCEPT")
    proxy = serve("proxy", "--sni", f"{NAME}=127.0.0.1:{target}")
    curl = [program("curl"), "-sS", "--cacert", trusted]
    curl += ["--connect-to", f"::127.0.0.1:{proxy.port}"]
    assert output([*curl, f"https://{NAME}/big"]) == 100_000 * "0123456789"
    assert "unrecognized name" in output([*curl, "https://other.example.org/big"])
    s_client = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{proxy.port}"]
    s_client += ["-servername", NAME, "-CAfile", trusted, "-ign_eof"]
    s_client += ["-verify_return_error", "-verify_hostname", NAME]
    session, request = str(tmp_path / "session"), "GET /ca.pem HTTP/1.0\r\n\r\n"
    first = output([*s_client, "-sess_out", session], request)
    assert "Verify return code: 0 (ok)" in first
    again = output([*s_client, "-sess_in", session], request)
    assert "Reused, TLS" in again
    assert "BEGIN CERTIFICATE" in again
    plain = output([*curl, "http://other.example.org/"])
    assert "reset by peer" in plain
    reports = {report["id"]: report for report in proxy.stop()}
    assert [reports[n]["reason"] for n in (2, 5)] == ["no_route", "bad_client_hello"]
    assert [reports[n]["server_name"] for n in (1, 3, 4)] == [NAME, NAME, NAME]
    assert reports[5]["error"] == "it began with HTTP without TLS"


@needs("psql")
def test_postgresql_asks_in_its_own_way_first(serve: Serve) -> None:
    """Its clients before version 17 are told so."""
    proxy = serve("proxy", "--sni", f"{NAME}=127.0.0.1:1")
    place = f"host=127.0.0.1 port={proxy.port} sslmode=require gssencmode=disable"
    output([program("psql"), place, "-c", "select 1"])
    (report,) = proxy.stop()
    assert report["error"] == "it began with PostgreSQL's request for encryption"

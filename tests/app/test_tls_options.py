"""Options for TLS, and what they do."""

from __future__ import annotations

import shlex
import socket
import ssl
from pathlib import Path

import pytest

from app.invoked import error_of, invoke
from app.process import Start
from app.test_network_options import service_of
from certificates import Authority
from trioserve import TlsOptions


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_options_become_a_value(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    assert service_of(monkeypatch).layers.tls is None
    cert, ca = authority.issue("localhost"), authority.path
    service = service_of(monkeypatch, f"--tls-cert {cert}")
    assert service.layers.tls == TlsOptions(cert=cert)
    service = service_of(
        monkeypatch,
        f"--tls-key {cert} --tls-client-ca {ca} --tls-allow-cn a --tls-allow-cn b"
        " --tls-allow-san c --tls-allow-uri d:e --tls-min 1.3 --tls-allow-truncation",
        TRIOSERVE_TLS_CERT=cert,
    )
    assert service.layers.tls == TlsOptions(
        cert=cert,
        key=cert,
        client_ca=ca,
        allow_cn=["a", "b"],
        allow_san=["c"],
        allow_uri=["d:e"],
        min_version="1.3",
        allow_truncation=True,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--tls-cert none.pem", "--tls-cert: can't read 'none.pem': No such file"),
        ("--tls-key k", "--tls-key needs --tls-cert"),
        ("--tls-allow-truncation", "--tls-allow-truncation needs --tls-cert"),
        ("--tls-allow-uri u", "--tls-allow-uri needs --tls-cert"),
        ("--tls-cert {cert} --tls-key none", "--tls-key: can't read 'none'"),
        ("--tls-cert {cert} --tls-key {other}", "--tls-key: the key in"),
        ("--tls-cert {cert} --tls-client-ca no", "--tls-client-ca: can't read 'no'"),
        ("--tls-cert {cert} --tls-allow-cn a", "--tls-allow-cn needs --tls-client-ca"),
        ("--tls-cert {cert} --tls-min 1.1", "--tls-min: '1.1' is not one of"),
    ],
)
def test_what_can_not_be_used_is_named(
    line: str, said: str, authority: Authority
) -> None:
    files = {"cert": authority.issue("localhost"), "other": authority.issue("other")}
    result = invoke("echo", ":0", *shlex.split(line.format(**files)))
    assert said in error_of(result)
    assert result.exit_code == 2


def test_tls_is_ended_or_passed_on(authority: Authority) -> None:
    cert = authority.issue("localhost")
    options = ["--sni", "a.example.org=db:5432", "--tls-cert", cert]
    assert "leave one of them out" in error_of(invoke("proxy", ":0", *options))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/socket", ":0"])
def test_a_server_says_how_to_try_it(
    start: Start, authority: Authority, listen: str
) -> None:
    cert, ca = authority.issue("localhost"), authority.path
    address = listen.format(authority.folder)
    options = ["--tls-cert", cert, "--tls-client-ca", ca, "--log", "text"]
    server = start("echo", address, *options)
    tls = server.err.until("TLS: ")
    assert f"1.2 or newer, with {cert}, for clients of {ca}" in tls
    trial = server.err.until("try: ")
    assert "openssl s_client -" in trial
    if not listen.startswith("unix"):
        port = int(trial.rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port))
        context = authority.client_context(cert)
        with context.wrap_socket(client, server_hostname="localhost") as secure:
            secure.sendall(b"hello")
            assert secure.recv(5) == b"hello"
            assert isinstance(secure, ssl.SSLSocket)

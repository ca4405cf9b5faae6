"""Options for TLS, and what they do."""

from __future__ import annotations

import shlex
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from app.invoked import error_of, invoke
from app.process import Start, say_hello
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
        " --tls-allow-san c --tls-allow-uri d:e --tls-min 1.3 --tls-allow-truncation"
        " --tls-alpn h2 --tls-alpn http/1.1",
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
        alpn=["h2", "http/1.1"],
        allow_truncation=True,
    )


def test_several_certificates(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """In the order in which they are given; also in the environment."""
    a, b = authority.issue("a.example"), authority.issue("b.example")
    expected = TlsOptions(cert=[a, b], key=[a, b])
    line = f"--tls-cert {a} --tls-cert {b} --tls-key {a} --tls-key {b}"
    assert service_of(monkeypatch, line).layers.tls == expected
    names = {"TRIOSERVE_TLS_CERT": f"{a} {b}", "TRIOSERVE_TLS_KEY": f"{a} {b}"}
    assert service_of(monkeypatch, **names).layers.tls == expected
    line = f"--tls-cert {a} --tls-cert {b}"
    assert service_of(monkeypatch, line).layers.tls == TlsOptions(cert=[a, b])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--tls-cert {cert} --tls-cert {other} --tls-key {cert}",
            "--tls-key: 1 for 2 certificates; give one for each, in the same order",
        ),
        ("--tls-cert {cert} --tls-cert {cert}", "is given twice; leave one out"),
        ("--tls-cert {cert} --tls-cert {bare}", "--tls-cert: '{bare}' has no name"),
        ("--tls-key a --tls-key b", "--tls-key needs --tls-cert"),
        ("--tls-cert ''", "--tls-cert: can't read '': "),
        ("--tls-cert {cert} --tls-key ''", "--tls-key: can't read '': "),
        ("--tls-cert none.pem", "--tls-cert: can't read 'none.pem': No such file"),
        ("--tls-key k", "--tls-key needs --tls-cert"),
        ("--tls-allow-truncation", "--tls-allow-truncation needs --tls-cert"),
        ("--tls-alpn h2", "--tls-alpn needs --tls-cert"),
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
    files["bare"] = authority.issue(common_name="no SAN")
    result = invoke("echo", ":0", *shlex.split(line.format(**files)))
    assert said.format(**files) in error_of(result)
    assert result.exit_code == 2


def test_tls_is_ended_or_passed_on(authority: Authority) -> None:
    cert = authority.issue("localhost")
    options = ["--sni", "a.example.org=db:5432", "--tls-cert", cert]
    assert "leave one of them out" in error_of(invoke("proxy", ":0", *options))


@pytest.mark.usefixtures("traced")
def test_sighup_reads_certificates_again(start: Start, authority: Authority) -> None:
    """Twice at once, and during a drain; a bad file ends nothing."""
    path = Path(authority.issue("localhost", common_name="first"))
    command = start("echo", "127.0.0.1:0", "--tls-cert", str(path))
    port, context = command.port(), authority.client_context()

    def common_name() -> str:
        with (
            command.connect(port) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            say_hello(client)
            found: Any = client.getpeercert()
        names = [part for parts in found["subject"] for part in parts]
        return str(dict(names)["commonName"])

    assert common_name() == "first"
    Path(authority.issue("localhost", common_name="second")).replace(path)
    command.signal(signal.SIGHUP)
    command.signal(signal.SIGHUP)
    said = command.err.until("event=certificate")
    assert "level=info" in said
    assert f'message="{path}: read again, and used from now on"' in said
    assert common_name() == "second"
    path.write_text("")
    command.signal(signal.SIGHUP)
    said = command.err.until("level=warning event=certificate")
    assert f"'{path}' has no certificate in it, in PEM; mend that" in said
    # Made before the drain, in which echo ends a client that is silent for a second.
    third = Path(authority.issue("localhost"))
    with (
        command.connect(port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        say_hello(client)
        command.signal(signal.SIGTERM)
        command.err.until("event=draining")
        third.replace(path)
        command.signal(signal.SIGHUP)
        command.err.until("level=info event=certificate")
        say_hello(client)
    assert command.code() == 0
    assert not any("event=sighup" in line for line in command.err.seen)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/socket", ":0"])
def test_a_server_says_how_to_try_it(
    start: Start, authority: Authority, listen: str
) -> None:
    cert, ca = authority.issue("localhost"), authority.path
    other = authority.issue("other.example")
    address = listen.format(authority.folder)
    options = ["--tls-cert", cert, "--tls-cert", other, "--tls-client-ca", ca]
    options += ["--log", "text"]
    server = start("echo", address, *options)
    tls = server.err.until("TLS: ")
    assert f"1.2 or newer, with {cert}, {other}, for clients of {ca}" in tls
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

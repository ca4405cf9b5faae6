"""``Layers(tls=...)``: a handler gets plain bytes, and its report has the facts."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from certificates import Authority
from support import Running, is_reset, receive_all, serving
from sweep import Begin, sweep
from trioserve import (
    Connection,
    ConnectionReport,
    Layers,
    Limits,
    Outcome,
    Phase,
    Reason,
    Timeouts,
    TlsOptions,
    current_connection,
    echo,
    proxy,
)
from trioserve._socket_transport import SocketTransport
from trioserve._tls_transport import TlsTransport
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def client_over(
    client: trio.SocketStream, context: ssl.SSLContext, name: str = "localhost"
) -> TlsTransport:
    """A client's end of TLS over a socket, before its handshake."""
    sock = trio.socket.SocketType
    assert isinstance(client.socket, sock)
    below = SocketTransport(client.socket._sock)  # type: ignore[attr-defined]
    session = TlsSession(context, server_side=False, server_hostname=name)
    return TlsTransport(below, session)


async def secure(
    running: Running,
    context: ssl.SSLContext,
    name: str = "localhost",
    resumes: ssl.SSLSession | None = None,
) -> TlsTransport:
    """A client after its handshake."""
    transport = client_over(await running.connect(), context, name)
    if resumes is not None:
        transport.session.object.session = resumes
    await transport.handshake()
    return transport


async def ask(transport: TlsTransport, data: bytes) -> bytes:
    """Send, and receive what comes until EOF."""
    await transport.send(data)
    await transport.send_eof()
    received = b""
    while more := await transport.receive():
        received += more
    return received


async def ask_until_stopped(running: Running, context: ssl.SSLContext) -> None:
    """A client of an echo whose server may stop at any step."""
    client = client_over(await running.connect(), context)
    try:
        await client.handshake()
        assert await ask(client, b"hello") in (b"hello", b"")
    except (TlsError, trio.BrokenResourceError):
        pass
    client.abort()


async def test_a_handler_gets_plain_bytes(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 16: and its report has what the handshake has agreed on."""
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        seen.append(conn.tls)
        await echo(conn)

    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost"), alpn=["a", "b"]))
    context = authority.client_context()
    context.set_alpn_protocols(["b", "c"])
    async with serving(handler, layers=layers) as running:
        client = await secure(running, context)
        assert await ask(client, bytes(100_000)) == bytes(100_000)
        client.close()
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_CLOSED
    assert (report.bytes_received, report.bytes_sent) == (100_000, 100_000)
    assert report.server_name == "localhost"
    facts = report.tls
    assert facts is not None
    assert (facts.version, facts.sni, facts.alpn) == ("TLSv1.3", "localhost", "b")
    assert (facts.subject, facts.names, facts.resumed) == (None, (), False)
    assert facts.handshake >= 0
    assert facts.bytes_received > 100_000
    assert facts.bytes_sent > 100_000
    assert report.as_dict()["tls"]["cipher"] == facts.cipher
    assert [str(each)[:8] for each in seen] == ["TlsFacts"]


async def test_a_context_of_ones_own(
    authority: Authority, autojump_clock: object
) -> None:
    """It is used as it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("localhost"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(echo, layers=Layers(tls=context)) as running:
        client = await secure(running, authority.client_context())
        assert await ask(client, b"hello") == b"hello"
        client.close()
    (report,) = running.reports
    assert report.tls is not None
    assert (report.tls.version, report.tls.sni) == ("TLSv1.2", "localhost")


async def test_a_session_is_resumed(
    authority: Authority, autojump_clock: object
) -> None:
    """Tickets are on, in TLS 1.2."""
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(echo, layers=layers) as running:
        first = await secure(running, context)
        session = first.session.object.session
        assert await ask(first, b"hello") == b"hello"
        first.close()
        second = client_over(await running.connect(), context)
        second.session.object.session = session
        await second.handshake()
        assert await ask(second, b"hello") == b"hello"
        second.close()
    resumed = [report.tls.resumed for report in running.reports if report.tls]
    assert resumed == [False, True]


async def test_handshake_failures_are_reported(
    authority: Authority, autojump_clock: object
) -> None:
    """What the client did, and the alert."""
    options = TlsOptions(cert=authority.issue("localhost"), min_version="1.3")
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(echo, layers=Layers(tls=options)) as running:
        for context in (old, ssl.create_default_context()):
            client = client_over(await running.connect(), context)
            with pytest.raises(TlsError):
                await client.handshake()
            client.below.close()
        plain = await running.connect()
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await receive_all(plain) == b""
        await plain.aclose()
        half = await running.connect()
        await half.send_all(b"\x16\x03\x01")
        await half.aclose()
    said = [str(report.error) for report in running.reports]
    assert said == [
        "it offers no version of TLS that is allowed (alert sent: protocol_version)",
        "it sent the alert unknown_ca",
        "it sent plain HTTP, without TLS",
        "it closed the connection within the TLS handshake",
    ]
    for report in running.reports:
        assert report.reason is Reason.TLS_FAILED
        assert report.outcome is Outcome.PEER_ERROR
        assert (report.phase, report.termination_state) == (Phase.HANDSHAKE, "PR")
        assert (report.bytes_received, report.bytes_sent) == (0, 0)
        assert report.tls is None


async def test_a_client_that_says_nothing(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: it is reset at the deadline; a check that only connects ends well."""
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    timeouts = Timeouts(handshake=7)
    async with serving(echo, layers=layers, timeouts=timeouts) as running:
        check = await running.connect()
        await check.aclose()
        silent = await running.connect()
        assert await is_reset(silent)
        assert trio.current_time() == pytest.approx(7, abs=0.01)
    first, second = running.reports
    assert (first.reason, first.error) == (Reason.CLIENT_CLOSED, None)
    assert (second.reason, second.limit) == (Reason.HANDSHAKE, 7)


@asynccontextmanager
async def mutual(
    authority: Authority, **options: Any
) -> AsyncGenerator[tuple[Running, Authority]]:
    """A server that verifies its clients."""
    clients = Authority(authority.folder)
    tls = TlsOptions(
        cert=authority.issue("localhost"), client_ca=clients.path, **options
    )
    async with serving(echo, layers=Layers(tls=tls)) as running:
        yield running, clients


async def test_clients_have_certificates(
    authority: Authority, autojump_clock: object
) -> None:
    async with mutual(authority) as (running, clients):
        cert = clients.issue("web.example.org", common_name="web")
        client = await secure(running, authority.client_context(cert))
        assert await ask(client, b"hello") == b"hello"
        client.close()
        await running.closed(1)
        stranger = authority.issue("web.example.org", common_name="web")
        for context in (
            authority.client_context(),
            authority.client_context(stranger),
        ):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(TlsError):
                await secure(running, context)
    good, *bad = running.reports
    assert good.tls is not None
    assert (good.tls.subject or "").endswith("CN=web")
    assert good.tls.names == ("DNS:web.example.org",)
    assert [report.reason for report in bad] == [Reason.TLS_FAILED] * 2
    said = " ".join(str(report.error) for report in bad)
    assert "it sent no certificate" in said
    assert "its certificate is not accepted" in said


@pytest.mark.parametrize(
    ("options", "is_allowed"),
    [
        ({"allow_cn": ["other", "web"]}, True),
        ({"allow_san": ["web.example.org"]}, True),
        ({"allow_san": ["127.0.0.9"]}, True),
        ({"allow_cn": ["other"], "allow_san": ["web.example.org"]}, True),
        ({"allow_cn": ["web.example.org"]}, False),
        ({"allow_san": ["web"]}, False),
        ({"allow_uri": ["spiffe://example.org/web"]}, False),
    ],
)
async def test_only_clients_with_these_names(
    authority: Authority,
    options: dict[str, Any],
    is_allowed: bool,
    autojump_clock: object,
) -> None:
    async with mutual(authority, **options) as (running, clients):
        cert = clients.issue("web.example.org", "127.0.0.9", common_name="web")
        client = await secure(running, authority.client_context(cert))
        if is_allowed:
            assert await ask(client, b"hello") == b"hello"
        else:
            with pytest.raises(trio.BrokenResourceError):
                await ask(client, b"hello")
        client.close()
    (report,) = running.reports
    if not is_allowed:
        assert report.reason is Reason.TLS_FAILED
        names = "CN:web, DNS:web.example.org, IP Address:127.0.0.9"
        expected = f"its certificate has no name that is allowed; it has {names}"
        assert report.error == expected


async def test_a_truncated_upload_resets_the_target(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 8: FIN without close_notify, unless that is allowed."""
    for allowed in (False, True):
        ended: list[str] = []

        async def target(conn: Connection, ended: list[str] = ended) -> None:
            try:
                async for _ in conn:
                    pass
                ended.append("eof")
            except trio.BrokenResourceError:
                ended.append("reset")

        options = TlsOptions(
            cert=authority.issue("localhost"), allow_truncation=allowed
        )
        async with serving(target) as behind:
            handler = proxy(behind.address)
            async with serving(handler, layers=Layers(tls=options)) as running:
                client = await secure(running, authority.client_context())
                await client.send(b"hello")
                await client.below.send_eof()
                if allowed:
                    assert await client.receive() == b""
                else:
                    with pytest.raises(trio.BrokenResourceError):
                        await client.receive()
                client.below.close()
        assert ended == ["eof" if allowed else "reset"]
        (report,) = running.reports
        if not allowed:
            assert report.reason is Reason.CLIENT_RESET
            assert "without close_notify" in str(report.error)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_after_an_error_of_tls_the_report_has_the_facts(
    version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    """Law 1: OpenSSL has forgotten them; the server serves on."""
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    context = authority.client_context()
    context.maximum_version = version
    async with serving(echo, layers=layers) as running:
        client = await secure(running, context)
        await client.below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError):
            await client.receive()
        client.close()
        second = await secure(running, context)
        assert await ask(second, b"hello") == b"hello"
        second.close()
    first, _ = running.reports
    assert first.reason is Reason.CLIENT_RESET
    assert first.tls is not None
    assert first.tls.version == version.name.replace("_", ".")


async def test_a_drain_ends_an_idle_client_by_close_notify(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 11: after its goodbye."""

    async def handler(conn: Connection) -> None:
        assert current_connection() is conn
        conn.goodbye = b"bye"
        with conn.idle():
            await conn.receive_some()

    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    async with serving(handler, layers=layers) as running:
        client = await secure(running, authority.client_context())
        await trio.sleep(2)
        running.server.start_draining()
        assert await client.receive() == b"bye"
        assert await client.receive() == b""
        client.close()
    (report,) = running.reports
    assert (report.reason, report.bytes_sent) == (Reason.DRAINED, 3)


async def test_an_idle_client_is_closed_by_close_notify(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 12: it was silent, and what it got is complete."""

    async def handler(conn: Connection) -> None:
        conn.goodbye = b"bye"
        await conn.send_all(b"hello")
        async for _ in conn:
            pass

    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    async with serving(handler, layers=layers, timeouts=Timeouts(idle=3)) as running:
        client = await secure(running, authority.client_context())
        assert await client.receive() == b"hello"
        await client.send(b"and this acknowledges it")
        assert await client.receive() == b"bye"
        assert await client.receive() == b""
        client.close()
    assert running.reports[0].reason is Reason.IDLE


def test_stopped_at_any_step_nothing_is_left(tmp_path: Path) -> None:
    """Laws 2, 3 and 13: by a cancel, at any step of a handshake and an echo."""
    authority = Authority(tmp_path)
    tls = TlsOptions(cert=authority.issue("localhost"))
    context = authority.client_context()

    async def scenario(begin: Begin) -> None:
        reports: list[ConnectionReport] = []
        limits = Limits(max_connections=1)
        async with serving(echo, layers=Layers(tls=tls), limits=limits) as running:
            begin(running.scope.cancel)
            await ask_until_stopped(running, context)
            reports = running.reports
            await running.ended.wait() if running.scope.cancel_called else None
        assert len(reports) <= 1

    assert sweep(scenario) >= 10


# -- Options


def test_bad_options_are_named(authority: Authority, tmp_path: Path) -> None:
    """What is wrong, with which file."""
    cert, other = authority.issue("localhost"), authority.issue("localhost")
    text = Path(cert).read_text()
    without_key = tmp_path / "without-key"
    without_key.write_text(text[text.index("-----BEGIN CERTIFICATE") :])
    broken = tmp_path / "broken"
    broken.write_text(text.replace("M", "N"))
    folder, missing = str(tmp_path), str(tmp_path / "missing")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cert": missing}, "cert: can't read .*missing': No such file"),
        ({"cert": folder}, "cert: can't read .*: Is a directory"),
        ({"cert": "\0"}, "cert: can't read .*null"),
        ({"cert": __file__}, "cert: .* has no certificate in it"),
        ({"cert": str(without_key)}, "cert: .* has no private key in it"),
        ({"cert": str(broken)}, "cert: the certificate or the key is not valid"),
        ({"cert": cert, "key": missing}, "key: can't read"),
        ({"cert": cert, "key": other}, "key: the key in .* is not that of the cert"),
        ({"cert": cert, "client_ca": __file__}, "client_ca: .* has no certificate"),
        ({"cert": cert, "client_ca": str(broken)}, "client_ca: .* is not valid"),
        ({"cert": cert, "allow_cn": ["web"]}, "allow_cn needs client_ca"),
        ({"cert": cert, "min_version": "1.1"}, "min_version must be"),
        ({"cert": cert, "alpn": ["é"]}, "alpn: 'é' is not the name"),
    ]
    for arguments, said in cases:
        with pytest.raises(ValueError, match=said):
            TlsOptions(**arguments)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cert": 1}, "cert must be a path or a list of paths, not 1"),
        (
            {"cert": cert, "key": 1},
            "key must be a path, a list of paths or None",
        ),
        ({"cert": cert, "alpn": "h2"}, "alpn must be a list of texts, not 'h2'"),
        ({"cert": cert, "alpn": [1]}, "alpn must be a list of texts, not 1"),
        ({"cert": cert, "allow_truncation": 1}, "allow_truncation must be a bool"),
    ]
    for arguments, said in wrong:
        with pytest.raises(TypeError, match=said):
            TlsOptions(**arguments)


def test_a_key_with_a_passphrase_does_not_ask_for_it(
    authority: Authority, tmp_path: Path
) -> None:
    """At a terminal OpenSSL would."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    cert = Path(authority.issue("localhost"))
    key = load_pem_private_key(cert.read_bytes(), None)
    locked = tmp_path / "locked"
    locked.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        )
    )
    with pytest.raises(ValueError, match=r"key: '.*locked' has a passphrase"):
        TlsOptions(cert=str(cert), key=str(locked))


def test_layers_take_tls_of_servers() -> None:
    with pytest.raises(
        TypeError, match=r"tls must be a TlsOptions, an ssl\.SSLContext"
    ):
        Layers(tls="cert.pem")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tls is a context for clients"):
        Layers(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

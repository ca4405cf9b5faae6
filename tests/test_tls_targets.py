"""Targets that speak TLS: ``Target(tls=...)`` and ``tls://``."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import ssl
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from links import memory, over
from support import Running, is_reset, receive_all, receive_exactly, reset, run, serving
from sweep import Begin, sweep
from targets import Resolver, black_hole
from test_tls import client_over
from trioserve import (
    Address,
    Attempt,
    Connection,
    ConnectionReport,
    Health,
    Layers,
    Reason,
    Target,
    TcpAddress,
    Timeouts,
    TlsClientOptions,
    TlsOptions,
    UnixAddress,
    echo,
    parse_address,
    parse_target,
    proxy,
)
from trioserve._report import GIVEN_UP, NO_ANSWER
from trioserve._stream_transport import StreamTransport
from trioserve._upstream import greet
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server_context(
    cert: str,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    client_ca: str | None = None,
) -> ssl.SSLContext:
    """The context of a server that speaks one version only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(cert)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def secured(running: Running, **options: Any) -> Target:
    """A target that is verified, by the name localhost unless told otherwise."""
    options = {"sni": "localhost"} | options
    return Target(parse_address(running.address), tls=TlsClientOptions(**options))


async def talk(running: Running, data: bytes = b"hello") -> bytes | None:
    """What comes back of an echo, until EOF; None after a reset."""
    client = await running.connect()
    try:
        await client.send_all(data)
        await client.send_eof()
        return await receive_all(client)
    except trio.BrokenResourceError:
        return None
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def behind(
    make: Callable[[Running], Target], tls: Any, **options: Any
) -> AsyncGenerator[tuple[Running, Running], None]:
    """A proxy before an echo that speaks TLS, or plain text if ``tls`` is None."""
    async with (
        serving(echo, layers=Layers(tls=tls)) as there,
        serving(proxy(make(there), **options)) as running,
    ):
        yield running, there


# -- the text of a target


def test_a_target_for_tls_is_a_text(authority: Authority) -> None:
    ca, cert = authority.path, authority.issue("web")
    address = TcpAddress("db", 5432)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("tls://db:5432", {}),
        (f"tls://db:5432?ca={ca}&sni=db.example", {"ca": ca, "sni": "db.example"}),
        (f"tls://db:5432?cert={cert}&key={cert}", {"cert": cert, "key": cert}),
        ("tls://db:5432?verify=no", {"verify": False}),
        ("tls://db:5432?allow-truncation", {"allow_truncation": True}),
        ("tls://db:5432?alpn=h2,http/1.1", {"alpn": ["h2", "http/1.1"]}),
        ("tls://db:5432?alpn=a%26b%2C,%25", {"alpn": ("a&b,", "%")}),
    ]
    for text, options in cases:
        target = Target(address, tls=TlsClientOptions(**options))
        assert parse_target(text) == target
        assert str(target) == text
    text = "TLS://db:5432?sni=a&backup&weight=3"
    assert parse_target(text) == Target(
        address, 3, backup=True, tls=TlsClientOptions(sni="a")
    )
    context = ssl.create_default_context()
    assert str(Target(address, 2, tls=context)) == "tls://db:5432?weight=2"


@functools.cache
def _pem() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(Authority(Path(folder)).issue("localhost")).read_bytes()


@given(
    host=st.sampled_from(["db", "10.0.0.1", "::1", "bücher.example"]),
    names=st.lists(
        st.text(
            st.characters(exclude_characters="/\0", codec="utf-8")
            | st.sampled_from("&%?=# \udc80+"),
            min_size=1,
            max_size=20,
        ).filter(lambda name: name not in (".", "..")),
        min_size=3,
        max_size=3,
    ),
    given=st.sets(
        st.sampled_from(
            ["ca", "cert", "key", "sni", "verify", "allow_truncation", "alpn"]
        )
    ),
    alpn=st.lists(
        st.text(st.characters(codec="ascii"), min_size=1), min_size=1, max_size=3
    ),
    weight=st.integers(1, 1000),
    backup=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_any_target_is_the_target_of_its_text(
    host: str,
    names: list[str],
    given: set[str],
    alpn: list[str],
    weight: int,
    backup: bool,
) -> None:
    """Whatever the names of its files, and of protocols."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {}
        for option, name in zip(("ca", "cert", "key"), names, strict=True):
            path = Path(folder, name)
            path.write_bytes(_pem())
            options[option] = str(path)
        options |= {"sni": "a.example", "verify": False, "allow_truncation": True}
        options |= {"alpn": alpn}
        chosen = {name: options[name] for name in given}
        if "key" in given and "cert" not in given:
            del chosen["key"]
        if "verify" in given:
            chosen.pop("ca", None)
        tls = TlsClientOptions(**chosen)
        target = Target(TcpAddress(host, 1), weight, backup, tls)
        assert parse_target(f" {target} ") == target
        assert str(target).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("db:1?ca=a.pem", "ca in 'db:1?ca=a.pem' is for TLS; did you mean tls://db:1?"),
        ("db:1?verify=no", "verify in 'db:1?verify=no' is for TLS; did you"),
        ("db:1?allow-truncation", "allow-truncation in 'db:1?allow-truncation' is fo"),
        ("db:1?alpn=h2", "alpn in 'db:1?alpn=h2' is for TLS; did you mean tls://db:1"),
        ("tls://db:1?alpn=", "'alpn=' in 'tls://db:1?alpn=' is not an option of a tar"),
        ("tls://db:1?alpn=h2,", "alpn: '' is not the name of a protocol"),
        ("tls://db:1?alpn=%C3%A4", "alpn: '\u00e4' is not the name of a protocol"),
        ("tls://db:1?allow-truncation=1", "'allow-truncation=1' in 'tls://db:1?allow"),
        ("tls://db:1?verify=yes", "'verify=yes' in 'tls://db:1?verify=yes' is not an"),
        ("tls://db:1?ca=", "'ca=' in 'tls://db:1?ca=' is not an option of a target"),
        ("tls://db:1?mode=600", "'mode=600' in"),
        ("tls://db:1?weight=0", "'weight=0' in 'tls://db:1?weight=0' is not a weight"),
        ("tls://db", "'tls://db': 'db' has no port; did you mean db:80?"),
        ("tls://:1", "'tls://:1': the target ':1' has no host"),
        ("tls://unix:/a", "'unix:/a' can't have TLS: a certificate names no Unix"),
        ("tls://db:1?ca=none", "'tls://db:1?ca=none': ca: can't read 'none': No such"),
        ("tls://db:1?cert=none", "cert: can't read 'none': No such file"),
        ("tls://db:1?key=none", "key needs cert, the certificate that it belongs to"),
        ("tls://db:1?sni=a%20b", "sni: 'a b' is not a host name, in ASCII"),
        ("tls://db:1?sni=" + "a." * 126 + "ab", "is not a host name"),
        ("tls://db:1?ca=a&verify=no", "ca is not used without verify; leave one of"),
    ],
)
def test_a_wrong_text_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - its text is below
        parse_target(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_wrong_arguments_are_named(authority: Authority) -> None:
    address = TcpAddress("db", 1)
    for wrong in ("tls", True, TlsOptions(cert=authority.issue("localhost"))):
        with pytest.raises(TypeError, match="tls must be a TlsClientOptions or an SSL"):
            Target(address, tls=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tls is a context for servers"):
        Target(address, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(ValueError, match="a certificate names no Unix socket"):
        Target(UnixAddress("/a"), tls=TlsClientOptions())


# -- a target that is accepted


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_proxy_begins_tls(
    version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    """Laws 3 and 16: plain bytes are counted; the report has what was agreed on."""
    attempts: list[tuple[Address, Attempt]] = []

    def note(target: Address, attempt: Attempt) -> None:
        attempts.append((target, attempt))

    async with behind(
        lambda there: secured(there, ca=authority.path),
        server_context(authority.issue("localhost"), version),
        on_attempt=note,
    ) as (running, there):
        assert await talk(running, bytes(200_000)) == bytes(200_000)
    (report,) = running.reports
    assert (report.reason, report.target) == (Reason.CLIENT_CLOSED, there.address)
    assert report.tls is None
    assert report.upstream is not None
    assert report.upstream.bytes_sent == report.upstream.bytes_received == 200_000
    facts = report.upstream.tls
    assert facts is not None
    assert facts.version == version.name.replace("_", ".")
    assert (facts.sni, facts.names) == ("localhost", ("DNS:localhost",))
    assert facts.bytes_sent > 200_000
    assert report.as_dict()["upstream_tls"]["cipher"] == facts.cipher
    (attempt,) = report.attempts
    assert (attempt.address, attempt.error) == (there.address, None)
    assert attempt.seconds >= facts.handshake
    assert attempts == [(parse_address(there.address), attempt)]


async def test_an_address_is_verified_like_a_name(
    authority: Authority, autojump_clock: object
) -> None:
    tls = TlsOptions(cert=authority.issue("127.0.0.1"))
    async with behind(lambda a: secured(a, ca=authority.path, sni=None), tls) as both:
        assert await talk(both[0]) == b"hello"


async def test_a_context_of_ones_own(
    authority: Authority, autojump_clock: object
) -> None:
    """It is used as it is, for the host of the address."""
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["b"])
    tls = TlsOptions(cert=authority.issue("127.0.0.1"), alpn=["a", "b"])

    def target(there: Running) -> Target:
        return Target(parse_address(there.address), tls=context)

    async with behind(target, tls) as (running, _):
        assert await talk(running) == b"hello"
    (report,) = running.reports
    assert report.upstream is not None
    assert report.upstream.tls is not None
    facts = report.upstream.tls
    assert (facts.version, facts.alpn) == ("TLSv1.2", "b")


async def test_without_verify_any_certificate_will_do(
    authority: Authority, autojump_clock: object
) -> None:
    tls = TlsOptions(cert=authority.issue("other.example"))
    async with behind(lambda there: secured(there, verify=False), tls) as (running, _):
        assert await talk(running) == b"hello"
    (report,) = running.reports
    assert report.upstream is not None
    assert report.upstream.tls is not None
    assert report.upstream.tls.subject is None


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_target_gets_the_certificate_that_it_asks_for(
    version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    cert, key = authority.issue("proxy.example"), authority.issue("localhost")
    context = server_context(key, version, authority.path)
    async with behind(
        lambda there: secured(there, ca=authority.path, cert=cert), context
    ) as (running, there):
        assert await talk(running) == b"hello"
    (report,) = there.reports
    assert report.tls is not None
    assert report.tls.names == ("DNS:proxy.example",)


def test_a_name_with_two_addresses(tmp_path: Path) -> None:
    """The first one that connects shakes hands; the name is the one that is dialed."""
    authority = Authority(tmp_path)

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.9", "127.0.0.1"]))
        tls = TlsOptions(cert=authority.issue("target.test"))
        async with serving(echo, layers=Layers(tls=tls)) as there:
            target = f"tls://target.test.:{there.port}?ca={authority.path}"
            async with serving(proxy(target)) as running:
                assert await talk(running) == b"hello"
        (report,) = running.reports
        errors = [attempt.error for attempt in report.attempts]
        assert errors == [
            "ConnectionRefusedError: [Errno 111] Connection refused",
            None,
        ]
        assert there.reports[0].server_name == "target.test"

    run(main)


async def test_the_header_comes_before_tls(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 3: as in HAProxy, and it is in no count."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    layers = Layers(tls=tls, accept_proxy=["127.0.0.0/8"])
    async with serving(echo, layers=layers) as there:
        target = secured(there, ca=authority.path)
        async with serving(proxy(target, send_proxy="v2")) as running:
            client = await running.connect(source="127.0.0.9")
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await client.aclose()
    (seen,), (report,) = there.reports, running.reports
    assert (seen.peer, seen.bytes_received) == (report.peer, 5)
    assert seen.peer.startswith("127.0.0.9:")
    assert report.upstream is not None
    assert report.upstream.bytes_sent == 5


async def test_the_time_of_connecting_has_the_handshake_in_it(
    authority: Authority, autojump_clock: object
) -> None:
    """The report says what the client has waited for."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with serving(echo, layers=Layers(tls=tls)) as there:
        async with serving(proxy(there.address, faults="down:latency=300ms")) as slow:
            handler = proxy(secured(slow, ca=authority.path))
            async with serving(handler) as running:
                assert await talk(running) == b"hello"
    (report,) = running.reports
    (attempt,) = report.attempts
    assert attempt.seconds >= 0.3
    assert report.connect == pytest.approx(attempt.seconds, abs=0.01)


async def test_faults_apply_to_plain_bytes(
    authority: Authority, autojump_clock: object
) -> None:
    async with behind(
        lambda there: secured(there, ca=authority.path),
        TlsOptions(cert=authority.issue("localhost")),
        faults="down:close@3",
    ) as (running, _):
        assert await talk(running) == b"hel"
    assert running.reports[0].reason is Reason.FAULT


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("first", ["client", "target"])
async def test_each_side_ends_its_own_direction(
    first: str, version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    """Law 6: in both orders, with TLS at both ends; every byte arrives."""
    data = bytes(range(256)) * 1000

    async def target(conn: Connection) -> None:
        if first == "client":
            assert await receive_all(conn) == data
            await conn.send_all(data)
        else:
            await conn.send_all(data)
            await conn.send_eof()
            assert await receive_all(conn) == data

    context = server_context(authority.issue("localhost"), version)
    layers = Layers(tls=context)
    async with serving(target, layers=layers) as there:
        handler = proxy(secured(there, ca=authority.path))
        async with serving(handler, layers=layers) as running:
            stream = await running.connect()
            client = client_over(stream, authority.client_context())
            await client.handshake()
            received = b""
            if first == "client":
                await client.send(data)
                await client.send_eof()
            while more := await client.receive():
                received += more
            assert received == data
            if first == "target":
                await client.send(data)
                await client.send_eof()
            client.close()
    (report,) = running.reports
    ends = {"client": Reason.CLIENT_CLOSED, "target": Reason.SERVER_CLOSED}
    assert (report.reason, report.bytes_sent) == (ends[first], len(data))
    assert report.bytes_received == len(data)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_target_that_ends_without_a_close_notify(
    goes_on: bool,
    allowed: bool,
    version: ssl.TLSVersion,
    authority: Authority,
    autojump_clock: object,
) -> None:
    """Law 8: it has not ended well, unless that is allowed.

    If it is, its FIN ends its direction only: it still gets what the client sends.
    """
    got: list[bytes] = []

    async def target(conn: Connection) -> None:
        await conn.send_all(b"answer")
        if not goes_on:
            assert await conn.receive_some() == b"question"
        conn.socket.shutdown(trio.socket.SHUT_WR)
        with contextlib.suppress(trio.BrokenResourceError):
            got.append(await receive_all(conn))

    layers = Layers(tls=server_context(authority.issue("localhost"), version))
    async with serving(target, layers=layers) as there:
        handler = proxy(secured(there, ca=authority.path, allow_truncation=allowed))
        async with serving(handler) as running:
            client = await running.connect()
            if not goes_on:
                await client.send_all(b"question")
            if allowed:
                assert await receive_all(client) == b"answer"
                await client.send_all(b"more")
                await client.send_eof()
            else:
                assert await is_reset(client)
    (report,) = running.reports
    if allowed:
        assert (report.reason, report.error) == (Reason.SERVER_CLOSED, None)
        assert got == [b"more"]
    else:
        assert report.reason is Reason.SERVER_RESET
        assert "it ended without close_notify" in str(report.error)


async def test_an_end_within_a_record_is_never_allowed(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 8: there, bytes are missing in any case."""

    async def target(conn: Connection) -> None:
        await conn.send_all(b"answer")
        await conn.socket.send(b"\x17\x03\x03\0\x40cut")
        conn.socket.shutdown(trio.socket.SHUT_WR)
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_all(conn)

    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    async with serving(target, layers=layers) as there:
        handler = proxy(secured(there, ca=authority.path, allow_truncation=True))
        async with serving(handler) as running:
            assert await is_reset(await running.connect())
    assert running.reports[0].reason is Reason.SERVER_RESET


@pytest.mark.parametrize("who", ["client", "target"])
async def test_a_reset_goes_on(
    who: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 8: a TLS target that ends without a close_notify has not ended well."""
    ended: list[str] = []

    async def target(conn: Connection) -> None:
        await conn.send_all(b"hello")
        if who == "target":
            conn.abort()
            return
        try:
            await receive_all(conn)
        except trio.BrokenResourceError:
            ended.append("reset")

    tls = TlsOptions(cert=authority.issue("localhost"))
    async with serving(target, layers=Layers(tls=tls)) as there:
        handler = proxy(secured(there, ca=authority.path))
        async with serving(handler) as running:
            client = await running.connect()
            if who == "target":
                assert await is_reset(client)
            else:
                assert await receive_exactly(client, 5) == b"hello"
                reset(client)
                await running.closed(1)
    expected = Reason.CLIENT_RESET if who == "client" else Reason.SERVER_RESET
    assert running.reports[0].reason is expected
    assert ended == (["reset"] if who == "client" else [])


async def test_a_drain_closes_the_target_by_close_notify(
    authority: Authority, autojump_clock: object
) -> None:
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with serving(echo, layers=Layers(tls=tls)) as there:
        handler = proxy(secured(there, ca=authority.path))
        timeouts = Timeouts(drain_idle=1)
        async with serving(handler, timeouts=timeouts) as running:
            client = await running.connect()
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            running.server.start_draining()
            assert await client.receive_some() == b""
    assert running.reports[0].reason is Reason.DRAINED
    assert there.reports[0].reason is Reason.CLIENT_CLOSED


# -- a target that is not accepted, or does not accept


def expired(authority: Authority) -> str:
    """The file of a certificate that was valid until yesterday."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    issued = authority.ca.issue_cert(
        "localhost", not_before=now - 2 * day, not_after=now - day
    )
    path = authority.folder / "expired.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("authority", "its certificate is not accepted: unable to get local issuer"),
        ("system", "(alert sent: unknown_ca)"),
        ("name", "Hostname mismatch, certificate is not valid for 'other.example' (al"),
        ("expired", "certificate has expired (alert sent: certificate_expired)"),
        ("version", "it sent the alert "),
        ("plain", "it does not speak TLS"),
        ("echo", "TlsError: "),
        ("closes", "it closed the connection within the TLS handshake"),
        ("resets", "ConnectionResetError: [Errno 104] Connection reset by peer"),
        ("certificate", "it sent the alert handshake_failure"),
    ],
)
async def test_a_failed_handshake_is_a_failed_attempt(
    wrong: str, said: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 15: it says what failed, it counts for health, and the next one is tried."""
    cert, ca = authority.issue("localhost"), authority.path
    options: dict[str, Any] = {"ca": ca}
    tls: Any = TlsOptions(cert=cert)
    handler: Any = echo

    async def answers(conn: Connection) -> None:
        await conn.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await receive_all(conn)

    async def closes(conn: Connection) -> None:
        await conn.receive_some()

    async def resets(conn: Connection) -> None:
        await conn.receive_some()
        conn.abort()

    match wrong:
        case "authority":
            options = {"ca": Authority(authority.folder).path}
        case "system":
            options = {}
        case "name":
            options["sni"] = "other.example"
        case "expired":
            tls = TlsOptions(cert=expired(authority))
        case "version":
            tls = server_context(cert)
            with pytest.deprecated_call():
                tls.minimum_version = ssl.TLSVersion.TLSv1_1
            with pytest.deprecated_call():
                tls.maximum_version = ssl.TLSVersion.TLSv1_1
        case "certificate":
            tls = server_context(cert, ssl.TLSVersion.TLSv1_2, ca)
        case _:
            tls = None
            handlers = {"plain": answers, "closes": closes, "resets": resets}
            handler = handlers.get(wrong, echo)
    attempts: list[Attempt] = []
    async with (
        serving(handler, layers=Layers(tls=tls)) as bad,
        serving(echo, layers=Layers(tls=TlsOptions(cert=cert))) as good,
    ):
        handler = proxy(
            secured(bad, **options),
            secured(good, ca=ca),
            health=Health(fall=1, pause=100, max_pause=100),
            on_attempt=lambda _, attempt: attempts.append(attempt),
        )
        async with serving(handler) as running:
            assert await talk(running) == b"hello"
            assert await talk(running) == b"hello"
            down, up = handler.targets()
        async with serving(proxy(secured(bad, **options))) as alone:
            assert await talk(alone) is None
        bad.reports.clear()
        bad.collects = False
    first, second = running.reports
    assert [attempt.address for attempt in first.attempts] == [
        bad.address,
        good.address,
    ]
    failed, connected = first.attempts
    assert said in str(failed.error)
    assert failed.failed
    assert not connected.failed
    assert [each.address for each in second.attempts] == [good.address]
    assert attempts == [*first.attempts, *second.attempts]
    assert (down.up, down.error, up.up) == (False, failed.error, True)
    (report,) = alone.reports
    assert report.reason is Reason.CONNECT_FAILED
    assert report.error is not None
    assert said in report.error


async def test_in_tls_13_the_verdict_on_a_certificate_comes_later(
    authority: Authority, autojump_clock: object
) -> None:
    """The client's handshake is over then, so it is the relay that gets the alert."""
    context = server_context(
        authority.issue("localhost"), ssl.TLSVersion.TLSv1_3, authority.path
    )
    async with behind(lambda a: secured(a, ca=authority.path), context) as (running, _):
        client = await running.connect()
        assert await is_reset(client)
    (report,) = running.reports
    assert report.reason is Reason.SERVER_RESET
    assert report.error == "TlsError: it sent the alert certificate_required"


async def silent(conn: Connection) -> None:
    """Take a ClientHello and say nothing."""
    with contextlib.suppress(trio.BrokenResourceError):
        await receive_all(conn)


async def test_a_target_that_is_silent_in_the_handshake(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: it has as long as one that does not connect; then comes the next."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with (
        serving(silent) as bad,
        serving(echo, layers=Layers(tls=tls)) as good,
    ):
        targets = [secured(each, ca=authority.path) for each in (bad, good)]
        async with serving(proxy(*targets), timeouts=Timeouts(connect=9)) as running:
            assert await talk(running) == b"hello"
            assert trio.current_time() == pytest.approx(1, abs=0.1)
        async with serving(
            proxy(targets[0]), timeouts=Timeouts(connect=9)
        ) as running_alone:
            began = trio.current_time()
            assert await talk(running_alone) is None
            assert trio.current_time() == pytest.approx(began + 9, abs=0.1)
    (report,), (alone,) = running.reports, running_alone.reports
    assert [each.error for each in report.attempts] == [NO_ANSWER, None]
    assert report.attempts[0].seconds == pytest.approx(1, abs=0.1)
    assert (alone.reason, alone.limit) == (Reason.CONNECT_TIMEOUT, 9)
    assert [each.error for each in alone.attempts] == [NO_ANSWER]


async def test_an_address_that_does_not_connect_has_no_handshake(
    autojump_clock: object,
) -> None:
    with black_hole() as address:
        handler = proxy(Target(address, tls=TlsClientOptions()))
        async with serving(handler, timeouts=Timeouts(connect=2)) as running:
            assert await talk(running) is None
    assert running.reports[0].reason is Reason.CONNECT_TIMEOUT


async def test_a_client_that_goes_ends_the_handshake(autojump_clock: object) -> None:
    """It does not wait for a target that nobody needs any more."""
    async with serving(silent) as there:
        handler = proxy(secured(there))
        async with serving(handler, timeouts=Timeouts(connect=99)) as running:
            client = await running.connect()
            await trio.sleep(1)
            reset(client)
            await running.closed(1)
            assert trio.current_time() < 5
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_RESET
    assert [each.error for each in report.attempts] == [GIVEN_UP]


def test_stopped_at_any_step_nothing_is_left(tmp_path: Path) -> None:
    """Laws 2, 3 and 13: by a cancel, at any step of a handshake and an echo."""
    authority = Authority(tmp_path)
    tls = TlsOptions(cert=authority.issue("localhost"))
    ca = authority.path

    async def scenario(begin: Begin) -> None:
        reports: list[ConnectionReport] = []
        async with serving(echo, layers=Layers(tls=tls)) as there:
            handler = proxy(secured(there, ca=ca, verify=True))
            async with serving(handler) as running:
                begin(running.scope.cancel)
                with contextlib.suppress(OSError):
                    assert await talk(running) in (b"hello", b"", None)
                reports = running.reports
                await running.ended.wait() if running.scope.cancel_called else None
            assert not any(state.open for state in handler.targets())
        assert len(reports) <= 1

    assert sweep(scenario) >= 20


# -- over a stream of a test's network


def _session(authority: Authority) -> TlsSession:
    context = authority.client_context()
    return TlsSession(context, server_side=False, server_hostname="localhost")


async def test_a_stream_that_breaks_in_the_handshake(authority: Authority) -> None:
    mine, peer = trio.testing.memory_stream_pair()
    transport = StreamTransport(mine)
    await peer.aclose()
    with pytest.raises(TlsError, match="BrokenResourceError"):
        await greet(transport, b"", _session(authority))
    assert transport.closed


async def test_a_header_over_a_stream_is_in_no_count() -> None:
    with over(memory) as (transport, link):
        assert await greet(transport, b"header", None) is transport
        assert await receive_exactly(link.peer, 6) == b"header"
        assert transport.sent == 0


async def test_a_cancel_within_the_header_closes_the_stream() -> None:
    with over(memory) as (transport, _), trio.CancelScope() as scope:
        scope.cancel()
        await greet(transport, b"header", None)
    assert transport.closed

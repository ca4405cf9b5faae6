"""TLS sessions of targets are resumed, and targets are offered protocols (ALPN)."""

from __future__ import annotations

import functools
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from support import Running, receive_exactly, serving
from test_proxy_header import BEHIND
from test_tls import ask, secure
from test_tls_targets import VERSIONS, behind, secured, server_context, talk
from trioserve import Connection, Layers, TlsClientOptions, TlsFacts, TlsOptions, proxy
from trioserve._tls_client import TlsBeginning, TlsClient
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession
from wire.headers import TCP4, tlv, v2

HOUR = 3600.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def upstream_facts(running: Running) -> list[TlsFacts]:
    found = list[TlsFacts]()
    for report in running.reports:
        assert report.upstream is not None
        assert report.upstream.tls is not None
        found.append(report.upstream.tls)
    return found


# -- resumption


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shows", [False, True])
async def test_a_session_is_resumed(
    shows: bool, version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    """Law 16: and the report has the certificate that was verified before."""
    cert = authority.issue("localhost")
    context = server_context(cert, version, authority.path if shows else None)
    options = {"cert": authority.issue("web.example")} if shows else {}
    async with behind(
        lambda there: secured(there, ca=authority.path, **options), context
    ) as (running, there):
        for _ in range(3):
            assert await talk(running) == b"hello"
    facts = upstream_facts(running)
    assert [each.resumed for each in facts] == [False, True, True]
    assert {each.names for each in facts} == {("DNS:localhost",)}
    for report in there.reports:
        assert report.tls is not None
        assert report.tls.names == (("DNS:web.example",) if shows else ())


async def test_it_is_verified_again_after_an_hour(
    authority: Authority, autojump_clock: object
) -> None:
    """However often its session was resumed meanwhile."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with behind(lambda a: secured(a, ca=authority.path), tls) as (running, _):
        for _ in range(5):
            assert await talk(running) == b"hello"
            await trio.sleep(1000)
    resumed = [facts.resumed for facts in upstream_facts(running)]
    assert resumed == [False, True, True, True, False]


async def test_a_context_of_ones_own_resumes_too(
    authority: Authority, autojump_clock: object
) -> None:
    """Unless it has no tickets."""
    for options, expected in ((0, True), (ssl.OP_NO_TICKET, False)):
        context = server_context(authority.issue("localhost"))
        context.num_tickets = 0 if options else 2
        async with behind(lambda a: secured(a, ca=authority.path), context) as (
            running,
            _,
        ):
            for _ in range(2):
                assert await talk(running) == b"hello"
        assert upstream_facts(running)[1].resumed is expected


async def test_connections_at_the_same_time_have_one_session(
    authority: Authority, autojump_clock: object
) -> None:
    """The first that is over tells the next ones."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with behind(lambda a: secured(a, ca=authority.path), tls) as (running, _):
        clients = [await running.connect() for _ in range(3)]
        for client in clients:
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
        for client in clients:
            await client.aclose()
        await running.closed(3)
        assert await talk(running) == b"hello"
    resumed = [facts.resumed for facts in upstream_facts(running)]
    assert resumed == [False, False, False, True]


@functools.cache
def _authority() -> Authority:
    return Authority(Path(tempfile.mkdtemp()))


@functools.cache
def _certificate() -> str:
    return _authority().issue("localhost")


def _server(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A server with keys of its own for its tickets."""
    return server_context(_certificate(), version)


def _shake_hands(client: TlsSession, context: ssl.SSLContext) -> TlsSession:
    """The server's end; the client has read what comes with the handshake."""
    server = TlsSession(context, server_side=True)
    done = False
    while not done:
        done = client.handshake()
        server.feed(client.output())
        server.handshake()
        client.feed(server.output())
    assert client.read(1) is None
    return server


def _client() -> TlsClient:
    return TlsClient(TlsClientOptions(ca=_authority().path), "localhost")


steps = st.sampled_from(["connect", "connect", "renew", "fail", "wait", "wait long"])


@given(script=st.lists(steps, max_size=12), version=st.sampled_from(VERSIONS))
@settings(deadline=None, max_examples=30)
def test_what_is_resumed(script: Sequence[str], version: ssl.TLSVersion) -> None:
    """A session of the same keys, within an hour; and none after it has failed."""
    tls, context = _client(), _server(version)
    now, keys = 0.0, 0
    known: tuple[int, float] | None = None
    failed_at = -HOUR
    for step in script:
        is_fresh = known is not None and now - known[1] < HOUR
        is_offered = is_fresh and now - failed_at >= HOUR
        match step:
            case "connect":
                beginning = tls.begin(None, now)
                _shake_hands(beginning.session, context)
                resumed = bool(beginning.session.object.session_reused)
                assert resumed == (
                    is_offered and known is not None and known[0] == keys
                )
                beginning.is_over()
                if not resumed and (is_offered or not is_fresh):
                    known = keys, now
            case "renew":
                context, keys = _server(version), keys + 1
            case "fail":
                tls.begin(None, now).has_failed(now)
                if is_offered:
                    known, failed_at = None, now
            case "wait":
                now += 1000
            case _:
                now += HOUR


def _resumed(tls: TlsClient, context: ssl.SSLContext, *times: float) -> list[bool]:
    """Whether connections at these times resume a session."""
    found = list[bool]()
    for now in times:
        beginning = tls.begin(None, now)
        _shake_hands(beginning.session, context)
        beginning.is_over()
        found.append(bool(beginning.session.object.session_reused))
    return found


def test_a_clock_that_goes_back_ends_it() -> None:
    """A handler may serve in a second Trio run, whose clock is another one."""
    tls, context = _client(), _server(ssl.TLSVersion.TLSv1_3)
    found = _resumed(tls, context, 1e6, 1e6, 10, 11)
    assert found == [False, True, False, True]


def test_after_a_failed_handshake_none_is_resumed_for_an_hour() -> None:
    """The session may be why it has failed."""
    tls, context = _client(), _server(ssl.TLSVersion.TLSv1_3)
    assert _resumed(tls, context, 0, 1) == [False, True]
    tls.begin(None, 2).has_failed(2)
    found = _resumed(tls, context, 3, 1 + HOUR, 2 + HOUR)
    assert found == [False, False, True]


def test_a_session_that_has_failed_is_not_resumed() -> None:
    tls, context = _client(), _server(ssl.TLSVersion.TLSv1_3)
    beginning = tls.begin(None, 0)
    _shake_hands(beginning.session, context)
    assert beginning.session.resumable() is not None
    beginning.session.feed(b"\x17\x03\x03\0\x20" + bytes(32))
    with pytest.raises(TlsError):
        beginning.session.read(1)
    assert beginning.session.resumable() is None
    beginning.is_over()
    _shake_hands(again := tls.begin(None, 0).session, context)
    assert not again.object.session_reused


@pytest.mark.parametrize("version", VERSIONS)
def test_without_tickets_a_session_has_a_number(version: ssl.TLSVersion) -> None:
    """In TLS 1.2; in 1.3 there is nothing to resume."""
    context = _server(version)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    tls, servers = _client(), list[TlsSession]()

    def connected() -> TlsBeginning:
        beginning = tls.begin(None, 0)
        # A server that is freed before its close_notify forgets the session.
        servers.append(_shake_hands(beginning.session, context))
        beginning.is_over()
        return beginning

    first, second = connected(), connected()
    assert not first.session.object.session_reused
    is_12 = version is ssl.TLSVersion.TLSv1_2
    assert second.session.object.session_reused is is_12
    assert (first.session.resumable() is not None) is is_12


# -- ALPN


async def chosen_alpn(
    target: Running, client_alpn: list[str], authority: Authority, **options: object
) -> list[str | None]:
    """What is agreed on with the client and with the target."""
    tls = TlsOptions(cert=authority.issue("localhost"), alpn=["a", "b", "c"])
    handler = proxy(secured(target, ca=authority.path, **options))
    context = authority.client_context()
    if client_alpn:
        context.set_alpn_protocols(client_alpn)
    async with serving(handler, layers=Layers(tls=tls)) as running:
        client = await secure(running, context)
        assert await ask(client, b"hello") == b"hello"
        client.close()
    (report,) = running.reports
    assert report.tls is not None
    (facts,) = upstream_facts(running)
    return [report.tls.alpn, facts.alpn]


@pytest.mark.parametrize(
    ("client", "offered", "takes", "expected"),
    [
        # One that the client has agreed on is the only one.
        (["b"], ["a", "b"], ["a", "b"], ["b", "b"]),
        (["b", "a"], ["b", "a"], ["b", "a"], ["a", "a"]),
        (["b"], ["b"], ["a", "b"], ["b", "b"]),
        # With others, the target may choose.
        ([], ["a", "b"], ["b", "a"], [None, "b"]),
        (["c"], ["a", "b"], ["b"], ["c", "b"]),
        # None is offered, or none fits: it is served all the same.
        (["b"], [], ["a", "b"], ["b", None]),
        (["b"], ["a", "b"], ["a"], ["b", None]),
    ],
)
async def test_a_target_is_offered_protocols(
    client: list[str],
    offered: list[str],
    takes: list[str],
    expected: list[str | None],
    authority: Authority,
    autojump_clock: object,
) -> None:
    async def echo(conn: Connection) -> None:
        async for data in conn:
            await conn.send_all(data)

    tls = TlsOptions(cert=authority.issue("localhost"), alpn=takes)
    async with serving(echo, layers=Layers(tls=tls)) as there:
        assert await chosen_alpn(there, client, authority, alpn=offered) == expected


async def test_a_protocol_that_a_header_says_is_the_only_one(
    authority: Authority, autojump_clock: object
) -> None:
    """Then a load balancer has agreed on it with the client."""
    tls = TlsOptions(cert=authority.issue("localhost"), alpn=["a", "b"])

    async def echo(conn: Connection) -> None:
        async for data in conn:
            await conn.send_all(data)

    async with serving(echo, layers=Layers(tls=tls)) as there:
        handler = proxy(secured(there, ca=authority.path, alpn=["a", "b"]))
        async with serving(handler, layers=BEHIND) as running:
            for field in (tlv(1, b"b"), tlv(2, b"b")):
                client = await running.connect(source="127.0.0.1")
                await client.send_all(v2(0x21, 0x11, TCP4, field) + b"?")
                assert await receive_exactly(client, 1) == b"?"
                await client.aclose()
                await running.closed(len(running.reports) + 1)
    assert [facts.alpn for facts in upstream_facts(running)] == ["b", "a"]

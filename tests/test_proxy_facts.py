"""What a PROXY header says besides addresses: made for targets, and read of clients."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from certificates import Authority
from support import receive_all, serving
from test_proxy_header import BALANCER, BEHIND
from test_tls import ask, secure
from trioserve import (
    Connection,
    Layers,
    ProxyFacts,
    TlsOptions,
    by_server_name,
    echo,
    proxy,
)
from trioserve._proxy_facts import facts_declared, tlvs_for
from trioserve.wire._proxy_protocol import ProxyHeader, parse_header
from trioserve.wire._proxy_tlvs import ALPN, AUTHORITY, SSL, UNIQUE_ID, ClientTls, Tlv
from wire.headers import TCP4, TLS_PARTS, tls_tlv, tlv, v2

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def fields_for(
    layers: Layers, contexts: Sequence[ssl.SSLContext]
) -> list[tuple[Tlv, ...]]:
    """What targets get of clients, one after the other; each resumes, if it can."""
    found = list[tuple[Tlv, ...]]()

    async def target(conn: Connection) -> None:
        header = parse_header(await receive_all(conn))
        assert header is not None
        found.append(header.tlvs)
        await conn.send_all(b"!")

    sessions = dict[ssl.SSLContext, ssl.SSLSession]()
    async with serving(target) as there:
        handler = proxy(there.address, send_proxy="v2")
        async with serving(handler, layers=layers) as running:
            for context in contexts:
                known = sessions.get(context)
                client = await secure(running, context, resumes=known)
                assert await ask(client, b"?") == b"!"
                session = client.session.object.session
                assert session is not None
                sessions[context] = session
                client.close()
    return found


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_target_is_told_of_the_clients_tls(
    version: ssl.TLSVersion, authority: Authority, autojump_clock: object
) -> None:
    """As by HAProxy: ALPN, the name, and the certificate if one was shown."""
    cert = authority.issue("localhost")
    layers = Layers(tls=TlsOptions(cert=cert, client_ca=authority.path, alpn=["b"]))
    shown = authority.issue("web.example.org", common_name="wéb")
    context = authority.client_context(shown)
    context.maximum_version = version
    context.set_alpn_protocols(["a", "b"])
    first, second = await fields_for(layers, [context, context])
    kinds = [kind for kind, _ in first]
    assert kinds == [ALPN, AUTHORITY, SSL]
    assert first[:2] == second[:2] == ((ALPN, b"b"), (AUTHORITY, b"localhost"))
    tls = ClientTls.read(first[2][1])
    assert tls is not None
    assert tls.is_verified
    assert tls.shows_it_now
    assert tls.common_name == "wéb".encode()
    assert tls.version == version.name.replace("_", ".").encode()
    assert tls.cipher
    assert b"AES" in tls.cipher
    # A session that is resumed has the certificate of before.
    again = ClientTls.read(second[2][1])
    assert again is not None
    assert again.is_verified
    assert not again.shows_it_now


async def test_a_client_without_a_certificate_is_not_verified(
    authority: Authority, autojump_clock: object
) -> None:
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    (fields,) = await fields_for(layers, [authority.client_context()])
    assert [kind for kind, _ in fields] == [AUTHORITY, SSL]
    tls = ClientTls.read(fields[1][1])
    assert tls is not None
    assert tls.is_tls
    assert not tls.is_verified
    assert (tls.shows_certificate, tls.common_name) == (False, None)
    assert tls.error


async def test_a_certificate_without_a_common_name(
    authority: Authority, autojump_clock: object
) -> None:
    layers = Layers(
        tls=TlsOptions(cert=authority.issue("localhost"), client_ca=authority.path)
    )
    context = authority.client_context(authority.issue("web.example"))
    (fields,) = await fields_for(layers, [context])
    tls = ClientTls.read(fields[-1][1])
    assert tls is not None
    assert tls.is_verified
    assert tls.common_name is None


async def test_a_name_by_which_tls_is_routed_is_passed_on(
    authority: Authority, autojump_clock: object
) -> None:
    """There TLS is not ended, so that nothing else is known of it."""
    found = list[ProxyFacts | None]()

    async def target(conn: Connection) -> None:
        found.append(conn.declared)
        await echo(conn)

    tls = TlsOptions(cert=authority.issue("localhost"))
    layers = Layers(accept_proxy=["127.0.0.1"], tls=tls)
    async with serving(target, layers=layers) as there:
        handler = by_server_name({"localhost": proxy(there.address, send_proxy="v2")})
        async with serving(handler) as running:
            client = await secure(running, authority.client_context())
            assert await ask(client, b"hello") == b"hello"
            client.close()
    (facts,) = found
    assert facts is not None
    assert (facts.authority, facts.tls) == ("localhost", None)
    assert facts.tlvs == ((AUTHORITY, b"localhost"),)


async def test_a_chain_of_proxies_keeps_what_is_known(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 16: the first one has ended TLS, and all reports behind it know that."""
    behind = Layers(accept_proxy=["127.0.0.0/8"])
    cert = authority.issue("localhost")
    tls = TlsOptions(cert=cert, client_ca=authority.path, alpn=["b"])
    context = authority.client_context(authority.issue("w.example", common_name="w"))
    context.set_alpn_protocols(["b"])
    async with (
        serving(echo, layers=behind) as last,
        serving(proxy(last.address, send_proxy="v2"), layers=behind) as middle,
        serving(
            proxy(middle.address, send_proxy="v2"), layers=Layers(tls=tls)
        ) as first,
    ):
        client = await secure(first, context)
        assert await ask(client, b"hello") == b"hello"
        client.close()
    facts = [running.reports[0].declared for running in (last, middle)]
    assert facts[0] == facts[1]
    (known,) = {each.common_name for each in facts if each is not None}
    assert known == "w"
    for each in facts:
        assert each is not None
        assert (each.alpn, each.authority, each.tls) == ("b", "localhost", True)
        assert (each.version, each.verified) == ("TLSv1.3", True)
    assert first.reports[0].declared is None
    fields = last.reports[0].as_dict()["declared"]
    assert (fields["common_name"], fields["verified"]) == ("w", True)
    assert fields["tlvs"][1] == [AUTHORITY, "localhost"]


async def test_what_is_declared_is_in_the_report(autojump_clock: object) -> None:
    """Escaped: its sender is trusted, but it may have passed on what it got."""
    header = v2(
        *(0x21, 0x11, TCP4, tlv(1, b"h2"), tlv(2, b"a\n\xff"), TLS_PARTS),
        *(tlv(5, b"id-1"), tlv(0xEA, b"\1vpce-08d2bf15fac5001c9")),
    )
    seen = list[ProxyFacts | None]()

    async def handler(conn: Connection) -> None:
        seen.append(conn.declared)
        await echo(conn)

    plain = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    async with serving(handler, layers=BEHIND) as running:
        for each in (header, plain):
            client = await running.connect(source=BALANCER)
            await client.send_all(each + b"?")
            await client.send_eof()
            assert await receive_all(client) == b"?"
    first, second = running.reports
    assert seen == [first.declared, second.declared]
    assert second.declared is second.as_dict()["declared"] is None
    assert first.as_dict()["declared"] == {
        "alpn": "h2",
        "authority": r"a\n\\xff",
        "unique_id": "id-1",
        "tls": True,
        "version": "TLSv1.3",
        "cipher": "AES",
        "common_name": "web",
        "verified": True,
        "tlvs": [
            [1, "h2"],
            [2, r"a\n\xff"],
            [0x20, first.as_dict()["declared"]["tlvs"][2][1]],
            [5, "id-1"],
            [0xEA, r"\x01vpce-08d2bf15fac5001c9"],
        ],
    }
    assert first.declared is not None
    assert first.declared.tlvs[4] == (0xEA, b"\1vpce-08d2bf15fac5001c9")


async def test_a_connection_that_is_no_client_has_no_facts(
    autojump_clock: object,
) -> None:
    async with serving(echo, layers=BEHIND) as running:
        for header in (b"PROXY UNKNOWN\r\n", v2(0x20, 0)):
            client = await running.connect(source=BALANCER)
            await client.send_all(header)
            await client.send_eof()
            assert await receive_all(client) == b""
    assert [report.declared for report in running.reports] == [None, None]


fields = st.tuples(
    st.sampled_from([ALPN, AUTHORITY, UNIQUE_ID, 4, 0xEA]), st.binary(max_size=300)
)


@given(st.lists(fields, max_size=30), st.none() | st.just("a.example"))
def test_any_fields_are_facts(tlvs: list[Tlv], name: str | None) -> None:
    """In plain text; and each kind that is known is passed on once, the first one."""
    header = ProxyHeader(16, tlvs=(*tlvs, (SSL, tls_tlv(1, 0)[3:])))
    facts = facts_declared(header)
    assert facts is not None
    shown = facts.as_dict()
    for text in (facts.alpn, facts.authority, facts.unique_id):
        assert text is None or (text.isascii() and text.isprintable())
    assert len(shown["tlvs"]) == min(len(header.tlvs), 16)
    assert all(text.isprintable() and text.isascii() for _, text in shown["tlvs"])
    passed = dict(tlvs_for(header, None, name))
    first = dict(reversed(header.tlvs))
    known = {kind: first[kind] for kind in first if kind in _KNOWN}
    if name is not None:
        known.setdefault(AUTHORITY, name.encode())
    assert passed == known


_KNOWN = (ALPN, AUTHORITY, UNIQUE_ID, SSL)


async def test_version_1_has_no_fields(
    authority: Authority, autojump_clock: object
) -> None:
    layers = Layers(tls=TlsOptions(cert=authority.issue("localhost")))
    behind = Layers(accept_proxy=["127.0.0.0/8"])
    async with (
        serving(echo, layers=behind) as there,
        serving(proxy(there.address, send_proxy="v1"), layers=layers) as running,
    ):
        client = await secure(running, authority.client_context())
        assert await ask(client, b"hello") == b"hello"
        client.close()
        await trio.testing.wait_all_tasks_blocked()
    assert there.reports[0].declared is None

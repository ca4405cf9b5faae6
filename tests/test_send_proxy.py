"""A proxy that declares its clients to its targets."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import trioserve._connect
import trioserve._origins
from links import over, sockets
from support import is_reset, receive_all, receive_exactly, run, serving
from trioserve import (
    Connection,
    Layers,
    Outcome,
    Reason,
    TcpAddress,
    echo,
    open_listeners,
    proxy,
)
from trioserve._socket_transport import SocketTransport
from trioserve.wire._proxy_protocol import build_v1, build_v2, parse_header
from wire.headers import FROM4, TCP4, TO4, tlv, unix, v2

Version = Literal["v1", "v2"]
BUILD = {"v1": build_v1, "v2": build_v2}
BEHIND = Layers(accept_proxy=["127.0.0.0/8"])


async def first_bytes(
    header: bytes, version: Version, *, listen: str = "127.0.0.1:0"
) -> tuple[bytes, bytes]:
    """What a target gets of a client that sends ``header``: a PROXY header, the rest.

    The client's side of the proxy expects a header if there is one.
    """
    received: list[bytes] = []

    async def target(conn: Connection) -> None:
        received.append(await receive_all(conn))

    layers = Layers(accept_proxy=["all"] if header else [])
    async with serving(target) as there:
        handler = proxy(there.address, send_proxy=version)
        async with serving(handler, addresses=(listen,), layers=layers) as running:
            client = await running.connect()
            await client.send_all(header + b"hello")
            await client.send_eof()
            assert await receive_all(client) == b""
    (data,) = received
    (report,) = running.reports
    assert report.bytes_received == 5
    assert report.upstream is not None
    assert report.upstream.bytes_sent == 5
    found = parse_header(data)
    assert found is not None
    return data[: found.size], data[found.size :]


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_target_gets_the_clients_addresses_first(
    version: Version, autojump_clock: object
) -> None:
    """Law 3: the header is in no count, and the ledger of the report balances."""
    seen: list[object] = []

    async def target(conn: Connection) -> None:
        seen.extend((conn.peer, conn.local))
        await conn.send_all(b"welcome")
        await echo(conn)

    async with serving(target, layers=BEHIND) as there:
        async with serving(proxy(there.address, send_proxy=version)) as running:
            client = await running.connect(source="127.0.0.9")
            assert await receive_exactly(client, 7) == b"welcome"
            host, port = client.socket.getsockname()
            assert seen == [TcpAddress(host, port), running.server.addresses[0]]
            await client.send_all(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b"hello"
    (report,) = running.reports
    assert (report.bytes_received, report.bytes_sent) == (5, 12)
    assert report.upstream is not None
    assert (report.upstream.bytes_sent, report.upstream.bytes_received) == (5, 12)
    assert there.reports[0].bytes_received == 5


@given(
    versions=st.lists(st.sampled_from(["v1", "v2"]), min_size=1, max_size=3),
    payload=st.binary(max_size=2000),
    faults=st.sampled_from([None, "latency=10ms", "up:slice=1"]),
)
@settings(deadline=None, max_examples=25)
def test_a_chain_of_proxies_keeps_the_client(
    versions: list[Version], payload: bytes, faults: str | None
) -> None:
    """Laws 3 and 4: through any versions, and with faults, which break no header."""
    run(_keeps_the_client, versions, payload, faults)


async def _keeps_the_client(
    versions: Sequence[Version], payload: bytes, faults: str | None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        chain = [await stack.enter_async_context(serving(echo, layers=BEHIND))]
        for version in versions:
            handler = proxy(chain[-1].address, send_proxy=version, faults=faults)
            layers = Layers() if len(chain) == len(versions) else BEHIND
            server = serving(handler, layers=layers)
            chain.append(await stack.enter_async_context(server))
        client = await chain[-1].connect(source="127.0.0.7")
        address = "{}:{}".format(*client.socket.getsockname())
        await client.send_all(payload)
        await client.send_eof()
        assert await receive_all(client) == payload
    for running in chain:
        (report,) = running.reports
        assert report.peer == address
        assert report.local == chain[-1].address
        assert report.bytes_received == report.bytes_sent == len(payload)
        assert (report.direct_peer is None) == (running is chain[-1])


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_declared_client_is_passed_on(
    version: Version, autojump_clock: object
) -> None:
    """With both of its addresses as they were declared."""
    header, rest = await first_bytes(v2(0x21, 0x11, TCP4), version)
    assert header == BUILD[version](FROM4, TO4)
    assert rest == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_mapped_address_is_passed_on_as_it_is(
    version: Version, autojump_clock: object
) -> None:
    line = b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n"
    header, _ = await first_bytes(line, version)
    declared = parse_header(line)
    assert declared is not None
    assert header == BUILD[version](declared.source, declared.destination)
    assert version == "v2" or header == line


async def test_a_unique_id_is_passed_on(autojump_clock: object) -> None:
    ours = v2(0x21, 0x11, TCP4, tlv(2, b"example.org"), tlv(5, b"id-1"), tlv(4, b""))
    header, _ = await first_bytes(ours, "v2")
    assert header == v2(0x21, 0x11, TCP4, tlv(2, b"example.org"), tlv(5, b"id-1"))
    header, _ = await first_bytes(v2(0x20, 0, tlv(5, b"id-1")), "v1")
    assert header.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def test_after_local_it_is_the_load_balancer(autojump_clock: object) -> None:
    """As in HAProxy: the addresses of the connection itself."""
    header, _ = await first_bytes(v2(0x20, 0), "v2")
    assert header[12:16] == b"\x21\x11\0\x0c"
    assert header[16:24] == bytes([127, 0, 0, 1, 127, 0, 0, 1])


@pytest.mark.parametrize(("version", "expected"), [
    ("v1", b"PROXY UNKNOWN\r\n"), ("v2", v2(0x20, 0)),
])  # fmt: skip
async def test_clients_of_unix_sockets_are_unknown(
    version: Version, expected: bytes, tmp_path: Path, autojump_clock: object
) -> None:
    """As in HAProxy: LOCAL or UNKNOWN, also if a header has declared them."""
    place = f"unix:{tmp_path}/socket"
    assert await first_bytes(b"", version, listen=place) == (expected, b"hello")
    declared = v2(0x21, 0x31, unix(b"/run/a", b"/run/b"))
    assert (await first_bytes(declared, version))[0] == expected


async def test_a_loop_is_detected_behind_headers(autojump_clock: object) -> None:
    """Law 1: it is the direct peer that tells, and not the declared one."""
    listeners = await open_listeners("127.0.0.1:0", "127.0.0.1:0")
    back = listeners[1].socket.getsockname()[1]
    handler = proxy(f"127.0.0.1:{back}", send_proxy="v2")
    async with serving(handler, listeners=listeners[:1]) as running:
        running.server.add_listener(listeners[1], layers=BEHIND)
        assert await is_reset(await running.connect())
    first, second = sorted(running.reports, key=lambda report: report.id)
    assert (first.reason, second.reason) == (Reason.SERVER_RESET, Reason.LOOP)
    assert first.peer == second.peer


async def test_a_target_that_has_reset_already(autojump_clock: object) -> None:
    """Its error is found by the relay, as without a header."""

    async def gone(conn: Connection) -> None:
        conn.abort()

    async with serving(gone) as there:
        async with serving(proxy(there.address, send_proxy="v1")) as running:
            assert await is_reset(await running.connect())
    assert running.reports[0].reason is Reason.SERVER_RESET


async def test_a_header_that_can_not_be_sent(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Law 1: this machine lacks memory; the target must not get bytes without it."""

    class NoRoom(trioserve._origins.DialedSocket):
        def send(self, *_: object) -> int:
            raise OSError(errno.ENOBUFS, "no buffer space")

    received: list[bytes] = []

    async def target(conn: Connection) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            received.append(await receive_all(conn))

    monkeypatch.setattr(trioserve._connect, "DialedSocket", NoRoom)
    async with serving(target) as there:
        async with serving(proxy(there.address, send_proxy="v1")) as running:
            # It may be reset before connect(2) has returned.
            with contextlib.suppress(ConnectionResetError, trio.BrokenResourceError):
                client = await running.connect()
                await client.send_all(b"hello")
                assert await is_reset(client)
    (report,) = running.reports
    assert (report.reason, report.outcome) == (Reason.RESOURCE, Outcome.RESOURCE)
    assert "no buffer space" in str(report.error)
    assert report.upstream is None
    assert received == []


async def test_a_preface_needs_room() -> None:
    with over(sockets) as (transport, link):
        assert isinstance(transport, SocketTransport)
        transport.send_preface(b"ahead")
        assert await receive_exactly(link.peer, 5) == b"ahead"
        assert (transport.sent, transport.error) == (0, None)
        transport.send_preface(bytes(100_000_000))
        assert isinstance(transport.error, OSError)
        assert transport.error.errno == errno.ENOBUFS
        assert transport.sent == 0


def test_a_version_is_checked() -> None:
    wrongs: list[Any] = ["v3", "V1", 1, b"v1"]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="send_proxy must be 'v1', 'v2' or None"):
            proxy("127.0.0.1:1", send_proxy=wrong)

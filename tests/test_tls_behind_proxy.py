"""A TLS port behind a load balancer: the client is the one of its PROXY header.

The header comes before TLS, so that access rules and limits per peer apply to the
client that it names before there is a handshake, and count it until its end.
"""

from __future__ import annotations

import collections
import contextlib
import ssl
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from support import Running, is_reset, receive_all, run, serving
from test_proxy_header import BALANCER, LOCAL, line
from test_tls import client_over
from trioserve import Layers, Limits, Reason, Timeouts, TlsOptions, echo
from trioserve._tls_transport import TlsTransport
from trioserve.wire._tls_errors import TlsError

HOSTS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")

FAILURES = (trio.BrokenResourceError, TlsError)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Balancer:
    """Connects to a TLS port as a load balancer does, for clients that it names."""

    def __init__(self, running: Running, context: ssl.SSLContext) -> None:
        self.running = running
        self._context = context

    async def connect(self, header: bytes, more: bytes = b"") -> trio.SocketStream:
        client = await self.running.connect(source=BALANCER)
        await client.send_all(header + more)
        return client

    async def secure(self, header: bytes) -> TlsTransport | None:
        """A client that is served: it shakes hands, and gets an echo; else None."""
        stream = await self.connect(header)
        transport = client_over(stream, self._context)
        try:
            await transport.handshake()
            await transport.send(b"?")
            assert await transport.receive() == b"?"
        except FAILURES:
            transport.abort()
            return None
        return transport

    async def is_served(self, header: bytes) -> bool:
        """The same, for a client that goes at once."""
        transport = await self.secure(header)
        if transport is not None:
            transport.close()
            await transport.wait_closed()
        return transport is not None


@contextlib.asynccontextmanager
async def behind(
    authority: Authority, limits: Limits, **layers: Any
) -> AsyncGenerator[Balancer, None]:
    """A TLS port behind a load balancer; its handshakes have 5 seconds."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with serving(
        echo,
        limits=limits,
        layers=Layers(tls=tls, accept_proxy=[BALANCER], **layers),
        timeouts=Timeouts(handshake=5),
    ) as running:
        yield Balancer(running, authority.client_context())


steps = st.tuples(
    st.sampled_from(["secure", "secure", "silent", "plain", "close", "wait"]),
    st.sampled_from(HOSTS[:2]),
)


@given(st.lists(steps, max_size=12))
@settings(deadline=None, max_examples=15)
def test_the_limit_per_peer_counts_the_named_client(
    script: list[tuple[str, str]],
) -> None:
    """Law 2: in the handshake, while it is served, and not any more after its end."""
    with tempfile.TemporaryDirectory() as folder:
        run(_counts, Authority(Path(folder)), script)


async def _counts(authority: Authority, script: list[tuple[str, str]]) -> None:
    most = 2
    expected = collections.Counter[Reason]()
    limits = Limits(max_connections=100, max_per_peer=most)
    async with behind(authority, limits) as balancer:
        served = {host: list[TlsTransport]() for host in HOSTS}
        silent = {host: list[trio.SocketStream]() for host in HOSTS}
        for number, (kind, host) in enumerate(script, 1):
            header = line(host, number)
            is_full = len(served[host]) + len(silent[host]) >= most
            match kind:
                case "secure":
                    transport = await balancer.secure(header)
                    assert (transport is None) is is_full
                    served[host] += [] if transport is None else [transport]
                case "silent":
                    client = await balancer.connect(header)
                    silent[host] += [] if is_full else [client]
                case "plain":
                    client = await balancer.connect(header, b"GET / HTTP/1.1\r\n\r\n")
                    with contextlib.suppress(trio.BrokenResourceError):
                        await receive_all(client)
                    await client.aclose()
                    if not is_full:
                        expected[Reason.TLS_FAILED] += 1
                case "close":
                    for transport in served[host][:1]:
                        served[host].remove(transport)
                        expected[Reason.CLIENT_CLOSED] += 1
                        transport.close()
                        await transport.wait_closed()
                case _:
                    await trio.sleep(6)
                    for each in silent.values():
                        expected[Reason.HANDSHAKE] += len(each)
                        each.clear()
            if kind in ("secure", "silent", "plain") and is_full:
                expected[Reason.PEER_LIMIT] += 1
            await trio.testing.wait_all_tasks_blocked(0.01)
            counts = {host: len(served[host]) + len(silent[host]) for host in HOSTS}
            found = balancer.running.server._serving.admission.peers
            assert found == {host: count for host, count in counts.items() if count}
        for host in HOSTS:
            for transport in served[host]:
                expected[Reason.CLIENT_CLOSED] += 1
                transport.close()
                await transport.wait_closed()
        await trio.sleep(6)
        expected[Reason.HANDSHAKE] += sum(map(len, silent.values()))
        assert balancer.running.server._serving.admission.peers == {}
    reports = balancer.running.reports
    assert collections.Counter(report.reason for report in reports) == +expected
    assert {report.peer.partition(":")[0] for report in reports} <= set(HOSTS)


async def test_the_rate_counts_the_named_client(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 2: not the load balancer, and a refused client gets no handshake."""
    limits = Limits(max_connections=100, rate_per_peer=(2, 10.0))
    async with behind(authority, limits) as balancer:
        for host in HOSTS:
            found = [await balancer.is_served(line(host, port)) for port in (1, 2, 3)]
            assert found == [True, True, False]
        await trio.sleep(5.1)
        for host in HOSTS:
            found = [await balancer.is_served(line(host, port)) for port in (4, 5)]
            assert found == [True, False]
        # Checks of the load balancer itself are not counted.
        assert [await balancer.is_served(LOCAL) for _ in range(4)] == 4 * [True]
    refused = [r for r in balancer.running.reports if r.reason is Reason.RATE]
    assert len(refused) == 6
    for report in refused:
        assert (report.limit, report.tls, report.phase) == (2, None, "handshake")
        assert report.bytes_sent == 0


async def test_access_rules_are_about_the_named_client(
    authority: Authority, autojump_clock: object
) -> None:
    """And those for direct peers about the load balancer."""
    async with behind(
        authority,
        Limits(max_connections=100),
        access=["deny 192.0.2.2", "allow 192.0.2.0/24"],
        direct_access=[f"allow {BALANCER}"],
    ) as balancer:
        names = (*HOSTS, "203.0.113.1", BALANCER)
        found = [await balancer.is_served(line(host)) for host in names]
        assert found == [True, False, True, False, False]
        # Who comes directly has no header, and is refused before one is read.
        direct = await balancer.running.connect(source="127.0.0.2")
        assert await receive_all(direct) == b""
    denied = [r for r in balancer.running.reports if r.reason is Reason.DENIED]
    assert len(denied) == 4
    assert all(report.tls is None for report in denied)


async def test_a_flood_behind_a_load_balancer_keeps_nobody_waiting(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 2 and 12: of one client, some are waited for; of many, each until its time.

    All come from one address, that of the load balancer.
    """
    limits = Limits(max_connections=500, max_per_peer=4)
    async with behind(authority, limits) as balancer:
        flood = list[trio.SocketStream]()
        for number in range(90):
            header = line(HOSTS[0] if number % 3 else f"198.51.100.{number}", number)
            more = (b"", b"\x16\x03\x01", b"\x16\x03\x01\0\xff")[number % 3]
            flood.append(await balancer.connect(header, more))
            if number % 30 == 29:
                assert await balancer.is_served(line(HOSTS[1], number))
        assert not await balancer.is_served(line(HOSTS[0], 1000))
        assert autojump_clock.current_time() < 1
        await trio.testing.wait_all_tasks_blocked()
        assert balancer.running.server.statistics().open == 30 + 4
        await trio.sleep(5.2)
        assert balancer.running.server.statistics().open == 0
        assert await balancer.is_served(line(HOSTS[0], 1001))
        for client in flood:
            await is_reset(client)  # or EOF; no client is left waiting
    reports = balancer.running.reports
    counts = collections.Counter(report.reason for report in reports)
    assert counts[Reason.HANDSHAKE] == 34
    assert counts[Reason.PEER_LIMIT] == 90 - 34 + 1
    for report in reports:
        if report.reason is Reason.HANDSHAKE:
            assert report.duration == pytest.approx(5, abs=0.1)
            assert report.limit == 5

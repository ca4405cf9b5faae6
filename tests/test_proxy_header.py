"""Behind a load balancer: the client is the one that its PROXY header declares."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import (
    Running,
    is_reset,
    is_reset_by,
    open_fds,
    receive_all,
    reset,
    run,
    serving,
)
from sweep import Begin, sweep
from trioserve import (
    Connection,
    ConnectionReport,
    Layers,
    Limits,
    Outcome,
    Phase,
    Reason,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
    proxy,
    serve,
)
from wire.headers import INVALID, TCP4, VALID, tlv, unix, v2

BALANCER = "127.0.0.1"
BEHIND = Layers(accept_proxy=[BALANCER])
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
LOCAL = v2(0x20, 0)


def line(host: str, port: int = 1) -> bytes:
    return f"PROXY TCP4 {host} 198.51.100.2 {port} 443\r\n".encode()


async def answer(running: Running, *chunks: bytes, source: str = BALANCER) -> bytes:
    """Send chunks, each for itself, and EOF; what comes back."""
    client = await running.connect(source=source)
    for chunk in chunks:
        await client.send_all(chunk)
        await trio.testing.wait_all_tasks_blocked()
    await client.send_eof()
    return await receive_all(client)


async def test_the_declared_client_is_the_peer(autojump_clock: object) -> None:
    seen: list[Connection] = []
    names: list[str] = []

    async def handler(conn: Connection) -> None:
        seen.append(conn)
        names.append(trio.lowlevel.current_task().name)
        await echo(conn)

    async with serving(handler, layers=BEHIND) as running:
        assert await answer(running, LINE + b"hello") == b"hello"
    (report,) = running.reports
    assert report.peer == "192.0.2.1:56324"
    assert report.local == "198.51.100.2:443"
    assert str(report.direct_peer).startswith(f"{BALANCER}:")
    assert report.listener == running.address
    assert (report.bytes_received, report.bytes_sent) == (5, 5)
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.as_dict()["direct_peer"] == report.direct_peer
    assert names == ["conn-1 192.0.2.1:56324"]
    (conn,) = seen
    assert conn.peer == TcpAddress("192.0.2.1", 56324)
    assert conn.local == TcpAddress("198.51.100.2", 443)
    assert str(conn.direct_peer) == report.direct_peer


async def test_from_others_no_header_is_read(autojump_clock: object) -> None:
    """Else every client could say that it is another one."""
    async with serving(echo, layers=BEHIND) as running:
        assert await answer(running, LINE, source="127.0.0.2") == LINE
    (report,) = running.reports
    assert report.peer.startswith("127.0.0.2:")
    assert report.direct_peer is None
    assert report.bytes_received == len(LINE)


@given(
    header=st.sampled_from(list(VALID)),
    payload=st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 150), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_a_header_is_read_wherever_it_is_cut(
    header: bytes, payload: bytes, cuts: list[int]
) -> None:
    """Laws 3, 10 and 16: the client's bytes count, and those of the header don't."""
    run(_is_read, header, payload, sorted(cuts))


async def _is_read(header: bytes, payload: bytes, cuts: list[int]) -> None:
    whole = header + payload
    chunks = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    async with serving(echo, layers=BEHIND) as running:
        assert await answer(running, *filter(None, chunks)) == payload
    (report,) = running.reports
    assert (report.direct_peer is None) == (VALID[header].source is None)
    assert report.bytes_received == report.bytes_sent == len(payload)
    assert report.bytes_discarded == 0
    assert (report.first_byte is None) == (not payload)
    assert report.reason is Reason.CLIENT_CLOSED


@given(header=st.sampled_from(list(INVALID)), cut=st.integers(0, 60))
@settings(deadline=None, max_examples=40)
def test_an_invalid_header_is_reset(header: bytes, cut: int) -> None:
    """Law 3: all bytes count as received and discarded."""
    run(_is_refused, header, cut)


async def _is_refused(header: bytes, cut: int) -> None:
    started: list[Connection] = []
    async with serving(echo, layers=BEHIND, on_start=started.append) as running:
        client = await running.connect()
        assert await is_reset_by(client, header[:cut], header[cut:])
    (report,) = running.reports
    assert (report.reason, report.outcome) == (
        Reason.BAD_PROXY_HEADER,
        Outcome.PEER_ERROR,
    )
    assert (report.phase, report.termination_state) == (Phase.HANDSHAKE, "PR")
    assert report.limit is None
    assert INVALID[header] in str(report.error) or "ended within" in str(report.error)
    assert report.peer.startswith(BALANCER)
    assert report.bytes_received == report.bytes_discarded
    assert not started


async def test_a_check_that_only_connects_ends_well(autojump_clock: object) -> None:
    """It is closed by FIN, and has no bytes, so that the log may leave it out."""
    async with serving(echo, layers=BEHIND) as running:
        assert await answer(running) == b""
        assert await answer(running, LOCAL) == b""
    for report in running.reports:
        assert report.reason is Reason.CLIENT_CLOSED
        assert report.bytes_received == report.bytes_discarded == 0
    assert [report.phase for report in running.reports] == ["handshake", "closing"]


async def test_a_header_that_ends_early(autojump_clock: object) -> None:
    async with serving(echo, layers=BEHIND) as running:
        client = await running.connect()
        await client.send_all(LINE[:-1])
        await client.send_eof()
        assert await is_reset(client)
        client = await running.connect()
        await client.send_all(LINE[:-1])
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
    first, second = running.reports
    assert first.reason is Reason.BAD_PROXY_HEADER
    assert first.error == "it ended within its PROXY header"
    assert second.reason is Reason.CLIENT_RESET
    for report in running.reports:
        assert report.bytes_received == report.bytes_discarded == len(LINE) - 1


async def test_a_header_has_a_deadline(autojump_clock: object) -> None:
    """Law 12: a byte a second does not extend it."""
    timeouts = Timeouts(handshake=3)
    async with serving(echo, layers=BEHIND, timeouts=timeouts) as running:
        client = await running.connect()
        with pytest.raises(trio.BrokenResourceError):
            for byte in LINE:
                await client.send_all(bytes([byte]))
                await trio.sleep(1)
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.HANDSHAKE, 3)
    assert report.duration == pytest.approx(3, abs=0.1)
    assert report.bytes_received == report.bytes_discarded


@pytest.mark.parametrize("what", ["stream", "socket"])
async def test_a_close_by_other_code_ends_the_wait_for_a_header(
    what: str, autojump_clock: object
) -> None:
    """Law 2: it is not the handler's error; that has not begun."""
    async with serving(echo, layers=BEHIND) as running:
        client = await running.connect()
        await client.send_all(LINE[:5])
        await trio.testing.wait_all_tasks_blocked()
        (conn,) = running.server.connections
        if what == "stream":
            await conn.aclose()
        else:
            conn.socket.close()
        await running.closed(1)
        await client.aclose()
    (report,) = running.reports
    assert report.reason is Reason.ABORTED


async def test_a_drain_and_a_cancel_end_the_wait_for_a_header(
    autojump_clock: object,
) -> None:
    async with serving(echo, layers=BEHIND) as running:
        client = await running.connect()
        await client.send_all(LINE[:5])
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining(2)
        await trio.sleep(3)
        assert await is_reset(client)
    async with serving(echo, layers=BEHIND) as cancelled:
        await (await cancelled.connect()).send_all(LINE[:5])
        await trio.testing.wait_all_tasks_blocked()
        cancelled.scope.cancel()
    for report in running.reports + cancelled.reports:
        assert report.outcome is Outcome.CUT
        assert report.bytes_received == report.bytes_discarded == 5


def test_stopped_at_any_step_nothing_is_left() -> None:
    """Laws 2, 3 and 13: while a header arrives, and is passed on."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        limits = Limits(max_connections=10, max_per_peer=1, rate_per_peer=(5, 1.0))
        async with serving(echo, layers=BEHIND, limits=limits) as there:
            handler = proxy(there.address, send_proxy="v2")
            async with serving(handler, layers=BEHIND, limits=limits) as running:
                client = await running.connect()
                begin(running.scope.cancel)
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send_all(LINE[:20])
                    await trio.lowlevel.checkpoint()
                    await client.send_all(LINE[20:] + b"hello")
                    await client.send_eof()
                    await receive_all(client)
                await client.aclose()
                await trio.testing.wait_all_tasks_blocked()
            assert running.server._serving.admission.peers == {}
            for report in running.reports:
                assert report.outcome in ("ok", "cut")
        assert there.server._serving.admission.peers == {}
        assert open_fds() == before

    assert sweep(scenario) > 20


# -- access


def peers_and_reasons(reports: list[ConnectionReport]) -> list[tuple[str, str]]:
    return [(r.peer.partition(":")[0], str(r.reason)) for r in reports]


async def test_access_rules_are_about_the_declared_client(
    autojump_clock: object,
) -> None:
    layers = Layers(accept_proxy=[BALANCER], access=["deny 192.0.2.7"])
    async with serving(echo, layers=layers) as running:
        assert await answer(running, line("192.0.2.7") + b"hello") == b""
        assert await answer(running, line("192.0.2.8") + b"hello") == b"hello"
        assert await answer(running, b"hello", source="127.0.0.2") == b"hello"
    assert peers_and_reasons(running.reports) == [
        ("192.0.2.7", "denied"),
        ("192.0.2.8", "client_closed"),
        ("127.0.0.2", "client_closed"),
    ]


async def test_rules_of_their_own_say_who_may_connect_directly(
    autojump_clock: object,
) -> None:
    """They come first: a connection that they deny is not asked for a header."""
    layers = Layers(
        access=["allow 192.0.2.0/24"],
        accept_proxy=["127.0.0.0/8"],
        direct_access=[f"allow {BALANCER}"],
    )
    async with serving(echo, layers=layers) as running:
        assert await answer(running, LINE + b"hello") == b"hello"
        other = await running.connect(source="127.0.0.2")
        assert await receive_all(other) == b""
        # The balancer itself is no client that is allowed.
        assert await answer(running, LOCAL + b"hello") == b""
        assert await answer(running, line("203.0.113.1") + b"hello") == b""
    assert [report.reason for report in running.reports] == [
        Reason.CLIENT_CLOSED, Reason.DENIED, Reason.DENIED, Reason.DENIED,
    ]  # fmt: skip


# -- limits


async def test_the_limit_per_peer_is_about_the_declared_client(
    autojump_clock: object,
) -> None:
    """Law 2: not about the balancer, and one count for all ways to the server."""
    limits = Limits(max_connections=100, max_per_peer=2)
    layers = Layers(accept_proxy=[BALANCER])
    async with serving(echo, layers=layers, limits=limits) as running:

        async def served(*chunks: bytes, source: str = BALANCER) -> bool:
            client = await running.connect(source=source)
            await client.send_all(b"".join(chunks) + b"?")
            return await client.receive_some(1) == b"?"

        for host in ("192.0.2.1", "192.0.2.2", "127.0.0.2"):
            assert await served(line(host, 1))
            assert await served(line(host, 2))
            assert not await served(line(host, 3))
        assert not await served(source="127.0.0.2")
        assert [await served(LOCAL) for _ in range(4)] == 4 * [True]
        assert [await served(b"PROXY UNKNOWN\r\n") for _ in range(4)] == 4 * [True]
        # Checks of version 1 declare the balancer itself.
        for _ in range(4):
            check = await running.connect(source=BALANCER)
            await check.send_all(line(*check.socket.getsockname()) + b"?")
            assert await check.receive_some(1) == b"?"
        admission = running.server._serving.admission
        counted = {"192.0.2.1": 2, "192.0.2.2": 2, "127.0.0.2": 2}
        assert admission.peers == counted
        for client in running.clients:
            await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert admission.peers == {}
    refused = [r for r in running.reports if r.reason is Reason.PEER_LIMIT]
    assert [(r.limit, r.phase) for r in refused] == [
        (2, "handshake"), (2, "handshake"), (2, "handshake"), (2, "queue"),
    ]  # fmt: skip


async def test_declared_ipv6_clients_count_by_their_network(
    autojump_clock: object,
) -> None:
    limits = Limits(max_connections=100, max_per_peer=1)
    async with serving(echo, layers=BEHIND, limits=limits) as running:
        for host, is_served in (("0::1", True), ("0::2", False), ("1::1", True)):
            header = f"PROXY TCP6 2001:db8:{host} ::1 1 2\r\n".encode()
            client = await running.connect()
            await client.send_all(header + b"?")
            assert (await client.receive_some(1) == b"?") == is_served
    assert [report.reason for report in running.reports].count(Reason.PEER_LIMIT) == 1


async def test_a_slow_header_takes_no_place_of_its_client(
    autojump_clock: object,
) -> None:
    """Law 12: many connections of the balancer may wait for their headers."""
    limits = Limits(max_connections=10, max_per_peer=1)
    async with serving(echo, layers=BEHIND, limits=limits) as running:
        slow = [await running.connect() for _ in range(5)]
        await trio.testing.wait_all_tasks_blocked()
        for number, client in enumerate(slow):
            await client.send_all(line(f"192.0.2.{number}") + b"?")
            assert await client.receive_some(1) == b"?"


# -- other kinds


async def test_a_unix_socket_behind_a_balancer(
    tmp_path: Path, autojump_clock: object
) -> None:
    layers = Layers(accept_proxy=["unix"])
    header = v2(0x21, 0x31, unix(b"/run/a\nb", b"\0name"), tlv(5, b"id"))
    async with serving(
        echo, addresses=(f"unix:{tmp_path}/socket",), layers=layers
    ) as running:
        for each in (LINE, header):
            client = await running.connect()
            await client.send_all(each + b"?")
            await client.send_eof()
            assert await receive_all(client) == b"?"
    tcp, named = running.reports
    assert (tcp.peer, tcp.direct_peer) == ("192.0.2.1:56324", "unix:")
    # Escaped: it goes into logs.
    assert (named.peer, named.local) == (r"unix:/run/a\nb", "unix:@name")


async def test_a_stream_that_is_not_a_socket(autojump_clock: object) -> None:
    listener = MemoryListener()
    layers = Layers(accept_proxy=["all"])
    async with serving(echo, listeners=[listener], layers=layers) as running:
        client = await listener.connect()
        await client.send_all(v2(0x21, 0x11, TCP4) + b"?")
        await client.send_eof()
        assert await receive_all(client) == b"?"
    (report,) = running.reports
    assert report.peer == "192.0.2.1:56324"
    assert report.direct_peer == "MemoryListener"


class MemoryListener(trio.abc.Listener[trio.StapledStream[Any, Any]]):
    def __init__(self) -> None:
        self._send, self._streams = trio.open_memory_channel[Any](10)

    async def connect(self) -> trio.StapledStream[Any, Any]:
        ours, theirs = trio.testing.memory_stream_pair()
        await self._send.send(theirs)
        return ours

    async def accept(self) -> trio.StapledStream[Any, Any]:
        stream: trio.StapledStream[Any, Any] = await self._streams.receive()
        return stream

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_listener_with_tls_can_not_have_headers_before_it() -> None:
    listeners = await open_listeners("127.0.0.1:0", "127.0.0.1:0")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    secure = trio.SSLListener(listeners[1], context)
    with pytest.raises(ValueError, match="a PROXY header comes before TLS"):
        await serve(echo, [secure], layers=BEHIND)
    async with serving(echo, listeners=[listeners[0]]) as running:
        with pytest.raises(ValueError, match="a PROXY header comes before TLS"):
            running.server.add_listener(secure, layers=BEHIND)
        assert len(running.server) == 1
    await secure.aclose()

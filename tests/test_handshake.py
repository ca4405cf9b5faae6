"""Layers between accept and the handler: access rules, deadlines, bytes given back."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Generator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from support import is_reset, receive_all, receive_exactly, run, serving
from trioserve import (
    Connection,
    Layers,
    Limits,
    Outcome,
    Phase,
    Reason,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
)
from trioserve._lifecycle import Lifecycle

NOBODY = Layers(access=["deny all"])


async def is_served(client: trio.SocketStream) -> bool:
    await client.send_all(b"?")
    return await client.receive_some() == b"?"


@pytest.mark.parametrize("refusal", [b"", b"not you\n", None])
async def test_a_denied_client_is_refused_and_reported(
    refusal: bytes | None, autojump_clock: object
) -> None:
    started: list[Connection] = []
    limits = Limits(refusal=refusal)
    async with serving(
        echo, layers=NOBODY, limits=limits, on_start=started.append
    ) as running:
        client = await running.connect()
        if refusal is None:
            assert await is_reset(client)
        else:
            assert await receive_all(client) == refusal
            await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.outcome) == (Reason.DENIED, Outcome.REFUSED)
    assert (report.phase, report.termination_state) == (Phase.HANDSHAKE, "PR")
    assert report.bytes_sent == len(refusal or b"")
    assert not started
    assert running.server.statistics().refused == 1


async def test_a_denied_client_keeps_no_token_and_does_not_count(
    autojump_clock: object,
) -> None:
    """Law 2: after any number of them, all clients that are allowed fit."""
    limits = Limits(max_connections=1, max_per_peer=1)
    layers = Layers(access=["allow 127.0.0.2"])
    async with serving(echo, layers=layers, limits=limits) as running:
        for _ in range(5):
            assert await receive_all(await running.connect(source="127.0.0.1")) == b""
        assert await is_served(await running.connect(source="127.0.0.2"))
    assert [report.reason for report in running.reports[:5]] == [Reason.DENIED] * 5


async def test_a_denied_client_that_does_not_read_delays_nobody(
    autojump_clock: object,
) -> None:
    """Law 12: the close lingers for at most ``linger`` seconds."""
    limits = Limits(refusal=b"no")
    timeouts = Timeouts(linger=3)
    layers = Layers(access=["deny 127.0.0.1"])
    async with serving(
        echo, layers=layers, limits=limits, timeouts=timeouts
    ) as running:
        for _ in range(3):
            await running.connect(source="127.0.0.1")
        assert await is_served(await running.connect(source="127.0.0.2"))
        await trio.sleep(5)
        assert len(running.reports) == 3
    denied = running.reports[:3]
    assert all(3 <= report.duration < 4 for report in denied)


async def test_clients_of_unix_sockets_have_rules_of_their_own(
    tmp_path: Path, autojump_clock: object
) -> None:
    addresses = (f"unix:{tmp_path}/socket", "127.0.0.1:0")
    layers = Layers(access=["allow unix"])
    async with serving(echo, addresses=addresses, layers=layers) as running:
        assert await is_served(await running.connect(0))
        assert await receive_all(await running.connect(1)) == b""


async def test_access_rules_see_ipv4_addresses_over_ipv6(
    autojump_clock: object,
) -> None:
    sock = trio.socket.socket(trio.socket.AF_INET6)
    sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 0)
    await sock.bind(("::", 0))
    sock.listen()
    listeners = [trio.SocketListener(sock)]
    layers = Layers(access=["allow 127.0.0.0/8"])
    async with serving(echo, listeners=listeners, layers=layers):
        port = sock.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            assert await is_served(client)
        async with await trio.open_tcp_stream("::1", port) as client:
            assert await receive_all(client) == b""


async def test_access_rules_see_the_address_below_tls(
    autojump_clock: object,
) -> None:
    """Over a TLS listener it is that of the socket below, also for limits."""
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    (listener,) = await open_listeners("127.0.0.1:0")
    assert isinstance(listener, trio.SocketListener)
    secure = trio.SSLListener(listener, server_context, https_compatible=True)
    address = TcpAddress(*listener.socket.getsockname())
    layers = Layers(access=["deny 127.0.0.1"])
    limits = Limits(max_per_peer=1)

    async def client_from(host: str) -> trio.SSLStream[trio.SocketStream]:
        sock = trio.socket.socket()
        await sock.bind((host, 0))
        await sock.connect(listener.socket.getsockname())
        raw = trio.SocketStream(sock)
        return trio.SSLStream(
            raw, context, server_hostname="localhost", https_compatible=True
        )

    async def handler(conn: Connection) -> None:
        assert conn.peer == TcpAddress("127.0.0.2", conn.peer.port)  # type: ignore[union-attr]
        assert conn.local == conn.listener == address
        await echo(conn)

    async with serving(
        handler, listeners=[secure], layers=layers, limits=limits
    ) as running:
        assert running.server.addresses == (address,)
        async with await client_from("127.0.0.2") as one:
            await one.send_all(b"?")
            assert await one.receive_some() == b"?"
            for host in ("127.0.0.2", "127.0.0.1"):
                async with await client_from(host) as other:
                    with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
                        await other.do_handshake()
    reasons = sorted(report.reason for report in running.reports)
    assert reasons[-2:] == [Reason.DENIED, Reason.PEER_LIMIT]


async def test_an_added_listener_may_have_its_own_layers(
    autojump_clock: object,
) -> None:
    late, later = await open_listeners("127.0.0.1:0", "127.0.0.1:0")
    async with serving(echo, layers=NOBODY) as running:
        running.server.add_listener(late, layers=Layers())
        running.server.add_listener(later)
        assert await receive_all(await running.connect(0)) == b""
        assert await is_served(await running.connect(1))
        assert await receive_all(await running.connect(2)) == b""
        with pytest.raises(TypeError, match="layers must be a Layers or None"):
            running.server.add_listener(late, layers=["deny all"])  # type: ignore[arg-type]


async def test_clients_in_the_queue_at_a_drain_pass_the_layers(
    autojump_clock: object,
) -> None:
    async with serving(echo, layers=NOBODY) as running:
        # In one step, so that the accept loop does not run in between.
        client = socket.create_connection(running.server[0].socket.getsockname())
        running.server.start_draining()
        with client:
            client.setblocking(False)
            await trio.lowlevel.wait_readable(client)
            assert client.recv(1) == b""
    assert [report.reason for report in running.reports] == [Reason.DENIED]
    assert running.summary.backlog_drained == 1  # type: ignore[attr-defined]


# -- the seam: a layer that reads


class Greeting:
    """A layer that reads ``!`` first, and gives back the bytes after it."""

    async def __call__(self, life: Lifecycle) -> Reason | None:
        data = await life.transport.receive()
        if data[:1] != b"!":
            return Reason.DENIED
        life.transport.unread(data[1:])
        return None


@contextlib.contextmanager
def greeted() -> Generator[None, None, None]:
    """All servers of the block have that layer: there is no option for it."""

    def layers_in_order(_: Layers, *__: object) -> tuple[Greeting, ...]:
        return Greeting(), Greeting()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trioserve._accept_loops.layers_in_order", layers_in_order)
        yield


@given(st.lists(st.sampled_from([b"", b"?", b"!", b"!!", b"!?", b"!!a"]), max_size=4))
@settings(max_examples=30)
def test_bytes_that_a_layer_gives_back_are_read_next(
    hellos: list[bytes],
) -> None:
    """Laws 3, 4 and 16: a layer's bytes are counted once, the rest is echoed."""
    run(_greets, hellos)


async def _greets(hellos: list[bytes]) -> None:
    with greeted():
        async with serving(echo) as running:
            for hello in hellos:
                client = await running.connect()
                await client.send_all(hello)
                await client.send_eof()
                expected = hello[2:] if hello[:2] == b"!!" else b""
                assert await receive_all(client) == expected
    for report in running.reports:
        hello = hellos[report.id - 1]
        assert report.bytes_received == len(hello)
        assert report.reason is (
            Reason.CLIENT_CLOSED if hello[:2] == b"!!" else Reason.DENIED
        )


async def test_all_layers_share_one_deadline(autojump_clock: object) -> None:
    """Law 12: bytes of a slow client don't extend it; others are served meanwhile."""
    timeouts = Timeouts(handshake=3)
    with greeted():
        async with serving(echo, timeouts=timeouts) as running:
            slow, silent, quick = [await running.connect() for _ in range(3)]
            await quick.send_all(b"!!?")
            assert await receive_exactly(quick, 1) == b"?"
            await trio.sleep(2)
            await slow.send_all(b"!")
            await trio.sleep(2)
            assert await is_reset(slow)
            assert await is_reset(silent)
            await quick.aclose()
    *ended, served = running.reports
    for report in ended:
        assert report.reason is Reason.HANDSHAKE
        assert report.duration == pytest.approx(3, abs=0.1)
        assert (report.limit, report.waited_for) == (3, "client")
        assert (report.phase, report.termination_state) == (Phase.HANDSHAKE, "cR")
    assert served.reason is Reason.CLIENT_CLOSED


async def test_a_drain_and_a_cancel_end_a_handshake(autojump_clock: object) -> None:
    with greeted():
        async with serving(echo) as running:
            client = await running.connect()
            await trio.testing.wait_all_tasks_blocked()
            running.server.start_draining(2)
            await trio.sleep(3)
            assert await is_reset(client)
        async with serving(echo) as cancelled:
            client = await cancelled.connect()
            await trio.testing.wait_all_tasks_blocked()
            cancelled.scope.cancel()
    reasons = [report.reason for report in running.reports + cancelled.reports]
    assert reasons == [Reason.CUT, Reason.CANCELLED]

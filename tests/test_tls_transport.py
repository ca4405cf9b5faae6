"""A transport over TLS: what it adds to the laws of all transports."""

from __future__ import annotations

import errno
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import (
    CLOSES,
    Close,
    RealMedium,
    connection_over,
    memory,
    over,
    shake_hands_but_for_the_last_flight,
    socket_pair,
    some_bytes,
    tls12,
    tls13,
    tls_contexts,
    tls_sessions,
)
from support import open_fds, receive_all, run
from sweep import Begin, sweep
from trioserve import Connection
from trioserve._socket_transport import SocketTransport
from trioserve._stream_transport import StreamTransport
from trioserve._tcp import keepalive_settings
from trioserve._tls_transport import TlsTransport
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession

BOTH = [tls12, tls13]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def _tls(transport: Any) -> TlsTransport:
    assert isinstance(transport, TlsTransport)
    return transport


def _pair(
    version: ssl.TLSVersion, **options: Any
) -> tuple[TlsTransport, SocketTransport, TlsSession]:
    """A server's end, and a client's socket and session after their handshake."""
    one, other = socket_pair()
    server, client = tls_sessions(version)
    transport = TlsTransport(SocketTransport(one), server, **options)
    return transport, SocketTransport(other), client


# -- A connection as a Trio stream


async def _connections(version: ssl.TLSVersion) -> tuple[Connection, Connection]:
    one, other = map(SocketTransport, socket_pair())
    server, client = tls_sessions(version)
    return (
        connection_over(TlsTransport(one, server)),
        connection_over(TlsTransport(other, client)),
    )


async def _clogged(version: ssl.TLSVersion) -> tuple[Connection, Connection]:
    pair = await _connections(version)
    for connection in pair:
        with trio.move_on_after(1):
            while True:
                await connection.send_all(bytes(100_000))
    return pair


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_connection_over_tls_is_a_half_closeable_stream(
    version: ssl.TLSVersion, autojump_clock: trio.testing.MockClock
) -> None:
    """As Trio defines one, unlike ``trio.SSLStream``."""
    before = open_fds()
    await trio.testing.check_half_closeable_stream(
        functools.partial(_connections, version), functools.partial(_clogged, version)
    )
    assert open_fds() == before


# -- Half-close


@pytest.mark.parametrize("medium", BOTH)
async def test_after_its_own_eof_it_receives_what_is_on_the_way(
    medium: RealMedium,
) -> None:
    """Law 7: in each version, although the peer goes on sending."""
    with over(medium) as (transport, link):
        await link.peer.send_all(some_bytes(0, 30_000))
        data = await transport.receive(10)
        await transport.send_eof()
        assert await link.peer.receive_some() == b""
        await link.peer.send_all(some_bytes(30_000, 30_000))
        await link.peer.send_eof()
        while more := await transport.receive(7_000):
            data += more
        assert data == some_bytes(0, 60_000)


# -- The end of the bytes


@pytest.mark.parametrize("version", VERSIONS)
@given(
    script=st.lists(st.integers(1, 2_000), min_size=1, max_size=4),
    place=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=30)
def test_a_fin_at_any_byte_is_not_eof(
    version: ssl.TLSVersion, script: list[int], place: int
) -> None:
    """Law 8: only a close_notify is; what was complete before is received."""

    async def main() -> None:
        server, client, session = _pair(version)
        cipher, written = b"", 0
        for count in script:
            session.write(some_bytes(written, count))
            written += count
            cipher += session.output()
        session.close()
        whole = cipher + session.output()
        cut = place % (len(whole) + 1)
        await client.send(whole[:cut])
        await client.send_eof()
        received = b""
        try:
            while more := await server.receive():
                received += more
            assert received == some_bytes(0, written)
            assert cut == len(whole)
        except trio.BrokenResourceError as error:
            assert cut < len(whole)
            assert isinstance(error.__cause__, TlsError)
            assert received == some_bytes(0, len(received))
            with pytest.raises(trio.BrokenResourceError):
                await server.send(b"too late")
        assert server.eof is (cut == len(whole))
        assert server.received == len(received)
        server.abort()
        client.abort()

    run(main)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_fin_is_eof_if_that_is_allowed(version: ssl.TLSVersion) -> None:
    """Between two records; within one, bytes are missing in any case."""
    for cut in (0, 1, 5, 20):
        server, client, session = _pair(version, allow_truncation=True)
        session.write(b"hello")
        first = session.output()
        session.write(b"world")
        await client.send(first + session.output()[:cut])
        await client.send_eof()
        assert await server.receive() == b"hello"
        if cut:
            with pytest.raises(trio.BrokenResourceError):
                await server.receive()
        else:
            assert await server.receive() == b""
            await server.send(b"it goes on")
        server.abort()
        client.abort()


@pytest.mark.parametrize("medium", BOTH)
async def test_what_is_discarded_may_be_incomplete(medium: RealMedium) -> None:
    """A client that closes after our EOF, as browsers do, has not failed."""
    with over(medium) as (transport, link):
        await transport.send_eof()
        await link.peer.send_all(b"hello")
        link.peer.socket.shutdown(trio.socket.SHUT_WR)
        await transport.discard(1000, 5)
        assert transport.eof
        assert transport.error is None
        assert transport.discarded == 5


async def _cipher(transport: SocketTransport, session: TlsSession) -> bytes:
    """Receive until EOF; what the session reads of it."""
    data = b""
    while more := await transport.receive():
        session.feed(more)
    while more := session.read(100_000) or b"":
        data += more
    return data


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_error_comes_after_the_bytes_before_it_and_the_peer_is_told(
    version: ssl.TLSVersion,
) -> None:
    """Law 8: by an alert."""
    server, client, session = _pair(version)
    session.write(b"hello")
    await client.send(session.output() + bytes(30))
    assert await server.receive() == b"hello"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as raised:
            await server.receive()
        assert isinstance(raised.value.__cause__, TlsError)
    assert server.readable()
    assert server.end_is_receivable()
    with pytest.raises(trio.BrokenResourceError):
        await server.send(b"hello")
    await server.send_eof()
    server.close()
    with pytest.raises(TlsError, match="it sent the alert"):
        await _cipher(client, session)
    client.abort()


@pytest.mark.parametrize("close", CLOSES)
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_alert_arrives_at_a_peer_that_sends_more(
    version: ssl.TLSVersion, close: Close, autojump_clock: object
) -> None:
    """Law 8: with bytes unread a close is a RST, and the peer's next send an error."""
    server, client, session = _pair(version)
    await client.send(bytes(30))
    with pytest.raises(trio.BrokenResourceError):
        await server.receive()
    await client.send(bytes(1000))
    close(server)
    close(server)
    await client.send(bytes(1000))
    with pytest.raises(TlsError, match="it sent the alert"):
        await _cipher(client, session)
    client.close()
    await server.wait_closed()
    assert server.below.discarded == 2000


@pytest.mark.parametrize("version", VERSIONS)
async def test_after_an_alert_a_peer_that_does_not_end_is_reset(
    version: ssl.TLSVersion, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: after some seconds."""
    server, client, _ = _pair(version)
    await client.send(bytes(30))
    with pytest.raises(trio.BrokenResourceError):
        await server.receive()
    server.abort()
    await server.wait_closed()
    assert trio.current_time() == pytest.approx(2, abs=0.01)
    assert server.below.closed
    client.abort()


@pytest.mark.parametrize("version", VERSIONS)
async def test_close_says_that_it_is_complete_and_abort_does_not(
    version: ssl.TLSVersion,
) -> None:
    """Law 8."""
    server, client, session = _pair(version)
    await server.send(b"hello")
    server.close()
    server.close()
    await server.wait_closed()
    assert await _cipher(client, session) == b"hello"
    assert session.has_ended
    client.abort()
    server, client, session = _pair(version)
    await server.send(b"hello")
    server.abort()
    server.abort()
    with pytest.raises(trio.BrokenResourceError):
        await _cipher(client, session)
    assert server.unacknowledged is not None
    client.abort()


# -- Sends that are cancelled


@pytest.mark.parametrize("medium", BOTH)
async def test_a_cancelled_send_has_counted_what_the_peer_will_get(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: what is encrypted counts, and goes out before all others."""
    with over(medium) as (transport, link):
        with trio.move_on_after(1) as scope:
            await transport.send(some_bytes(0, 30_000_000))
        assert scope.cancelled_caught
        assert 0 < transport.sent < 30_000_000
        assert transport.held
        assert not transport.closes_at_once
        assert (transport.unsent() or 0) > 0
        assert transport.observe_acks(trio.current_time())
        rest = some_bytes(transport.sent, 100_000)
        expected = some_bytes(0, transport.sent + len(rest))

        async def go_on() -> None:
            await transport.send(rest)
            await transport.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            assert await receive_all(link.peer) == expected
        assert not transport.held


@pytest.mark.parametrize("medium", BOTH)
async def test_a_close_sends_what_a_cancelled_send_has_left(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 4: it waits for room, without holding up who calls it."""
    with over(medium) as (transport, link):
        with trio.move_on_after(1):
            await transport.send(some_bytes(0, 30_000_000))
        transport.close()
        assert await receive_all(link.peer) == some_bytes(0, transport.sent)
        await transport.wait_closed()


async def test_a_close_gives_up_a_peer_that_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: after some seconds."""
    with over(tls13) as (transport, _):
        with trio.move_on_after(1):
            await transport.send(some_bytes(0, 30_000_000))
        transport.close()
        await transport.wait_closed()
        assert trio.current_time() == 3
        assert _tls(transport).below.closed


@pytest.mark.parametrize("medium", BOTH)
def test_a_send_cancelled_at_any_step_loses_nothing(medium: RealMedium) -> None:
    """Law 4: nor does an EOF."""

    async def scenario(begin: Begin) -> None:
        with over(medium) as (transport, link):
            with trio.CancelScope() as scope:
                begin(scope.cancel)
                for number in range(3):
                    await transport.send(some_bytes(10 * number, 10))
                await transport.send_eof()
            await transport.send_eof()
            assert await receive_all(link.peer) == some_bytes(0, transport.sent)

    assert sweep(scenario) >= 3


async def test_over_a_stream_a_cancelled_send_breaks_the_connection() -> None:
    """It is not known how much was sent, so nothing may come after it."""
    server, _ = tls_sessions(VERSIONS[1])
    one, _other = trio.testing.lockstep_stream_pair()
    transport = TlsTransport(StreamTransport(one), server)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, b"hello")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert transport.sent == 0
    with pytest.raises(trio.BrokenResourceError, match="cancelled halfway"):
        await transport.send(b"hello")
    assert not transport.send_refusal(b"")
    transport.close()
    await transport.wait_closed()


async def test_over_a_stream_an_alert_is_sent_too() -> None:
    """Where it can't be sent without waiting."""
    server, session = tls_sessions(VERSIONS[1])
    link = memory()
    transport = TlsTransport(StreamTransport(link.ours), server)
    assert not transport.can_reset
    assert transport.options() is None
    await link.peer.send_all(bytes(30))
    with pytest.raises(trio.BrokenResourceError):
        await transport.receive()
    session.feed(bytes(await link.peer.receive_some()))
    with pytest.raises(TlsError, match="it sent the alert"):
        session.read(10)
    transport.close()
    await transport.wait_closed()


# -- Both at once


@pytest.mark.parametrize("medium", BOTH)
async def test_an_error_of_a_receive_waits_for_a_send_to_end(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """The alert must not be put into the middle of a record."""
    with over(medium) as (transport, link):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await transport.send(some_bytes(0, 30_000_000))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            below = link.peer.transport.below  # type: ignore[attr-defined]
            await below.send(bytes(30))
            with pytest.raises(trio.BrokenResourceError):
                await transport.receive()
            with pytest.raises(trio.BrokenResourceError) as raised:
                await receive_all(link.peer)
            assert "it sent the alert" in str(raised.value.__cause__)
        assert link.peer.transport.received == transport.sent  # type: ignore[attr-defined]


@pytest.mark.parametrize("medium", BOTH)
async def test_a_close_during_a_send_is_a_truncation(
    medium: RealMedium, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 8: what was being sent is not complete."""
    with over(medium) as (transport, link):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await transport.send(some_bytes(0, 30_000_000))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            transport.close()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(link.peer)


# -- Handshakes


async def _shake_hands(
    server: TlsTransport, client: TlsTransport
) -> dict[str, Exception | None]:
    ended: dict[str, Exception | None] = {}

    async def one(name: str, transport: TlsTransport) -> None:
        ended[name] = None
        try:
            await transport.handshake()
        except Exception as error:
            ended[name] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "server", server)
        nursery.start_soon(one, "client", client)
    return ended


def _new_pair(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[TlsTransport, TlsTransport]:
    one, other = map(SocketTransport, socket_pair())
    session = TlsSession(client, server_side=False, server_hostname="localhost")
    return (
        TlsTransport(one, TlsSession(server, server_side=True)),
        TlsTransport(other, session),
    )


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_and_what_it_has_agreed_on(version: ssl.TLSVersion) -> None:
    contexts = tls_contexts(version)
    server, client = _new_pair(*contexts)
    assert server.tls_facts() is None
    assert await _shake_hands(server, client) == {"server": None, "client": None}
    assert (server.received, server.sent) == (client.received, client.sent) == (0, 0)
    facts, theirs = server.tls_facts(), client.tls_facts()
    assert facts is not None
    assert theirs is not None
    assert (
        facts.version
        == theirs.version
        == version.name.replace("_", ".", 1).replace("TLSv1.2", "TLSv1.2")
    )
    assert facts.cipher == theirs.cipher
    assert not facts.resumed
    assert facts.bytes_received == theirs.bytes_sent > 0
    assert theirs.sni == "localhost"
    assert "DNS:localhost" in theirs.names
    assert facts.subject is None
    assert (theirs.subject or "").startswith("O=trustme")
    await client.send(b"hello")
    assert await server.receive() == b"hello"
    server.abort()
    client.abort()


async def test_bytes_that_come_with_the_last_flight_are_received() -> None:
    """The client may send them with its Finished."""
    contexts = tls_contexts(VERSIONS[1])
    server, client = _new_pair(*contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handshake)
        await shake_hands_but_for_the_last_flight(client)
        client.session.write(b"hello")
        client.session.close()
        await client.below.send(client.session.output())
        await client.below.send_eof()
    assert server.readable()
    assert await server.receive() == b"hello"
    assert await server.receive() == b""
    server.abort()
    client.abort()


async def test_options_go_to_the_socket_below() -> None:
    """Keepalive of a target; a stream without a socket has none."""
    server, client = _new_pair(*tls_contexts(VERSIONS[1]))
    server.apply(keepalive_settings(5))
    below = server.trio_socket()
    assert below is not None
    assert below.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    server.abort()
    client.abort()
    StreamTransport(trio.testing.memory_stream_pair()[0]).apply(keepalive_settings(5))


async def test_a_handshake_that_fails_says_why_at_both_ends(
    autojump_clock: object,
) -> None:
    contexts = tls_contexts(VERSIONS[1])
    server, client = _new_pair(contexts[0], ssl.create_default_context())
    with trio.fail_after(10):
        ended = await _shake_hands(server, client)
    assert "its certificate is not accepted" in str(ended["client"])
    assert "it sent the alert unknown_ca" in str(ended["server"])
    server.abort()
    client.abort()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_over_streams_without_a_socket(
    version: ssl.TLSVersion, autojump_clock: trio.testing.MockClock
) -> None:
    """They can't send without waiting."""
    one, other = trio.testing.memory_stream_pair()
    ours, theirs = tls_contexts(version)
    server = TlsTransport(StreamTransport(one), TlsSession(ours, server_side=True))
    session = TlsSession(theirs, server_side=False, server_hostname="localhost")
    client = TlsTransport(StreamTransport(other), session)
    ended = await _shake_hands(server, client)
    assert ended == {"server": None, "client": None}
    await client.send(b"hello")
    assert await server.receive() == b"hello"
    server.abort()
    client.abort()


@pytest.mark.parametrize("ends", ["eof", "reset"])
async def test_a_handshake_that_the_peer_ends(ends: str) -> None:
    server, client = _new_pair(*tls_contexts(VERSIONS[1]))
    client.session.handshake()
    await client.below.send(client.session.output()[:20])
    if ends == "eof":
        client.below.close()
        with pytest.raises(TlsError, match="within the TLS handshake"):
            await server.handshake()
    else:
        client.below.abort()
        with pytest.raises(trio.BrokenResourceError):
            await server.handshake()
    assert server.error is not None
    server.abort()


# -- Its state


async def test_it_notices_what_happens_below() -> None:
    """A reset, and a close by other code."""
    server, client, _ = _pair(VERSIONS[1])
    assert not server.is_reset()
    assert not server.readable()
    client.abort()
    assert server.is_reset()
    assert isinstance(server.error, ConnectionResetError)
    server.abort()
    server, client, _ = _pair(VERSIONS[1])
    sock = server.trio_socket()
    assert sock is not None
    sock.close()
    uses: list[Callable[[], Awaitable[object]]] = [
        server.receive,
        lambda: server.send(b""),
        server.send_eof,
    ]
    for use in uses:
        with pytest.raises(trio.ClosedResourceError):
            await use()
    assert server.closed
    client.abort()


async def test_an_empty_send_sends_nothing() -> None:
    with over(tls13) as (transport, _):
        before = _tls(transport).below.sent
        await transport.send(b"")
        assert transport.sent == 0
        assert _tls(transport).below.sent == before
        assert transport.wraps(transport)
        assert transport.wraps(_tls(transport).below)
        assert transport.options() is not None


async def test_a_peer_that_has_sent_something_is_not_gone_at_its_fin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Although the kernel has no byte of it any more."""
    server, client, session = _pair(VERSIONS[1])
    session.write(b"hello")
    await client.send(session.output())
    await client.send_eof()
    assert await server.receive(1) == b"h"
    with trio.move_on_after(10) as scope:
        await server.wait_peer_gone(1)
    assert scope.cancelled_caught
    assert await server.receive() == b"ello"
    server.abort()
    client.abort()


async def test_last_words_without_waiting() -> None:
    """A goodbye, and the end."""
    server, client, session = _pair(VERSIONS[1])
    assert server.send_refusal(b"good bye")
    assert server.sent == 8
    server.discard_readable(10)
    server.close()
    assert await _cipher(client, session) == b"good bye"
    assert session.has_ended
    server.abort()
    assert server.send_refusal(b"again")
    client.abort()


async def test_last_words_for_which_there_is_no_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They are not sent, and nothing waits."""
    server, client, _ = _pair(VERSIONS[1])
    assert server.writable()
    with trio.move_on_after(1):
        await server.send(bytes(30_000_000))
    assert not server.writable()
    before = server.sent
    assert server.send_refusal(b"good bye")
    assert server.sent == before
    assert server.held
    server.abort()
    client.abort()
    server, client, session = _pair(VERSIONS[1])
    assert server.send_refusal(b"")
    server.close()
    assert await _cipher(client, session) == b""
    client.abort()


async def test_an_eof_that_this_machine_can_not_send() -> None:
    """It is raised, because the peer will not end: it does not know."""
    server, client, _ = _pair(VERSIONS[1])
    server.below.keep_error(OSError(errno.ENOBUFS, "no room"))
    with pytest.raises(trio.BrokenResourceError):
        await server.send_eof()
    server.abort()
    client.abort()


async def test_an_abort_over_a_stream() -> None:
    """How much is not acknowledged is not known."""
    server, _ = tls_sessions(VERSIONS[1])
    link = memory()
    transport = TlsTransport(StreamTransport(link.ours), server)
    transport.abort()
    await transport.wait_closed()
    assert transport.unacknowledged is None

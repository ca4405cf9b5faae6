"""TLS with a peer that is not OpenSSL, and that does what OpenSSL would not."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest
import trio

from links import socket_pair, some_bytes, tls_contexts
from trioserve._socket_transport import SocketTransport
from trioserve._tls_transport import TlsTransport
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession

with warnings.catch_warnings():  # of asyncore, which it imports
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.api import TLSConnection  # type: ignore[import-untyped]


def _server(sock: socket.socket) -> TlsTransport:
    pair = tls_contexts(ssl.TLSVersion.TLSv1_3)
    return TlsTransport(SocketTransport(sock), TlsSession(pair[0], server_side=True))


class Peer:
    """A client, whose calls block a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tls = TLSConnection(sock)
        self.tls.ignoreAbruptClose = True

    def shake_hands(self) -> None:
        self.tls.handshakeClientCert(serverName="localhost")

    def update_keys(self) -> None:
        self.finish(self.tls.send_keyupdate_request(1))

    def finish(self, steps: Generator[Any, None, None]) -> None:
        for _ in steps:
            pass

    def read(self, count: int) -> bytes:
        return bytes(self.tls.read(max=count, min=count))


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await trio.to_thread.run_sync(function, *args)


async def test_keys_are_updated_when_a_peer_asks_for_it() -> None:
    """Bytes go on in both directions."""
    one, other = socket_pair()
    server, peer = _server(one), Peer(other)
    with other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handshake)
            await in_thread(peer.shake_hands)
        for number in range(3):
            await in_thread(peer.update_keys)
            await in_thread(peer.tls.write, some_bytes(number, 100))
            assert await server.receive() == some_bytes(number, 100)
            await server.send(b"hello")
            assert await in_thread(peer.read, 5) == b"hello"
        assert server.received == 300
        assert server.sent == 15
        server.abort()


async def test_a_flood_of_key_updates_ends_the_connection() -> None:
    """Law 12: answers that the peer does not take need memory."""
    one, other = socket_pair()
    server, peer = _server(one), Peer(other)

    def flood() -> None:
        try:
            while True:
                peer.update_keys()
        except OSError:
            pass

    with other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handshake)
            await in_thread(peer.shake_hands)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await server.send(bytes(30_000_000))

            nursery.start_soon(send)
            nursery.start_soon(in_thread, flood)
            with pytest.raises(trio.BrokenResourceError) as raised:
                await server.receive()
            assert isinstance(raised.value.__cause__, TlsError)
            assert "key updates" in str(raised.value)
            server.abort()

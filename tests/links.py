"""Links: two connected streams, of each kind that a relay may get.

``ours`` goes to the code under test; ``peer`` is the other end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import random
import socket
import ssl
import sys
import termios
from collections.abc import Callable, Generator
from typing import Any, Generic, Self, TypeAlias, TypeVar

import trio
import trio.testing
import trustme

from support import reset
from trioserve import Connection, Timeouts
from trioserve._connection import lifecycle_of
from trioserve._handshakes import Handshakes
from trioserve._lifecycle import Lifecycle
from trioserve._relay import transport_of
from trioserve._socket_transport import SocketTransport
from trioserve._timers import Timers
from trioserve._tls_transport import TlsTransport
from trioserve._transport import Transport
from trioserve.wire._tls_session import TlsSession

Stream: TypeAlias = trio.abc.HalfCloseableStream


_Ours = TypeVar("_Ours", bound=Stream, covariant=True)
_Peer = TypeVar("_Peer", bound=Stream, covariant=True)


@dataclasses.dataclass(frozen=True)
class Link(Generic[_Ours, _Peer]):
    """Two ends; ``resets`` is whether the peer can tell a reset from EOF."""

    ours: _Ours
    peer: _Peer
    resets: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close both ends, whatever state they are in."""
        for stream in (self.ours, self.peer):
            match stream:
                case trio.SocketStream() | TlsPeer():
                    stream.socket.close()
                case Foreign():
                    stream.below.socket.close()
                case Connection():
                    lifecycle_of(stream).transport.abort()
                case _:
                    pass  # memory


Sockets: TypeAlias = Link[trio.SocketStream, trio.SocketStream]
RealLink: TypeAlias = Link[Stream, trio.SocketStream]
AnyLink: TypeAlias = Link[Stream, Stream]

Medium: TypeAlias = Callable[[], AnyLink]
RealMedium: TypeAlias = Callable[[], RealLink]


def send_unpaced(sock: socket.socket | trio.socket.SocketType) -> None:
    """Let the kernel send as soon as the peer's kernel has room.

    BBR paces by real time, and a virtual clock runs ahead of that. Accepted sockets
    inherit the option from their listener.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        send_unpaced(listener)
        one = socket.create_connection(listener.getsockname())
        send_unpaced(one)
        other, _ = listener.accept()
    return one, other


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def arrived(sock: trio.socket.SocketType) -> int:
    """How many bytes have arrived that nobody has received."""
    answer = bytearray(4)
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, answer)
    return int.from_bytes(answer, sys.byteorder)


_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


class Foreign(trio.abc.HalfCloseableStream):
    """A stream that hides its socket; ``aclose_forcefully`` resets it."""

    def __init__(self, below: trio.SocketStream) -> None:
        self.below = below

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.below.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.below.send_eof()

    async def aclose(self) -> None:
        if self.below.socket.fileno() >= 0:
            if trio.current_effective_deadline() == -math.inf:
                reset(self.below)
            self.below.socket.close()
        await trio.lowlevel.checkpoint()


class Whole(trio.abc.Stream):
    """A stream that can't send EOF, like TLS."""

    def __init__(self, below: Stream) -> None:
        self.below = below

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.below.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.below.aclose()


def sockets() -> Sockets:
    one, other = map(trio_stream, socket_pair())
    return Link(one, other)


def foreign() -> RealLink:
    one, other = map(trio_stream, socket_pair())
    return Link(Foreign(one), other)


def memory() -> AnyLink:
    """Streams without a socket: unbounded, and without resets."""
    one, other = trio.testing.memory_stream_pair()
    return Link(one, other, resets=False)


def narrow(stream: trio.abc.Stream) -> None:
    """Give it the smallest receive buffer that the kernel allows."""
    assert isinstance(stream, trio.SocketStream | TlsPeer)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def roomy() -> Sockets:
    """A link with large buffers on our side, so that bulk data gets a pipe."""
    link = sockets()
    link.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
    link.ours.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, 400_000)
    return link


class TlsPeer(trio.abc.HalfCloseableStream):
    """The other end of a TLS connection, with the socket that is below."""

    def __init__(self, sock: socket.socket, session: TlsSession) -> None:
        below = SocketTransport(sock)
        self.socket = below.trio_socket()
        self.transport = TlsTransport(below, session)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self.socket.setsockopt(level, option, value)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.transport.receive(max_bytes or 65536)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport.send(data)

    async def send_eof(self) -> None:
        await self.transport.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport.wait_writable()

    async def aclose(self) -> None:
        self.transport.close()
        await self.transport.wait_closed()
        await trio.lowlevel.checkpoint()


def connection_over(transport: Transport) -> Connection:
    """A connection without a server, whose timers don't run."""
    life = Lifecycle(
        transport,
        token=None,
        id=1,
        peer="peer",
        peer_key=None,
        local="local",
        listener="listener",
        timeouts=Timeouts(),
        timers=Timers(),
        draining=trio.Event(),
        handshakes=Handshakes(),
    )
    return Connection(life)


_contexts = dict[ssl.TLSVersion, tuple[ssl.SSLContext, ssl.SSLContext]]()


def tls_contexts(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server, and of a client that trusts it, for one version."""
    if version not in _contexts:
        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(server)
        server.minimum_version = server.maximum_version = version
        client = ssl.create_default_context()
        authority.configure_trust(client)
        _contexts[version] = server, client
    return _contexts[version]


def tls_sessions(version: ssl.TLSVersion) -> tuple[TlsSession, TlsSession]:
    """A server's and a client's session, after their handshake."""
    contexts = tls_contexts(version)
    server = TlsSession(contexts[0], server_side=True)
    client = TlsSession(contexts[1], server_side=False, server_hostname="localhost")
    ready = [False, False]
    while not all(ready):
        ready = [client.handshake(), server.handshake()]
        server.feed(client.output())
        client.feed(server.output())
    return server, client


async def shake_hands_but_for_the_last_flight(client: TlsTransport) -> None:
    """Leave it in the session's output, so that more can be sent with it."""
    assert not client.session.handshake()
    await client.below.send(client.session.output())
    while not client.session.handshake():
        client.session.feed(await client.below.receive())


def _tls(version: ssl.TLSVersion) -> RealLink:
    one, other = socket_pair()
    server, client = tls_sessions(version)
    ours = connection_over(TlsTransport(SocketTransport(one), server))
    peer: Any = TlsPeer(other, client)
    return Link(ours, peer)


def tls12() -> RealLink:
    return _tls(ssl.TLSVersion.TLSv1_2)


def tls13() -> RealLink:
    return _tls(ssl.TLSVersion.TLSv1_3)


MEDIA: tuple[Medium, ...] = (sockets, foreign, memory)
#: Those with limited buffers and resets.
REAL_MEDIA: tuple[RealMedium, ...] = (sockets, foreign)
#: Those whose stream on our side is a connection.
TLS_MEDIA: tuple[RealMedium, ...] = (tls12, tls13)


#: Its length is not that of a buffer, so that a chunk never equals the next one.
_PATTERN = random.Random(0).randbytes(65_521)


def some_bytes(start: int, count: int) -> bytes:
    """``count`` bytes of an endless sequence, from ``start``."""
    start %= len(_PATTERN)
    repeated = _PATTERN * ((start + count) // len(_PATTERN) + 1)
    return repeated[start : start + count]


def numbers(data: bytes) -> memoryview:
    """The same bytes, in a view whose ``len()`` is not the number of bytes."""
    return memoryview(data).cast("Q")


Close: TypeAlias = Callable[[Transport], None]
CLOSES: tuple[Close, ...] = (lambda t: t.abort(), lambda t: t.close())

L = TypeVar("L", bound=AnyLink)


@contextlib.contextmanager
def over(medium: Callable[[], L]) -> Generator[tuple[Transport, L]]:
    """A transport over our end of a link."""
    with medium() as link:
        transport = transport_of(link.ours)
        try:
            yield transport, link
        finally:
            transport.release()


class Peer:
    """One end of a link, reading in the background.

    Attributes:
      sent, received: the bytes so far.
      tail: what came after them: ``"open"`` (nothing yet), ``"eof"``, ``"reset"``,
        or ``"closed"`` if this peer has reset.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sent = bytearray()
        self.received = bytearray()
        self.tail = "open"
        self.sent_eof = False
        self.broke = False
        self.may_read = trio.Event()
        self.may_read.set()

    async def read(self) -> None:
        try:
            while data := await self.receive():
                self.received += data
            # The kernel reports a reset only once.
            self.tail = "reset" if self.broke else "eof"
        except trio.BrokenResourceError:
            self.tail = "reset"
        except trio.ClosedResourceError:
            self.tail = "closed"

    async def receive(self) -> bytes | bytearray:
        await self.may_read.wait()
        return await self.stream.receive_some(10_000)

    async def send(self, count: int) -> None:
        """Send, and ignore errors: the test checks what arrives. Nothing after EOF."""
        if self.sent_eof:
            return
        data = some_bytes(len(self.sent), count)
        self.sent += data
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.broke = True
        except trio.ClosedResourceError:
            pass  # this peer has reset

    async def send_eof(self) -> None:
        self.sent_eof = True
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_eof()

    def reset(self) -> None:
        assert isinstance(self.stream, trio.SocketStream | TlsPeer)
        if self.stream.socket.fileno() >= 0:
            reset(self.stream)

    def stop_reading(self) -> None:
        if self.may_read.is_set():
            self.may_read = trio.Event()

    def read_on(self) -> None:
        self.may_read.set()

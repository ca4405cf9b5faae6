"""Sockets of Trio's socket factory, with which tests replace the network.

The factory is set with :func:`trio.socket.set_custom_socket_factory`, for one run. Its
sockets have no descriptor, so that only Trio's methods move their bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._connect import Outgoing
from ._names import AddrInfo
from ._stream_transport import StreamTransport
from ._tcp import apply


def has_factory() -> bool:
    """Whether this Trio run makes sockets with a factory of the user's own."""
    factory = trio.socket.set_custom_socket_factory(None)
    if factory is not None:
        trio.socket.set_custom_socket_factory(factory)
    return factory is not None


def is_of_a_factory(stream: trio.SocketStream) -> bool:
    """Whether the socket of a stream is none of Trio's own class."""
    return type(stream.socket).__module__.partition(".")[0] != "trio"


async def connect_by_factory(
    info: AddrInfo, outgoing: Outgoing, on_wait: Callable[[], None]
) -> StreamTransport:
    """Connect with a socket of the factory.

    Args:
      on_wait: called before it waits.

    Raises:
      OSError: it could not connect.

    If it fails or is cancelled, it closes the socket.
    """
    sock = trio.socket.socket(info.family, info.kind, info.protocol)
    try:
        apply(outgoing.settings, sock)
        if outgoing.source is not None:
            await sock.bind((outgoing.source[1], 0))
        on_wait()
        await sock.connect(info.sockaddr)
    except BaseException:
        sock.close()
        raise
    return StreamTransport(trio.SocketStream(sock))

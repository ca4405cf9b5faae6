"""Stream acceptor: accept from any Trio listener, then wait for a token.

A listener can't be asked whether a client waits, so one accepted connection of each
listener may wait here.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import trio

from ._acceptor import FIRST_PAUSE, Acceptor, Host, closed
from ._address import sockaddr_text
from ._connection import Connection, lifecycle_of
from ._handshake import Layer
from ._listeners import accept_source
from ._reason import Reason
from ._shared_socket import SharedSocketTransport
from ._stream_transport import StreamTransport
from ._transport import Transport


class StreamAcceptor(Acceptor):
    """Accepts from a Trio listener of any kind."""

    def __init__(
        self,
        listener: trio.abc.Listener[Any],
        host: Host,
        layers: tuple[Layer, ...],
    ) -> None:
        super().__init__(listener, host, layers, _address_of(listener))

    async def accept(self) -> Connection:
        while True:
            try:
                stream = await self.listener.accept()
            except trio.ClosedResourceError:
                await self.fail(closed())
            except trio.BrokenResourceError as error:
                await self.fail(OSError(errno.EIO, str(error)))
            except OSError as error:
                await self.fail(error)
            else:
                self.pause = FIRST_PAUSE
                connection = self._admit(stream)
                if connection is not None and await self._queue(connection):
                    return connection

    def _admit(self, stream: trio.abc.Stream) -> Connection | None:
        """Admit a stream, with a token if one is free; None if it was refused."""
        transport: Transport
        admission = self.host.admission
        peer = local = self.address
        peer_key = None
        if (below := _socket_stream(stream)) is not None:
            with contextlib.suppress(OSError):
                sockaddr = below.socket.getpeername()
                peer, peer_key = sockaddr_text(sockaddr), self.peer_key(sockaddr)
                local = sockaddr_text(below.socket.getsockname())
        if isinstance(stream, trio.SocketStream):
            transport = SharedSocketTransport(stream)
        else:
            transport = StreamTransport(stream, grace=self.host.timeouts.linger)
        refusal = admission.ask(peer_key)
        connection = self.host.admit(
            transport,
            listener=self.address,
            peer=peer,
            peer_key=peer_key,
            local=local,
            token=admission.tokens.take_nowait() if refusal is None else None,
        )
        if refusal is not None:
            self.host.refuse(connection, refusal)
            return None
        return connection

    async def _queue(self, connection: Connection) -> bool:
        """Wait for a token if the connection has none; False if it was refused."""
        life = lifecycle_of(connection)
        if life.token is not None:
            return True
        try:
            token = await self.token()
        except BaseException:
            self.host.refuse(connection, Reason.STOPPING)
            raise
        if token is None:
            self.host.refuse(connection, Reason.LIMIT)
            return False
        life.start_serving(token)
        return True

    async def aclose(self) -> None:
        await self.listener.aclose()


def _address_of(listener: trio.abc.Listener[Any]) -> str:
    """The address of a listener as text; its class if it has no address."""
    source = accept_source(listener)
    if isinstance(source, trio.socket.SocketType):
        with contextlib.suppress(OSError):
            return sockaddr_text(source.getsockname())
    return type(listener).__name__


def _socket_stream(stream: object) -> trio.SocketStream | None:
    """The SocketStream that this stream is, or that its TLS goes through."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream if isinstance(stream, trio.SocketStream) else None

"""Socket acceptor: wait until the socket is readable, take a token, accept.

So a client without a token stays in the kernel's queue, and a listener without clients
holds no token that another listener needs.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
from typing import Any, Final

import trio

from ._accept_errors import CONNECTION_GONE, NO_FDS, NOTHING
from ._acceptor import FIRST_PAUSE, Acceptor, Host, closed
from ._address import sockaddr_text
from ._admission import Token
from ._connection import Connection
from ._handshake import Layer
from ._listeners import Listener
from ._reason import Reason
from ._socket_transport import SocketTransport
from ._tcp import sets_up

#: Connections accepted before other tasks run.
_BATCH: Final = 64

#: The same, if each of them goes through layers. A task of each begins in the next pass
#: of the scheduler, and a handshake is a millisecond of work. With 64, open connections
#: wait more than twice as long while a thousand clients arrive. With 8, a connection
#: costs 4 % more CPU (with access rules, 64 clients at once).
_BATCH_WITH_LAYERS: Final = 8

#: Errors in a row of connections that were gone before accept(2). After this many it is
#: probably another error: back off, and log it.
_MAX_GONE: Final = 16

#: After this many errors the final emptying of the kernel's queue stops.
_MAX_ERRORS: Final = 16


class _Listening(socket.socket):
    """A listening socket whose family and type are plain numbers.

    socket.accept() constructs each socket with them, and enums would cost as much as
    accept(2).
    """

    __slots__ = ("family", "type")

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.family = int(super().family)  # type: ignore[assignment,misc]
        self.type = int(super().type)  # type: ignore[assignment,misc]


class SocketAcceptor(Acceptor):
    """Accepts from a listening socket.

    Raises:
      OSError: the socket was closed.
    """

    listener: Listener

    def __init__(
        self, listener: Listener, host: Host, layers: tuple[Layer, ...]
    ) -> None:
        name = listener.socket.getsockname()
        super().__init__(listener, host, layers, sockaddr_text(name))
        self._on_all_interfaces = isinstance(name, tuple) and name[0] in (
            "0.0.0.0",
            "::",
        )
        # Trio's socket can't accept without waiting. This one shares the
        # descriptor, and must never close it.
        self._sock = _Listening(fileno=self.listener.socket.fileno())
        self._sock.setblocking(False)
        self._sets_up = sets_up(self._sock)
        self._batch: collections.deque[Connection] = collections.deque()
        self._batch_size = _BATCH_WITH_LAYERS if layers else _BATCH
        self._more = False
        self._spare: int | None = None
        self._reserve()

    def is_over(self, error: OSError) -> bool:
        if not super().is_over(error):
            return False
        try:
            listens = self.listener.socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
        except OSError:
            return True
        return not listens

    async def accept(self) -> Connection:
        """Return the next connection that holds a token; refuse those before it."""
        # No checkpoint between a full batch and its last connection: a cancellation
        # cannot strand an accepted connection.
        waited = False
        while not self._batch:
            try:
                await trio.lowlevel.wait_readable(self.listener.socket.fileno())
            except (ValueError, trio.ClosedResourceError):
                await self.fail(closed())
            except OSError as error:
                # The socket can't be waited for, but a client may be there.
                await self.fail(error)
            token = await self.token()
            try:
                if token is None:
                    self._refuse_batch(Reason.LIMIT)
                else:
                    self._accept_batch(token)
            except OSError as error:
                # Connections that have just ended may still hold descriptors, so
                # refuse only after a first wait.
                if error.errno in NO_FDS:
                    if waited and self._refuse_without_fd(Reason.NO_FDS):
                        self.pause = FIRST_PAUSE  # the next refusal waits as little
                    waited = not waited
                self.report_error(error)
                if not self._batch:
                    await self.back_off(error)
        self.pause = FIRST_PAUSE
        if self._spare is None:
            self._reserve()
        return self._batch.popleft()

    def _accept_batch(self, token: Token | None) -> None:
        """Accept until tokens, the queue or the batch's size run out."""
        while token is not None:
            try:
                connection = self._accept_one(token)
            except BaseException:
                token.release()
                raise
            if connection is None:
                token.release()
                return
            self._batch.append(connection)
            if len(self._batch) == self._batch_size:
                return
            token = self.host.admission.tokens.take_nowait()

    def _refuse_batch(self, reason: Reason) -> None:
        """Refuse up to a batch of waiting clients."""
        for _ in range(_BATCH):
            connection = self._accept_one(None)
            if connection is None:
                return
            self.host.refuse(connection, reason)

    def _accept_one(self, token: Token | None) -> Connection | None:
        """Accept without waiting; None if no client is left, or a batch was refused.

        Clients over the limit per peer are refused on the way.
        """
        if self.listener.socket.fileno() < 0:
            raise closed()
        # Bound the refusals per turn, so that a client that reconnects in a loop
        # can't starve the others.
        self._more = False
        admission = self.host.admission
        gone = 0
        for _ in range(_BATCH):
            try:
                sock, sockaddr = self._sock.accept()
            except OSError as error:
                if error.errno in NOTHING:
                    return None
                gone += 1
                # So many in a row are not clients that are gone.
                if error.errno not in CONNECTION_GONE or gone == _MAX_GONE:
                    raise
                self.count_error(error)
                continue
            gone = 0
            key = self.peer_key(sockaddr)
            if token is None or (refusal := admission.ask(key)) is None:
                return self._admit(sock, sockaddr, key, token)
            self.host.refuse(self._admit(sock, sockaddr, key, None), refusal)
        self._more = True
        return None

    def _admit(
        self, sock: socket.socket, sockaddr: Any, key: str | None, token: Token | None
    ) -> Connection:
        local = self.address
        if self._on_all_interfaces:
            with contextlib.suppress(OSError):
                local = sockaddr_text(sock.getsockname())
        try:
            transport = SocketTransport(sock, is_set_up=self._sets_up)
        except BaseException:  # it can't be made non-blocking
            sock.close()
            raise
        return self.host.admit(
            transport,
            listener=self.address,
            peer=sockaddr_text(sockaddr),
            peer_key=key,
            local=local,
            token=token,
        )

    def _reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_up_reserve(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _refuse_without_fd(self, reason: Reason) -> int:
        """Refuse up to a batch of clients by the reserved descriptor; how many.

        Each uses it until it is closed.
        """
        for count in range(_BATCH):
            if self._spare is None:
                return count
            self._give_up_reserve()
            try:
                connection = self._accept_one(None)
                if connection is None:
                    return count
                self.host.refuse(connection, reason)
            except OSError:
                return count
            finally:
                self._reserve()
        return _BATCH

    async def aclose(self) -> None:
        """Empty the kernel's queue, then close.

        The kernel would reset connections that are left in the queue. They are served
        if the host allows it and there are tokens, or else refused.
        """
        try:
            if self.listener.socket.fileno() >= 0:
                self._drain_backlog()
        finally:
            # Some are left only if a connection's task could not be started.
            for connection in self._batch:
                self.host.refuse(connection, Reason.STOPPING)
            self._batch.clear()
            self.dispose()
            with contextlib.suppress(OSError):  # it is closed, even if that fails
                await self.listener.aclose()

    def dispose(self) -> None:
        self._sock.detach()
        self._give_up_reserve()

    def _drain_backlog(self) -> None:
        """Serve or refuse all clients in the kernel's queue, in spite of errors."""
        # The queue must not grow while it is emptied: a backlog of 0 holds one.
        with contextlib.suppress(OSError):
            self._sock.listen(0)
        for _ in range(_MAX_ERRORS):
            try:
                self._empty_queue()
            except OSError as error:
                self.report_error(error)
                if error.errno in NO_FDS:
                    while count := self._refuse_without_fd(Reason.STOPPING):
                        self.backlog_drained += count
            else:
                return

    def _empty_queue(self) -> None:
        while self.host.serves_backlog(self):
            try:
                self._accept_batch(self.host.admission.tokens.take_nowait())
            finally:
                self.backlog_drained += (served := len(self._batch))
                while self._batch:
                    self.host.start(self._batch.popleft(), self.layers)
            if not served and not self._more:
                break
        while (connection := self._accept_one(None)) is not None:
            self.host.refuse(connection, Reason.STOPPING)
            self.backlog_drained += 1

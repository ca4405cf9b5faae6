"""Acceptors: between a listener and Trio's accept loop.

The part that all kinds share: wait for a token, count errors, back off. An acceptor
knows the limit; its host decides what is done with a connection.
"""

from __future__ import annotations

import collections
import errno
import os
from typing import Any, Final, Protocol

import trio

from ._accept_errors import DEAD
from ._address import address_in, sockaddr_text
from ._admission import Admission, Token
from ._complaints import Complaints
from ._connection import Connection
from ._handshake import Layer
from ._options import Timeouts
from ._proxy_header import ProxyHeaderLayer
from ._reason import Reason
from ._transport import Transport

#: Seconds. Go's net/http waits 5 ms doubling to 1 s; Trio 100 ms, nginx 500 ms.
FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 1.0


class Host(Protocol):
    """The server, as far as an acceptor needs it.

    Attributes:
      accept_errors: the number of errors of accept(2), by name.
    """

    admission: Admission
    accept_errors: collections.Counter[str]

    @property
    def timeouts(self) -> Timeouts: ...

    def admit(
        self,
        transport: Transport,
        *,
        listener: str,
        peer: str,
        peer_key: str | None,
        local: str,
        token: Token | None,
    ) -> Connection:
        """Count an accepted connection."""
        ...

    def start(self, connection: Connection, layers: tuple[Layer, ...]) -> None:
        """Start the task of a connection, which has a token."""

    def refuse(self, connection: Connection, reason: Reason) -> None:
        """Close a connection, with the refusal of the limits."""

    async def wait_for_fd(self, seconds: float) -> None:
        """Wait until a descriptor may be free, ``seconds`` at most."""

    def acceptor_died(self, acceptor: Acceptor, error: OSError) -> None:
        """Called when an acceptor will never accept again."""

    def acceptor_closed(self) -> None:
        """Called when a listener was closed while the server goes on."""

    def serves_backlog(self, acceptor: Acceptor) -> bool:
        """Whether clients found in the kernel's queue at the end may be served."""
        ...


class Acceptor(trio.abc.Listener[Connection]):
    """Accepts connections from one listener, each with a token.

    Attributes:
      listener: the Trio listener.
      address: its address as text.
      layers: those of its connections.
      backlog_drained: connections found in the kernel's queue when accepting ended.
      pause: seconds to wait after the next error.
      is_closing: whether it is closed while the server goes on.
    """

    def __init__(
        self,
        listener: trio.abc.Listener[Any],
        host: Host,
        layers: tuple[Layer, ...],
        address: str,
    ) -> None:
        self.listener = listener
        self.layers = layers
        self.host = host
        self.address = address
        self.backlog_drained = 0
        self.pause = FIRST_PAUSE
        self.is_closing = False
        self._complaints = Complaints("can't accept on %s: %s")
        self._queueing = trio.CancelScope()
        headers = (each for each in layers if isinstance(each, ProxyHeaderLayer))
        self._headers = next(headers, None)

    def peer_key(self, sockaddr: Any) -> str | None:
        """The key of a client in the counts; None if it is not known yet, or never.

        Args:
          sockaddr: from accept(2). If a PROXY header is to declare the client, that
            counts, and not the load balancer.
        """
        if self._headers is not None and self._headers.expects_header(
            address_in(sockaddr_text(sockaddr))
        ):
            return None
        return self.host.admission.peer_key(sockaddr)

    def dispose(self) -> None:
        """Free the acceptor's own descriptors; the listener stays open."""

    def reconsider(self) -> None:
        """Called when the limits have changed: wait for a token under the new ones."""
        self._queueing.cancel(reason="the limits have changed")

    async def token(self) -> Token | None:
        """Wait for a token; None if the client is to be refused instead."""
        admission = self.host.admission
        while True:
            token = admission.tokens.take_nowait()
            if token is not None or admission.limits.when_full == "refuse":
                return token
            with trio.CancelScope() as self._queueing:
                return await admission.tokens.take()

    def is_over(self, error: OSError) -> bool:
        """Whether the listener will never accept again after ``error``."""
        return error.errno in DEAD

    def count_error(self, error: OSError) -> None:
        """Count an error of accept(2)."""
        name = errno.errorcode.get(error.errno or 0, str(error))
        self.host.accept_errors[name] += 1

    def report_error(self, error: OSError) -> None:
        """Count an error of accept(2) and log it, at most once a second."""
        self.count_error(error)
        if not self.is_over(error):
            self._complaints.say(self.address, error)

    async def back_off(self, error: OSError) -> None:
        """Wait until accept(2) may work again; forever after a fatal error."""
        if self.is_over(error):
            self.host.acceptor_died(self, error)
            await trio.sleep_forever()
        await self.host.wait_for_fd(self.pause)
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)

    async def fail(self, error: OSError) -> None:
        """Count an error after which nothing was accepted, and back off."""
        self.report_error(error)
        await self.back_off(error)


def closed() -> OSError:
    """The error of a listener whose socket other code has closed."""
    return OSError(errno.EBADF, os.strerror(errno.EBADF))

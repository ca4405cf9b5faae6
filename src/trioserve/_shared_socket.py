"""A transport over the socket of a ``trio.SocketStream``, which still owns it.

Other code may close the stream at any time, and its descriptor may be reused. So each
method asks the stream's socket before it uses the descriptor.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import trio

from ._errors import is_a
from ._socket_transport import SocketTransport
from ._transport import CloseObserver


class SharedSocketTransport(SocketTransport):
    """Bytes to and from a peer through the socket of a Trio stream.

    A close closes the stream's socket; :meth:`release` leaves it open.

    Raises:
      trio.ClosedResourceError: the stream was closed.
    """

    __slots__ = ("_owner",)

    is_shared = True

    def __init__(self, stream: trio.SocketStream) -> None:
        self._owner = stream.socket
        if self._owner.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")
        # Trio's socket has no calls without a wait. This one shares the descriptor, and
        # must never close it.
        super().__init__(socket.socket(fileno=self._owner.fileno()), is_set_up=True)

    def trio_socket(self) -> trio.socket.SocketType:
        return self._owner

    def wraps(self, thing: Any) -> bool:
        if is_a(thing, trio.SocketStream):
            return thing.socket is self._owner
        return thing is self

    def check_open(self) -> None:
        if self.closed or self._owner.fileno() < 0:
            self.notice_closed()
            raise trio.ClosedResourceError("this stream was closed")

    def notice_closed(self) -> None:
        if not self.closed and self._owner.fileno() < 0:
            self.mark_closed()
            self.sock.detach()

    async def check_no_receiver(self) -> None:
        with trio.CancelScope() as at_once, contextlib.suppress(OSError):
            at_once.cancel(reason="only looking")
            await trio.lowlevel.wait_readable(self.sock)
        self.check_open()

    @property
    def is_relayed(self) -> bool:
        return "close" in vars(self._owner) or super().is_relayed

    def notify_on_close(self, observer: CloseObserver | None) -> None:
        super().notify_on_close(observer)
        # When a Trio socket is closed, Trio wakes the tasks that wait for it. The
        # engine does not wait with Trio, and epoll drops a closed socket without an
        # event; so the socket's close() is replaced as long as there is an observer.
        if observer is None:
            vars(self._owner).pop("close", None)
        else:
            self._owner.close = self._tell_and_close  # type: ignore[method-assign]

    def _tell_and_close(self) -> None:
        self.tell_closing()
        self._owner.close()

    def close_socket(self) -> None:
        self.sock.detach()
        self._owner.close()

    def release(self) -> None:
        self.notice_closed()
        if not self.closed:
            self.mark_closed()
            self.sock.detach()

"""The state of a socket, asked from the kernel.

This module receives and sends no byte, and closes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import sys
import termios
from typing import Final, NamedTuple

import trio

from ._errors import is_closed, is_ours
from ._tcp import bytes_not_sent, is_dead
from ._transport import PollableTransport

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)

#: Events of poll(2) that say how a socket has ended.
_ENDED: Final = select.POLLERR | select.POLLHUP
_EOF: Final = getattr(select, "POLLRDHUP", 0)


class _Seen(NamedTuple):
    """The bytes that were sent, had left this machine and were acknowledged.

    ``acked`` is infinite if bytes had just left: their ACK may be delayed, and when it
    arrives later it is not progress of the peer.
    """

    sent: int
    left: int
    acked: float


class SocketState(PollableTransport):
    """The half of a socket's transport that asks the kernel and moves no bytes."""

    __slots__ = ("_seen",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self._seen: _Seen | None = None

    @property
    def can_reset(self) -> bool:
        return self.sock.family in _INTERNET

    def check_open(self) -> None:
        if self.closed or self.sock.fileno() < 0:
            self.notice_closed()
            raise trio.ClosedResourceError("this stream was closed")

    def notice_closed(self) -> None:
        """Call :meth:`mark_closed` if other code has closed the socket."""
        if not self.closed and self.sock.fileno() < 0:
            self.mark_closed()

    def keep_os_error(self, error: OSError) -> bool:
        self.notice_closed()
        if self.closed or is_closed(error):
            return False
        self.keep_error(error)
        return True

    def readable(self) -> bool:
        self.notice_closed()
        if self.closed or self.unread_bytes:
            return True
        return self._peek() >= 0

    def writable(self) -> bool:
        self.notice_closed()
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        return bool(poll.poll(0))

    def end_is_receivable(self) -> bool:
        self.notice_closed()
        if self.closed:
            return False
        # If EOF was received before, only a reset is news.
        news = _ENDED if self.eof else _ENDED | _EOF
        poll = select.poll()
        poll.register(self.sock, news)
        return any(events & news for _, events in poll.poll(0))

    # -- the peer's end

    def is_reset(self) -> bool:
        self.notice_closed()
        if not self.closed and self.error is None and is_dead(self.sock):
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            code = code or errno.ECONNRESET  # other code has read the error
            self.keep_error(OSError(code, os.strerror(code)))
        return self.error is not None

    async def wait_peer_gone(self, patience: float) -> None:
        # Without descriptors or memory for another epoll it can't be known.
        with contextlib.suppress(OSError):
            if await self._wait_gone(patience):
                return
        await trio.sleep_forever()

    async def _wait_gone(self, patience: float) -> bool:
        """Wait until the peer is gone; False if that can't be known."""
        # Trio can't wait for a hang-up without waiting for bytes, which must not wake
        # this task. So Trio waits for an epoll, which waits for the hang-up only.
        self.notice_closed()
        if self.closed:
            return False
        if not hasattr(select, "epoll"):  # pragma: no cover - on other systems
            return False
        with select.epoll() as ends:
            ends.register(self.sock, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(ends)
            self.notice_closed()
            if self.closed:  # in the same step of the scheduler
                return False
            silent = self._peek() <= 0 and not self.unread_bytes
            # From here on wait for the end of both directions: a reset, or the close
            # of a Unix socket, which may have sent bytes before.
            ends.modify(self.sock, 0)
            with trio.move_on_after(patience if silent else math.inf):
                await trio.lowlevel.wait_readable(ends)
                self.notice_closed()
                code = 0
                if not self.closed:
                    code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self.keep_error(OSError(code, os.strerror(code)))
                elif self.error is None and not silent:
                    return False
        return not self.closed

    def _peek(self) -> int:
        """1 if a byte has arrived, 0 at EOF or an error, else -1."""
        try:
            return len(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return -1
        except OSError as error:
            # Peeking has taken the peer's error from the kernel, so keep it here.
            if not is_ours(error):
                self.keep_os_error(error)
            return 0

    # -- acknowledgements of the peer

    def unsent(self) -> int | None:
        self.notice_closed()
        if self.closed:
            return None
        try:
            # A bytearray takes 0.23 us; bytes take 0.53 us, because ioctl() raises an
            # exception inside.
            answer = bytearray(4)
            fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, answer)
        except OSError:
            return None
        count = int.from_bytes(answer, sys.byteorder)
        # Linux counts a FIN that is not acknowledged as a byte.
        return count - 1 if count and self.sent_eof else count

    def observe_acks(self, now: float) -> bool:
        held = self.unsent()
        before = self._seen
        if not held:
            # If more bytes were sent since, moved_at is newer.
            if before is not None and before.sent == self.sent:
                self.acked_at = now
            self._seen = None
            return False
        waiting, is_fresh = bytes_not_sent(self.sock, held)
        if is_fresh and not waiting:
            return True  # no byte waits for the peer to read
        left = self.sent - waiting
        acked = math.inf if is_fresh else self.sent - held
        if before is None or left > before.left or math.inf > acked > before.acked:
            self.acked_at = now
        self._seen = _Seen(self.sent, left, acked)
        return True

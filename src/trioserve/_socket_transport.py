"""A transport over a non-blocking socket that it owns.

It waits with Trio. The engine waits with its own epoll, and uses the same socket and
counts.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

import trio

from ._complaints import Complaints
from ._errors import is_ours
from ._socket_state import SocketState
from ._tcp import Setting, apply, set_notsent_lowat, set_up
from ._transport import CHUNK, FAILURES, CloseObserver

# As plain numbers: an enum costs as much as the system call.
_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
_SO_LINGER: Final = int(socket.SO_LINGER)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_no_resets: trio.lowlevel.RunVar[Complaints] = trio.lowlevel.RunVar(
    "trioserve_no_resets"
)


class SocketTransport(SocketState):
    """Bytes to and from a peer through a connected, non-blocking stream socket.

    A receive waits first and then calls recv(2), which costs one pass of the scheduler;
    calling first would cost two. Only right after a send, which was a checkpoint, it
    calls first: on a busy server the next message has arrived meanwhile, and then a
    message in and a message out cost one pass together, and no wait.

    Args:
      sock: the socket; the transport owns it and closes it.
      is_set_up: whether ``sock`` has the options of :func:`_tcp.set_up` already.
    """

    __slots__ = ("_has_just_sent", "_is_lent", "observer")

    can_half_close = True
    closes_at_once = True
    #: Whether other code may close the descriptor at any time.
    is_shared = False

    def __init__(self, sock: socket.socket, *, is_set_up: bool = False) -> None:
        super().__init__(sock)
        self.observer: CloseObserver | None = None
        self._is_lent = False
        self._has_just_sent = False
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        if not is_set_up:
            set_up(sock)

    def trio_socket(self) -> trio.socket.SocketType:
        self._is_lent = True
        return trio.socket.from_stdlib_socket(self.sock)

    def apply(self, settings: Iterable[Setting]) -> None:
        apply(settings, self.sock)

    def wraps(self, thing: object) -> bool:
        return thing is self

    # -- for the engine

    @property
    def is_relayed(self) -> bool:
        return self.observer is not None

    def notify_on_close(self, observer: CloseObserver | None) -> None:
        self.observer = observer

    async def check_no_receiver(self) -> None:
        """Do nothing: no other code receives from this socket."""

    def set_notsent_lowat(self, size: int) -> int:
        return set_notsent_lowat(self.sock, size)

    def _failure(self, error: OSError) -> Exception:
        """Keep an error of a system call; return the exception to raise for it."""
        if self.keep_os_error(error):
            return self.broken()
        return trio.ClosedResourceError("this stream was closed")

    # -- bytes

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            if self.unread_bytes:
                return await self.receive_unread(max_bytes)
            if self._has_just_sent:
                self._has_just_sent = False
                # If the socket is not shared, recv(2) itself fails after a close.
                if self.is_shared or self.receiving_since < math.inf:
                    self.check_receivable()
                await trio.lowlevel.checkpoint_if_cancelled()
                if (data := self._try_to_receive(max_bytes)) is not None:
                    return self.count_received(data, at_eof)
            self.start_receiving()
            try:
                while True:
                    await trio.lowlevel.wait_readable(self.sock)
                    if self.is_shared:
                        self.check_open()
                    if (data := self._try_to_receive(max_bytes)) is not None:
                        return self.count_received(data, at_eof)
            finally:
                self.receiving_since = math.inf
                self._has_just_sent = False
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        except OSError as error:  # Trio can't wait for the socket
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._failure(error) from self.error

    def _try_to_receive(self, max_bytes: int) -> bytes | None:
        """Receive without waiting: ``b""`` at EOF, None if no byte has arrived."""
        try:
            return self.sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._failure(error) from self.error

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self.check_sendable()
            await trio.lowlevel.checkpoint_if_cancelled()
            size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
            count = self._try_to_send(data) if size else 0
            if count < size:
                await self._send_rest(data, count)
            else:
                # Shielded: all bytes are sent, and a Cancelled would hide that.
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._has_just_sent = True
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        except OSError as error:  # Trio can't wait for the socket
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._failure(error) from self.error

    async def _send_rest(
        self, data: bytes | bytearray | memoryview, position: int
    ) -> None:
        """Send from ``position`` on; wait first, because the kernel took no more."""
        self.sending_since = self.clock.current_time()
        try:
            with memoryview(data).cast("B") as view:
                while position < len(view):
                    if self.on_wait is not None:
                        self.on_wait()
                    await trio.lowlevel.wait_writable(self.sock)
                    self.check_open()
                    position += self._try_to_send(view[position:])
        finally:
            self.sending_since = math.inf

    def _try_to_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send without waiting; return the number of bytes that the kernel took."""
        try:
            count = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._failure(error) from self.error
        self.sent += count
        self.moved_at = self.clock.current_time()
        if self.sending_since < math.inf:
            self.sending_since = self.moved_at
        return count

    def receive_now(self, now: float) -> bytes | None:
        # As _try_to_receive() and count_received() do. They would be two more calls for
        # each message; so would _try_to_send() below.
        try:
            data = self.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._failure(error) from self.error
        if not data:
            return self.count_received(data, None)
        self.moved_at = now
        if not self.received:
            self.first_byte_at = now
        self.received += len(data)
        return data

    def send_now(self, data: bytes | memoryview, now: float) -> int:
        try:
            count = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.keep_os_error(error)
            return 0
        self.sent += count
        self.moved_at = now
        if self.sending_since < math.inf:
            self.sending_since = now
        return count

    def send_preface(self, data: bytes) -> None:
        """Send a few bytes before all others, without waiting; they are not counted.

        A new connection has room for some KiB. An error is kept, and not raised; if
        there is no room, it is ENOBUFS.
        """
        count = self.send_now(data, self.clock.current_time())
        self.sent -= count
        if count < len(data):
            self.keep_error(OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))

    async def wait_writable(self) -> None:
        self.check_sendable()
        self.sending_since = self.clock.current_time()
        if self.on_wait is not None:
            self.on_wait()
        try:
            await trio.lowlevel.wait_writable(self.sock)
        except OSError as error:
            raise self._failure(error) from self.error
        finally:
            self.sending_since = math.inf

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.send_eof_now()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self.error is not None and not (self.closed or self.end_is_receivable()):
            raise self.broken() from self.error

    def send_eof_now(self) -> None:
        self.check_open()
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if not self.sent_eof:
            self.mark_eof_sent()
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                # Mostly the peer is gone. Bytes that it sent before can still be
                # received; then a receive raises this error.
                if not self.keep_os_error(error):
                    raise trio.ClosedResourceError("this stream was closed") from None
            if self.on_wait is not None:
                self.on_wait()

    # -- closing

    def abort(self) -> None:
        self.notice_closed()
        if self.closed:
            self.tell_closing()
            return
        if self.can_reset and (count := self.unsent()) is not None:
            # Code that used the socket before may have sent some of them.
            self.unacknowledged = min(count, self.sent)
        try:
            self.sock.setsockopt(_SOL_SOCKET, _SO_LINGER, _RESET_ON_CLOSE)
        except OSError as error:
            if is_ours(error):
                _complain_of_no_reset(error)
        self.close()

    def close(self) -> None:
        self.notice_closed()
        if self.closed:
            self.tell_closing()  # if other code has closed it, no event has told of it
            return
        self.mark_closed()
        self.tell_closing()
        try:  # noqa: SIM105 - it would cost as much as close(2)
            self.close_socket()
        except OSError:
            pass  # close(2) frees the descriptor even if it fails

    def tell_closing(self) -> None:
        if (observer := self.observer) is not None:
            self.notify_on_close(None)
            observer.on_closed()

    def close_socket(self) -> None:
        """Close the socket, and wake the tasks that wait for it."""
        waits = self.receiving_since < math.inf or self.sending_since < math.inf
        # Skipped if no task can be waiting: it costs as much as close(2).
        if waits or self._is_lent:
            trio.lowlevel.notify_closing(self.sock)
        self.sock.close()

    async def wait_closed(self) -> None:
        """Do nothing: the socket is closed when :meth:`close` returns."""

    def release(self) -> None:
        """Do nothing: the socket has no other owner."""

    # -- last bytes, without waiting

    def discard_readable(self, max_bytes: int) -> None:
        super().discard_readable(max_bytes)
        with contextlib.suppress(OSError):
            while self.discarded < max_bytes:
                data = self.sock.recv(CHUNK)
                if not data:
                    self.eof = True
                    return
                self.received += len(data)
                self.discarded += len(data)

    def send_refusal(self, message: bytes) -> bool:
        with contextlib.suppress(OSError):
            if message:
                self.sent += self.sock.send(message)
            self.sent_eof = True
            self.sock.shutdown(socket.SHUT_WR)
        return True


def _complain_of_no_reset(error: OSError) -> None:
    try:
        complaints = _no_resets.get()
    except LookupError:
        complaints = Complaints("can't reset: %s; closed as if it had ended well")
        _no_resets.set(complaints)
    complaints.say(error)

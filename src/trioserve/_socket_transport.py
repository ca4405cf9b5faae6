"""A transport over a non-blocking socket.

It knows sockets and the errors of the system. What waits here waits with Trio; the
engine, which waits with an epoll of its own, uses the same socket and counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import struct
import sys
import termios
from typing import Any, Final, NamedTuple

import trio

from ._complaints import Complaints
from ._errors import is_a, is_closed, is_ours
from ._report import describe
from ._tcp import is_dead, set_notsent_lowat, set_up
from ._transport import CHUNK, FAILURES, CloseObserver, PollableTransport

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_TCP: Final = int(socket.IPPROTO_TCP)
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
#: Of struct tcp_info in linux/tcp.h: tcpi_last_data_sent (ms), tcpi_notsent_bytes.
_INFO: Final = struct.Struct("=44xI96xI")

#: Milliseconds that an ACK may be delayed by. RFC 1122 allows 500; Linux takes 40,
#: and 200 at most.
_DELAYED_ACK: Final = 200

# As plain numbers: an enum costs as much as the system call.
_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
_SO_LINGER: Final = int(socket.SO_LINGER)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

#: Events of poll(2) that say how a socket has ended.
_ENDED: Final = select.POLLERR | select.POLLHUP
_EOF: Final = getattr(select, "POLLRDHUP", 0)

_no_resets: trio.lowlevel.RunVar[Complaints] = trio.lowlevel.RunVar(
    "trioserve_no_resets"
)


class _Seen(NamedTuple):
    """Bytes that had been sent, had left for the peer and were acknowledged.

    ``acked`` is infinite if bytes had just left: their ACK may be a delayed one, and
    when it comes later it says nothing new about the peer.
    """

    sent: int
    left: int
    acked: float


class SocketTransport(PollableTransport):
    """Bytes to and from a peer through a connected, non-blocking stream socket.

    A receive waits first and then tries, which costs one pass of the scheduler;
    trying first costs two. Only right after a send, which has just let all other
    tasks run, it tries first: on a busy server the answer has come meanwhile, and
    then a message in and a message out cost one pass together, and no wait.

    Args:
      sock: the socket; the transport owns it and closes it.
      owner: a Trio socket that shares ``sock``'s descriptor and owns it. Then
        closing closes the owner, and :meth:`release` leaves it open.
      is_set_up: whether ``sock`` has the options that it should have.
    """

    __slots__ = ("_has_just_sent", "_is_lent", "_observer", "_owner", "_seen")

    can_half_close = True
    closes_at_once = True

    def __init__(
        self,
        sock: socket.socket,
        owner: trio.socket.SocketType | None = None,
        *,
        is_set_up: bool = False,
    ) -> None:
        super().__init__()
        self.sock = sock
        self._owner = owner
        self._is_lent = False
        self._observer: CloseObserver | None = None
        self._has_just_sent = False
        self._seen: _Seen | None = None
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        if not is_set_up:
            set_up(sock)

    @classmethod
    def share(cls, stream: trio.SocketStream) -> SocketTransport:
        """A transport on the socket of ``stream``, which goes on owning it."""
        owner = stream.socket
        if owner.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")
        return cls(socket.socket(fileno=owner.fileno()), owner, is_set_up=True)

    @property
    def can_reset(self) -> bool:
        return self.sock.family in _INTERNET

    def trio_socket(self) -> trio.socket.SocketType:
        self._is_lent = True
        return self._owner or trio.socket.from_stdlib_socket(self.sock)

    def wraps(self, thing: Any) -> bool:
        if is_a(thing, trio.SocketStream):
            return thing.socket is self._owner
        return thing is self

    def check_open(self) -> None:
        if self.closed or (self._owner or self.sock).fileno() < 0:
            self._notice_owner()
            raise trio.ClosedResourceError("this side was closed")

    def _notice_owner(self) -> None:
        # Other code that has the Trio socket may have closed it, and then the number
        # of its descriptor may already be another file's.
        if not self.closed and (self._owner or self.sock).fileno() < 0:
            self.closed = True
            self.sock.detach()

    # -- for the engine

    @property
    def is_relayed(self) -> bool:
        owned = self._owner is not None and "close" in vars(self._owner)
        return owned or self._observer is not None

    def notify_on_close(self, observer: CloseObserver | None) -> None:
        self._observer = observer
        if self._owner is not None:
            # When a Trio socket is closed, Trio wakes the tasks that wait for it and
            # tells nobody else. The engine does not wait with Trio.
            if observer is None:
                vars(self._owner).pop("close", None)
            else:
                self._owner.close = self._owner_closes  # type: ignore[method-assign]

    def _owner_closes(self) -> None:
        owner = self._owner
        assert owner is not None
        self._tell_closing()
        owner.close()

    def _tell_closing(self) -> None:
        if (observer := self._observer) is not None:
            self.notify_on_close(None)
            observer.on_closed()

    async def check_no_receiver(self) -> None:
        if self._owner is not None:
            with trio.CancelScope() as at_once, contextlib.suppress(OSError):
                at_once.cancel(reason="only looking")
                await trio.lowlevel.wait_readable(self.sock)
            self.check_open()

    def set_notsent_lowat(self, size: int) -> int:
        return set_notsent_lowat(self.sock, size)

    def keep_os_error(self, error: OSError) -> bool:
        self._notice_owner()
        if self.closed or is_closed(error):
            return False
        self.keep_error(error)
        return True

    def _failure(self, error: OSError) -> Exception:
        """Keep an error of the system, and return what is raised for it."""
        if self.keep_os_error(error):
            assert self.error is not None
            return trio.BrokenResourceError(describe(self.error))
        return trio.ClosedResourceError("this side was closed")

    def end_is_receivable(self) -> bool:
        self._notice_owner()
        if self.closed:
            return False
        # After an EOF that was received, only a reset is news.
        news = _ENDED if self.eof else _ENDED | _EOF
        poll = select.poll()
        poll.register(self.sock, news)
        return any(events & news for _, events in poll.poll(0))

    # -- bytes

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            if self._has_just_sent:
                self._has_just_sent = False
                # If the descriptor is our own, recv(2) itself says that it was closed.
                if self._owner is not None or self.receiving_since < math.inf:
                    self.check_receivable()
                await trio.lowlevel.checkpoint_if_cancelled()
                if (data := self._try_to_receive(max_bytes)) is not None:
                    return self.count_received(data, at_eof)
            self.start_receiving()
            try:
                while True:
                    await trio.lowlevel.wait_readable(self.sock)
                    if self._owner is not None:
                        self.check_open()
                    if (data := self._try_to_receive(max_bytes)) is not None:
                        return self.count_received(data, at_eof)
            finally:
                self.receiving_since = math.inf
                self._has_just_sent = False
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        except OSError as error:  # it can't be waited for
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._failure(error) from self.error

    def _try_to_receive(self, max_bytes: int) -> bytes | None:
        """Receive what is there: ``b""`` at EOF, None if nothing is there yet."""
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
                # Shielded, for the bytes are sent: Cancelled would hide that.
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._has_just_sent = True
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        except OSError as error:  # it can't be waited for
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._failure(error) from self.error

    async def _send_rest(
        self, data: bytes | bytearray | memoryview, position: int
    ) -> None:
        """Send from ``position`` on, after a wait: trying at once sent no more."""
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
        """Send what goes without waiting; return how many bytes that were."""
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
            raise trio.BrokenResourceError(describe(self.error)) from self.error

    def send_eof_now(self) -> None:
        self.check_open()
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if not self.sent_eof:
            self.mark_eof_sent()
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                # Mostly it says that the peer is gone. What the peer sent before can
                # still be received, and after that a receive raises this error.
                if not self.keep_os_error(error):
                    raise trio.ClosedResourceError("this side was closed") from None
            if self.on_wait is not None:
                self.on_wait()

    # -- what is known without moving a byte

    def is_reset(self) -> bool:
        self._notice_owner()
        if not self.closed and self.error is None and is_dead(self.sock):
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            code = code or errno.ECONNRESET  # other code has read it already
            self.keep_error(OSError(code, os.strerror(code)))
        return self.error is not None

    async def wait_peer_gone(self, patience: float) -> None:
        # If the system has no room for one more epoll, or wait, it can't be known.
        with contextlib.suppress(OSError):
            if await self._wait_gone(patience):
                return
        await trio.sleep_forever()

    async def _wait_gone(self, patience: float) -> bool:
        """Wait until the peer is gone, and return True; False if that will never be
        known.
        """
        # Trio would wait for bytes too, and those must not wake this task. So Trio
        # waits for an epoll that waits for the ends only.
        self._notice_owner()
        if self.closed:
            return False
        if not hasattr(select, "epoll"):  # pragma: no cover - on other systems
            return False
        with select.epoll() as ends:
            ends.register(self.sock, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(ends)
            self._notice_owner()
            if self.closed:  # in the same step of the scheduler
                return False
            silent = self._peek() <= 0
            # From here on wait only for the end of both directions: a reset, or the
            # closing of a Unix socket, which may have sent something before.
            ends.modify(self.sock, 0)
            with trio.move_on_after(patience if silent else math.inf):
                await trio.lowlevel.wait_readable(ends)
                self._notice_owner()
                code = 0
                if not self.closed:
                    code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self.keep_error(OSError(code, os.strerror(code)))
                elif self.error is None and not silent:
                    return False
        return not self.closed

    def _peek(self) -> int:
        """1 if a byte is there, 0 at the end, -1 if nothing is there yet."""
        try:
            return len(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return -1
        except OSError as error:
            # Peeking has taken the peer's error from the kernel, so keep it here.
            if not is_ours(error):
                self.keep_os_error(error)
            return 0

    # -- closing

    def abort(self) -> None:
        self._notice_owner()
        if not self.closed:
            self.unacknowledged = self._count_unacknowledged()
            try:
                self.sock.setsockopt(_SOL_SOCKET, _SO_LINGER, _RESET_ON_CLOSE)
            except OSError as error:
                if is_ours(error):
                    _complain_of_no_reset(error)
            self.close()

    def close(self) -> None:
        self._notice_owner()
        if not self.closed:
            self.closed = True
            self._tell_closing()
            # close(2) frees the descriptor, also if it fails.
            with contextlib.suppress(OSError):
                if self._owner is not None:
                    self.sock.detach()
                    self._owner.close()
                else:
                    # This costs as much as close(2): it is left out if no task can
                    # be waiting.
                    if self._is_lent or self._is_waited_for():
                        trio.lowlevel.notify_closing(self.sock)
                    self.sock.close()

    def _is_waited_for(self) -> bool:
        return self.receiving_since < math.inf or self.sending_since < math.inf

    async def wait_closed(self) -> None:
        """Return at once: a socket is closed when :meth:`close` returns."""

    def release(self) -> None:
        self._notice_owner()
        if not self.closed and self._owner is not None:
            self.closed = True
            self.sock.detach()

    def readable(self) -> bool:
        self._notice_owner()
        if self.closed:
            return True
        return self._peek() >= 0

    def writable(self) -> bool:
        self._notice_owner()
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        return bool(poll.poll(0))

    def unsent(self) -> int | None:
        self._notice_owner()
        if self.closed:
            return None
        try:
            # With a bytes argument, ioctl() raises an exception inside: 0.53 us, and
            # 0.23 us with a bytearray.
            answer = bytearray(4)
            fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, answer)
        except OSError:
            return None
        count = int.from_bytes(answer, sys.byteorder)
        # Linux counts a FIN that is not acknowledged as a byte.
        return count - 1 if count and self.sent_eof else count

    def _count_unacknowledged(self) -> int | None:
        """Bytes sent here that the peer has not acknowledged; None if unknown."""
        count = self.unsent()
        if count is None or self.sock.family not in _INTERNET:
            return None
        # Code that had the socket before may have sent some of them.
        return min(count, self.sent)

    def observe_acks(self, now: float) -> bool:
        held = self.unsent()
        before = self._seen
        if not held:
            # If more was sent since, moved_at says so already.
            if before is not None and before.sent == self.sent:
                self.acked_at = now
            self._seen = None
            return False
        waiting, is_fresh = self._waiting(held)
        if is_fresh and not waiting:
            return True  # nothing waits for the peer to read
        left = self.sent - waiting
        acked = math.inf if is_fresh else self.sent - held
        if before is None or left > before.left or math.inf > acked > before.acked:
            self.acked_at = now
        self._seen = _Seen(self.sent, left, acked)
        return True

    def _waiting(self, held: int) -> tuple[int, bool]:
        """Bytes that wait for room at the peer; and whether others have just left.

        Those that have just left are acknowledged in a moment, perhaps by a delayed
        ACK (RFC 1122, section 4.2.3.2). That does not say that the peer reads.
        """
        try:
            info = self.sock.getsockopt(_TCP, _TCP_INFO, _INFO.size)
            milliseconds, waiting = _INFO.unpack(info)
        except (OSError, struct.error):  # a Unix socket, or another system
            return held, False
        return waiting, milliseconds < _DELAYED_ACK

    def discard_readable(self, max_bytes: int) -> None:
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

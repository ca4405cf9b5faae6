"""Transports: bytes in and out of one peer, counted exactly.

Two kinds with one meaning: over a non-blocking socket, and over any Trio
stream. They know sockets and errors; they do not know servers, relays, what a
timer is for, or why anybody closes.

The rules that every transport keeps:

1. ``received`` and ``sent`` count what the kernel (or the stream) has given
   and taken, also when a call is cancelled or fails.
2. The first error is sticky. The kernel forgets an error once it has been
   read, and then a reset connection reads like one that ended well; here what
   had arrived before is still delivered, and after it comes the error, never
   EOF.
3. Whoever waits can be told: ``abort`` and ``close`` are synchronous and wake
   every waiting task with ``ClosedResourceError``.
"""

from __future__ import annotations

import abc
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
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import trio

from ._complaints import Complaints
from ._errors import cause_of, is_a, is_closed, is_ours, isolated
from ._report import describe
from ._tcp import is_dead, let_kernel_hold, set_up

#: Bytes per read. Trio's own default.
CHUNK: Final = 65536

#: After one of these, the next call fails at once. Whoever ignores it and calls
#: again, for ever, must not keep all others from running.
FAILURES: Final = (
    trio.BrokenResourceError,
    trio.BusyResourceError,
    trio.ClosedResourceError,
)

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_TCP: Final = int(socket.IPPROTO_TCP)
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
#: Of struct tcp_info in linux/tcp.h: tcpi_last_data_sent (ms), tcpi_notsent_bytes.
_INFO: Final = struct.Struct("=44xI96xI")

#: Milliseconds that an ACK may be delayed by. RFC 1122 allows 500; Linux takes 40,
#: and 200 at most.
_FRESH: Final = 200

# As plain numbers: an enum costs as much as the system call.
_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
_SO_LINGER: Final = int(socket.SO_LINGER)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

#: What poll(2) says of a socket that has something to tell of its end.
_ENDED: Final = select.POLLERR | select.POLLHUP
_EOF: Final = getattr(select, "POLLRDHUP", 0)

_no_resets: trio.lowlevel.RunVar[Complaints] = trio.lowlevel.RunVar(
    "trioserve_no_resets"
)


class Closes(Protocol):
    """Who is to know that a transport is about to be closed."""

    def closed(self) -> None: ...


class Transport(abc.ABC):
    """One peer's bytes.

    Attributes:
      received, sent: bytes taken from and given to the peer, so far.
      discarded: of those received, thrown away by :meth:`discard`.
      eof: whether the peer's EOF was received.
      sent_eof, sent_eof_at: whether EOF was sent; and when, ``math.inf`` if not.
      error: the first error, or None: of the peer's making, or of this machine's.
      closed: whether nothing more can be done with it.
      unacknowledged: bytes that the peer had not acknowledged when the
        transport was aborted; None if it wasn't or the system doesn't tell.
      moved_at: when the last byte moved, on Trio's clock.
      first_byte_at: when the first byte was received, or None.
      receiving_since, sending_since: when the receive that waits now began to
        wait, and when the send that waits now last got rid of a byte; else
        ``math.inf``.
      acked_at: when :meth:`look` last found that the peer takes what the kernel
        holds; ``-math.inf`` before that.
      on_wait: called without arguments when a receive or a send starts to wait.
    """

    __slots__ = (
        "_clock", "_seen", "acked_at", "closed", "discarded", "eof", "error",
        "first_byte_at", "moved_at", "on_wait", "received", "receiving_since",
        "sending_since", "sent", "sent_eof", "sent_eof_at", "unacknowledged",
    )  # fmt: skip

    can_send_eof: bool

    def __init__(self) -> None:
        self.received: int = 0
        self.sent: int = 0
        self.discarded: int = 0
        self.eof = False
        self.sent_eof = False
        self.sent_eof_at = math.inf
        self.error: BaseException | None = None
        self.closed = False
        self.unacknowledged: int | None = None
        self._clock = trio.lowlevel.current_clock()
        self.moved_at = self._clock.current_time()
        self.acked_at = -math.inf
        self._seen: _Seen | None = None
        self.first_byte_at: float | None = None
        self.receiving_since = math.inf
        self.sending_since = math.inf
        self.on_wait: Callable[[], None] | None = None

    @abc.abstractmethod
    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        """Receive 1 to ``max_bytes`` bytes, or ``b""`` at EOF.

        It lets others run also when it fails, as :meth:`send` does.

        Args:
          at_eof: what is raised at EOF instead.

        Raises:
          trio.BrokenResourceError: the connection is broken; everything that
            had arrived was delivered before.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this side was closed.

        Cancelled while it waits, it has taken nothing.
        """

    @abc.abstractmethod
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Cancelled or failed, ``sent`` tells how much went.

        Raises:
          trio.BrokenResourceError, trio.BusyResourceError,
          trio.ClosedResourceError: as :meth:`receive`; the last also after
            :meth:`send_eof`.
        """

    @abc.abstractmethod
    async def wait_writable(self) -> None:
        """Wait until :meth:`send` might not have to wait."""

    @abc.abstractmethod
    async def send_eof(self) -> None:
        """Send EOF; receiving goes on. Twice is once."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once with RST where there is such a thing. Twice is once."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close at once, with FIN if all that arrived was read. Twice is once."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Wait, shielded, until what :meth:`abort` or :meth:`close` began is over."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give the stream back to whoever owns it, open."""

    @abc.abstractmethod
    def readable(self) -> bool:
        """Whether a receive would not wait, as far as can be known."""

    @abc.abstractmethod
    def writable(self) -> bool:
        """Whether a send would not wait, as far as can be known."""

    @abc.abstractmethod
    def unsent(self) -> int | None:
        """How much of what was sent the kernel holds for the peer; None if unknown.

        Over TCP, the bytes that are not acknowledged; of other sockets it is the
        memory that they take, which is more.
        """

    def look(self, now: float) -> bool:
        """Look what the kernel still holds; whether it holds anything.

        What the peer acknowledges is movement too, but there is no event for it.
        So whoever keeps timers looks from time to time, and :attr:`acked_at` says
        when a look found that the peer had made progress. Of bytes that no look has
        seen before that can't be known: it counts as progress, so that a timer is
        late by the time between two looks at most.
        """
        return False

    @abc.abstractmethod
    def tells_its_end(self) -> bool:
        """Whether who receives finds out how it ended, after a send that failed.

        What the peer has sent before is still to be received, and then comes its
        reset. But if this machine would not send, the peer knows nothing of it.
        """

    def is_over(self) -> bool:
        """Whether the peer has reset it, as far as can be known without waiting."""
        return self.error is not None

    async def wait_gone(self, patience: float) -> None:
        """Wait until the peer is gone, with nothing taken from it.

        It is gone when it has reset the connection; and ``patience`` seconds
        after its EOF, if it has sent nothing that is still to be received. For
        ever, where the system can't tell.
        """
        await trio.sleep_forever()

    async def discard(self, max_bytes: int, seconds: float) -> None:
        """Receive and throw away until EOF, an error, closing or ``max_bytes``.

        Not for longer than ``seconds`` in which the peer acknowledges nothing: what
        it sends extends no time, what it takes does.
        """
        budget = max_bytes
        since = looked_at = self._clock.current_time()
        holds = self.look(since)
        over = trio.BrokenResourceError, trio.ClosedResourceError
        with contextlib.suppress(*over):
            self._check_receivable()  # now, for a receive that fails lets others run
            while budget > 0:
                until = max(since, self.acked_at) + seconds
                step = looked_at + 1 if holds else math.inf
                with trio.move_on_at(min(until, step)):
                    data = await self.receive(min(budget, CHUNK))
                    if not data:
                        return
                    self.discarded += len(data)
                    budget -= len(data)
                    continue
                looked_at = self._clock.current_time()
                holds = self.look(looked_at)
                if looked_at >= max(since, self.acked_at) + seconds:
                    return

    async def flushed(self, seconds: float) -> None:
        """Wait until the peer has acknowledged all bytes.

        Not for longer than ``seconds`` in which it acknowledges nothing, and not if
        it is broken. There is no event for it, so this looks again after 1 ms,
        2 ms, ... 50 ms.
        """
        if not self.unsent():
            return  # a scope alone would cost 9 us
        since, pause = self._clock.current_time(), 0.001
        with trio.CancelScope() as patience:
            while self.error is None and self.look(self._clock.current_time()):
                patience.deadline = max(since, self.acked_at) + seconds
                await trio.sleep(pause)
                pause = min(2 * pause, 0.05)

    @abc.abstractmethod
    def is_of(self, thing: object) -> bool:
        """Whether ``thing`` is this, or what its bytes go through."""

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this side was closed")

    def _check_receivable(self) -> None:
        self._check_open()
        if self.receiving_since < math.inf:
            raise trio.BusyResourceError("another task is receiving")

    def start_receiving(self) -> None:
        self._check_receivable()
        self.receiving_since = self._clock.current_time()
        if self.on_wait is not None:
            self.on_wait()

    def _start_sending(self) -> None:
        self._check_open()
        if self.sent_eof:
            raise trio.ClosedResourceError("can't send after EOF was sent")
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if self.error is not None:
            raise trio.BrokenResourceError(describe(self.error)) from self.error

    def _took(self, data: bytes, at_eof: type[Exception] | None) -> bytes:
        """Account for what a receive returned."""
        if data:
            self.moved_at = self._clock.current_time()
            if not self.received:
                self.first_byte_at = self.moved_at
            self.received += len(data)
        elif self.error is not None:
            raise trio.BrokenResourceError(describe(self.error)) from self.error
        else:
            self.eof = True
            if at_eof is not None:
                raise at_eof
        return data

    def _has_sent_eof(self) -> None:
        self.sent_eof = True
        self.sent_eof_at = self._clock.current_time()

    def _broken(self, error: BaseException) -> trio.BrokenResourceError:
        """Remember the first error."""
        if self.error is None:
            # Its traceback has frames that have this: a cycle, which would keep both
            # until garbage is collected.
            self.error = BaseException.with_traceback(error, None)
        return trio.BrokenResourceError(describe(self.error))


class _Seen(NamedTuple):
    """Bytes that had been sent, had left for the peer and were acknowledged.

    The last is infinite if others had just left: a delayed ACK for these, which
    comes later, is no news.
    """

    sent: int
    left: int
    acked: float


class SocketTransport(Transport):
    """Bytes in and out of a connected, non-blocking stream socket.

    A receive waits first and then tries: one pass of the scheduler, where trying
    first costs two. Only right after a send, which has just let everybody else
    run, it tries first: on a busy server the answer has come meanwhile, and then
    a message in and one out cost one pass together, and no wait.

    Args:
      sock: the socket; the transport owns it and closes it.
      owner: a Trio socket that shares ``sock``'s descriptor and owns it. Then
        it is the owner that is closed, and :meth:`release` leaves it open.
      is_set_up: whether ``sock`` has the options that it should have.
    """

    __slots__ = ("_closes", "_has_just_sent", "_is_lent", "_owner", "sock")

    can_send_eof = True

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
        self._closes: Closes | None = None
        self._has_just_sent = False
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

    def is_of(self, thing: Any) -> bool:
        if is_a(thing, trio.SocketStream):
            return thing.socket is self._owner
        return thing is self

    def trio_socket(self) -> trio.socket.SocketType:
        """The socket as Trio has it, for options and names."""
        self._is_lent = True
        return self._owner or trio.socket.from_stdlib_socket(self.sock)

    def _check_open(self) -> None:
        if self.closed or (self._owner or self.sock).fileno() < 0:
            self._notice_owner()
            raise trio.ClosedResourceError("this side was closed")

    def _notice_owner(self) -> None:
        # Whoever has the Trio socket may have closed it, and the number of its
        # descriptor may be somebody else's by now.
        if not self.closed and (self._owner or self.sock).fileno() < 0:
            self.closed = True
            self.sock.detach()

    @property
    def is_relayed(self) -> bool:
        """Whether somebody is to be told when it is closed."""
        owned = self._owner is not None and "close" in vars(self._owner)
        return owned or self._closes is not None

    def when_closed(self, told: Closes | None) -> None:
        """Tell when it is about to be closed, by whomever; None: nobody."""
        self._closes = told
        if self._owner is not None:
            # Trio tells nobody but its own waiters that a socket is closed.
            if told is None:
                vars(self._owner).pop("close", None)
            else:
                self._owner.close = self._owner_closes  # type: ignore[method-assign]

    def _owner_closes(self) -> None:
        owner = self._owner
        assert owner is not None
        self._tell_closing()
        owner.close()

    def _tell_closing(self) -> None:
        if (told := self._closes) is not None:
            self.when_closed(None)
            told.closed()

    async def see_that_nobody_receives(self) -> None:
        """See that no task receives from the Trio socket that owns it.

        Raises:
          trio.BusyResourceError: one does.
        """
        if self._owner is not None:
            with trio.CancelScope() as at_once, contextlib.suppress(OSError):
                at_once.cancel(reason="only looking")
                await trio.lowlevel.wait_readable(self.sock)
            self._check_open()

    def let_kernel_hold(self, most: int) -> int:
        """How much the kernel may hold unsent; and how much it might before."""
        return let_kernel_hold(self.sock, most)

    def breaks(self, error: OSError) -> bool:
        """Keep an error; False if it is that this was closed."""
        self._notice_owner()
        if self.closed or is_closed(error):
            return False
        self._broken(error)
        return True

    def _failure(self, error: OSError) -> Exception:
        """What is raised for an error of the system, which is kept."""
        if self.breaks(error):
            assert self.error is not None
            return trio.BrokenResourceError(describe(self.error))
        return trio.ClosedResourceError("this side was closed")

    def tells_its_end(self) -> bool:
        self._notice_owner()
        if self.closed:
            return False
        # An EOF that was received is no news.
        news = _ENDED if self.eof else _ENDED | _EOF
        look = select.poll()
        look.register(self.sock, news)
        return any(events & news for _, events in look.poll(0))

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            if self._has_just_sent:
                self._has_just_sent = False
                # A socket of our own that was closed says so itself.
                if self._owner is not None or self.receiving_since < math.inf:
                    self._check_receivable()
                await trio.lowlevel.checkpoint_if_cancelled()
                if (data := self._try_to_receive(max_bytes)) is not None:
                    return self._took(data, at_eof)
            self.start_receiving()
            try:
                while True:
                    await trio.lowlevel.wait_readable(self.sock)
                    if self._owner is not None:
                        self._check_open()
                    if (data := self._try_to_receive(max_bytes)) is not None:
                        return self._took(data, at_eof)
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
        """What is there, ``b""`` at EOF, or None if nothing is there yet."""
        try:
            return self.sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._failure(error) from self.error

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._start_sending()
            await trio.lowlevel.checkpoint_if_cancelled()
            size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
            count = self._try_to_send(data) if size else 0
            if count < size:
                await self._send_rest(data, count)
            else:
                # After the bytes went: a cancel must not hide that they did.
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
        """Send from ``position`` on; it waits first, for that did not go at once."""
        self.sending_since = self._clock.current_time()
        try:
            with memoryview(data).cast("B") as view:
                while position < len(view):
                    if self.on_wait is not None:
                        self.on_wait()
                    await trio.lowlevel.wait_writable(self.sock)
                    self._check_open()
                    position += self._try_to_send(view[position:])
        finally:
            self.sending_since = math.inf

    def _try_to_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what goes without waiting, and return how many bytes went."""
        try:
            count = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._failure(error) from self.error
        self.sent += count
        self.moved_at = self._clock.current_time()
        if self.sending_since < math.inf:
            self.sending_since = self.moved_at
        return count

    async def wait_writable(self) -> None:
        self._start_sending()
        self.sending_since = self._clock.current_time()
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
        if self.error is not None and not (self.closed or self.tells_its_end()):
            raise trio.BrokenResourceError(describe(self.error)) from self.error

    def send_eof_now(self) -> None:
        """:meth:`send_eof`, which never waits. An error is kept, and not raised."""
        self._check_open()
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if not self.sent_eof:
            self._has_sent_eof()
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                # Most often, the peer is gone. What it sent before can still be
                # received, and then comes this error.
                if not self.breaks(error):
                    raise trio.ClosedResourceError("this side was closed") from None
            if self.on_wait is not None:
                self.on_wait()

    def is_over(self) -> bool:
        self._notice_owner()
        if not self.closed and self.error is None and is_dead(self.sock):
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            code = code or errno.ECONNRESET  # that has been asked for before
            self._broken(OSError(code, os.strerror(code)))
        return self.error is not None

    async def wait_gone(self, patience: float) -> None:
        # Without room for another epoll, or another wait, the system can't tell.
        with contextlib.suppress(OSError):
            if await self._wait_gone(patience):
                return
        await trio.sleep_forever()

    async def _wait_gone(self, patience: float) -> bool:
        """Wait until there is something to know: whether it is gone for good."""
        # Trio waits for bytes too, which must not wake us; so it waits for an
        # epoll that was asked for less.
        self._notice_owner()
        if self.closed:
            return False
        if not hasattr(select, "epoll"):  # pragma: no cover - on other systems
            return False
        with select.epoll() as ends:
            ends.register(self.sock, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(ends)
            self._notice_owner()
            if self.closed:  # in the step in which we were woken
                return False
            silent = self._peek() <= 0
            # From now on only what ends both directions: a reset, or that a
            # Unix socket was closed, which may have sent something before.
            ends.modify(self.sock, 0)
            with trio.move_on_after(patience if silent else math.inf):
                await trio.lowlevel.wait_readable(ends)
                self._notice_owner()
                code = 0
                if not self.closed:
                    code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._broken(OSError(code, os.strerror(code)))
                elif self.error is None and not silent:
                    return False
        return not self.closed

    def _peek(self) -> int:
        """Bytes that are there, or -1 if there are none yet; an error is kept."""
        try:
            return len(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return -1
        except OSError as error:
            # Peeking has taken the peer's error from the kernel: keep it.
            if not is_ours(error):
                self.breaks(error)
            return 0

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
            # Whatever close(2) says, the descriptor is not ours any more.
            with contextlib.suppress(OSError):
                if self._owner is not None:
                    self.sock.detach()
                    self._owner.close()
                else:
                    # Costs as much as closing, so only for somebody who may wait.
                    if self._is_lent or self._is_waited_for():
                        trio.lowlevel.notify_closing(self.sock)
                    self.sock.close()

    def _is_waited_for(self) -> bool:
        return self.receiving_since < math.inf or self.sending_since < math.inf

    async def wait_closed(self) -> None:
        """Nothing to wait for: sockets close at once."""

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
            # Bytes instead would cost an exception inside of it, 0.53 against 0.23 us.
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
        # Whoever had the socket before may have sent some, too.
        return min(count, self.sent)

    def look(self, now: float) -> bool:
        held = self.unsent()
        before = self._seen
        if not held:
            # Has more been sent since, then that is known to have moved.
            if before is not None and before.sent == self.sent:
                self.acked_at = now
            self._seen = None
            return False
        waiting, is_fresh = self._waiting(held)
        if is_fresh and not waiting:
            return True  # all of it is under way
        left = self.sent - waiting
        acked = math.inf if is_fresh else self.sent - held
        if before is None or left > before.left or math.inf > acked > before.acked:
            self.acked_at = now
        self._seen = _Seen(self.sent, left, acked)
        return True

    def _waiting(self, held: int) -> tuple[int, bool]:
        """Bytes that wait for room at the peer; and whether others have just left.

        What has just left is acknowledged in a moment, perhaps by a delayed ACK:
        that says nothing of whether the peer reads. RFC 1122, section 4.2.3.2.
        """
        try:
            info = self.sock.getsockopt(_TCP, _TCP_INFO, _INFO.size)
            milliseconds, waiting = _INFO.unpack(info)
        except (OSError, struct.error):  # a Unix socket, or another system
            return held, False
        return waiting, milliseconds < _FRESH

    def discard_readable(self, max_bytes: int) -> None:
        """Throw away what has arrived, without waiting."""
        with contextlib.suppress(OSError):
            while self.discarded < max_bytes:
                data = self.sock.recv(CHUNK)
                if not data:
                    self.eof = True
                    return
                self.received += len(data)
                self.discarded += len(data)

    def farewell(self, message: bytes) -> None:
        """Send as much of ``message`` as goes without waiting, then EOF."""
        with contextlib.suppress(OSError):
            if message:
                self.sent += self.sock.send(message)
            self.sent_eof = True
            self.sock.shutdown(socket.SHUT_WR)


def _complain_of_no_reset(error: OSError) -> None:
    try:
        complaints = _no_resets.get()
    except LookupError:
        complaints = Complaints("can't reset: %s; closed as if it had ended well")
        _no_resets.set(complaints)
    complaints.say(error)


class StreamTransport(Transport):
    """Bytes in and out of any Trio stream.

    What a failed or cancelled ``send_all`` had passed on can't be known: it is
    not counted as sent.
    """

    __slots__ = ("_gone", "_grace", "can_send_eof", "stream")

    def __init__(self, stream: trio.abc.Stream, *, grace: float = 2.0) -> None:
        super().__init__()
        self.stream = stream
        self.can_send_eof = isinstance(stream, trio.abc.HalfCloseableStream)
        self._grace = grace
        self._gone = trio.Event()

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            self.start_receiving()
            try:
                data = await self.stream.receive_some(max_bytes)
            except trio.BrokenResourceError as error:
                raise self._broken(_peers_own(error)) from self.error
            finally:
                self.receiving_since = math.inf
            return self._took(bytes(data), at_eof)
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._start_sending()
            self.sending_since = self._clock.current_time()
            if self.on_wait is not None:
                self.on_wait()
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError as error:
                raise self._broken(_peers_own(error)) from self.error
            finally:
                self.sending_since = math.inf
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        self.sent += len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        self.moved_at = self._clock.current_time()

    async def wait_writable(self) -> None:
        self._start_sending()
        self.sending_since = self._clock.current_time()
        if self.on_wait is not None:
            self.on_wait()
        try:
            await self.stream.wait_send_all_might_not_block()
        finally:
            self.sending_since = math.inf

    async def send_eof(self) -> None:
        self._check_open()
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise TypeError(f"{type(self.stream).__name__} can't send EOF")
        if self.sent_eof:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.stream.send_eof()
        except trio.BrokenResourceError as error:
            self._broken(_peers_own(error))
        self._has_sent_eof()
        if self.on_wait is not None:
            self.on_wait()

    def abort(self) -> None:
        self._close_within(0)

    def close(self) -> None:
        self._close_within(self._grace)

    def _close_within(self, seconds: float) -> None:
        # Closing is async and this is not: it must work from a timer, and on a
        # stream that a shielded handler waits for.
        if not self.closed:
            self.closed = True
            trio.lowlevel.spawn_system_task(self._aclose, seconds)

    async def _aclose(self, seconds: float) -> None:
        try:
            # A foreign stream may raise anything; nobody is left to be told.
            with isolated(), trio.move_on_after(seconds):
                await self.stream.aclose()
        finally:
            self._gone.set()

    async def wait_closed(self) -> None:
        with trio.CancelScope(shield=True):
            await self._gone.wait()

    def release(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def unsent(self) -> int | None:
        return None

    def is_of(self, thing: object) -> bool:
        return thing is self or thing is self.stream

    def tells_its_end(self) -> bool:
        return not is_ours(self.error)


def _peers_own(error: BaseException) -> BaseException:
    """What a stream says that it is broken by, if it says so."""
    cause = cause_of(error)
    return error if cause is None else cause

"""A transport of plain bytes over another transport, by TLS.

``received`` and ``sent`` count plain bytes; the transport below counts those that are
encrypted. A close_notify is EOF, in both directions and in each version of TLS, and the
other direction goes on. An end without it is an error: bytes may be missing.
"""

from __future__ import annotations

import contextlib
import math
from typing import Final

import trio

from ._errors import isolated
from ._tls_facts import facts_of
from ._tls_state import KeepingErrors, TlsState
from ._transport import CHUNK, FAILURES, Transport
from .wire._tls_errors import TlsError
from .wire._tls_records import RecordEnds
from .wire._tls_session import TlsSession

#: Seconds that an alert has to leave this machine, if there is no room for it.
_LAST_WORDS: Final = 1.0

#: Answers to key updates that the peer does not take end the connection at this many
#: bytes, what a send may hold included. RFC 8446, section 4.6.3
_MAX_HELD: Final = 2 * CHUNK


class TlsTransport(TlsState):
    """Plain bytes to and from a peer that speaks TLS.

    It holds at most what one receive of the transport below has given, and at most one
    send's worth of encrypted bytes, 64 KiB and some. If a send is cancelled, those that
    are encrypted already count as sent, and go out before all others, at the latest
    when it is closed. Over a stream that is not a socket it is not known how many have
    gone out, so there a send that is cancelled breaks the connection.

    Args:
      below: the transport below; this one owns it.
      session: the end of the TLS connection, new or after its handshake.
      began_at: when its handshake began, on Trio's clock; default: now.
      allow_truncation: take the peer's FIN for EOF, also without a close_notify before
        it. Whoever can send packets can then cut off what the peer sends.
      grace: seconds that :meth:`close` gives the last bytes to be sent.

    Attributes:
      below: the transport below.
      session: the TLS session.
    """

    __slots__ = (
        "_began_at", "_closing_over", "_grace", "_is_discarding", "_record_ends",
    )  # fmt: skip

    def __init__(
        self,
        below: Transport,
        session: TlsSession,
        *,
        began_at: float | None = None,
        allow_truncation: bool = False,
        grace: float = 2.0,
    ) -> None:
        super().__init__(below, session)
        # What is cut off within a record is never complete.
        self._record_ends = RecordEnds() if allow_truncation else None
        self._grace = grace
        self._began_at = self.clock.current_time() if began_at is None else began_at
        self._is_discarding = False
        self._closing_over: trio.Event | None = None

    # -- the handshake

    async def handshake(self) -> None:
        """Shake hands; bytes of the peer that come with its last flight are kept.

        It goes on where :meth:`handshake_now` has stopped.

        Raises:
          TlsError: it has failed; the alert was sent. Or the peer has sent EOF.
          trio.BrokenResourceError, trio.ClosedResourceError: as :meth:`receive`.

        After it was cancelled the transport is of no use.
        """
        try:
            while not (self._is_unreadable or self.session.handshake()):
                await self._flush_soon()
                below = self.below
                with KeepingErrors(self):
                    # What handshake_now() has met is known, however late it is.
                    if below.error is not None:
                        raise below.broken() from below.error
                    data = b"" if below.eof else await below.receive()
                if not data:
                    raise TlsError("it closed the connection within the TLS handshake")
                self._feed(data)
            await self._flush_soon()
        except TlsError as error:
            self._fail(error)
        if self._is_unreadable:
            await self._say_last_words()
            raise TlsError(str(self.error))
        self._handshake_over()

    def handshake_now(self, now: float) -> bool | None:
        """Go on with a server's handshake, without waiting; call it if it is readable.

        Args:
          now: the time, on Trio's clock.

        Returns:
          whether the handshake is over; None after an EOF or an error, or without room
          for what is to be sent: then :meth:`handshake` has to go on with it.
        """
        assert self._below_for_engine is not None
        try:
            data = self._below_for_engine.receive_now(now)
            if not data:
                return False if data is None else None
            self._feed(data)
            is_over = self.session.handshake()
        except FAILURES:
            return None  # kept below
        except TlsError as error:
            self._fail(error)
            return None
        self._flush_now()
        if self.held or self.below.error is not None:
            return None
        if is_over:
            try:
                self._handshake_over()
            except TlsError:
                return None
        return is_over

    def _handshake_over(self) -> None:
        seconds = self.clock.current_time() - self._began_at
        self._facts = facts_of(self.session, seconds)

    # -- bytes

    async def receive(
        self, max_bytes: int = CHUNK, at_eof: type[Exception] | None = None
    ) -> bytes:
        try:
            if self.unread_bytes:
                return await self.receive_unread(max_bytes)
            self.check_receivable()
            await trio.lowlevel.checkpoint_if_cancelled()
            self.receiving_since = self.clock.current_time()
            try:
                data = await self._read_now(max_bytes)
                if data is not None:
                    # Shielded: the bytes are read, and a Cancelled would lose them.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                while data is None:
                    await self._feed_more()
                    data = await self._read_now(max_bytes)
            finally:
                self.receiving_since = math.inf
            return self.count_received(data, at_eof)
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    def receive_now(self, now: float) -> bytes | None:
        assert self._below_for_engine is not None
        try:
            encrypted = self._below_for_engine.receive_now(now)
        except FAILURES:
            with KeepingErrors(self):
                raise
        if encrypted is None:
            return None
        if encrypted and self._record_ends is None:
            return self.receive_held(now, encrypted)
        self._feed(encrypted)  # looks at an EOF, and for the ends of records
        return self.receive_held(now)

    def receive_held(self, now: float, more: bytes = b"") -> bytes | None:
        """As :meth:`EngineTransport.receive_held` says.

        :meth:`receive_now` gives it ``more`` encrypted bytes, which saves a call of
        :meth:`_feed`.
        """
        session = self.session
        data = None
        if not self._is_unreadable:
            # As _read_now() does, which may wait; and below, as count_received() does,
            # which would be another call for each message.
            try:
                data = session.read(CHUNK, more)
                if session.outgoing.pending:
                    self._answer()
            except TlsError as error:
                data = None
                self._fail(error)
            self.holds_received = not session.is_drained or session.has_ended
        if data:
            self.moved_at = now
            if not self.received:
                self.first_byte_at = now
            self.received += len(data)
        elif data is not None:
            self.count_received(data, None)
        elif self._is_unreadable:
            if not self._is_flushing:
                self._flush_now()  # the alert
            # Without a text, which takes 6 us: a pump looks at the error itself.
            raise trio.BrokenResourceError from self.error
        return data

    async def _feed_more(self) -> None:
        """Receive more encrypted bytes."""
        with KeepingErrors(self):
            data = await self.below.receive()
        self.check_open()
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Take encrypted bytes; an end without a close_notify is an error."""
        ends = self._record_ends
        if data:
            self.session.feed(data)
            if ends is not None:
                ends.feed(data)
            return
        may_end = ends is not None and not ends.is_within_record
        if may_end or self._is_discarding:
            self.session.has_ended = True
        else:
            self._fail(TlsError("it ended without close_notify: bytes may be missing"))

    async def _read_now(self, max_bytes: int) -> bytes | None:
        """Read what has arrived; None if it is less than a record."""
        if self._is_unreadable:
            raise self.broken() from self.error
        try:
            data = self.session.read(max_bytes)
            if self.session.outgoing.pending:
                self._answer()
            return data
        except TlsError as error:
            self._fail(error)
        await self._say_last_words()
        raise self.broken() from self.error

    def _answer(self) -> None:
        """Send what a read has written, as far as there is room; the rest comes later.

        These are answers to key updates; or an alert, if an error comes after bytes.
        """
        if not self._is_flushing:
            self._flush_now()
        if len(self.held) + self.session.outgoing.pending > _MAX_HELD:
            raise TlsError("it does not take the answers to its key updates")

    def _fail(self, error: TlsError) -> None:
        self._is_unreadable = True
        self.keep_error(error)

    async def _say_last_words(self) -> None:
        """Send the alert, unless another task sends: that one does it then."""
        if self._is_flushing:
            return
        self._flush_now()
        if self.held:
            with contextlib.suppress(*FAILURES), trio.move_on_after(_LAST_WORDS):
                await self._flush()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self.check_sendable()
            await trio.lowlevel.checkpoint_if_cancelled()
            self.sending_since = self.clock.current_time()
            try:
                if self.held:
                    await self._flush()
                with memoryview(data).cast("B") as view:
                    position = 0
                    while position < len(view):
                        position += self._encrypt(view[position : position + CHUNK])
                        await self._flush()
                        if self.error is not None:  # of a receive, meanwhile
                            raise self.broken() from self.error
                    if not position:
                        await trio.lowlevel.cancel_shielded_checkpoint()
            finally:
                self.sending_since = math.inf
        except FAILURES:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    def send_now(self, data: bytes | memoryview, now: float) -> int:
        """Encrypt as much as there is room for, which then counts as sent."""
        if self.held:
            self._flush_now()  # rarely, so it may ask the clock itself
        below, count = self.below, 0
        if data and not self.held and self.error is None:
            count = len(data)
            if count > CHUNK:
                data, count = data[:CHUNK], CHUNK
            try:
                encrypted = self.session.encrypt(data)
            except TlsError as error:
                self.keep_error(error)
                return 0
            sent = below.send_now(encrypted, now)
            if sent < len(encrypted):
                self.held = encrypted[sent:]
        if below.error is not None:
            self.keep_error(below.error)
            return 0
        if count:
            self.sent += count
            self.moved_at = now
        return count

    def _encrypt(self, view: memoryview) -> int:
        """Encrypt what is sent at once; return its length."""
        count = self.session.write(view)
        self._encrypted += count
        return count

    def _flush_now(self) -> None:
        """Send as much of what is encrypted as goes without waiting."""
        held = self.held + self.session.output()
        if held:
            sent = self.below.send_now(held, self.clock.current_time())
            self.held = held[sent:]

    async def _flush_soon(self) -> None:
        """:meth:`_flush`, without a checkpoint if there is room for all bytes."""
        self._flush_now()
        if self.held:
            await self._flush()

    async def _flush(self) -> None:
        """Send all bytes that are encrypted. One task at a time may call this."""
        self._is_flushing = True
        try:
            while data := self.held or self.session.output():
                self.held = data
                before = self.below.sent
                try:
                    with KeepingErrors(self):
                        await self.below.send(data)
                except trio.Cancelled:
                    if self.below.pollable() is None:
                        self.keep_error(TlsError("a send was cancelled halfway"))
                        raise
                    # They go out first at the next send.
                    self.held = data[self.below.sent - before :]
                    self._count_sent()
                    raise
                self.held = b""
            self._count_sent()
        finally:
            self._is_flushing = False

    def _count_sent(self) -> None:
        count, self._encrypted = self._encrypted, 0
        if count:
            self.sent += count
            self.moved_at = self.sending_since = self.clock.current_time()

    async def wait_writable(self) -> None:
        self.check_sendable()
        self.sending_since = self.clock.current_time()
        try:
            with KeepingErrors(self):
                await self.below.wait_writable()
        finally:
            self.sending_since = math.inf

    async def send_eof(self) -> None:
        """Send a close_notify. If it is cancelled, the next call goes on with it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check_open()
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        is_first = not self.sent_eof
        if is_first:
            self._close_session()
        self.sending_since = self.clock.current_time()
        try:
            if self.error is None:
                await self._flush()
        except trio.BrokenResourceError:
            pass  # see below
        finally:
            self.sending_since = math.inf
        if is_first and self.on_wait is not None:
            self.on_wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self.error is not None and not (self.closed or self.end_is_receivable()):
            raise self.broken() from self.error

    def send_eof_now(self) -> None:
        self.check_open()
        if self.sending_since < math.inf:
            raise trio.BusyResourceError("another task is sending")
        if not self.sent_eof:
            self._close_session()
            self._flush_now()
            if self.below.error is not None:
                self.keep_error(self.below.error)
            if self.on_wait is not None:
                self.on_wait()

    def _close_session(self) -> None:
        self.mark_eof_sent()
        if self.error is None:
            self.session.close()

    async def discard(self, max_bytes: int, seconds: float) -> None:
        # Nobody gets these bytes, so it does not matter whether they are complete.
        self._is_discarding = True
        await super().discard(max_bytes, seconds)

    def discard_readable(self, max_bytes: int) -> None:
        super().discard_readable(max_bytes)
        self.below.discard_readable(max_bytes)

    def send_refusal(self, message: bytes) -> bool:
        if not self.below.closes_at_once:
            return False
        if self.error is None and not self.sent_eof and not self._is_flushing:
            if message:
                self.session.write(message)
            self.session.close()
            self.mark_eof_sent()
            self._flush_now()
            if not self.held:
                self.sent += len(message)
        return True

    # -- closing

    def abort(self) -> None:
        """Close at once, by RST; or by FIN if the peer has an alert to read."""
        if not self.closed:
            self.mark_closed()
            self.tell_closing()
        if not (self._closes_after_alert() or self.below.closed):
            self.below.abort()
            if (count := self.below.unacknowledged) is not None:
                # Those that are encrypted are some more than the plain ones.
                self.unacknowledged = min(self.sent, count + len(self.held))

    def close(self) -> None:
        """Close at once: by a close_notify and FIN.

        If there is no room for the close_notify, a system task waits for it, for some
        seconds. After an error, or if another task is sending, none is sent.
        """
        if self.closed:
            return
        self.mark_closed()
        self.tell_closing()
        if self._closes_after_alert():
            return
        if self.error is None and not self._is_flushing:
            if not self.sent_eof:
                self.session.close()
            self._flush_now()
            if self.held and self.below.error is None:
                self._closing_over = trio.Event()
                trio.lowlevel.spawn_system_task(self._close_below, self._closing_over)
                return
        self.below.close()

    async def _close_below(self, over: trio.Event) -> None:
        try:
            with isolated(), trio.move_on_after(self._grace):
                await self._flush()
        finally:
            self.below.close()
            over.set()

    def _closes_after_alert(self) -> bool:
        """Whether an alert was sent, which a RST could overtake; then it waits below.

        The peer may still send; with its bytes unread, a close would be a RST.
        """
        if not self._is_unreadable or self.sending_since < math.inf or self.held:
            return False
        if self._closing_over is None:
            if self._has_ended_below():
                return False
            self._closing_over = trio.Event()
            trio.lowlevel.spawn_system_task(self._linger_below, self._closing_over)
        return True

    async def _linger_below(self, over: trio.Event) -> None:
        try:
            with isolated():
                await self.below.send_eof()
                await self.below.discard(CHUNK, self._grace)
        finally:
            self.below.close()
            over.set()

    async def wait_closed(self) -> None:
        with trio.CancelScope(shield=True):
            if self._closing_over is not None:
                await self._closing_over.wait()
            await self.below.wait_closed()

    def release(self) -> None:
        self.mark_closed()
        self.below.release()

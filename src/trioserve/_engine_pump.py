"""Pumps between two sockets, whose bytes need not be looked at.

Bulk goes through a pipe, by splice(2), without a copy into this process. All pumps
share one pipe, which is empty between two events. A pump whose sink takes no bytes
holds those of one read, or keeps the pipe with its bytes.

This module knows sockets and bytes. The relay decides, in its callbacks, when it ends
and how its sides are closed.
"""

from __future__ import annotations

import errno
import math
from typing import Final

from ._engine import Engine
from ._errors import is_closed, is_ours
from ._pipes import SUPPORTED as CAN_SPLICE
from ._pipes import Pipe
from ._polled_pump import PolledPump
from ._transport import CHUNK, PollableTransport

#: A read of so many bytes is large. That is less than the buffer: with eight flows at
#: full speed, each read brings 46 KiB.
_LARGE: Final = CHUNK // 4

#: A pump splices after this many large reads in a row, and copies again after this many
#: small ones.
_BULK: Final = 4
_NO_BULK: Final = 8

#: After this many bytes were spliced, the sink's TCP_NOTSENT_LOWAT is raised, and to
#: which value. If it were raised earlier, the kernel would hold as much for a receiver
#: that stops reading; a larger value makes no flow faster.
UNCAP_AFTER: Final = 1_048_576
_UNCAPPED: Final = 1_048_576


class _Bulk:
    """What a pump knows while it splices.

    Attributes:
      pipe: a pipe with bytes that the sink has not taken.
      moved: bytes that were spliced.
      lowat_before: the sink's TCP_NOTSENT_LOWAT before it was raised.
    """

    __slots__ = ("lowat_before", "moved", "pipe")

    def __init__(self) -> None:
        self.pipe: Pipe | None = None
        self.moved = 0
        self.lowat_before = 0


class EnginePump(PolledPump[PollableTransport]):
    """A pump between two sockets; see :class:`PolledPump`."""

    __slots__ = ("_bulk", "_streak")

    def __init__(
        self, source: PollableTransport, sink: PollableTransport, first: bytes = b""
    ) -> None:
        super().__init__(source, sink, first)
        self._bulk: _Bulk | None = None
        # Counts large reads in a row while it copies, and small ones while it splices.
        # At minus infinity it never splices.
        self._streak: float = 0 if CAN_SPLICE else -math.inf

    def stop(self) -> None:
        super().stop()
        if self._bulk is not None:
            self._end_bulk()

    # -- callbacks of the engine

    def on_readable(self, engine: Engine, now: float) -> None:
        if (bulk := self._bulk) is not None:
            if (pipe := engine.pipes.empty(now)) is not None:
                self._splice(bulk, pipe, engine, now)
                return
            if not self._runs:  # the last pipe was that of the other direction, lost
                return
        source, sink = self.source, self.sink
        if self.relay.quiet:
            self.relay.on_activity(now)
        try:
            count = source.sock.recv_into(engine.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._cannot_receive(error)
            return
        if not count:
            self._receive_eof()
            return
        if source.first_byte_at is None:
            source.first_byte_at = now
        source.received += count
        source.moved_at = now
        try:
            sent = sink.sock.send(engine.view[:count])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._cannot_send(error)
            return
        sink.sent += sent
        if count < _LARGE:
            if self._streak > 0:
                self._streak = 0
        else:
            self._streak += 1
        if sent < count:
            self._held = memoryview(bytes(engine.view[sent:count]))
            self._block(now)
        elif self._streak >= _BULK:
            self._streak = 0
            if self._bulk is None:  # else no pipe was free
                self._bulk = _Bulk()
                engine.pipes.flows += 1

    def on_writable(self, now: float) -> None:
        sink, before = self.sink, self.sink.sent
        if not self._push():
            return
        bulk = self._bulk
        if sink.sent != before:
            sink.moved_at = sink.sending_since = now
            if bulk is not None and (pipe := bulk.pipe) is not None:
                pipe.moved_at = now
                if not pipe.filled:
                    self._return(bulk, pipe)
        if self._held or (bulk is not None and bulk.pipe is not None):
            return
        self._unblock()
        self.relay.on_backpressure(self, now)

    # -- through a pipe

    def _splice(self, bulk: _Bulk, pipe: Pipe, engine: Engine, now: float) -> None:
        source, sink = self.source, self.sink
        if self.relay.quiet:
            self.relay.on_activity(now)
        try:
            count = pipe.fill(source.sock.fileno(), engine.share)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            if is_ours(error) or is_closed(error):
                # It may be an error of splice(2) or of the pipe. recv(2) tells the
                # state of the socket.
                engine.pipes.keep(self, pipe, now)
                bulk.pipe = pipe
                self._stop_splicing(pipe, error)
                self.on_readable(engine, now)
            else:
                self._cannot_receive(error)
            return
        if not count:
            # The source is readable and splice(2) moves no byte: EOF, or the mark of
            # urgent data, at which splice(2) stops. recv(2) tells.
            self._end_bulk()
            self.on_readable(engine, now)
            return
        source.received += count
        source.moved_at = now
        if bulk.moved < UNCAP_AFTER <= bulk.moved + count:
            bulk.lowat_before = sink.set_notsent_lowat(_UNCAPPED)
        bulk.moved += count
        self._streak = self._streak + 1 if count < _LARGE else 0
        failure: OSError | None = None
        try:
            sink.sent += pipe.drain(sink.sock.fileno())
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            failure = error
        if not pipe.filled:
            if self._streak >= _NO_BULK:
                self._end_bulk()
            return
        engine.pipes.keep(self, pipe, now)
        bulk.pipe = pipe
        if failure is not None and not self._push_without(pipe, failure):
            return
        if self._held or pipe.filled:
            self._block(now)

    def _stop_splicing(self, pipe: Pipe, error: OSError) -> None:
        """Copy bytes from now on: the system can't splice here."""
        pipe.failed = True
        self.give_up_pipe()
        self._streak = -math.inf
        if error.errno in (errno.ENOSYS, errno.EPERM):
            self._engine.pipes.forbid(error)

    def give_up_pipe(self) -> None:
        """Return the pipe, and hold the bytes that were in it.

        Raises:
          OSError: these bytes are lost.
        """
        assert self._bulk is not None
        pipe = self._bulk.pipe
        assert pipe is not None
        try:
            if pipe.filled:
                self._held = memoryview(pipe.read())
        finally:
            self._end_bulk()

    def on_pipe_lost(self, error: OSError) -> None:
        """End the relay: the bytes in the pipe are lost."""
        self.relay.on_failure(error)

    def _return(self, bulk: _Bulk, pipe: Pipe) -> None:
        bulk.pipe = None
        self._engine.pipes.take_back(self, pipe)

    def _end_bulk(self) -> None:
        """Copy from now on, until there are large reads again."""
        bulk, self._bulk, self._streak = self._bulk, None, 0
        assert bulk is not None
        self._engine.pipes.flows -= 1
        if bulk.pipe is not None:
            self._return(bulk, bulk.pipe)
        if bulk.moved >= UNCAP_AFTER:
            self.sink.set_notsent_lowat(bulk.lowat_before)

    def _push(self) -> bool:
        """Send as many held bytes as the sink takes; False if the sink is broken."""
        sink, bulk = self.sink, self._bulk
        pipe = None if bulk is None else bulk.pipe
        try:
            if pipe is not None:
                sink.sent += pipe.drain(sink.sock.fileno())
            else:
                while self._held:
                    count = sink.sock.send(self._held)
                    sink.sent += count
                    self._held = self._held[count:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            return self._push_without(pipe, error)
        return True

    def _push_without(self, pipe: Pipe | None, error: OSError) -> bool:
        """Send without a pipe if the error may be its own; False if the sink broke."""
        if pipe is not None and (is_ours(error) or is_closed(error)):
            # It may be an error of splice(2) or of the pipe. send(2) tells the state
            # of the socket.
            self._stop_splicing(pipe, error)
            return self._push()
        self._cannot_send(error)
        return False

    # -- ends; callbacks come last, because they may end the relay

    def _receive_eof(self) -> None:
        self._stop_reading()
        if self.source.error is not None:
            # The kernel reports an error once, and EOF from then on.
            self.update_interest()
            self.relay.on_error(self.source)
            return
        self.source.eof = self.done = True
        self.relay.on_eof(self)

    def _cannot_receive(self, error: OSError) -> None:
        self._stop_reading()
        self.update_interest()
        if self.source.keep_os_error(error):
            self.relay.on_error(self.source)
        else:
            self.relay.on_closed()

    def _cannot_send(self, error: OSError) -> None:
        self._stop_reading()
        self._unblock()
        if self.sink.sent_eof or not self.sink.keep_os_error(error):
            self.relay.on_closed()
            return
        # If bytes of the sink's peer may be left, the other pump receives them and
        # then the error.
        back = self.back
        if back is self or not (back.reading and self.sink.end_is_receivable()):
            self.relay.on_error(self.sink)

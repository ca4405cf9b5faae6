"""Pumps that the engine runs: how bytes move between two sockets, without a task.

A pump receives once per event and sends that at once. Bulk goes through a pipe,
by splice(2), without being copied into this process. A pump whose sink takes
nothing stops reading; it holds what one read or one pipe has brought, no more.

This module knows sockets and bytes. When a relay is over, and what becomes of its
sides, is decided by the relay, through its callbacks.
"""

from __future__ import annotations

import errno
import math
from typing import Final, Protocol

import trio

from ._engine import IN, OUT, Engine
from ._errors import is_closed, is_ours
from ._pipes import SUPPORTED as CAN_SPLICE
from ._pipes import Pipe
from ._pump import Pump
from ._transport import CHUNK, PollableTransport

#: Bytes of a read that counts as large. It need not fill the buffer: of eight flows
#: that are as fast as they can be, each brings 46 KiB at a time.
_LARGE: Final = CHUNK // 4

#: Large reads in a row before a pump gets a pipe; and small ones in a row before it
#: gives the pipe back.
_BULK: Final = 4
_NO_BULK: Final = 8

#: Bytes through one pipe after which the kernel may hold more of them unsent, and how
#: many (TCP_NOTSENT_LOWAT). If it were lifted earlier, a receiver that stops reading
#: would have as many waiting for it; and a larger value makes no flow faster.
UNCAP_AFTER: Final = 1_048_576
_UNCAPPED: Final = 1_048_576


class RelayCallbacks(Protocol):
    """What pumps tell their relay, in the engine's task. No callback may wait.

    Attributes:
      quiet: set by the relay, to have :meth:`on_activity` called once.
    """

    quiet: bool

    def on_eof(self, pump: EnginePump) -> None:
        """EOF was received, and all before it is delivered."""

    def on_error(self, transport: PollableTransport) -> None:
        """A transport has an error, and no pump will receive from it any more."""

    def on_closed(self) -> None:
        """Other code has closed one of the sides."""

    def on_failure(self, error: BaseException) -> None:
        """The system does not let the relay go on, or another task uses one of the
        sides, or there is a bug.
        """

    def on_backpressure(self, pump: EnginePump, now: float) -> None:
        """A pump is blocked, or no longer is: a deadline may come earlier now."""

    def on_activity(self, now: float) -> None:
        """A byte moves, and :attr:`quiet` is set."""


class EnginePump(Pump):
    """A pump between two sockets, driven by the engine's events.

    Args:
      first: bytes that go to the sink before any other; after them come those that
        were given back to the source, and then those that it receives.

    Attributes:
      back: the pump that delivers to this one's source; itself, in an echo. From
        :meth:`start` to :meth:`stop`, as ``relay``.
      blocked: whether it holds bytes that the sink has not taken.
      fd, mask: the source's descriptor, and the events that the engine waits for
        there; the mask of a pump that has stopped is 0.
      relay: who is told what happens, from :meth:`start` to :meth:`stop`.
    """

    __slots__ = (
        "_engine", "_held", "_pipe", "_runs", "_streak", "back", "blocked", "fd",
        "mask", "relay",
    )  # fmt: skip

    source: PollableTransport
    sink: PollableTransport

    def __init__(
        self, source: PollableTransport, sink: PollableTransport, first: bytes = b""
    ) -> None:
        first += source.take_unread()
        super().__init__(source, sink, len(first))
        self.blocked = False
        self.mask = 0
        self.relay: RelayCallbacks
        self.back: EnginePump
        self._engine: Engine
        self._runs = False
        self._held: bytes | memoryview = first
        self._pipe: Pipe | None = None
        # Large reads in a row without a pipe, small ones with a pipe; with minus
        # infinity it never gets one.
        self._streak: float = 0 if CAN_SPLICE else -math.inf

    def start(self, engine: Engine, relay: RelayCallbacks, back: EnginePump) -> None:
        """Have the engine wait for bytes of the source.

        Raises:
          trio.BusyResourceError: another task or relay receives from it.
          trio.ClosedResourceError: it was closed.
          OSError: the system has no room for one more.
        """
        if self.source.is_relayed:
            # Checked here, for one that is not waited for now is not registered.
            raise trio.BusyResourceError("another task is relaying this stream")
        self.source.start_receiving()
        self.fd = self.source.sock.fileno()
        try:
            engine.add(self)
        except BaseException:
            self.source.receiving_since = math.inf
            raise
        # Not before: of a relay that never begins, they would be garbage cycles.
        self.relay, self.back, self._engine = relay, back, engine
        self._runs = True

    def send_first(self) -> None:
        """Hold the bytes that were received before, until the sink takes them."""
        if self._held and self._runs:
            self._block(trio.current_time())

    def stop(self) -> None:
        """Move no more bytes; the engine and the relay are not known after this."""
        self._runs = False
        if self.reading:
            self.source.receiving_since = math.inf
        if self.blocked:
            self.sink.sending_since = math.inf
        self.blocked = False
        self._engine.remove(self)
        if self._pipe is not None:
            self._return(self._pipe)
        # These are cycles, which would keep the whole relay until garbage is collected.
        del self.relay, self.back

    # -- what the engine calls

    def on_event(self, engine: Engine, events: int, now: float) -> None:
        # The events of a source may be about the other pump's sink, for it is the
        # same socket.
        if events & ~IN and self.back.blocked:
            self.back.on_writable(now)
        # Sending may have ended the relay.
        if events & ~OUT and self.mask & IN:
            self.on_readable(engine, now)

    def on_readable(self, engine: Engine, now: float) -> None:
        """Receive once, and send that."""
        if self._pipe is not None:
            self._splice(self._pipe, engine, now)
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
            self._pipe = engine.pipes.lend(self, now)

    def on_writable(self, now: float) -> None:
        """The sink may take some of what this holds."""
        sink, before = self.sink, self.sink.sent
        if not self._push():
            return
        if sink.sent != before:
            sink.moved_at = sink.sending_since = now
            if self._pipe is not None:
                self._pipe.moved_at = now
        if self._held or (self._pipe is not None and self._pipe.filled):
            return
        self._unblock()
        self.relay.on_backpressure(self, now)

    def on_lost(self, error: OSError) -> None:
        if self._runs:
            self.relay.on_failure(error)

    # -- through a pipe

    def _splice(self, pipe: Pipe, engine: Engine, now: float) -> None:
        source = self.source
        if self.relay.quiet:
            self.relay.on_activity(now)
        try:
            count = pipe.fill(source.sock.fileno())
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            if is_ours(error) or is_closed(error):
                # An error of splice(2) or of the pipe: recv(2) says how the socket is.
                self._stop_splicing(pipe, error)
                self.on_readable(engine, now)
            else:
                self._cannot_receive(error)
            return
        if not count:
            # The source is readable, and splice(2) brings nothing: it is the end, or
            # the mark of urgent data, which splice(2) does not pass. recv(2) tells.
            self.give_up_pipe()
            self.on_readable(engine, now)
            return
        source.received += count
        source.moved_at = pipe.moved_at = now
        if pipe.moved < UNCAP_AFTER <= pipe.moved + count:
            pipe.lowat_before = self.sink.set_notsent_lowat(_UNCAPPED)
        pipe.moved += count
        self._streak = self._streak + 1 if count < _LARGE else 0
        if not self._push():
            return
        if self._held or pipe.filled:
            self._block(now)
        elif self._streak >= _NO_BULK:
            self.give_up_pipe()

    def _stop_splicing(self, pipe: Pipe, error: OSError) -> None:
        """Copy from now on, for the system says that splicing is impossible."""
        pipe.failed = True
        self.give_up_pipe()
        self._streak = -math.inf
        if error.errno in (errno.ENOSYS, errno.EPERM):
            self._engine.pipes.forbid(error)

    def give_up_pipe(self) -> None:
        """Return the pipe, and hold what is in it.

        Raises:
          OSError: the bytes that were in it are lost.
        """
        pipe, self._pipe, self._streak = self._pipe, None, 0
        assert pipe is not None
        try:
            if pipe.filled:
                self._held = memoryview(pipe.read())
        finally:
            self._return(pipe)

    def on_pipe_lost(self, error: OSError) -> None:
        """What was in its pipe is lost."""
        self.relay.on_failure(error)

    def _return(self, pipe: Pipe) -> None:
        self._engine.pipes.take_back(self, pipe)
        if pipe.moved >= UNCAP_AFTER:
            self.sink.set_notsent_lowat(pipe.lowat_before)

    # -- while the sink takes nothing

    def _block(self, now: float) -> None:
        """Stop reading until the sink takes what this holds."""
        if self.sink.sending_since < math.inf:
            self.relay.on_failure(trio.BusyResourceError("another task is sending"))
            return
        self.blocked = True
        self.sink.sending_since = now
        self.update_interest()
        self.back.update_interest()
        self.relay.on_backpressure(self, now)

    def _unblock(self) -> None:
        if self.blocked:
            self.blocked = False
            self.sink.sending_since = math.inf
        self.update_interest()
        self.back.update_interest()

    def _push(self) -> bool:
        """Send as much of what it holds as goes; False if the sink is broken."""
        sink, pipe = self.sink, self._pipe
        try:
            if pipe is not None:
                while pipe.filled:
                    sink.sent += pipe.drain(sink.sock.fileno())
            else:
                while self._held:
                    count = sink.sock.send(self._held)
                    sink.sent += count
                    self._held = self._held[count:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if pipe is not None and (is_ours(error) or is_closed(error)):
                # An error of splice(2) or of the pipe: send(2) says how the socket is.
                self._stop_splicing(pipe, error)
                return self._push()
            self._cannot_send(error)
            return False
        return True

    def update_interest(self) -> None:
        """Wait for the events of the source that matter now, and no others."""
        mask = IN if self.reading and not self.blocked else 0
        if self.back.blocked:
            mask |= OUT
        self._engine.set_interest(self, mask)

    # -- ends; the relay is told last, for a callback may end it

    def _stop_reading(self) -> None:
        self.reading = False
        self.source.receiving_since = math.inf

    def _receive_eof(self) -> None:
        self._stop_reading()
        self.update_interest()
        if self.source.error is not None:
            # The kernel tells an error once, and says EOF from then on.
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
        # If there may be something to receive from the sink, the other pump receives
        # it, and then finds out how the sink ended.
        back = self.back
        if back is self or not (back.reading and self.sink.end_is_receivable()):
            self.relay.on_error(self.sink)

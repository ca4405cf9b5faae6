"""TCP in memory: two ends, and a bounded way between them.

What Linux does, without a kernel: FIN, RST, half-close, partial writes, data
for an end that is gone. Bytes that are under way arrive when a call of either
end looks, at the time at which they were due: no task belongs to a connection,
and the same schedule gives the same result. It knows no handler and no test.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import errno
import itertools
import math
import operator
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar, TypeVarTuple

import trio

from trioserve.faults import (
    Faults,
    Impairment,
    Schedule,
    Termination,
    parse_faults,
)

#: Bytes of a receive that names no number. Trio's own default.
_CHUNK: Final = 65536

T = TypeVar("T")
Args = TypeVarTuple("Args")

EventKind: TypeAlias = Literal[
    "connect", "accept", "send", "receive", "send_eof", "receive_eof", "reset",
    "receive_reset", "close", "wait_receive", "wait_send", "cancelled",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that a stream did, or that its user saw.

    Attributes:
      kind: what. ``reset`` is an RST that this stream sent, ``receive_reset``
        the first call that failed because of one; ``wait_receive`` and
        ``wait_send`` begin a wait, ``cancelled`` ends a call.
      stream: whose.
      data: the bytes of ``send`` (taken by the wire) and ``receive``; the
        reason of ``cancelled``, if it has one.
    """

    kind: EventKind
    stream: MemoryStream
    data: bytes | str | None = None


Watch: TypeAlias = Callable[[Event], None]


class _Signal(enum.Enum):
    FIN = enum.auto()
    RST = enum.auto()


class _Segment(NamedTuple):
    """What is under way, and when it arrives."""

    payload: bytes | _Signal | Termination
    at: float
    boundary: bool = False


class _Pipe:
    """One direction: what is under way, and what has arrived and was not received.

    Attributes:
      end: the kind of ending that it has come to, if it has. Nothing is under
        way any more, and nothing that is sent will be.
    """

    def __init__(self, buffer: int, impairment: Impairment, seed: str) -> None:
        self.end: str | None = None
        self._buffer = buffer
        self._unreceived = 0
        self._latency = impairment.latency
        self._schedule = Schedule(impairment, seed)
        self._begin = trio.current_time()
        self._way = collections.deque[_Segment]()
        self._timed = collections.deque(
            _Segment(timed, self._begin + timed.seconds)
            for timed in self._schedule.timed
            if timed.seconds is not None
        )
        self._foresees_end = False
        self._foresee_end(self._begin)
        # No receive returns bytes of two of these; the last one grows.
        self._arrived = collections.deque([bytearray()])
        self._is_held = False

    @property
    def suffered(self) -> tuple[str, ...]:
        return self._schedule.applied

    # -- The sender's side

    @property
    def room(self) -> int:
        """Bytes that may be put in."""
        is_drain = self.end in ("close", "eof")
        return self._buffer if is_drain else self._buffer - self._unreceived

    def put(self, data: bytes, now: float) -> None:
        """Send bytes, for which there is room."""
        self._unreceived += len(data)
        if self.end is None:
            for segment in self._schedule.feed(data, now - self._begin):
                at = self._begin + segment.at
                self._way.append(_Segment(segment.data, at, segment.boundary))
            self._foresee_end(now)

    def put_fin(self, now: float) -> None:
        if self.end is None:
            at = self._begin + self._schedule.feed_eof(now - self._begin)
            if at < math.inf:  # Else another ending comes before.
                self._way.append(_Segment(_Signal.FIN, at))

    def put_rst(self, now: float) -> None:
        if self.end is None:
            self._way.append(_Segment(_Signal.RST, now + self._latency))

    def _foresee_end(self, now: float) -> None:
        """The last bytes before an ending are under way: so is the ending."""
        termination = self._schedule.termination
        if termination is not None and not self._foresees_end:
            self._foresees_end = True
            at = self._way[-1].at if self._way else now
            self._way.append(_Segment(termination, at))

    # -- Time

    @property
    def due(self) -> float:
        """When the next thing arrives or happens."""
        queue = self._next_queue()
        return queue[0].at if queue else math.inf

    def next_due(self) -> _Segment:
        segment = self._next_queue().popleft()
        if isinstance(segment.payload, Termination):
            self._schedule.mark_applied(segment.payload)
        return segment

    def _next_queue(self) -> collections.deque[_Segment]:
        way, timed = self._way, self._timed
        return timed if timed and (not way or timed[0].at < way[0].at) else way

    def come_to_end(self, kind: str) -> None:
        """Lose what is under way, and what will be sent."""
        self.end = kind
        self._way.clear()
        if kind not in ("stall", "eof"):
            self._timed.clear()

    # -- The receiver's side

    @property
    def unread(self) -> bool:
        return bool(self._arrived[0])

    def deliver(self, data: bytes, *, boundary: bool) -> None:
        self._arrived[-1] += data
        if boundary:
            self._arrived.append(bytearray())

    def take(self, max_bytes: int) -> bytes:
        """Receive; nothing if it has to wait."""
        if self._is_held:
            return b""
        first = self._arrived[0]
        data = bytes(first[:max_bytes])
        del first[:max_bytes]
        self._unreceived -= len(data)
        if not first and len(self._arrived) > 1:
            self._arrived.popleft()
            self._is_held = True
        return data

    def release(self) -> bool:
        """A receive waits: whether there is something that it was not given yet."""
        self._is_held = False
        return self.unread


class _Turn:
    """One task at a time does it; what can't be done at once is waited for here.

    Args:
      doing: for the error that a second task gets.
      due: called before each wait; until when at the latest.
      on_wait, on_cancelled: called when it begins to wait, and when a call ends
        because it was cancelled, with the reason.
    """

    def __init__(
        self,
        doing: str,
        due: Callable[[], float] = lambda: math.inf,
        on_wait: Callable[[], None] = lambda: None,
        on_cancelled: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._doing = doing
        self._due = due
        self._on_wait = on_wait
        self._on_cancelled = on_cancelled
        self._is_taken = False
        self._waits_until = -math.inf
        self._change = trio.Event()

    def __enter__(self) -> None:
        if self._is_taken:
            raise trio.BusyResourceError(f"another task is {self._doing}")
        self._is_taken = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_taken = False
        if isinstance(exc, trio.Cancelled):
            self._on_cancelled(exc.reason)

    async def until(self, attempt: Callable[[*Args], T | None], *args: *Args) -> T:
        """What ``attempt(*args)`` returns once that is not None.

        The checkpoints are those of a Trio socket: it is cancelled before it
        has done anything, or while it waits.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waits = False
        try:
            while (result := attempt(*args)) is None:
                waits = True
                self._on_wait()
                await self._wait()
            return result
        finally:
            if not waits:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait(self) -> None:
        self._change = trio.Event()
        self._waits_until = self._due()
        try:
            with trio.move_on_at(self._waits_until):
                await self._change.wait()
        finally:
            self._waits_until = -math.inf

    def wake(self) -> None:
        """Something has changed: let who waits try again."""
        self._change.set()

    def foresee(self, when: float) -> None:
        """Something will change, perhaps sooner than who waits knows."""
        if when < self._waits_until:
            self.wake()


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory. It does what a ``trio.SocketStream`` does.

    Also what is not written down: the first send to a peer that has closed
    succeeds and the next one breaks; what arrived before an RST can still be
    received. Two differences, both for the better: an error is sticky, where a
    kernel tells it once; a second task that receives is always noticed. A peer
    that has vanished is never given up: there are no retransmissions that could
    fail.

    Attributes:
      name: for people, such as ``"client 1"``.
    """

    _peer: MemoryStream

    def __init__(self, name: str, pipe: _Pipe, watch: Watch | None) -> None:
        self.name = name
        self._in = pipe
        self._watch = watch
        self._options: dict[tuple[int, int], int | bytes] = {}
        self._is_closed = False
        self._has_sent_eof = False
        self._has_sent_reset = False
        self._has_eof = False
        self._error: OSError | None = None
        self._has_told_error = False
        self._receiving = _Turn(
            "receiving from this stream",
            self._receive_due,
            lambda: self._tell("wait_receive"),
            lambda reason: self._tell("cancelled", reason),
        )
        self._sending = _Turn(
            "sending on this stream",
            self._due,
            lambda: self._tell("wait_send"),
            lambda reason: self._tell("cancelled", reason),
        )

    def __repr__(self) -> str:
        return f"<MemoryStream {self.name}>"

    @property
    def suffered(self) -> tuple[str, ...]:
        """Faults that were met on the way to this end, as they are written."""
        return self._in.suffered

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what has arrived, as :meth:`trio.SocketStream.receive_some` does.

        Raises:
          trio.BrokenResourceError: from the ``OSError`` that a kernel has.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this end was closed.
        """
        limit = _CHUNK if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError(f"max_bytes must be 1 or more, not {max_bytes}")
        with self._receiving:
            return await self._receiving.until(self._try_to_receive, limit)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, waiting for room; cancelled or failed, a beginning was sent.

        Raises:
          trio.BrokenResourceError, trio.BusyResourceError,
          trio.ClosedResourceError: as :meth:`receive_some`; the last also after
            :meth:`send_eof`.
        """
        if self._has_sent_eof:
            raise trio.ClosedResourceError("can't send after EOF was sent")
        with self._sending:
            rest = memoryview(data).cast("B")
            if not rest:
                self._check_open()
                await trio.lowlevel.checkpoint()
            while rest:
                rest = rest[await self._sending.until(self._try_to_send, rest) :]

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            self._check_open()
            await self._sending.until(self._is_writable)

    async def send_eof(self) -> None:
        """Send FIN; receiving goes on. Twice is once."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._has_sent_eof:
                return
            self._settle()
            self._check_open()
            if self._error is not None:
                raise _broken(_error(errno.ENOTCONN))
            self._send_eof()

    def send_eof_now(self) -> None:
        """:meth:`send_eof` at once, if it is possible, whoever is sending."""
        self._settle()
        if not (self._is_closed or self._has_sent_eof or self._error):
            self._send_eof()

    async def aclose(self) -> None:
        """Close: with FIN, or with RST if something that arrived was not received.

        In a scope that is cancelled or whose deadline has passed always with
        RST, so :func:`trio.aclose_forcefully` is a reset.
        """
        self._close(reset=trio.current_effective_deadline() <= trio.current_time())
        await trio.lowlevel.checkpoint()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Keep an option of a socket. In memory, it changes nothing."""
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """What was set, or 0."""
        return self._options.get((level, option), 0)

    def reset(self) -> None:
        """Close with RST, at once. Twice is once."""
        self._close(reset=True)

    def stall(self) -> None:
        """From now on, nothing that this end sends arrives."""
        self._settle()
        self._peer._suffer("stall")

    def vanish(self) -> None:
        """From now on nothing arrives at either end, as if the cable was pulled."""
        self._settle()
        self._suffer("vanish")

    def give_up(self) -> None:
        """Break both ends if something that was sent is lost: ``ETIMEDOUT``.

        A kernel does it after a quarter of an hour of retransmissions.
        """
        self._settle()
        ends = (self, self._peer)
        if any(end._in.end in ("stall", "vanish") for end in ends):
            for end in ends:
                end._break(errno.ETIMEDOUT)

    # -- What is tried

    def _try_to_receive(self, limit: int) -> bytes | None:
        self._settle()
        self._check_open()
        if data := self._in.take(limit):
            self._tell("receive", data)
            self._peer._sending.wake()
            return data
        if self._in.unread:
            return None
        if self._has_eof:
            self._tell("receive_eof")
            return b""
        self._check_intact()
        return None

    def _try_to_send(self, data: memoryview) -> int | None:
        self._settle()
        self._check_open()
        self._check_intact()
        if self._has_sent_eof:  # While this send waited.
            raise _broken(_error(errno.EPIPE))
        pipe = self._peer._in
        if not pipe.room:
            return None
        part = bytes(data[: pipe.room])
        self._tell("send", part)
        pipe.put(part, trio.current_time())
        if pipe.end == "close":
            self._break()
        self._settle()
        return len(part)

    def _is_writable(self) -> bool | None:
        self._settle()
        self._check_open()
        fails = self._error is not None or self._has_sent_eof
        return True if fails or self._peer._in.room else None

    def _send_eof(self) -> None:
        self._has_sent_eof = True
        self._tell("send_eof")
        self._peer._in.put_fin(trio.current_time())
        self._sending.wake()
        self._settle()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")

    def _check_intact(self) -> None:
        if self._error is not None:
            if not self._has_told_error:
                self._has_told_error = True
                self._tell("receive_reset")
            raise _broken(self._error)

    def _tell(self, kind: EventKind, data: bytes | str | None = None) -> None:
        if self._watch is not None:
            self._watch(Event(kind, self, data))

    # -- Time

    def _due(self) -> float:
        """When something happens that this end may see."""
        return min(self._in.due, self._peer._in.due)

    def _receive_due(self) -> float:
        return trio.current_time() if self._in.release() else self._due()

    def _settle(self) -> None:
        """Let everything that is due happen at both ends, in the order of time."""
        now = trio.current_time()
        while (due := self._due()) <= now:
            end = self if self._in.due == due else self._peer
            end._arrive(end._in.next_due())
        if due < math.inf:
            for end in (self, self._peer):
                end._receiving.foresee(due)
                end._sending.foresee(due)

    # -- What happens

    def _arrive(self, segment: _Segment) -> None:
        match segment.payload:
            case _Signal.RST:
                self._break()
            case _Signal.FIN:
                self._take_eof()
            case Termination(kind=kind):
                self._suffer(kind)
            case bytes() if self._is_closed:
                self._send_reset(segment.at)
            case data:
                self._in.deliver(data, boundary=segment.boundary)
                self._receiving.wake()

    def _suffer(self, kind: str) -> None:
        """The direction to this end comes to an end; perhaps both do."""
        ends = [self] if kind in ("stall", "eof") else [self, self._peer]
        for end in ends:
            end._in.come_to_end(kind)
            if kind == "reset":
                end._break()
            elif kind in ("close", "eof"):
                end._take_eof()

    def _take_eof(self) -> None:
        self._has_eof = True
        self._receiving.wake()

    def _break(self, code: int | None = None) -> None:
        """Be reset, or broken by an error of one's own."""
        if not self._is_closed and self._error is None:
            # Linux, tcp_reset(): who has had the peer's FIN is told EPIPE.
            reset = errno.EPIPE if self._has_eof else errno.ECONNRESET
            self._error = _error(code or reset)
            self._receiving.wake()
            self._sending.wake()

    def _close(self, *, reset: bool) -> None:
        if self._is_closed:
            return
        self._settle()
        self._is_closed = True
        self._tell("close")
        is_over = self._has_eof and self._has_sent_eof
        if self._error is None and not is_over:
            if reset or self._in.unread:
                self._send_reset(trio.current_time())
            elif not self._has_sent_eof:
                self._peer._in.put_fin(trio.current_time())
        self._receiving.wake()
        self._sending.wake()
        self._settle()

    def _send_reset(self, now: float) -> None:
        if not self._has_sent_reset:
            self._has_sent_reset = True
            self._tell("reset")
            self._peer._in.put_rst(now)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _broken(error: OSError) -> trio.BrokenResourceError:
    broken = trio.BrokenResourceError(f"connection broken: {error}")
    broken.__cause__ = error
    return broken


def stream_pair(
    *, buffer: int = 16384, faults: Faults | str = "", seed: int | str = 0
) -> tuple[MemoryStream, MemoryStream]:
    """The client's and the server's end of one connection.

    Args:
      buffer: bytes of each direction that may be sent and not yet received.
      faults: what the connection suffers; one that is refused is reset at once.
      seed: what is random in its faults.
    """
    faults, buffer = _faults(faults), _checked(buffer)
    client, server = _pair("client 1", "server 1", buffer, faults, seed, None)
    if faults.refuse:
        client._suffer("reset")
    return client, server


def _checked(buffer: int) -> int:
    if buffer < 1:
        raise ValueError(f"buffer must be 1 byte or more, not {buffer}")
    return buffer


def _faults(faults: Faults | str) -> Faults:
    return parse_faults(faults) if isinstance(faults, str) else faults


def _pair(
    client: str,
    server: str,
    buffer: int,
    faults: Faults,
    seed: int | str,
    watch: Watch | None,
) -> tuple[MemoryStream, MemoryStream]:
    one = MemoryStream(client, _Pipe(buffer, faults.down, f"{seed} down"), watch)
    other = MemoryStream(server, _Pipe(buffer, faults.up, f"{seed} up"), watch)
    one._peer, other._peer = other, one
    return one, other


class MemoryListener(trio.abc.Listener[MemoryStream]):
    """Where clients are accepted, in the order in which they came.

    Attributes:
      name: what its streams are named after.
    """

    def __init__(self, name: str, backlog: int) -> None:
        self.name = name
        self._queue = collections.deque[MemoryStream]()
        self._room = trio.Semaphore(backlog)
        self._is_closed = False
        self._accepting = _Turn("accepting from this listener")

    def __repr__(self) -> str:
        return f"<MemoryListener {self.name}>"

    async def accept(self) -> MemoryStream:
        """The next client's other end; the client may be gone again already.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener was closed.
        """
        with self._accepting:
            return await self._accepting.until(self._try_to_accept)

    async def aclose(self) -> None:
        """Refuse who comes, and reset who waits to be accepted. Twice is once."""
        self._is_closed = True
        while self._queue:
            self._leave().reset()
        self._accepting.wake()
        await trio.lowlevel.checkpoint()

    def _try_to_accept(self) -> MemoryStream | None:
        if self._is_closed:
            raise trio.ClosedResourceError("this listener was closed")
        if not self._queue:
            return None
        stream = self._leave()
        stream._tell("accept")
        return stream

    async def _wait_for_room(self) -> None:
        await self._room.acquire()
        if self._is_closed:
            self._room.release()  # For the next one who waits.
            raise _error(errno.ECONNREFUSED)

    def _enter(self, stream: MemoryStream) -> None:
        self._queue.append(stream)
        self._accepting.wake()

    def _leave(self) -> MemoryStream:
        self._room.release()
        return self._queue.popleft()


class MemoryNetwork:
    """Listeners, and connections to them.

    Args:
      buffer: bytes of each direction of a connection that may be sent and not
        yet received.
      faults: what each connection suffers, as a value or as text for
        :func:`trioserve.faults.parse_faults`.
      seed: what is random in these faults; each connection has its own share.
      watch: called with each :class:`Event` of each stream, in the step in which
        it happens. It must not raise or use the streams.
    """

    def __init__(
        self,
        *,
        buffer: int = 16384,
        faults: Faults | str = "",
        seed: int | str = 0,
        watch: Watch | None = None,
    ) -> None:
        self._buffer = _checked(buffer)
        self._faults = _faults(faults)
        self._seed = seed
        self._watch = watch
        self._count = itertools.count(1)

    def listen(self, name: str = "server", *, backlog: int = 128) -> MemoryListener:
        """A listener; up to ``backlog`` clients wait in it to be accepted."""
        return MemoryListener(name, backlog)

    async def connect(
        self,
        listener: MemoryListener,
        *,
        faults: Faults | str | None = None,
        seed: int | str | None = None,
    ) -> MemoryStream:
        """The client's end of a new connection, accepted or not yet.

        It waits while the listener's queue is full, as connect(2) does.

        Args:
          faults, seed: of this connection, instead of the network's.

        Raises:
          ConnectionRefusedError: the listener was closed, or so the faults say.
        """
        suffers = self._faults if faults is None else _faults(faults)
        await listener._wait_for_room()
        number = next(self._count)
        if suffers.refuse:
            listener._room.release()
            raise _error(errno.ECONNREFUSED)
        client, server = _pair(
            f"client {number}",
            f"{listener.name} {number}",
            self._buffer,
            suffers,
            f"{self._seed} {number}" if seed is None else seed,
            self._watch,
        )
        client._tell("connect")
        listener._enter(server)
        return client

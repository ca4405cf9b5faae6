"""The engine: moves bytes between sockets, without a switch of tasks for each.

One task for all relays of a Trio run. It waits with Trio for an epoll of its
own; when that fires, a plain loop receives and sends, some bytes per event and
some events per turn, and then it is everybody else's turn. Sockets stay
registered, so a message costs two system calls and a share of a wait. Bulk
goes through a pipe, by splice(2), without being copied into this process.

It knows sockets and bytes. When a relay is over, and what becomes of its
sides, is decided by the rules it is given.

1. An event is a hint: what it was for may be over, and its descriptor somebody
   else's. Nothing but a system call that doesn't wait says what is the case.
2. A direction that can't send stops reading. It holds what one read or one
   pipe has brought, no more.
3. What fails in one pair ends that pair.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import math
import select
from collections.abc import Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from ._complaints import Complaints
from ._errors import is_closed, is_ours, passing
from ._pipes import SUPPORTED as CAN_SPLICE
from ._pipes import Pipe, Pipes
from ._pump import Pump
from ._transport import CHUNK, PollableTransport

logger = logging.getLogger("trioserve")

#: Whether this system has what the engine needs: Linux.
SUPPORTED: Final = hasattr(select, "epoll")

IN: Final = getattr(select, "EPOLLIN", 0)
OUT: Final = getattr(select, "EPOLLOUT", 0)

#: What is waited for at a source of which nothing is wanted now: it stays
#: registered, for registering takes memory that there may not be later. A hang-up
#: can't be masked, and this way it is reported once, not all the time.
_NOTHING: Final = getattr(select, "EPOLLONESHOT", 0)

#: Events of one look, and looks of one turn, after which others get theirs.
_EVENTS: Final = 128
_LOOKS: Final = 16

#: Bytes of a read that brings much. It need not fill the buffer: each of eight flows
#: that are as fast as they can be brings 46 KiB at a time.
_FULL: Final = CHUNK // 4

#: Reads in a row that bring much before a direction gets a pipe; and those that bring
#: little before it gives it back.
_BULK: Final = 4
_LITTLE: Final = 8

#: Bytes through one pipe after which the kernel may hold more of them unsent, and how
#: many. Earlier, a receiver that stops would have as many waiting for it; and more
#: than that makes no flow faster.
_MUCH: Final = 1_048_576
_HOLD: Final = 1_048_576

#: Seconds between two looks while Trio can't wait for the epoll.
_PAUSE: Final = 0.05

#: Seconds in which a pipe has not moved a byte before another direction gets it.
_STALE: Final = 1.0


class Direction(Pump):
    """A pump between two sockets, driven by events.

    Args:
      first: bytes that go to the sink before any other.

    Attributes:
      back: the one that delivers to our source; itself, in an echo.
      blocked: whether it holds bytes that the sink has not taken.
      fd, mask: the source's descriptor, and what is waited for there; the mask of
        one that is over is 0.
      pair: the one that it is of, from :meth:`begin` to :meth:`end`.
    """

    __slots__ = ("_bulk", "_held", "_pipe", "back", "blocked", "fd", "mask", "pair")

    source: PollableTransport
    sink: PollableTransport

    def __init__(
        self, source: PollableTransport, sink: PollableTransport, first: bytes = b""
    ) -> None:
        super().__init__(source, sink, len(first))
        self.back = self
        self.blocked = False
        self.mask = 0
        self.pair: Pair
        self._held: bytes | memoryview = first
        self._pipe: Pipe | None = None
        self._bulk: float = 0 if CAN_SPLICE else -math.inf

    def begin(self, pair: Pair) -> None:
        """Be registered."""
        self.pair = pair
        if self.source.is_relayed:
            # Seen here, as one that is not waited for is not registered.
            raise trio.BusyResourceError("another task is relaying")
        self.source.start_receiving()
        self.fd = self.source.sock.fileno()
        try:
            pair.engine.add(self)
        except BaseException:
            self.source.receiving_since = math.inf
            raise

    def send_first(self) -> None:
        """Hold what was received before, until the sink takes it."""
        if self._held:
            self._block(trio.current_time())

    def end(self) -> None:
        """Have nothing to do with the engine any more."""
        if self.reading:
            self.source.receiving_since = math.inf
        if self.blocked:
            self.sink.sending_since = math.inf
        self.blocked = False
        engine = self.pair.engine
        engine.forget(self)
        if self._pipe is not None:
            engine.take_back(self, self._pipe)
        # A cycle would keep the whole relay until garbage is collected.
        del self.pair, self.back

    def happened(self, engine: Engine, events: int, now: float) -> None:
        """Something happened to the source, which may be our back's sink too."""
        if events & ~IN and self.back.blocked:
            self.back._unblock(now)
        # Sending may have ended the pair.
        if events & ~OUT and self.mask & IN:
            self.pull(engine, now)

    def pull(self, engine: Engine, now: float) -> None:
        """Receive once, and send that."""
        if self._pipe is not None:
            self._pull_through(self._pipe, engine, now)
            return
        source, sink = self.source, self.sink
        if self.pair.quiet:
            self.pair.stirs(now)
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
        if count < _FULL:
            if self._bulk > 0:
                self._bulk = 0
        else:
            self._bulk += 1
        if sent < count:
            self._held = memoryview(bytes(engine.view[sent:count]))
            self._block(now)
        elif self._bulk >= _BULK:
            self._bulk = 0
            self._pipe = engine.pipe_for(self, now)

    # -- through a pipe

    def _pull_through(self, pipe: Pipe, engine: Engine, now: float) -> None:
        source = self.source
        if self.pair.quiet:
            self.pair.stirs(now)
        try:
            count = pipe.fill(source.sock.fileno())
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            if is_ours(error) or is_closed(error):
                # Of splice(2), or of the pipe: recv(2) knows about the socket.
                self._splice_no_more(pipe, error)
                self.pull(engine, now)
            else:
                self._cannot_receive(error)
            return
        if not count:
            # It is readable, and splice(2) brings nothing: the end, or the mark
            # of urgent data, which it doesn't pass. Who receives is told which.
            self.give_up_pipe()
            self.pull(engine, now)
            return
        source.received += count
        source.moved_at = pipe.moved_at = now
        if pipe.moved < _MUCH <= pipe.moved + count:
            pipe.little = self.sink.set_notsent_lowat(_HOLD)
        pipe.moved += count
        self._bulk = self._bulk + 1 if count < _FULL else 0
        if not self._push():
            return
        if self._held or pipe.filled:
            self._block(now)
        elif self._bulk >= _LITTLE:
            self.give_up_pipe()

    def _splice_no_more(self, pipe: Pipe, error: OSError) -> None:
        """Copy from now on, for the system says that splicing is impossible."""
        engine = self.pair.engine
        pipe.failed = True
        self.give_up_pipe()
        self._bulk = -math.inf
        if error.errno in (errno.ENOSYS, errno.EPERM):
            engine.splice_no_more(error)

    def give_up_pipe(self) -> None:
        """Go on without; what is in it comes into our hands."""
        pipe, self._pipe, self._bulk = self._pipe, None, 0
        assert pipe is not None
        try:
            if pipe.filled:
                self._held = memoryview(pipe.read())
        finally:
            self.pair.engine.take_back(self, pipe)

    # -- when the sink takes nothing

    def _block(self, now: float) -> None:
        """Stop reading until the sink takes what we hold."""
        if self.sink.sending_since < math.inf:
            self.pair.failed(trio.BusyResourceError("another task is sending"))
            return
        self.blocked = True
        self.sink.sending_since = now
        self._want()
        self.back._want()
        self.pair.waits(self, now)

    def _unblock(self, now: float) -> None:
        """The sink may take some of what we hold."""
        sink, before = self.sink, self.sink.sent
        if not self._push():
            return
        if sink.sent != before:
            sink.moved_at = sink.sending_since = now
            if self._pipe is not None:
                self._pipe.moved_at = now
        if self._held or (self._pipe is not None and self._pipe.filled):
            return
        self._stop_waiting()
        self.pair.waits(self, now)

    def _stop_waiting(self) -> None:
        if self.blocked:
            self.blocked = False
            self.sink.sending_since = math.inf
        self._want()
        self.back._want()

    def _push(self) -> bool:
        """Send what we hold, as far as it goes; False if the sink is broken."""
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
                # Of splice(2), or of the pipe: send(2) knows about the socket.
                self._splice_no_more(pipe, error)
                return self._push()
            self._cannot_send(error)
            return False
        return True

    def _want(self) -> None:
        """Wait for what there is to wait for, and nothing else."""
        mask = IN if self.reading and not self.blocked else 0
        if self.back.blocked:
            mask |= OUT
        self.pair.engine.want(self, mask)

    # -- ends; what is told to the rules comes last, for they may end the pair

    def _stop_reading(self) -> None:
        self.reading = False
        self.source.receiving_since = math.inf

    def _receive_eof(self) -> None:
        self._stop_reading()
        self._want()
        if self.source.error is not None:
            # The kernel has told it once, and says EOF from then on.
            self.pair.broke(self.source)
            return
        self.source.eof = self.done = True
        self.pair.ended(self)

    def _cannot_receive(self, error: OSError) -> None:
        self._stop_reading()
        self._want()
        if self.source.keep_os_error(error):
            self.pair.broke(self.source)
        else:
            self.pair.on_closed()

    def _cannot_send(self, error: OSError) -> None:
        self._stop_reading()
        self._stop_waiting()
        if self.sink.sent_eof or not self.sink.keep_os_error(error):
            self.pair.on_closed()
            return
        # There may be something to be received from it yet, and then our back finds
        # out how it ends.
        back = self.back
        if back is self or not (back.reading and self.sink.end_is_receivable()):
            self.pair.broke(self.sink)


class Pair(abc.ABC):
    """A relay's directions while the engine moves their bytes, and its rules.

    The rules are told what happens, in the engine's task, and must not wait.

    Attributes:
      quiet: set by the rules, to be told when a byte moves again.
    """

    #: For the class that has the rules: only one of its bases may have slots.
    SLOTS: Final = ("_directions", "_task", "_woken", "engine")
    if TYPE_CHECKING:
        engine: Engine
        _directions: Sequence[Direction]
        _task: trio.lowlevel.Task | None
        _woken: bool
        quiet: bool
    else:
        __slots__ = ()

    def __init__(self) -> None:
        self._directions = ()
        self._task = None
        self._woken = False
        self.quiet = False

    @abc.abstractmethod
    def ended(self, direction: Direction) -> None:
        """EOF was received, and all before it is delivered."""

    @abc.abstractmethod
    def broke(self, transport: PollableTransport) -> None:
        """It has an error, and nobody will receive from it any more."""

    @abc.abstractmethod
    def on_closed(self) -> None:
        """One of the sides was closed by somebody else."""

    @abc.abstractmethod
    def failed(self, error: BaseException) -> None:
        """The system does not let it go on, or a side is used by somebody else, or
        this module has a bug.
        """

    @abc.abstractmethod
    def waits(self, direction: Direction, now: float) -> None:
        """It is blocked, or it no longer is: a deadline may come earlier."""

    @abc.abstractmethod
    def stirs(self, now: float) -> None:
        """A byte moves, and :attr:`quiet` is set."""

    def begin(self, engine: Engine, directions: Sequence[Direction]) -> None:
        """Let the engine move bytes, until :meth:`stop`.

        Raises:
          trio.BusyResourceError, trio.ClosedResourceError: a side is in use, or
            was closed.
        """
        engine.hold()
        self.engine = engine
        begun = 0
        try:
            for direction in directions:
                direction.begin(self)
                begun += 1
        except BaseException:
            for direction in directions[:begun]:
                direction.end()
            engine.let_go()
            raise
        self._directions = directions
        for direction in directions:
            direction.source.notify_on_close(self)
        directions[0].send_first()

    def wait(self) -> Coroutine[Any, Any, Any]:
        """Wait until :meth:`wake` or :meth:`stop`; cancelled, it stops too.

        To be awaited at once, by the task that calls it.
        """
        # Not async itself: a frame for each connection that waits is too much.
        if self._woken:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self)  # noqa: ASYNC105

    def wake(self) -> None:
        """End the waiting. Twice is once."""
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def lost(self, error: OSError) -> None:
        """A direction could not be registered again: end it, unless it is over."""
        if self._directions:
            self.failed(error)

    def stop(self) -> None:
        """End the waiting; no byte moves any more. Twice is once."""
        self._let_go()
        self.wake()

    def __call__(self, _: object) -> trio.lowlevel.Abort:
        """It is what Trio calls to cancel the wait: there is one for each."""
        self._task = None
        self._let_go()
        return trio.lowlevel.Abort.SUCCEEDED

    def _let_go(self) -> None:
        directions, self._directions = self._directions, ()
        if directions:
            for direction in directions:
                direction.source.notify_on_close(None)
                direction.end()
            self.engine.let_go()


class Engine:
    """The epoll, the loop and the buffer of one Trio run.

    It runs while somebody holds it: each pair does, and a server, so that it
    need not be started for every connection, perhaps out of descriptors.

    Attributes:
      buffer, view: what is received into, and it again, to be cut.
      pipes: those that bulk goes through.
      may_splice: whether the system lets us use splice(2), as far as is known.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)
        self.pipes = Pipes()
        self.may_splice = True
        self._epoll: select.epoll | None = None
        self._scope = trio.CancelScope()
        # By descriptor: the system gives out the lowest that is free.
        self._directions: list[Direction | None] = []
        self._splicing: dict[Direction, Pipe] = {}
        self._holders = 0

    @staticmethod
    def of_this_run() -> Engine:
        try:
            return _engines.get()
        except LookupError:
            engine = Engine()
            _engines.set(engine)
            return engine

    # -- running

    def hold(self) -> None:
        """Run, until it is let go as often.

        Raises:
          OSError: out of descriptors.
        """
        if self._epoll is None:
            self._start()
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._stop()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """:meth:`hold`, for a block."""
        self.hold()
        try:
            yield
        finally:
            self.let_go()

    def _start(self) -> select.epoll:
        epoll = self._epoll = select.epoll()
        # Shielded: when the run ends, system tasks are cancelled at once, and a
        # relay in another one may have something to finish.
        self._scope = trio.CancelScope(shield=True)
        # A system task: relays come and go in any nursery, and none of them
        # shall end the others'.
        trio.lowlevel.spawn_system_task(
            self._run, epoll, self._scope, name="trioserve engine"
        )
        return epoll

    def _stop(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._scope.cancel(reason="no relay is left")
            with contextlib.suppress(OSError):
                epoll.close()
        self.pipes.close()

    async def _run(self, epoll: select.epoll, scope: trio.CancelScope) -> None:
        trouble = Complaints("relays are slow: can't wait for their sockets: %s")
        with scope:
            try:
                while not epoll.closed:
                    try:
                        await trio.lowlevel.wait_readable(epoll)
                    except OSError as error:
                        if _is_gone(epoll):
                            raise
                        trouble.say(error)
                        await trio.sleep(_PAUSE)
                    self._turn(epoll)
            except BaseException as error:  # noqa: ASYNC103 - isolation
                if passing(error) is not None:
                    raise
                # A system task that raises ends the program. Somebody has
                # closed a descriptor that was not his.
                self._epoll = None
                with contextlib.suppress(OSError):
                    epoll.close()
                for pair in {each.pair for each in filter(None, self._directions)}:
                    pair.failed(error)

    def _turn(self, epoll: select.epoll) -> None:
        """Do what there is to do, up to a bound."""
        directions = self._directions
        for _ in range(_LOOKS):
            # Closed, if the last relay was ended by what it was told.
            happened = [] if epoll.closed else epoll.poll(0, _EVENTS)
            if not happened:
                return
            now = trio.current_time()
            for fd, events in happened:
                direction = directions[fd]
                if direction is None:
                    continue
                pair = direction.pair  # it may be over before it raises
                try:
                    if events == direction.mask == IN:
                        direction.pull(self, now)
                    else:
                        direction.happened(self, events, now)
                except BaseException as error:  # noqa: ASYNC103 - isolation
                    if passing(error) is not None:
                        raise
                    pair.failed(error)

    # -- what directions use

    def add(self, direction: Direction) -> None:
        """Wait for bytes of a direction's source, until :meth:`forget`.

        Raises:
          trio.BusyResourceError: another direction has that source.
          OSError: the system has no room for one more.
        """
        direction.mask = IN
        epoll = self._epoll
        assert epoll is not None
        try:
            epoll.register(direction.fd, IN)
        except FileExistsError:
            raise trio.BusyResourceError("another task is relaying") from None
        except OSError:
            if not _is_gone(epoll):
                raise
            self._begin_anew(epoll).register(direction.fd, IN)
        if (missing := direction.fd + 1 - len(self._directions)) > 0:
            self._directions += [None] * missing
        self._directions[direction.fd] = direction

    def want(self, direction: Direction, mask: int) -> None:
        """Wait for these events of a direction's source; 0: for none.

        Raises:
          OSError: the source was closed, or the system won't.
        """
        before, direction.mask = direction.mask, mask
        if mask == before or direction.fd < 0:  # lost: its pair ends in a moment
            return
        epoll = self._epoll
        assert epoll is not None
        try:
            epoll.modify(direction.fd, mask or _NOTHING)
        except OSError:
            if not _is_gone(epoll):
                raise
            self._begin_anew(epoll)

    def forget(self, direction: Direction) -> None:
        """Wait for nothing of a direction's source."""
        direction.mask = 0
        if direction.fd < 0:  # lost, when the engine began anew
            return
        known = self._directions[direction.fd] is direction
        if known:
            self._directions[direction.fd] = None
        if self._epoll is None:
            return
        try:
            if known:
                self._epoll.unregister(direction.fd)
        except OSError:
            known = False
        if not known:
            # Closed behind our back: it can't be unregistered, and while there
            # is a copy of it, its events go on.
            with contextlib.suppress(OSError):
                self._begin_anew(self._epoll)

    def _begin_anew(self, epoll: select.epoll) -> select.epoll:
        """Wait for those that are registered, by another epoll.

        Raises:
          OSError: there is none to be had; then all relays end, a bit later.
        """
        self._scope.cancel(reason="the engine begins anew")
        self._epoll = None
        with contextlib.suppress(OSError):
            epoll.close()
        registered = list(filter(None, self._directions))
        try:
            another = self._start()
        except OSError as error:
            for direction in registered:
                self._lose(direction, error)
            raise
        for direction in registered:
            try:
                another.register(direction.fd, direction.mask or _NOTHING)
            except OSError as error:
                self._lose(direction, error)
        return another

    def _lose(self, direction: Direction, error: OSError) -> None:
        self._directions[direction.fd] = None
        direction.fd = -1
        # Not now: its pair may be in the middle of something.
        token = trio.lowlevel.current_trio_token()
        token.run_sync_soon(direction.pair.lost, error)

    def splice_no_more(self, error: OSError) -> None:
        """Copy all bytes from now on."""
        if self.may_splice:
            self.may_splice = False
            self.pipes.stop()
            logger.warning("splice(2) can't be used: %s; bulk is copied", error)

    def pipe_for(self, direction: Direction, now: float) -> Pipe | None:
        """A pipe, perhaps one that nothing has gone through for a while."""
        pipe = self.pipes.take()
        if pipe is None and self._splicing:
            stalest = min(self._splicing, key=self._moved_at)
            if now - self._moved_at(stalest) >= _STALE:
                pair = stalest.pair
                try:
                    stalest.give_up_pipe()
                except OSError as error:
                    # What was in it is lost. It may be of the same pair.
                    pair.failed(error)
                    return None
                pipe = self.pipes.take()
        if pipe is not None:
            pipe.moved, pipe.moved_at = 0, now
            self._splicing[direction] = pipe
        return pipe

    def _moved_at(self, direction: Direction) -> float:
        return self._splicing[direction].moved_at

    def take_back(self, direction: Direction, pipe: Pipe) -> None:
        del self._splicing[direction]
        self.pipes.give_back(pipe)
        if pipe.moved >= _MUCH:
            direction.sink.set_notsent_lowat(pipe.little)


def _is_gone(epoll: select.epoll) -> bool:
    """Whether its descriptor is nobody's any more, or something else's."""
    try:
        epoll.poll(0, 1)
    except (OSError, ValueError):
        return True
    return False


def engine_held() -> contextlib.AbstractContextManager[object]:
    """Keep this run's engine going for a block, where there is one.

    Raises:
      OSError: out of descriptors.
    """
    return Engine.of_this_run().held() if SUPPORTED else contextlib.nullcontext()


_engines: trio.lowlevel.RunVar[Engine] = trio.lowlevel.RunVar("trioserve_engine")

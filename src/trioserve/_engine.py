"""The engine: one task and one epoll for all relays of a Trio run.

The task waits with Trio for an epoll of its own. When that fires, a plain loop
handles a bounded number of events, and then other tasks run. Sockets stay
registered, so a message needs no switch of tasks and no registration.

This module knows descriptors and events. It does not know how bytes move, or
when a relay ends.

1. An event is a hint. Before it is handled, its socket may be closed and its
   descriptor reused. Only a non-blocking system call gives the true state.
2. An exception in one pump ends its relay, and no other.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol, TypeVar

import trio

from ._complaints import Complaints
from ._errors import must_propagate
from ._pipes import Pipes
from ._transport import CHUNK

_T = TypeVar("_T")

#: Whether this system has epoll, which the engine needs: Linux.
SUPPORTED: Final = hasattr(select, "epoll")

IN: Final = getattr(select, "EPOLLIN", 0)
OUT: Final = getattr(select, "EPOLLOUT", 0)

#: The mask of a source whose events are not needed now. It stays registered, because
#: registering takes memory that may be lacking later. A hang-up can't be masked; with
#: EPOLLONESHOT it is reported once, and not in every poll.
_NO_EVENTS: Final = getattr(select, "EPOLLONESHOT", 0)

#: Events per poll, and polls per turn, before other tasks run.
_EVENTS: Final = 128
_POLLS: Final = 16

#: Bytes that the events of one poll may splice in all, and the least that each may:
#: among many flows at full speed, a message waits for this many bytes and no more.
_SPLICED: Final = 16_777_216
_LEAST: Final = 65_536

#: Seconds between two polls while Trio can't wait for the epoll.
_PAUSE: Final = 0.05


class Failing(Protocol):
    """A relay, as far as the engine needs it."""

    def on_failure(self, error: BaseException) -> None:
        """Called if a pump has raised, or if its source can no longer be polled."""


class Polled(Protocol):
    """A pump, as the engine sees it: the callbacks for events of its source.

    Attributes:
      fd: the source's descriptor; -1 if it could not be registered again.
      mask: the events that the engine waits for; 0 for none.
    """

    fd: int
    mask: int

    @property
    def relay(self) -> Failing: ...

    def on_readable(self, engine: Engine, now: float) -> None:
        """Called if EPOLLIN is the only event: bytes, EOF or an error."""

    def on_event(self, engine: Engine, events: int, now: float) -> None:
        """Called for all other ``events``."""

    def on_lost(self, error: OSError) -> None:
        """Called, some time later, if the source could not be registered again."""


class Engine:
    """The epoll, the loop and the buffer of one Trio run.

    It runs while it is acquired. Each relay acquires it. So does a server, so that no
    connection has to start it, perhaps when descriptors have run out.

    Attributes:
      buffer, view: the receive buffer of all pumps, and a view of it, for slices.
      pipes: the pool of pipes for bulk flows.
      share: bytes that a pump may splice at its present event.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)
        self.pipes = Pipes()
        self.share = _SPLICED
        self._epoll: select.epoll | None = None
        self._scope = trio.CancelScope()
        # A list indexed by descriptor: the system gives out the lowest free number.
        self._polled: list[Polled | None] = []
        self._users = 0
        self._is_in_turn = False
        self._after_turn: list[tuple[Callable[[Any], object], object]] = []

    @staticmethod
    def of_this_run() -> Engine:
        """The engine of the Trio run that calls this."""
        try:
            return _engines.get()
        except LookupError:
            engine = Engine()
            _engines.set(engine)
            return engine

    # -- running

    def acquire(self) -> None:
        """Run until :meth:`release` is called as often.

        Raises:
          OSError: out of descriptors.
        """
        if self._epoll is None:
            self._start()
        self._users += 1

    def release(self) -> None:
        """Undo one :meth:`acquire`; the last one stops the engine."""
        self._users -= 1
        if not self._users:
            self._stop()

    @contextlib.contextmanager
    def acquired(self) -> Generator[None]:
        """:meth:`acquire` for a block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _start(self) -> select.epoll:
        epoll = self._epoll = select.epoll()
        # Shielded: at the end of the run, system tasks are cancelled first, while a
        # relay in another system task may still have bytes to deliver.
        self._scope = trio.CancelScope(shield=True)
        # A system task: relays run in any nursery, and the end of one nursery must not
        # end the relays in another.
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
                    self._is_in_turn = True
                    try:
                        self._take_turn(epoll)
                    finally:
                        self._is_in_turn = False
                        self._end_turn()
            except BaseException as error:  # noqa: ASYNC103 - isolation
                if must_propagate(error) is not None:
                    raise
                # Other code has closed the epoll's descriptor. End the relays: an
                # exception in a system task would end the program.
                self._epoll = None
                with contextlib.suppress(OSError):
                    epoll.close()
                for relay in {each.relay for each in filter(None, self._polled)}:
                    relay.on_failure(error)

    def _take_turn(self, epoll: select.epoll) -> None:
        """Handle events until there are no more, or until other tasks should run."""
        polled = self._polled
        for _ in range(_POLLS):
            # The epoll is closed if the last relay has ended meanwhile.
            ready = [] if epoll.closed else epoll.poll(0, _EVENTS)
            if not ready:
                return
            now = trio.current_time()
            self.share = max(_LEAST, _SPLICED // len(ready))
            for fd, events in ready:
                pump = polled[fd]
                if pump is None:
                    continue
                relay = pump.relay  # read it first: a pump that stops deletes it
                try:
                    if events == pump.mask == IN:
                        pump.on_readable(self, now)
                    else:
                        pump.on_event(self, events, now)
                except BaseException as error:  # noqa: ASYNC103 - isolation
                    if must_propagate(error) is not None:
                        raise
                    relay.on_failure(error)

    def after_turn(self, callback: Callable[[_T], object], argument: _T) -> bool:
        """Call ``callback(argument)`` at the end of the turn; False if none runs.

        Then no pump and no relay is in the middle of something.
        """
        if self._is_in_turn:
            self._after_turn.append((callback, argument))
        return self._is_in_turn

    def _end_turn(self) -> None:
        while self._after_turn:
            callback, argument = self._after_turn.pop()
            callback(argument)

    # -- registering

    def add(self, pump: Polled) -> None:
        """Wait for bytes of a pump's source, until :meth:`remove`.

        Raises:
          trio.BusyResourceError: another pump has that source.
          OSError: the system has no room for one more.
        """
        pump.mask = IN
        epoll = self._epoll
        assert epoll is not None
        try:
            epoll.register(pump.fd, IN)
        except FileExistsError:
            raise trio.BusyResourceError(
                "another task is relaying this stream"
            ) from None
        except OSError:
            if not _is_gone(epoll):
                raise
            self._replace(epoll).register(pump.fd, IN)
        if (missing := pump.fd + 1 - len(self._polled)) > 0:
            self._polled += [None] * missing
        self._polled[pump.fd] = pump

    def set_interest(self, pump: Polled, mask: int) -> None:
        """Wait for these events of a pump's source; 0 for none.

        Raises:
          OSError: the source was closed, or the system is out of memory for it.
        """
        before, pump.mask = pump.mask, mask
        if mask == before or pump.fd < 0:  # lost: on_lost() will end its relay
            return
        epoll = self._epoll
        assert epoll is not None
        try:
            epoll.modify(pump.fd, mask or _NO_EVENTS)
        except OSError:
            if not _is_gone(epoll):
                raise
            self._replace(epoll)

    def remove(self, pump: Polled) -> None:
        """Stop waiting for events of a pump's source."""
        pump.mask = 0
        if pump.fd < 0:  # lost, when the epoll was replaced
            return
        known = self._polled[pump.fd] is pump
        if known:
            self._polled[pump.fd] = None
        if self._epoll is None:
            return
        try:
            if known:
                self._epoll.unregister(pump.fd)
        except OSError:
            known = False
        if not known:
            # Other code has closed the descriptor, so it can't be unregistered; but
            # its events go on while a duplicate of it is open.
            with contextlib.suppress(OSError):
                self._replace(self._epoll)

    def _replace(self, epoll: select.epoll) -> select.epoll:
        """Make another epoll, and register all sources there.

        Raises:
          OSError: it can't be made; :meth:`Polled.on_lost` will end all relays.
        """
        self._scope.cancel(reason="the engine has another epoll")
        self._epoll = None
        with contextlib.suppress(OSError):
            epoll.close()
        registered = list(filter(None, self._polled))
        try:
            another = self._start()
        except OSError as error:
            for pump in registered:
                self._lose(pump, error)
            raise
        for pump in registered:
            try:
                another.register(pump.fd, pump.mask or _NO_EVENTS)
            except OSError as error:
                self._lose(pump, error)
        return another

    def _lose(self, pump: Polled, error: OSError) -> None:
        self._polled[pump.fd] = None
        pump.fd = -1
        # Not now: its relay may be the caller.
        trio.lowlevel.current_trio_token().run_sync_soon(pump.on_lost, error)


def _is_gone(epoll: select.epoll) -> bool:
    """Whether its descriptor was closed, and perhaps reused for another file."""
    try:
        epoll.poll(0, 1)
    except (OSError, ValueError):
        return True
    return False


def engine_acquired() -> contextlib.AbstractContextManager[object]:
    """Keep this run's engine running for a block; do nothing without epoll.

    Raises:
      OSError: out of descriptors.
    """
    return Engine.of_this_run().acquired() if SUPPORTED else contextlib.nullcontext()


_engines: trio.lowlevel.RunVar[Engine] = trio.lowlevel.RunVar("trioserve_engine")

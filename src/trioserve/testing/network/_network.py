"""A network in memory: listeners, and connections to them.

It knows no handler and no test.
"""

from __future__ import annotations

import collections
import errno
import itertools

import trio

from trioserve.faults import Faults

from ._endpoint import os_error
from ._operation import Operation
from ._stream import (
    Event,
    MemoryStream,
    OnEvent,
    as_buffers,
    as_faults,
    make_pair,
)


class _Backlog:
    """The connections that wait to be accepted, at most ``size`` of them.

    Attributes:
      queue: the server's ends, the oldest first.
      room: one token for each free place.
      is_closed: whether the listener was closed.
      accepting: the accept operation; one task at a time may be in it.
    """

    def __init__(self, size: int) -> None:
        self.queue = collections.deque[MemoryStream]()
        self.room = trio.Semaphore(size)
        self.is_closed = False
        self.accepting = Operation("accepting from this listener")

    async def wait_for_room(self) -> None:
        """Take a token.

        Raises:
          ConnectionRefusedError: the listener was closed.
        """
        await self.room.acquire()
        if self.is_closed:
            self.room.release()  # wakes the next connect that waits
            raise os_error(errno.ECONNREFUSED)

    def put(self, stream: MemoryStream) -> None:
        self.queue.append(stream)
        self.accepting.wake()

    def pop(self) -> MemoryStream:
        self.room.release()
        return self.queue.popleft()


class MemoryListener(trio.abc.Listener[MemoryStream]):
    """Accepts connections in the order in which they connected.

    Attributes:
      name: its streams are named ``"{name} 1"``, ``"{name} 2"`` and so on.
    """

    def __init__(self, name: str, backlog: _Backlog, on_event: OnEvent | None) -> None:
        self.name = name
        self._backlog = backlog
        self._on_event = on_event

    def __repr__(self) -> str:
        return f"<MemoryListener {self.name}>"

    async def accept(self) -> MemoryStream:
        """Wait for a connection and return the server's end of it.

        The client may already have closed it. If the call is cancelled, no
        connection is lost.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener was closed.
        """
        with self._backlog.accepting:
            return await self._backlog.accepting.until(self._try_to_accept)

    async def aclose(self) -> None:
        """Refuse new connections, and reset those that wait to be accepted.

        Repeated calls do nothing.
        """
        self._backlog.is_closed = True
        while self._backlog.queue:
            self._backlog.pop().reset()
        self._backlog.accepting.wake()
        await trio.lowlevel.checkpoint()

    def _try_to_accept(self) -> MemoryStream | None:
        if self._backlog.is_closed:
            raise trio.ClosedResourceError("this listener was closed")
        if not self._backlog.queue:
            return None
        stream = self._backlog.pop()
        if self._on_event is not None:
            self._on_event(Event("accept", stream))
        return stream


class MemoryNetwork:
    """Listeners, and connections to them.

    Args:
      buffer: how many bytes each direction of a connection holds, sent and not yet
        received; or two numbers, for those that the client sends and for those that
        the server sends.
      faults: the faults of each connection, as a value or as text for
        :func:`trioserve.faults.parse_faults`; none by default.
      seed: decides what is random in these faults; each connection draws from a
        seed of its own.
      on_event: called with each :class:`Event` of each stream, in the scheduler
        step in which it happens. It must not raise, and must not use the streams.

    Raises:
      ValueError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        buffer: int | tuple[int, int] = 16384,
        faults: Faults | str = "",
        seed: int | str = 0,
        on_event: OnEvent | None = None,
    ) -> None:
        self._buffers = as_buffers(buffer)
        self._faults = as_faults(faults)
        self._seed = seed
        self._on_event = on_event
        self._count = itertools.count(1)
        self._backlogs: dict[MemoryListener, _Backlog] = {}

    def listen(self, name: str = "server", *, backlog: int = 128) -> MemoryListener:
        """Return a listener in which up to ``backlog`` clients wait to be accepted."""
        queue = _Backlog(backlog)
        listener = MemoryListener(name, queue, self._on_event)
        self._backlogs[listener] = queue
        return listener

    async def connect(
        self,
        listener: MemoryListener,
        *,
        faults: Faults | str | None = None,
        seed: int | str | None = None,
    ) -> MemoryStream:
        """Connect, and return the client's end before or after it is accepted.

        It waits while the listener's queue is full, as connect(2) does. If it is
        cancelled, there is no connection.

        Args:
          listener: one that :meth:`listen` of this network has returned.
          faults, seed: for this connection; by default those of the network.

        Raises:
          ConnectionRefusedError: the listener was closed, or the faults refuse the
            connection.
          ValueError: the listener is not of this network.
        """
        applied = self._faults if faults is None else as_faults(faults)
        backlog = self._backlogs.get(listener)
        if backlog is None:
            raise ValueError(f"{listener!r} is not of this network")
        await backlog.wait_for_room()
        number = next(self._count)
        if applied.refuse:
            backlog.room.release()
            raise os_error(errno.ECONNREFUSED)
        client, server = make_pair(
            (f"client {number}", f"{listener.name} {number}"),
            self._buffers,
            applied,
            f"{self._seed} {number}" if seed is None else seed,
            self._on_event,
        )
        if self._on_event is not None:
            self._on_event(Event("connect", client))
        backlog.put(server)
        return client

"""Gates: between a listener and Trio's accept loop, whatever accept(2) says.

A gate lets in no more than there are slots, survives what accept(2) can
return, and when accepting ends it empties the kernel's queue before it closes.
What becomes of what it accepted is the door's business: it knows no handler
and no report.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import socket
from typing import Any, Final, Protocol

import trio

from ._address import sockaddr_text
from ._admission import Slot, Slots, peer_of
from ._complaints import Complaints
from ._connection import Connection
from ._listeners import Listener
from ._options import Limits, Timeouts
from ._report import Reason
from ._socket_transport import SocketTransport
from ._stream_transport import StreamTransport
from ._tcp import sets_up
from ._transport import Transport

logger = logging.getLogger("trioserve")


def _errnos(*names: str) -> frozenset[int]:
    """The numbers of those that this system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


#: Nothing to accept: another process or thread was faster.
_NOTHING: Final = _errnos("EAGAIN", "EWOULDBLOCK")

#: One connection is gone before it was accepted; the next may be fine.
#: accept(2), "Error handling"; the same list as Trio's.
_ONE_IS_GONE: Final = _errnos(
    "EINTR", "ECONNABORTED", "ECONNRESET", "EPERM", "EPROTO", "ENETDOWN",
    "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP",
    "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ETIMEDOUT",
)  # fmt: skip

#: Out of descriptors: giving up a reserved one lets us tell the client.
_NO_FDS: Final = _errnos("EMFILE", "ENFILE")

#: This listener is over.
_DEAD: Final = _errnos("EBADF", "ENOTSOCK")

#: Connections accepted before others get a turn.
_BATCH: Final = 64

#: Connections in a row that are gone before they are accepted: more are believed
#: only after a pause.
_MOST_GONE: Final = 16

#: Errors after which the kernel's queue is left alone when accepting ends.
_MOST_ERRORS: Final = 16

#: Go's net/http waits 5 ms doubling to 1 s; Trio 100 ms, nginx 500 ms.
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 1.0


class Door(Protocol):
    """What a gate needs of its server."""

    _slots: Slots
    _accept_errors: collections.Counter[str]
    timeouts: Timeouts

    @property
    def limits(self) -> Limits: ...

    def _has_enough(self, host: str | None) -> bool:
        """Whether this peer (as :func:`peer_of` says) has as many as one may."""
        ...

    def _admit(
        self,
        transport: Transport,
        gate: Gate,
        *,
        peer: str,
        host: str | None,
        local: str,
        slot: Slot | None,
    ) -> Connection:
        """A connection was accepted: count it."""
        ...

    def _start(self, connection: Connection) -> None:
        """Serve it; it has a slot."""
        ...

    def _refuse(self, connection: Connection, reason: Reason) -> None:
        """Close it, and tell the client."""
        ...

    async def _room(self, seconds: float) -> None:
        """Wait until a descriptor may be free, ``seconds`` at most."""
        ...

    def _gate_died(self, gate: Gate, error: OSError) -> None:
        """This gate will never accept again."""
        ...

    def _serves_last(self) -> bool:
        """Whether what is found in the kernel's queue at the end may be served."""
        ...


class Gate(trio.abc.Listener[Connection]):
    """A listener's accept loop as the server wants it.

    Attributes:
      socket: the listening socket, for its name and options.
      address: where it listens, as a person writes it.
      swept: connections found in the kernel's queue when accepting ended.
    """

    socket: trio.socket.SocketType | None = None
    address = "unknown"

    def __init__(self, door: Door) -> None:
        self.door = door
        self.swept = 0
        self._pause = _FIRST_PAUSE
        self._complaints = Complaints("can't accept on %s: %s")
        self._queueing = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.address}>"

    def _peer_of(self, sockaddr: Any) -> str | None:
        return peer_of(sockaddr, self.door.limits.per_peer_ipv6_prefix)

    def dispose(self) -> None:
        """Let go of everything that isn't the listener's, without waiting."""

    def reconsider(self) -> None:
        """The limits have changed."""
        self._queueing.cancel(reason="the limits have changed")

    async def _slot(self) -> Slot | None:
        """A slot, waited for if need be; or None if it is to be refused."""
        while True:
            slot = self.door._slots.take_nowait()
            if slot is not None or self.door.limits.when_full == "refuse":
                return slot
            with trio.CancelScope() as self._queueing:
                return await self.door._slots.take()

    def _is_over(self, error: OSError) -> bool:
        """Whether ``error`` says that this will never accept again."""
        return error.errno in _DEAD

    def _count(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, str(error))
        self.door._accept_errors[name] += 1

    def _complain(self, error: OSError) -> None:
        """Accepting failed: count it, and say so, once a second at most."""
        self._count(error)
        if not self._is_over(error):
            self._complaints.say(self.address, error)

    async def _wait_out(self, error: OSError) -> None:
        """Wait until accepting may work again; for ever, if it never will."""
        if self._is_over(error):
            self.door._gate_died(self, error)
            await trio.sleep_forever()
        await self.door._room(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _trouble(self, error: OSError) -> None:
        self._complain(error)
        await self._wait_out(error)


class _Listening(socket.socket):
    """A socket that accepts: with its family and type as plain numbers.

    Those that it accepts are made with them, and an enum costs as much as accept(2).
    """

    __slots__ = ("family", "type")

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.family = int(super().family)  # type: ignore[assignment,misc]
        self.type = int(super().type)  # type: ignore[assignment,misc]


class SocketGate(Gate):
    """A gate before a listening socket: look, take a slot, then accept.

    Looking first costs nothing and keeps two listeners from starving each
    other; whoever is not let in waits in the kernel's queue, not in ours.
    """

    def __init__(self, listener: Listener, door: Door) -> None:
        super().__init__(door)
        self._listener = listener
        self.socket = listener.socket
        name = listener.socket.getsockname()
        self.address = sockaddr_text(name)
        self._anywhere = isinstance(name, tuple) and name[0] in ("0.0.0.0", "::")
        # Trio's socket can't accept without waiting. This one shares its
        # descriptor and must never close it.
        self._sock = _Listening(fileno=self._listener.socket.fileno())
        self._sock.setblocking(False)
        self._sets_up = sets_up(self._sock)
        self._batch: collections.deque[Connection] = collections.deque()
        self._more = False
        self._spare: int | None = None
        self._reserve()

    def _is_over(self, error: OSError) -> bool:
        if not super()._is_over(error):
            return False
        try:
            listens = self._listener.socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
        except OSError:
            return True
        return not listens

    async def accept(self) -> Connection:
        """The next connection that holds a slot. Everything else is dealt with."""
        # No checkpoint between a full batch and its last connection, so that
        # a cancel never finds one in our hands.
        waited = False
        while not self._batch:
            try:
                await trio.lowlevel.wait_readable(self._listener.socket.fileno())
            except (ValueError, trio.ClosedResourceError):
                await self._trouble(_closed())
            except OSError as error:
                # It can't be waited for, and perhaps there is somebody.
                await self._trouble(error)
            slot = await self._slot()
            try:
                if slot is None:
                    self._refuse_batch(Reason.LIMIT)
                else:
                    self._accept_batch(slot)
            except OSError as error:
                # Connections that have just ended may still hold descriptors:
                # nobody is turned away before that had a chance to change.
                if error.errno in _NO_FDS:
                    if waited and self._shed(Reason.NO_FDS):
                        self._pause = _FIRST_PAUSE  # the next shall hear as soon
                    waited = not waited
                self._complain(error)
                if not self._batch:
                    await self._wait_out(error)
        self._pause = _FIRST_PAUSE
        if self._spare is None:
            self._reserve()
        return self._batch.popleft()

    def _accept_batch(self, slot: Slot | None) -> None:
        """Accept until slots, the queue or the batch's size run out."""
        while slot is not None:
            try:
                connection = self._accept_one(slot)
            except BaseException:
                slot.release()
                raise
            if connection is None:
                slot.release()
                return
            self._batch.append(connection)
            if len(self._batch) == _BATCH:
                return
            slot = self.door._slots.take_nowait()

    def _refuse_batch(self, reason: Reason) -> None:
        """Refuse up to a batch of those that wait."""
        for _ in range(_BATCH):
            connection = self._accept_one(None)
            if connection is None:
                return
            self.door._refuse(connection, reason)

    def _accept_one(self, slot: Slot | None) -> Connection | None:
        """Accept without waiting: None if there is nothing, or not for a slot."""
        if self._listener.socket.fileno() < 0:
            raise _closed()
        # Whoever comes again and again in vain gets no more than a batch of
        # answers before it is somebody else's turn.
        self._more = False
        gone = 0
        for _ in range(_BATCH):
            try:
                sock, sockaddr = self._sock.accept()
            except OSError as error:
                if error.errno in _NOTHING:
                    return None
                gone += 1
                # So many in a row are not those that are gone: it is always said.
                if error.errno not in _ONE_IS_GONE or gone == _MOST_GONE:
                    raise
                self._count(error)
                continue
            gone = 0
            host = self._peer_of(sockaddr)
            if slot is None or not self.door._has_enough(host):
                return self._admit(sock, sockaddr, host, slot)
            connection = self._admit(sock, sockaddr, host, None)
            self.door._refuse(connection, Reason.PEER_LIMIT)
        self._more = True
        return None

    def _admit(
        self, sock: socket.socket, sockaddr: Any, host: str | None, slot: Slot | None
    ) -> Connection:
        local = self.address
        if self._anywhere:
            with contextlib.suppress(OSError):
                local = sockaddr_text(sock.getsockname())
        try:
            transport = SocketTransport(sock, is_set_up=self._sets_up)
        except BaseException:  # it can't be made one that does not wait
            sock.close()
            raise
        return self.door._admit(
            transport,
            self,
            peer=sockaddr_text(sockaddr),
            host=host,
            local=local,
            slot=slot,
        )

    def _reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_up_reserve(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _shed(self, reason: Reason) -> int:
        """Without a free descriptor, tell up to a batch of those that wait.

        Each borrows the reserved one for as long as it takes to close it.
        """
        for count in range(_BATCH):
            if self._spare is None:
                return count
            self._give_up_reserve()
            try:
                connection = self._accept_one(None)
                if connection is None:
                    return count
                self.door._refuse(connection, reason)
            except OSError:
                return count
            finally:
                self._reserve()
        return _BATCH

    async def aclose(self) -> None:
        """Empty the kernel's queue, then close.

        A connection that the kernel has accepted before we stopped would be
        reset without a word; it is served if it may be, or told.
        """
        try:
            if self._listener.socket.fileno() >= 0:
                self._sweep()
        finally:
            # Left only if a connection could not be started.
            for connection in self._batch:
                self.door._refuse(connection, Reason.STOPPING)
            self._batch.clear()
            self.dispose()
            with contextlib.suppress(OSError):  # it is closed, whatever it says
                await self._listener.aclose()

    def dispose(self) -> None:
        self._sock.detach()
        self._give_up_reserve()

    def _sweep(self) -> None:
        """Serve or refuse all that wait, in spite of some errors."""
        # Room for one more at most while we look for the last ones.
        with contextlib.suppress(OSError):
            self._sock.listen(0)
        for _ in range(_MOST_ERRORS):
            try:
                self._empty_queue()
            except OSError as error:
                self._complain(error)
                if error.errno in _NO_FDS:
                    while count := self._shed(Reason.STOPPING):
                        self.swept += count
            else:
                return

    def _empty_queue(self) -> None:
        while self.door._serves_last():
            try:
                self._accept_batch(self.door._slots.take_nowait())
            finally:
                self.swept += (served := len(self._batch))
                while self._batch:
                    self.door._start(self._batch.popleft())
            if not served and not self._more:
                break
        while (connection := self._accept_one(None)) is not None:
            self.door._refuse(connection, Reason.STOPPING)
            self.swept += 1


class StreamGate(Gate):
    """A gate before any other Trio listener: accept, then wait for a slot.

    There is no looking first, so up to one accepted connection a listener
    waits in our hands.
    """

    def __init__(self, listener: trio.abc.Listener[Any], door: Door) -> None:
        super().__init__(door)
        self._listener = listener
        self.address = type(listener).__name__
        self.socket = getattr(listener, "socket", None)

    async def accept(self) -> Connection:
        while True:
            try:
                stream = await self._listener.accept()
            except trio.ClosedResourceError:
                await self._trouble(_closed())
            except trio.BrokenResourceError as error:
                await self._trouble(OSError(errno.EIO, str(error)))
            except OSError as error:
                await self._trouble(error)
            else:
                self._pause = _FIRST_PAUSE
                connection = self._admit(stream)
                if connection is not None and await self._queue(connection):
                    return connection

    def _admit(self, stream: trio.abc.Stream) -> Connection | None:
        """Let in, with a slot if one is free; None if it had to be refused."""
        transport: Transport
        peer, host = self.address, None
        if isinstance(stream, trio.SocketStream):
            transport = SocketTransport.share(stream)
            with contextlib.suppress(OSError):
                sockaddr = stream.socket.getpeername()
                peer, host = sockaddr_text(sockaddr), self._peer_of(sockaddr)
        else:
            transport = StreamTransport(stream, grace=self.door.timeouts.linger)
        enough = self.door._has_enough(host)
        connection = self.door._admit(
            transport,
            self,
            peer=peer,
            host=host,
            local=self.address,
            slot=None if enough else self.door._slots.take_nowait(),
        )
        if enough:
            self.door._refuse(connection, Reason.PEER_LIMIT)
            return None
        return connection

    async def _queue(self, connection: Connection) -> bool:
        """Wait for a slot if it has none; whether it got one."""
        if connection._slot is not None:
            return True
        try:
            slot = await self._slot()
        except BaseException:
            self.door._refuse(connection, Reason.STOPPING)
            raise
        if slot is None:
            self.door._refuse(connection, Reason.LIMIT)
            return False
        connection._hold(slot)
        return True

    async def aclose(self) -> None:
        await self._listener.aclose()


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def gate_for(listener: trio.abc.Listener[Any], door: Door) -> Gate:
    """The gate that fits ``listener``."""
    if isinstance(listener, Listener):
        return SocketGate(listener, door)
    return StreamGate(listener, door)

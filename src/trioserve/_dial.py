"""Dialing: from addresses to a connected transport, under one deadline.

Targets are tried one after the other, the addresses of one name side by side.
It knows names and addresses, and not who asks or what for.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import trio

from ._address import Address, TcpAddress, UnixAddress, sockaddr_text
from ._names import Place, look_up, numeric_place
from ._report import GIVEN_UP, NO_ANSWER, OUTRUN, Attempt, describe
from ._transport import SocketTransport

#: Seconds that an address has before the next one of its name is tried too.
#: RFC 8305, section 5, "Connection Attempt Delay".
_HEAD_START: Final = 0.25

#: Seconds between two looks at a Unix socket whose queue is full; there is no
#: event for it. unix(7)
_QUEUE_PAUSE: Final = 0.01

#: Errors of a connection that was made, and reset before we could look: the
#: second if it was closed before. A target that doesn't accept is ECONNREFUSED.
_RESET_AFTER: Final = (errno.ECONNRESET, errno.EPIPE)

#: Saves a system call where there is such a thing.
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)

#: Addresses of one name that are tried; each that is silent holds a socket.
_MOST_PLACES: Final = 6


#: Is told of each try to connect: the target as it was given, and the try.
OnAttempt: TypeAlias = Callable[[Address, Attempt], object]


class GivenUpError(Exception):
    """Nobody wants the connection any more."""


class Dialing:
    """Connects to the first target that answers, and keeps account of each try.

    Args:
      targets: at least one, in the order in which they are tried.
      ends: where our own ends are noted.
      on_attempt: called with the target and each try, when it is known how it
        ended; not with tries that were given up.

    Attributes:
      target: the one that is being tried, or has answered.
      on_wait: called without arguments when there is somebody to wait for.
    """

    __slots__ = (
        "_begun", "_ends", "_given_up", "_on_attempt", "_reached", "_scope", "_seconds",
        "_targets", "_tried", "on_wait", "target",
    )  # fmt: skip

    def __init__(
        self,
        targets: Sequence[Address],
        ends: Ends,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        self.target = targets[0]
        self._on_attempt = on_attempt
        self._tried: tuple[Attempt, ...] = ()
        self._reached: Place | None = None
        self._seconds = 0.0
        self.on_wait: Callable[[], None] | None = None
        self._targets = targets
        self._ends = ends
        self._given_up = False
        self._scope: trio.CancelScope | None = None
        self._begun: _Begun | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Each try that is over, in the order in which they ended."""
        if self._reached is None:
            return self._tried
        # Not made before it is asked for: nearly all have but this one.
        address = _written(self._reached.sockaddr)
        return (*self._tried, Attempt(address=address, seconds=self._seconds))

    async def dial(self, seconds: float) -> SocketTransport:
        """Connect, within ``seconds`` for all of it, look-ups of names included.

        A target has an equal share of the time that is left when its turn
        comes, so that one that doesn't answer leaves some to the next.

        Raises:
          GivenUpError: after :meth:`give_up`.
          TimeoutError: the last target did not answer in time.
          OSError: no target could be connected to; the error of the last.

        Cancelled, it leaves no socket behind.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        if (transport := self._at_once(now)) is not None:
            return transport
        return await self._in_turn(now + seconds)

    def _at_once(self, now: float) -> SocketTransport | None:
        """Connect to a target that needs no waiting, or begin to.

        One on this machine is connected when connect(2) returns, though it says
        that it isn't yet.
        """
        if not isinstance(self.target, TcpAddress):
            return None
        try:
            place = numeric_place(self.target)
            if place is None:
                return None
            sock, code = _begin(place, self._ends)
        except OSError:
            return None  # an attempt that fails, when its turn comes
        if code:
            self._begun = _Begun(place, sock, code, now)
            return None
        transport = SocketTransport(sock)
        self._reached, self._seconds = place, transport.moved_at - now
        if self._on_attempt is not None:
            self._on_attempt(self.target, self.attempts[-1])
        return transport

    async def _in_turn(self, deadline: float) -> SocketTransport:
        failed: OSError | None = None
        for turn, target in enumerate(self._targets):
            self.target = target
            now = trio.current_time()
            share = max(0.0, deadline - now) / (len(self._targets) - turn)
            failed = TimeoutError(errno.ETIMEDOUT, f"no answer within {share:.4g} s")
            before = len(self._tried)
            with trio.CancelScope(deadline=now + share) as self._scope:
                try:
                    return await self._reach(target)
                except OSError as error:
                    failed = error
            if self._given_up:
                raise GivenUpError
            if self._scope.cancelled_caught:
                unanswered = map(_unanswered, self._tried[before:])
                self._tried = (*self._tried[:before], *unanswered)
                for attempt in self._tried[before:]:
                    if attempt.error == NO_ANSWER:
                        self._tell(attempt)
        assert failed is not None
        try:
            raise failed
        finally:
            del failed  # its traceback has this frame: a cycle

    def give_up(self) -> None:
        """Try no more; to be called while there is somebody to wait for."""
        self._given_up = True
        assert self._scope is not None
        self._scope.cancel(reason="given up")

    async def _reach(self, target: Address) -> SocketTransport:
        if isinstance(target, UnixAddress):
            place = Place(socket.AF_UNIX, socket.SOCK_STREAM, 0, target.sockaddr)
            return await self._try(place)
        if self._begun is not None:
            return await self._try(self._begun.place)
        places = await self._look_up(target)
        if len(places) == 1:
            return await self._try(places[0])
        return await self._race(places[:_MOST_PLACES])

    async def _look_up(self, target: TcpAddress) -> list[Place]:
        began = trio.current_time()
        self._waits()
        try:
            return await look_up(target)
        except trio.Cancelled:
            self._note(str(target), trio.current_time() - began, GIVEN_UP)
            raise
        except OSError as failed:
            self._note(str(target), trio.current_time() - began, describe(failed))
            raise

    async def _race(self, places: Sequence[Place]) -> SocketTransport:
        """Try one after the other, each with a head start; the first one wins."""
        won: list[SocketTransport] = []
        failed: list[OSError] = []

        async def run(place: Place, gave_up: trio.Event) -> None:
            try:
                won.append(await self._try(place, won))
            except OSError as error:
                failed.append(error)
                gave_up.set()
            else:
                nursery.cancel_scope.cancel(reason=OUTRUN)

        try:
            async with trio.open_nursery() as nursery:
                for place in places:
                    gave_up = trio.Event()
                    nursery.start_soon(run, place, gave_up)
                    with trio.move_on_after(_HEAD_START):
                        await gave_up.wait()
        except BaseException:
            for transport in won:
                transport.close()
            raise
        # Two may have got through in the same step.
        for transport in won[1:]:
            transport.close()
        if not won:
            last = failed.pop()
            failed.clear()
            try:
                raise last
            finally:
                del last  # its traceback has this frame: a cycle
        return won[0]

    async def _try(
        self, place: Place, won: Sequence[SocketTransport] = ()
    ) -> SocketTransport:
        begun, self._begun = self._begun, None
        began = begun.at if begun is not None else trio.current_time()
        error: str | None = None
        try:
            if begun is None:
                begun = _Begun(place, *_begin(place, self._ends), began)
            return await _finish(begun, self._waits)
        except trio.Cancelled:
            error = OUTRUN if won else GIVEN_UP
            raise
        except BaseException as failed:
            error = describe(failed)
            raise
        finally:
            seconds = trio.current_time() - began
            self._note(_written(place.sockaddr), seconds, error)

    def _waits(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    def _note(self, address: str, seconds: float, error: str | None) -> None:
        attempt = Attempt(address=address, seconds=seconds, error=error)
        self._tried = (*self._tried, attempt)
        if error not in (GIVEN_UP, OUTRUN):
            self._tell(attempt)

    def _tell(self, attempt: Attempt) -> None:
        if self._on_attempt is not None:
            self._on_attempt(self.target, attempt)


#: Of what is dialed, which is the same again and again.
_written = functools.lru_cache(1024)(sockaddr_text)


def _unanswered(attempt: Attempt) -> Attempt:
    """What was given up because its time was over had no answer."""
    if attempt.error != GIVEN_UP:
        return attempt
    return dataclasses.replace(attempt, error=NO_ANSWER)


class Ends:
    """Our own ends of what was dialed and is open.

    A connection that was accepted, with the same two addresses as one of them,
    is its other end: what was dialed leads back here. One address would not do:
    the system gives a port to several connections that go to different places.
    """

    def __init__(self) -> None:
        # Two addresses in one text, and a dict, which is smaller than a set.
        self._open: dict[str, None] = {}

    def __contains__(self, addresses: tuple[str, str]) -> bool:
        """Whether a connection from the first address to the second is one of them."""
        return " ".join(addresses) in self._open

    def add(self, end: _End, ours: Any, place: Place) -> None:
        """From now on, until it is closed."""
        theirs = place.sockaddr
        if theirs[0] in ("0.0.0.0", "::"):  # which is this machine
            theirs = (ours[0], *theirs[1:])
        end.addresses = f"{_seen(ours)} {_dialed(theirs)}"
        end.known = self._open
        self._open[end.addresses] = None


class _End(socket.socket):
    """A socket that may be known as one of our own ends, until it is closed.

    Then somebody else may have its addresses.
    """

    __slots__ = ("addresses", "known")

    known: dict[str, None]

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.addresses: str | None = None

    def close(self) -> None:
        if self.addresses is not None:
            self.known.pop(self.addresses, None)
        super().close()


def _seen(sockaddr: Any) -> str:
    """An address as who accepts sees it: an IPv4 one, however it was dialed."""
    host, port = sockaddr[:2]
    host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_dialed = functools.lru_cache(1024)(_seen)


class _Begun(NamedTuple):
    """A socket that connects: ``code`` is EINPROGRESS or an error."""

    place: Place
    sock: socket.socket
    code: int
    at: float


def _begin(place: Place, ends: Ends) -> tuple[socket.socket, int]:
    """A socket that connects, and 0 if it has, or EINPROGRESS, or an error."""
    sock = _End(place.family, place.kind | _NONBLOCK, place.protocol)
    try:
        if not _NONBLOCK:  # pragma: no cover - on other systems
            sock.setblocking(False)
        code = sock.connect_ex(place.sockaddr)
        if place.family != socket.AF_UNIX:
            # Before anybody else runs: the accept loop may be next.
            ours = sock.getsockname()
            ends.add(sock, ours, place)
            if code in (0, errno.EINPROGRESS):
                code = _verdict(sock, ours)
    except BaseException:
        sock.close()
        raise
    return sock, code


async def _finish(begun: _Begun, waits: Callable[[], None]) -> SocketTransport:
    place, sock, code, _ = begun
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
        while code == errno.EAGAIN and place.family == socket.AF_UNIX:
            waits()
            await trio.sleep(_QUEUE_PAUSE)
            code = sock.connect_ex(place.sockaddr)
        if code == errno.EINPROGRESS:
            waits()
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and _verdict(sock, sock.getsockname()) == errno.ECONNREFUSED:
                code = errno.ECONNREFUSED
        if code and code not in _RESET_AFTER:
            raise OSError(code, os.strerror(code))
        transport = SocketTransport(sock)
        if code:
            # What it sent before is still to be received. The kernel has
            # forgotten the error by now, and would say EOF after that.
            transport.error = OSError(code, os.strerror(code))
        return transport
    except BaseException:
        sock.close()
        raise


def _verdict(sock: socket.socket, ours: Any) -> int:
    """0 if it is connected, else why it is not."""
    try:
        peer = sock.getpeername()
    except OSError:
        return errno.EINPROGRESS  # or it is over; its error will tell
    # A free port of this machine may be given to our own end, which then
    # connects to itself (RFC 9293, section 3.5, simultaneous open).
    return errno.ECONNREFUSED if peer == ours else 0

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
from ._describe import describe
from ._errors import again, errno_of, is_a, is_shortage
from ._names import Place, look_up, numeric_place
from ._report import GIVEN_UP, NO_ANSWER, OUTRUN, Attempt
from ._socket_transport import SocketTransport

#: Seconds that an address has before the next one of its name is tried too.
#: RFC 8305, section 5, "Connection Attempt Delay".
_HEAD_START: Final = 0.25

#: Seconds between two looks at a Unix socket whose queue is full, from the first
#: to the longest; there is no event for it. unix(7)
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25

#: Errors of a connection that was made, and reset before we could look: the
#: second if it was closed before. A target that doesn't accept is ECONNREFUSED.
_RESET_AFTER: Final = (errno.ECONNRESET, errno.EPIPE)

#: Saves a system call where there is such a thing.
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)

#: Addresses of one name that are tried at the same time; each holds a socket.
_MOST_AT_ONCE: Final = 6

#: What connect(2) says when no local port is free, or no local address leads
#: there; HAProxy blames itself for the same ones.
_NO_LOCAL_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EADDRINUSE)


#: Is told of each try to connect: the target as it was given, and the try.
OnAttempt: TypeAlias = Callable[[Address, Attempt], object]


class GivenUpError(Exception):
    """Nobody wants the connection any more, or ``on_attempt`` has raised."""


def is_lack(error: OSError) -> bool:
    """Whether a target can't be blamed: this machine lacks something.

    That a firewall of this machine forbids it (EPERM, EACCES) is no shortage.
    """
    if is_a(error, socket.gaierror):
        return errno_of(error) == socket.EAI_MEMORY
    return is_shortage(error) or errno_of(error) in _NO_LOCAL_ADDRESS


class Dialing:
    """Connects to the first target that answers, and keeps account of each try.

    Args:
      targets: at least one, in the order in which they are tried.
      origin: who dials, and on whose behalf: what is told of our own ends.
      on_attempt: called with the target and each try, when it is known how it
        ended; not with tries that were given up.

    Attributes:
      target: the one that is being tried, or has answered.
      on_wait: called without arguments when there is somebody to wait for.
    """

    __slots__ = (
        "_begun", "_given_up", "_lack", "_on_attempt", "_origin", "_reached", "_said",
        "_scope", "_seconds", "_targets", "_tried", "_wrong", "on_wait", "target",
    )  # fmt: skip

    def __init__(
        self,
        targets: Sequence[Address],
        origin: Origin = (),
        on_attempt: OnAttempt | None = None,
    ) -> None:
        self.target = targets[0]
        self._on_attempt = on_attempt
        self._tried: tuple[Attempt, ...] = ()
        self._reached: Place | None = None
        self._seconds = 0.0
        self.on_wait: Callable[[], None] | None = None
        self._targets = targets
        self._origin = origin
        self._given_up = False
        self._wrong: BaseException | None = None
        self._lack: OSError | None = None
        self._said: OSError | None = None
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
          GivenUpError: after :meth:`give_up`, and when ``on_attempt`` has raised;
            :meth:`raise_what_is_wrong` raises that.
          TimeoutError: the last target did not answer in time.
          OSError: no target could be connected to; the error of the last. If this
            machine lacked something (:func:`is_lack`), what a target has said
            itself, such as that it refuses; or else what was lacking.

        Cancelled, it leaves no socket behind.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        transport = self._at_once(now)
        if transport is None:
            transport = await self._in_turn(now + seconds)
        if self._wrong is not None:
            transport.close()
            raise GivenUpError
        return transport

    def raise_what_is_wrong(self) -> None:
        """Raise what ``on_attempt`` has raised, if it has."""
        wrong, self._wrong = self._wrong, None
        if wrong is not None:
            try:
                raise wrong
            finally:
                del wrong  # its traceback has this frame: a cycle

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
            sock, code = _begin(place, self._origin)
        except OSError:
            return None  # an attempt that fails, when its turn comes
        if code:
            self._begun = _Begun(place, sock, code, now)
            return None
        transport = SocketTransport(sock)
        self._reached, self._seconds = place, transport.moved_at - now
        if self._on_attempt is not None:
            self._tell(self.attempts[-1])
        return transport

    async def _in_turn(self, deadline: float) -> SocketTransport:
        failed: OSError | None = None
        for turn, target in enumerate(self._targets):
            self.target = target
            now = trio.current_time()
            share = max(0.0, deadline - now) / (len(self._targets) - turn)
            before = len(self._tried)
            with trio.CancelScope(deadline=now + share) as self._scope:
                try:
                    return await self._reach(target)
                except OSError as error:
                    failed = error
            if self._given_up:
                raise GivenUpError
            if self._scope.cancelled_caught and self._wrong is None:
                late = f"no answer within {share:.4g} s"
                failed = TimeoutError(errno.ETIMEDOUT, late)
                self._have_not_answered(before)
            if self._wrong is not None:
                raise GivenUpError
        assert failed is not None
        try:
            # What could not be tried might have answered: silence says nothing then.
            raise failed if self._lack is None else self._said or self._lack
        finally:
            del failed  # its traceback has this frame: a cycle

    def _is_ours(self, error: OSError) -> bool:
        if not is_lack(error):
            if not is_a(error, TimeoutError):
                self._said = again(error)
            return False
        if self._lack is None:
            self._lack = again(error)
        return True

    def _have_not_answered(self, begin: int) -> None:
        """Those from ``begin`` on that were given up: their time was over."""
        tried = list(self._tried)
        for turn, attempt in enumerate(tried[begin:], begin):
            if attempt.error == GIVEN_UP:
                tried[turn] = dataclasses.replace(attempt, error=NO_ANSWER)
                self._tell(tried[turn])
        self._tried = tuple(tried)

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
        return await self._race(places)

    async def _look_up(self, target: TcpAddress) -> list[Place]:
        began = trio.current_time()
        self._waits()
        try:
            return await look_up(target)
        except trio.Cancelled:
            self._note(str(target), trio.current_time() - began, GIVEN_UP)
            raise
        except OSError as failed:
            error, seconds = describe(failed), trio.current_time() - began
            self._note(str(target), seconds, error, ours=self._is_ours(failed))
            raise

    async def _race(self, places: Sequence[Place]) -> SocketTransport:
        """Try one after the other, each with a head start; the first one wins.

        When as many are tried as may be at the same time, the one that has been
        silent for longest makes way for the next. That this machine has no
        descriptor for one more is no failure as long as others are tried.
        """
        won: list[SocketTransport] = []
        failed: list[OSError] = []
        under_way: dict[trio.CancelScope, None] = {}
        short = trio.lowlevel.ParkingLot()

        async def run(place: Place, scope: trio.CancelScope, over: trio.Event) -> None:
            with scope:
                # Out of descriptors, a further address waits for one that is tried.
                while under_way and not self._begins(place):
                    await short.park()
                under_way[scope] = None
                try:
                    won.append(await self._try(place, won, scope))
                except OSError as error:
                    failed.append(error)
                else:
                    nursery.cancel_scope.cancel(reason=OUTRUN)
            under_way.pop(scope, None)
            over.set()
            short.unpark_all()

        try:
            async with trio.open_nursery() as nursery:
                for place in places:
                    if len(under_way) == _MOST_AT_ONCE:
                        oldest = next(iter(under_way))
                        del under_way[oldest]
                        oldest.cancel(reason=NO_ANSWER)
                    scope, over = trio.CancelScope(), trio.Event()
                    nursery.start_soon(run, place, scope, over)
                    with trio.move_on_after(_HEAD_START):
                        await over.wait()
        except BaseException:
            for transport in won:
                transport.close()
            raise
        # Two may have got through in the same step.
        for transport in won[1:]:
            transport.close()
        if won:
            return won[0]
        last = failed.pop()
        failed.clear()
        try:
            raise last
        finally:
            del last  # its traceback has this frame: a cycle

    def _begins(self, place: Place) -> bool:
        """Begin to connect; False if something is lacking for a socket."""
        try:
            begun = _begin(place, self._origin)
        except OSError as error:
            return not is_shortage(error)  # another error is said by who tries
        self._begun = _Begun(place, *begun, trio.current_time())
        return True

    async def _try(
        self,
        place: Place,
        won: Sequence[SocketTransport] = (),
        scope: trio.CancelScope | None = None,
    ) -> SocketTransport:
        begun, self._begun = self._begun, None
        began = begun.at if begun is not None else trio.current_time()
        error: str | None = None
        ours = False
        try:
            if begun is None:
                begun = _Begun(place, *_begin(place, self._origin), began)
            return await _finish(begun, self._waits)
        except trio.Cancelled:
            made_way = scope is not None and scope.cancel_called
            error = OUTRUN if won else NO_ANSWER if made_way else GIVEN_UP
            raise
        except BaseException as failed:
            error = describe(failed)
            ours = isinstance(failed, OSError) and self._is_ours(failed)
            raise
        finally:
            seconds = trio.current_time() - began
            self._note(_written(place.sockaddr), seconds, error, ours=ours)

    def _waits(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    def _note(
        self, address: str, seconds: float, error: str | None, *, ours: bool = False
    ) -> None:
        attempt = Attempt(address=address, seconds=seconds, error=error, ours=ours)
        self._tried = (*self._tried, attempt)
        if error not in (GIVEN_UP, OUTRUN):
            self._tell(attempt)

    def _tell(self, attempt: Attempt) -> None:
        if self._on_attempt is None or self._wrong is not None:
            return
        try:
            self._on_attempt(self.target, attempt)
        except BaseException as error:  # noqa: ASYNC103 - raised when all is tidy
            self._wrong = error
            if self._scope is not None:
                self._scope.cancel(reason="on_attempt has raised")


def _written(sockaddr: Any) -> str:
    # What is dialed is the same again and again; but a zone may get another name.
    if len(sockaddr) == 4 and sockaddr[3]:
        return sockaddr_text(sockaddr)
    return _kept_text(sockaddr)


_kept_text = functools.lru_cache(1024)(sockaddr_text)


#: The proxies through which a connection of ours has come, the first one first.
Origin: TypeAlias = tuple[object, ...]

#: Our own ends of what was dialed and is open, by both addresses, and their origin.
_ends: trio.lowlevel.RunVar[dict[str, Origin]] = trio.lowlevel.RunVar("trioserve_ends")


def origin_of(peer: str, local: str) -> Origin:
    """Who has dialed the connection that came from ``peer`` to ``local``.

    A connection that was accepted, with the same two addresses as one that was
    dialed in this run, is its other end. One address would not do: the system
    gives a port to several connections that go to different places.

    Returns:
      what was given to :class:`Dialing`; nothing if nobody here did.
    """
    return _our_ends().get(f"{peer} {local}", ())


def _our_ends() -> dict[str, Origin]:
    try:
        return _ends.get()
    except LookupError:
        ends: dict[str, Origin] = {}
        _ends.set(ends)
        return ends


class _End(socket.socket):
    """A socket that is known as one of our own ends, until it is closed.

    Then somebody else may have its addresses.
    """

    __slots__ = ("addresses", "known")

    known: dict[str, Origin]

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.addresses: str | None = None

    def become_known(self, ours: Any, place: Place, origin: Origin) -> None:
        theirs = place.sockaddr
        if theirs[0] in ("0.0.0.0", "::"):  # which is this machine
            theirs = (ours[0], *theirs[1:])
        self.addresses = f"{sockaddr_text(ours)} {_written(theirs)}"
        self.known = _our_ends()
        self.known[self.addresses] = origin

    def close(self) -> None:
        if self.addresses is not None:
            self.known.pop(self.addresses, None)
        super().close()


class _Begun(NamedTuple):
    """A socket that connects: ``code`` is EINPROGRESS or an error."""

    place: Place
    sock: socket.socket
    code: int
    at: float


def _begin(place: Place, origin: Origin) -> tuple[socket.socket, int]:
    """A socket that connects, and 0 if it has, or EINPROGRESS, or an error."""
    sock = _End(place.family, place.kind | _NONBLOCK, place.protocol)
    try:
        if not _NONBLOCK:  # pragma: no cover - on other systems
            sock.setblocking(False)
        if place.family == socket.AF_UNIX and place.sockaddr in _queues():
            return sock, errno.EAGAIN  # others were there before
        code = sock.connect_ex(place.sockaddr)
        if place.family != socket.AF_UNIX:
            # Before anybody else runs: the accept loop may be next.
            ours = sock.getsockname()
            sock.become_known(ours, place, origin)
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
        if code == errno.EAGAIN and place.family == socket.AF_UNIX:
            waits()
            code = await _queue_up(sock, place.sockaddr)
        if code == errno.EINPROGRESS:
            waits()
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and _verdict(sock, sock.getsockname()) == errno.ECONNREFUSED:
                code = errno.ECONNREFUSED
        if code in _NO_LOCAL_ADDRESS:
            raise OSError(code, f"no local port or address: {os.strerror(code)}")
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


#: Of each Unix socket whose queue is full, the turn of whoever looks for room.
_turns: trio.lowlevel.RunVar[dict[Any, trio.Lock]] = trio.lowlevel.RunVar(
    "trioserve_turns"
)


def _queues() -> dict[Any, trio.Lock]:
    try:
        return _turns.get()
    except LookupError:
        turns: dict[Any, trio.Lock] = {}
        _turns.set(turns)
        return turns


async def _queue_up(sock: socket.socket, path: Any) -> int:
    """Connect when there is room in the queue of ``path``; first come, first served.

    Only the first of those that wait looks, and the next one when it has got in.

    Returns:
      0 or an error.
    """
    queues = _queues()
    turn = queues.setdefault(path, trio.Lock())
    try:
        async with turn:
            pause = _FIRST_PAUSE
            while (code := sock.connect_ex(path)) == errno.EAGAIN:
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            return code
    finally:
        if not turn.locked():
            queues.pop(path, None)


def _verdict(sock: socket.socket, ours: Any) -> int:
    """0 if it is connected, else why it is not."""
    try:
        peer = sock.getpeername()
    except OSError:
        return errno.EINPROGRESS  # or it is over; its error will tell
    # A free port of this machine may be given to our own end, which then
    # connects to itself (RFC 9293, section 3.5, simultaneous open).
    return errno.ECONNREFUSED if peer == ours else 0

"""Dial: connect to the first of several targets that answers, under one deadline.

The dialer tries targets one after the other and records each attempt. It does not know
for which connection it dials, or what the transport is for.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
from collections.abc import Callable, Sequence
from typing import TypeAlias

import trio

from ._address import Address, TcpAddress, UnixAddress
from ._connect import (
    PLAIN,
    Connecting,
    Outgoing,
    begin_connect,
    finish_connect,
    is_local_shortage,
)
from ._describe import describe
from ._errors import copy_of, is_a
from ._names import AddrInfo, look_up, numeric_addrinfo
from ._origins import Origin
from ._race import race
from ._report import GIVEN_UP, LOST_RACE, NO_ANSWER, Attempt, unfinished_attempt
from ._socket_transport import SocketTransport

#: Called after each attempt to connect, with the target as it was given.
OnAttempt: TypeAlias = Callable[[Address, Attempt], object]


class DialCancelledError(Exception):
    """:meth:`Dialer.cancel` was called, or ``on_attempt`` has raised."""


class Dialer:
    """Connects to the first target that answers, and records each attempt.

    Args:
      targets: at least one, in the order in which they are tried.
      origin: the proxies that dial.
      on_attempt: called with the target and the :class:`Attempt` after each attempt,
        except those that were cancelled.
      outgoing: how sockets are made.

    Attributes:
      target: the target that is being tried, or that has answered.
      on_wait: called without arguments when the dialer begins to wait for a target.
    """

    __slots__ = (
        "_answer", "_attempts", "_callback_error", "_connected", "_connecting",
        "_is_cancelled", "_on_attempt", "_origin", "_outgoing", "_scope", "_seconds",
        "_shortage", "_targets", "on_wait", "target",
    )  # fmt: skip

    def __init__(
        self,
        targets: Sequence[Address],
        origin: Origin = (),
        on_attempt: OnAttempt | None = None,
        outgoing: Outgoing = PLAIN,
    ) -> None:
        self.target = targets[0]
        self.on_wait: Callable[[], None] | None = None
        self._targets = targets
        self._origin = origin
        self._on_attempt = on_attempt
        self._outgoing = outgoing
        self._attempts: tuple[Attempt, ...] = ()
        # The attempt that succeeded at once, if one did, and how long it took.
        self._connected: AddrInfo | None = None
        self._seconds = 0.0
        # The attempt that was started to the first target.
        self._connecting: Connecting | None = None
        self._scope: trio.CancelScope | None = None
        self._is_cancelled = False
        self._callback_error: BaseException | None = None
        # The first shortage of this machine, and the last error that a target sent.
        self._shortage: OSError | None = None
        self._answer: OSError | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts that have ended, in that order."""
        if self._connected is None:
            return self._attempts
        # Built lazily: most dials succeed at once with one attempt, and this saves
        # memory per idle connection.
        attempt = unfinished_attempt.new()
        attempt.address = self._connected.text
        attempt.seconds = self._seconds
        attempt.error = None
        attempt.ours = False
        return (*self._attempts, unfinished_attempt.finish(attempt))

    async def dial(self, seconds: float) -> SocketTransport:
        """Connect within ``seconds``, name look-ups included.

        Call :meth:`connect_now` before, unless the caller can wait in any case.

        Each target gets an equal share of the time that is left when its turn comes,
        so that a target that doesn't answer leaves time for the next ones.

        Raises:
          DialCancelledError: after :meth:`cancel`, or if ``on_attempt`` has raised;
            :meth:`raise_callback_error` raises that error.
          TimeoutError: the last target did not answer in time.
          OSError: no target could be connected to. It is the error of the last one;
            but if this machine lacked a resource (:func:`is_local_shortage`), it is
            an error that a target has sent, such as a refusal, or else the shortage.

        If it is cancelled, it closes its sockets.
        """
        transport = await self._try_targets(trio.current_time() + seconds)
        if self._callback_error is not None:
            transport.close()
            raise DialCancelledError
        return transport

    def connect_now(self) -> SocketTransport | None:
        """Connect to the first target without waiting; None if that is not possible.

        A target on this machine, given by its number, is connected when connect(2)
        returns, although that returns EINPROGRESS. In all other cases :meth:`dial` goes
        on with what this has begun.

        Raises:
          BaseException: the error of ``on_attempt``.
        """
        if not isinstance(self.target, TcpAddress):
            return None
        now = trio.current_time()
        try:
            info = numeric_addrinfo(self.target)
            if info is None:
                return None
            connecting = begin_connect(info, self._origin, now, self._outgoing)
        except OSError:
            return None  # dial() meets the same error and records it
        if connecting.code:
            self._connecting = connecting
            return None
        transport = SocketTransport(connecting.sock)
        self._connected, self._seconds = info, transport.moved_at - now
        if self._on_attempt is not None:
            self._call_on_attempt(self.attempts[-1])
            if self._callback_error is not None:
                transport.close()
                self.raise_callback_error()
        return transport

    def cancel(self) -> None:
        """Stop dialing. Call it only after :attr:`on_wait` was called."""
        self._is_cancelled = True
        assert self._scope is not None
        self._scope.cancel(reason="the dialer was cancelled")

    def raise_callback_error(self) -> None:
        """Raise the error of ``on_attempt``, if there is one."""
        error, self._callback_error = self._callback_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: a cycle

    async def _try_targets(self, deadline: float) -> SocketTransport:
        failed: OSError | None = None
        for turn, target in enumerate(self._targets):
            self.target = target
            now = trio.current_time()
            share = max(0.0, deadline - now) / (len(self._targets) - turn)
            before = len(self._attempts)
            with trio.CancelScope(deadline=now + share) as self._scope:
                try:
                    return await self._try_target(target)
                except OSError as error:
                    failed = error
            if self._is_cancelled:
                raise DialCancelledError
            if self._scope.cancelled_caught and self._callback_error is None:
                late = f"no answer within {share:.4g} s"
                failed = TimeoutError(errno.ETIMEDOUT, late)
                self._mark_unanswered(before)
            if self._callback_error is not None:
                raise DialCancelledError
        assert failed is not None
        try:
            if self._shortage is None:
                raise failed
            # The target that could not be tried might have answered, so a timeout of
            # another one is not the reason.
            raise self._answer or self._shortage
        finally:
            del failed  # its traceback refers to this frame: a cycle

    async def _try_target(self, target: Address) -> SocketTransport:
        if isinstance(target, UnixAddress):
            info = AddrInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, target.sockaddr)
            return await self._try_address(info)
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            return await self._try_address(connecting.info, connecting)
        infos = await self._look_up(target)
        if len(infos) == 1:
            return await self._try_address(infos[0])
        return await race(infos, self._origin, self._outgoing, self._try_address)

    async def _look_up(self, target: TcpAddress) -> list[AddrInfo]:
        began = trio.current_time()
        self._call_on_wait()
        try:
            return await look_up(target)
        except trio.Cancelled:
            self._add_attempt(str(target), began, GIVEN_UP)
            raise
        except OSError as error:
            self._add_attempt(str(target), began, describe(error), self._keep(error))
            raise

    async def _try_address(
        self,
        info: AddrInfo,
        connecting: Connecting | None = None,
        why_cancelled: Callable[[], str] = lambda: GIVEN_UP,
    ) -> SocketTransport:
        began = connecting.began if connecting is not None else trio.current_time()
        said: str | None = None
        is_ours = False
        try:
            if connecting is None:
                connecting = begin_connect(info, self._origin, began, self._outgoing)
            return await finish_connect(connecting, self._call_on_wait)
        except trio.Cancelled:
            said = why_cancelled()
            raise
        except BaseException as error:
            said = describe(error)
            is_ours = isinstance(error, OSError) and self._keep(error)
            raise
        finally:
            self._add_attempt(info.text, began, said, is_ours)

    def _keep(self, error: OSError) -> bool:
        """Keep an error that :meth:`dial` may raise; whether it is a local shortage."""
        if not is_local_shortage(error):
            if not is_a(error, TimeoutError):
                self._answer = copy_of(error)
            return False
        if self._shortage is None:
            self._shortage = copy_of(error)
        return True

    def _call_on_wait(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    def _add_attempt(
        self, address: str, began: float, error: str | None, is_ours: bool = False
    ) -> None:
        seconds = trio.current_time() - began
        attempt = Attempt(address=address, seconds=seconds, error=error, ours=is_ours)
        self._attempts = (*self._attempts, attempt)
        if error not in (GIVEN_UP, LOST_RACE):
            self._call_on_attempt(attempt)

    def _mark_unanswered(self, begin: int) -> None:
        """Note that the attempts from number ``begin`` on got no answer in time."""
        attempts = list(self._attempts)
        for number, attempt in enumerate(attempts[begin:], begin):
            if attempt.error == GIVEN_UP:
                attempts[number] = dataclasses.replace(attempt, error=NO_ANSWER)
                self._call_on_attempt(attempts[number])
        self._attempts = tuple(attempts)

    def _call_on_attempt(self, attempt: Attempt) -> None:
        if self._on_attempt is None or self._callback_error is not None:
            return
        try:
            self._on_attempt(self.target, attempt)
        except BaseException as error:  # noqa: ASYNC103 - raised by raise_callback_error
            self._callback_error = error
            if self._scope is not None:
                self._scope.cancel(reason="on_attempt has raised")

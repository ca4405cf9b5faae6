"""Dial: connect to one of several targets, under one deadline.

The dialer tries targets one after the other, as the endpoints say, records each
attempt, and tells the endpoints how it went. It does not know for which connection it
dials, or what the transport is for.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import trio

from ._address import Address, TcpAddress, UnixAddress
from ._attempts import AttemptLog
from ._connect import (
    PLAIN,
    Connecting,
    Outgoing,
    begin_connect,
    finish_connect,
    is_local_shortage,
)
from ._describe import describe
from ._endpoint import Endpoint
from ._endpoints import Endpoints
from ._errors import is_a
from ._factory import connect_by_factory, has_factory
from ._names import AddrInfo, look_up, numeric_addrinfo
from ._origins import Origin
from ._race import race
from ._report import GIVEN_UP, Attempt
from ._socket_transport import SocketTransport
from ._targets import TargetState
from ._tls_client import TlsBeginning
from ._transport import Transport
from ._upstream import greet
from .wire._tls_errors import TlsError

#: Called after each attempt to connect, with the target as it was given.
OnAttempt: TypeAlias = Callable[[Address, Attempt], object]


class DialCancelledError(Exception):
    """:meth:`Dialer.cancel` was called, or ``on_attempt`` has raised."""


class NoRoomError(TimeoutError):
    """All targets that might have answered had as many connections as allowed."""


class Dialing(NamedTuple):
    """What all dialers of a proxy share.

    Attributes:
      endpoints: the targets.
      outgoing: how sockets are made.
      on_attempt: called with the target and the :class:`Attempt` after each attempt,
        except those that were cancelled.
      on_target: called with the state of a target that is down or up from now on.
    """

    endpoints: Endpoints
    outgoing: Outgoing = PLAIN
    on_attempt: OnAttempt | None = None
    on_target: Callable[[TargetState], object] | None = None


class Dialer(AttemptLog):
    """Connects to a target, and records each attempt.

    Call :meth:`release` when the connection is over, whether it was dialed or not.

    Args:
      origin: the proxies that dial.
      peer: the client's address, for the balancing.
      preface: a PROXY header for the target, which is sent before all else.
      alpn: the protocol that the client has agreed on by TLS.

    Attributes:
      target: the target that is being tried, or that has answered.
      on_wait: called without arguments when the dialer begins to wait for a target.
    """

    __slots__ = (
        "_alpn", "_callback_error", "_connecting", "_dialing", "_endpoint",
        "_is_cancelled", "_is_dialing", "_origin", "_peer", "_preface", "_scope",
        "_tls", "_tried", "on_wait", "target",
    )  # fmt: skip

    def __init__(
        self,
        dialing: Dialing,
        origin: Origin = (),
        peer: str = "",
        preface: bytes = b"",
        alpn: str | None = None,
    ) -> None:
        super().__init__()
        self.target = dialing.endpoints.shown
        self.on_wait: Callable[[], None] | None = None
        self._dialing = dialing
        self._origin = origin
        self._peer = peer
        self._preface = preface
        self._alpn = alpn
        # What TLS with the target has begun with.
        self._tls: TlsBeginning | None = None
        # The endpoint in use, and whether the dial to it is still under way.
        self._endpoint: Endpoint | None = None
        self._is_dialing = False
        # Endpoints that were tried and released.
        self._tried: tuple[Endpoint, ...] = ()
        # The attempt that was started to the first target.
        self._connecting: Connecting | None = None
        self._scope: trio.CancelScope | None = None
        self._is_cancelled = False
        self._callback_error: BaseException | None = None

    @property
    def max_open(self) -> float | None:
        """Connections that each target may have at a time; None: any number."""
        most = self._dialing.endpoints.max_open
        return None if most == math.inf else most

    async def dial(self, seconds: float) -> Transport:
        """Connect within ``seconds``, name look-ups included.

        Call :meth:`connect_now` before, unless the caller can wait in any case.

        A target that doesn't answer leaves time for the next one:
        :meth:`Endpoints.patience`.

        Raises:
          DialCancelledError: after :meth:`cancel`, or if a callback has raised;
            :meth:`raise_callback_error` raises that error.
          NoRoomError: no target had room in time.
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
          BaseException: the error of a callback.
        """
        now = trio.current_time()
        endpoint = self._pick(now)
        if endpoint is None or not isinstance(self.target, TcpAddress):
            return None
        if endpoint.tls is not None:
            return None  # a handshake has to wait
        try:
            info = numeric_addrinfo(self.target)
            if info is None:
                return None
            dialing = self._dialing
            connecting = begin_connect(info, self._origin, now, dialing.outgoing)
        except OSError:
            return None  # dial() meets the same error and records it
        if connecting.code:
            self._connecting = connecting
            return None
        transport = SocketTransport(connecting.sock)
        moved_at = transport.moved_at
        self.connected_at_once(info, moved_at - now)
        self._is_dialing = False
        is_up = dialing.endpoints.connected(endpoint, moved_at - now, moved_at)
        if dialing.on_attempt is not None:
            self.attempt_ended(self.attempts[-1])
        if is_up:
            self._call_on_target(endpoint)
        if self._callback_error is not None:
            transport.close()
            self.raise_callback_error()
        if self._preface:
            transport.send_preface(self._preface)
        return transport

    def cancel(self) -> None:
        """Stop dialing. Call it only after :attr:`on_wait` was called."""
        self._is_cancelled = True
        assert self._scope is not None
        self._scope.cancel(reason="the dialer was cancelled")

    def raise_callback_error(self) -> None:
        """Raise the error of a callback, if there is one."""
        error, self._callback_error = self._callback_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: a cycle

    def release(self) -> None:
        """Give back the endpoint that it has; idempotent."""
        if self._tls is not None:
            self._tls.is_over()
            self._tls = None
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        if self._is_dialing:
            self._dialing.endpoints.given_up(endpoint)
        else:
            self._dialing.endpoints.closed(endpoint)

    # -- one target after the other

    def try_again(self) -> bool:
        """Called by the endpoints: one may have room, or there is none to wait for."""
        found = self._pick(trio.current_time())
        if found is None and self._dialing.endpoints.must_wait(self._tried):
            return False
        assert self._scope is not None
        self._scope.cancel(reason="it waits no longer for room")
        return True

    def _pick(self, now: float) -> Endpoint | None:
        endpoint = self._dialing.endpoints.pick(now, self._peer, self._tried)
        self._endpoint = endpoint
        if endpoint is not None:
            self._is_dialing = True
            self.target = endpoint.address
        return endpoint

    async def _next(self, deadline: float) -> Endpoint | None:
        """The next endpoint to dial, when there is room; None if all were tried.

        Raises:
          NoRoomError: there was no room in time.
        """
        if self._endpoint is not None:  # connect_now() has picked it
            return self._endpoint
        endpoints, now = self._dialing.endpoints, trio.current_time()
        if self._pick(now) is not None or not endpoints.must_wait(self._tried):
            return self._endpoint
        with trio.CancelScope(deadline=deadline) as self._scope:
            self._call_on_wait()
            endpoints.wait(self)
            try:
                await trio.sleep_forever()
            finally:
                endpoints.forget(self)
        if self._is_cancelled:
            raise DialCancelledError
        if endpoints.must_wait(self._tried) and self._endpoint is None:
            waited = f"within {deadline - now:.4g} s"
            if not endpoints.all:
                raise TimeoutError(errno.ETIMEDOUT, f"no target was known {waited}")
            late = f"no target had room {waited}"
            late += ": all are drained" if endpoints.are_drained() else ""
            raise NoRoomError(errno.ETIMEDOUT, late)
        return self._endpoint

    async def _try_targets(self, deadline: float) -> Transport:
        failed: OSError | None = None
        endpoints = self._dialing.endpoints
        try:
            while (endpoint := await self._next(deadline)) is not None:
                connecting, now = self._connecting, trio.current_time()
                began = now if connecting is None else connecting.began
                left = deadline - began
                share = endpoints.patience(endpoint, began, self._tried, left)
                before = self.attempt_count
                with trio.CancelScope(deadline=began + share) as self._scope:
                    try:
                        transport = await self._try_target(endpoint.address)
                        transport = await self._greet(transport, endpoint, before)
                    except OSError as error:
                        failed = error
                    else:
                        self._note_connected(endpoint, began)
                        return transport
                if self._is_cancelled:
                    raise DialCancelledError
                late = self._scope.cancelled_caught and self._callback_error is None
                if late:
                    text = f"no answer within {share:.4g} s"
                    failed = TimeoutError(errno.ETIMEDOUT, text)
                    self.mark_unanswered(before)
                if self._callback_error is None:
                    assert failed is not None
                    is_early = late and not endpoint.is_late_after(share)
                    says_nothing = is_early or is_local_shortage(failed)
                    self._note_failed(endpoint, None if says_nothing else failed, began)
                if self._callback_error is not None:
                    raise DialCancelledError
            failed = failed or endpoints.missing
            assert failed is not None
            raise self.why_all_failed() or failed
        finally:
            failed = None  # its traceback refers to this frame: a cycle

    async def _greet(
        self, transport: Transport, endpoint: Endpoint, before: int
    ) -> Transport:
        """Send what comes before the relay; with TLS, that is a part of the attempt.

        Args:
          before: how many attempts there were before this endpoint was tried.
        """
        header, tls = self._preface, endpoint.tls
        if tls is None:
            return await greet(transport, header)
        began, said, is_ours = trio.current_time(), None, False
        self._call_on_wait()
        beginning = tls.begin(self._alpn, began)
        try:
            secure = await greet(
                transport,
                header,
                beginning.session,
                allow_truncation=tls.allow_truncation,
            )
        except trio.Cancelled:
            said = GIVEN_UP
            raise
        except OSError as error:
            said, is_ours = describe(error), self.keep(error)
            if isinstance(error, TlsError):
                beginning.has_failed(trio.current_time())
            raise
        finally:
            self.end_attempt(before, began, said, is_ours)
        self._tls = beginning
        return secure

    def _note_connected(self, endpoint: Endpoint, began: float) -> None:
        now = trio.current_time()
        self._is_dialing = False
        if self._dialing.endpoints.connected(endpoint, now - began, now):
            self._call_on_target(endpoint)

    def _note_failed(
        self, endpoint: Endpoint, error: OSError | None, began: float
    ) -> None:
        """Give back an endpoint that was tried; None says nothing about it."""
        self._endpoint = None
        self._tried = (*self._tried, endpoint)
        endpoints, now = self._dialing.endpoints, trio.current_time()
        if error is None:
            endpoints.given_up(endpoint)
            return
        late = is_a(error, TimeoutError)
        text = describe(error)
        if endpoints.failed(endpoint, text, began=began, now=now, late=late):
            self._call_on_target(endpoint)

    async def _try_target(self, target: Address) -> Transport:
        if isinstance(target, UnixAddress):
            info = AddrInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, target.sockaddr)
            return await self._try_address(info)
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            return await self._try_address(connecting.info, connecting)
        infos = await self._look_up(target)
        if len(infos) == 1:
            return await self._try_address(infos[0])
        return await race(infos, self._begin, self._try_address)

    def _begin(self, info: AddrInfo, now: float) -> Connecting | None:
        """Start to connect; None if that needs the factory of the run."""
        if has_factory():
            return None
        return begin_connect(info, self._origin, now, self._dialing.outgoing)

    async def _look_up(self, target: TcpAddress) -> list[AddrInfo]:
        began = trio.current_time()
        self._call_on_wait()
        try:
            return await look_up(target)
        except trio.Cancelled:
            self.add_attempt(str(target), began, GIVEN_UP)
            raise
        except OSError as error:
            ours = self.keep(error)
            self.add_attempt(str(target), began, describe(error), ours)
            raise

    async def _try_address(
        self,
        info: AddrInfo,
        connecting: Connecting | None = None,
        why_cancelled: Callable[[], str] = lambda: GIVEN_UP,
    ) -> Transport:
        began = connecting.began if connecting is not None else trio.current_time()
        said: str | None = None
        is_ours = False
        try:
            if connecting is None:
                connecting = self._begin(info, began)
            if connecting is None:
                outgoing = self._dialing.outgoing
                return await connect_by_factory(info, outgoing, self._call_on_wait)
            return await finish_connect(connecting, self._call_on_wait)
        except trio.Cancelled:
            said = why_cancelled()
            raise
        except BaseException as error:
            said = describe(error)
            is_ours = isinstance(error, OSError) and self.keep(error)
            raise
        finally:
            goes_on = said is None and self._has_tls()
            self.add_attempt(info.text, began, said, is_ours, goes_on=goes_on)

    def _call_on_wait(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    def _has_tls(self) -> bool:
        return self._endpoint is not None and self._endpoint.tls is not None

    def attempt_ended(self, attempt: Attempt) -> None:
        if self._dialing.on_attempt is not None:
            self._call(self._dialing.on_attempt, self.target, attempt)

    def _call_on_target(self, endpoint: Endpoint) -> None:
        if self._dialing.on_target is not None:
            self._call(self._dialing.on_target, endpoint.state(trio.current_time()))

    def _call(self, callback: Callable[..., object], *args: object) -> None:
        if self._callback_error is not None:
            return
        try:
            callback(*args)
        except BaseException as error:  # noqa: ASYNC103 - raised by raise_callback_error
            self._callback_error = error
            if self._scope is not None:
                self._scope.cancel(reason="a callback has raised")

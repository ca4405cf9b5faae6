"""Relay: pass bytes both ways between two streams, until both directions have ended.

:func:`relay` does it in the calling task; after :func:`hand_over` the server does it
when the handler has returned. Between two sockets the engine moves the bytes, between
other streams tasks do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Coroutine, Generator, Sequence
from typing import Any, Protocol

import trio

from ._arguments import check_method, check_seconds, check_type
from ._attachments import HandedOver, RelayHandle, RelayOwner
from ._connection import Connection, lifecycle_of
from ._describe import describe
from ._engine import SUPPORTED as HAS_ENGINE
from ._factory import is_of_a_factory
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._reason import Reason
from ._relay_engine import EngineRelay, pumps_between
from ._relay_options import RelayOptions
from ._relay_rules import RelayRules
from ._relay_tasks import TaskRelay
from ._results import Flow, RelayResult
from ._shared_socket import SharedSocketTransport
from ._stream_transport import StreamTransport
from ._tcp import Setting
from ._timers import Timers
from ._transport import Transport


class _RunnableRelay(HandedOver, Protocol):
    """A relay that has not started, with all of its steps in one method."""

    def run(self) -> Coroutine[Any, Any, RelayResult]: ...


class Relay(RelayHandle, Awaitable[RelayResult]):
    """A relay that a handler hands over to the server; see :func:`hand_over`.

    ``await`` it to run it in the handler instead: once, before the handler returns.

    Raises:
      RuntimeError: it is awaited twice, or after the handler has returned.
    """

    __slots__ = ("_client", "_running")

    def __init__(self, running: _RunnableRelay, client: Lifecycle) -> None:
        self._running = running
        self._client = client
        client.hand_over(running)

    def __await__(self) -> Generator[Any, Any, RelayResult]:
        self._client.take_back(self._running)
        return self._running.run().__await__()


class _EndedRelay:
    """The relay of a connection that has ended before it; its result says why."""

    def __init__(self, client: Lifecycle) -> None:
        self._client = client

    async def run(self) -> RelayResult:
        await trio.lowlevel.checkpoint()
        return self._result

    async def prepare(self) -> None:
        """Do nothing: the client is closed."""

    def attach(self) -> None:
        """Do nothing: there are no timers."""

    def begin(self, owner: RelayOwner) -> bool:
        return False

    def move(self) -> Coroutine[Any, Any, Any]:
        return trio.lowlevel.checkpoint()  # noqa: ASYNC105

    def finish_now(self) -> bool:
        return True  # there is no upstream, and the client is closed

    async def finish(self) -> None:
        """Not called."""

    def detach(self) -> None:
        """Do nothing: there is nothing to clean up."""

    @property
    def _result(self) -> RelayResult:
        assert self._client.close_reason is not None
        reason, waited_for, limit, error = self._client.close_reason
        if self._client.exception is not None:
            error = describe(self._client.exception)
        nothing = Flow(received=0, delivered=0, discarded=0)
        return RelayResult(
            reason=reason,
            a_to_b=nothing,
            b_to_a=nothing,
            waited_for=waited_for,
            limit=limit,
            error=error,
        )


async def relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    *,
    first: bytes = b"",
    timeouts: Timeouts | None = None,
    drain_idle: float | None = None,
) -> RelayResult:
    """Pass bytes from ``a`` to ``b`` and back until both directions have ended.

    EOF on one side is passed on as EOF, and the other direction goes on. A
    side that can't send EOF, such as TLS, is flushed and then closed. A reset
    of one side resets the other, after the bytes that were received before it.
    If ``a`` and ``b`` are the same, it is an echo.

    Args:
      a: the client's side: a :class:`Connection` or any Trio stream.
      b: the target's side: a :class:`Connection` or any Trio stream.
      first: bytes that were received from ``a`` before, such as a header that
        names the target; they are passed on first, and count as received.
      timeouts: ``idle``, ``half_closed``, ``write_stall`` and ``first_byte``;
        default: those of the connection, or ``Timeouts()``.
      drain_idle: seconds without a byte, while the connection's server drains,
        after which both sides get EOF; default ``Timeouts.drain_idle``.

    Returns:
      how it ended; errors of the peers and shortages of this machine are results and
      do not raise. Both sides stay open if it ended well. Both are reset after a
      reset, a stall, an error of this machine, or with bytes undelivered. Both get EOF
      after *idle*.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
      trio.BusyResourceError: another task uses one of the streams.
      trio.ClosedResourceError: one of them was closed before.

    If it is cancelled, it resets both sides if a byte was received and not delivered,
    and otherwise leaves them open.
    """
    between = _StreamRelay(a, b, first, timeouts, drain_idle, closes_b=False)
    return await between.run()


def hand_over(
    conn: Connection,
    upstream: trio.abc.Stream,
    *,
    first: bytes = b"",
    timeouts: Timeouts | None = None,
    drain_idle: float | None = None,
) -> Relay:
    """Let the server relay ``conn`` to ``upstream`` after the handler has returned.

    If both streams are sockets, the task of the connection ends with the handler,
    because the server's engine moves their bytes. So a connection that only waits takes
    half the memory.
    The handler of :func:`proxy` returns such a relay; a handler that wraps it passes
    it on::

        async def logged(conn):
            log(conn.peer)
            return await inner(conn)

    The relay starts when the handler returns, with any return value. If the handler
    raises, both sides are reset. ``upstream`` belongs to the relay, which closes it at
    the end.

    Args:
      conn: the connection of the handler.
      upstream: a :class:`Connection` or any Trio stream.

    The other arguments are those of :func:`relay`.

    Returns:
      a relay for the handler to return. If the handler awaits it instead, it runs
      there, and gives its :class:`RelayResult`.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
      trio.BusyResourceError: a relay of ``conn`` is handed over already.
      trio.ClosedResourceError: ``conn`` was closed.
    """
    check_type("conn", conn, Connection, "a Connection")
    between = _StreamRelay(
        conn, upstream, first, timeouts, drain_idle, closes_b=True, name_b="upstream"
    )
    client = lifecycle_of(conn)
    client.transport.check_open()
    return Relay(between, client)


def relay_to_target(
    client: Lifecycle,
    upstream: Transport,
    timeouts: Timeouts,
    later: Sequence[Setting] = (),
) -> Relay:
    """:func:`hand_over` to an upstream that was dialed for ``client`` just now.

    Args:
      later: options of the upstream's socket, for :attr:`RelayOptions.later`.
    """
    options = RelayOptions(
        timeouts,
        timeouts.drain_idle,
        client.timers,
        upstream.moved_at,
        closes_b=True,
        client=client,
        later=later,
    )
    return Relay(make_relay(client.transport, upstream, b"", options), client)


def no_relay(client: Lifecycle) -> Relay:
    """A relay for a connection that ended without an upstream; its result says why."""
    return Relay(_EndedRelay(client), client)


def transport_of(stream: trio.abc.Stream) -> Transport:
    """The transport of a stream. Release it, unless the stream is a Connection.

    Raises:
      trio.ClosedResourceError: it was closed.
    """
    if isinstance(stream, Connection):
        transport = lifecycle_of(stream).transport
        transport.check_open()
        return transport
    if isinstance(stream, trio.SocketStream) and not is_of_a_factory(stream):
        return SharedSocketTransport(stream)
    return StreamTransport(stream)


def make_relay(
    a: Transport, b: Transport, first: bytes, options: RelayOptions
) -> RelayRules:
    """Make a relay by the engine if it can move the bytes of both, else one by tasks.

    Args:
      first: bytes that go to ``b`` before any other.
    """
    if HAS_ENGINE and (pumps := pumps_between(a, b, first)):
        return EngineRelay(pumps, options)
    return TaskRelay(a, b, first, options)


class _StreamRelay:
    """A relay between two streams; it takes their transports when it starts."""

    def __init__(
        self,
        a: trio.abc.Stream,
        b: trio.abc.Stream,
        first: bytes,
        timeouts: Timeouts | None,
        drain_idle: float | None,
        *,
        closes_b: bool,
        name_b: str = "b",
    ) -> None:
        for name, stream in (("a", a), (name_b, b)):
            check_method(name, stream, "receive_some", "send_all", "aclose")
        check_type("first", first, bytes, "bytes")
        if timeouts is not None:
            check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
        if drain_idle is not None:
            check_seconds("drain_idle", drain_idle)
        self._a = a
        self._b = b
        self._first = first
        self._drain_idle = drain_idle
        self._closes_b = closes_b
        self._client = lifecycle_of(a) if isinstance(a, Connection) else None
        self._server: Lifecycle | None = None
        if isinstance(b, Connection) and b is not a:
            self._server = lifecycle_of(b)
        self._owner = self._client or self._server
        if timeouts is None:
            timeouts = self._owner.timeouts if self._owner else Timeouts()
        self._timeouts = timeouts
        self._borrowed: list[Transport] = []
        self._running: RelayRules | None = None

    # -- run by the calling task

    async def run(self) -> RelayResult:
        try:
            self._running = running = await self._begin()
            if self._owner is not None:
                return await running.run()
            return await run_with_timers(running)
        finally:
            if self._closes_b and self._running is None:
                self._abort_upstream()
            self._release()

    # -- run by the server

    async def prepare(self) -> None:
        self._running = await self._begin()

    def attach(self) -> None:
        self._prepared.attach()

    def begin(self, owner: RelayOwner) -> bool:
        return self._prepared.begin(owner)

    def move(self) -> Coroutine[Any, Any, Any]:
        return self._prepared.move()

    def finish_now(self) -> bool:
        return self._prepared.finish_now()

    async def finish(self) -> None:
        await self._prepared.finish()

    @property
    def _prepared(self) -> RelayRules:
        assert self._running is not None
        return self._running

    def detach(self) -> None:
        if self._running is not None:
            self._running.detach()
        else:  # the handler has raised, or a stream can't be relayed
            self._abort_upstream()
        self._release()

    def _abort_upstream(self) -> None:
        if self._server is not None:
            why = "its relay did not start"
            self._server.close_as(Reason.ABORTED, error=why)
        with contextlib.suppress(trio.ClosedResourceError):
            for transport in self._borrowed or [self._take(self._b)]:
                transport.abort()

    # -- both

    async def _begin(self) -> RelayRules:
        a = self._take(self._a)
        b = a if self._b is self._a else self._take(self._b)
        for transport in (a, b):
            await transport.check_no_receiver()
        drain_idle = self._drain_idle
        options = RelayOptions(
            self._timeouts,
            self._timeouts.drain_idle if drain_idle is None else drain_idle,
            self._owner.timers if self._owner is not None else Timers(),
            trio.current_time(),
            closes_b=self._closes_b,
            client=self._client,
            server=self._server,
        )
        return make_relay(a, b, self._first, options)

    def _take(self, stream: trio.abc.Stream) -> Transport:
        transport = transport_of(stream)
        if not isinstance(stream, Connection):
            self._borrowed.append(transport)
        return transport

    def _release(self) -> None:
        """Release the transports of streams that are not connections."""
        for transport in self._borrowed:
            transport.release()
        self._borrowed.clear()


async def run_with_timers(running: RelayRules) -> RelayResult:
    """Run a relay together with its timers; its errors are raised without a group."""
    ended: RelayResult | Exception
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.options.timers.run)
        try:
            ended = await running.run()
        except Exception as error:
            ended = error
        nursery.cancel_scope.cancel(reason="the relay has ended")
    if isinstance(ended, Exception):
        raise ended
    return ended

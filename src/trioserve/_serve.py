"""Serve: the public server, and the functions that start one.

They check their arguments and leave the work to :mod:`._serving`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast, overload

import trio

from ._address import Address, TcpAddress, address_in
from ._arguments import (
    check_callable,
    check_count,
    check_handler,
    check_method,
    check_seconds,
    check_sync,
    check_type,
)
from ._certificates import Certificate
from ._collector import Collector, log_reports
from ._connection import Connection
from ._handlers import Spawns
from ._layers import Layers
from ._listeners import accept_source, open_listeners
from ._options import Limits, SocketOptions, Timeouts
from ._results import DrainSummary, Statistics
from ._serving import Serving
from ._tcp import Setting, apply, keepalive_settings, user_timeout_settings

#: The families of TCP sockets.
_TCP: Final = (socket.AF_INET, socket.AF_INET6)

Handler: TypeAlias = (
    Callable[[Connection], Awaitable[object]]
    | Callable[[trio.SocketStream], Awaitable[object]]
)


class _TaskStatus(Protocol):
    """The ``task_status`` of ``nursery.start``; trio-typing's stubs lack its type."""

    def started(self, value: Server, /) -> None: ...


class Server(Sequence[trio.SocketListener]):
    """A running server: inspect it, change its limits, drain it.

    It is also a sequence of its listeners, like the list that
    :func:`trio.serve_tcp` passes to ``nursery.start``. Call its methods from the Trio
    thread only.
    """

    def __init__(self, serving: Serving, settings: Sequence[Setting]) -> None:
        self._serving = serving
        self._settings = settings

    def __len__(self) -> int:
        return len(self._serving.loops.acceptors)

    @overload
    def __getitem__(self, index: int) -> trio.SocketListener: ...
    @overload
    def __getitem__(self, index: slice) -> list[trio.SocketListener]: ...
    def __getitem__(
        self, index: int | slice
    ) -> trio.SocketListener | list[trio.SocketListener]:
        return self._listeners[index]

    def __iter__(self) -> Iterator[trio.SocketListener]:
        return iter(self._listeners)

    def __repr__(self) -> str:
        ledger = self._serving.ledger
        where = ", ".join(a.address for a in self._serving.loops.acceptors)
        return f"<Server on {where}: {len(ledger.open)} open, {ledger.closed} closed>"

    @property
    def _listeners(self) -> list[trio.SocketListener]:
        # Nearly all are SocketListeners. The cast tells a type checker that they
        # have a socket.
        found = [acceptor.listener for acceptor in self._serving.loops.acceptors]
        return cast("list[trio.SocketListener]", found)

    @property
    def timeouts(self) -> Timeouts:
        """The server's timeouts.

        They may be replaced at any time. A connection that is open keeps its own.
        """
        return self._serving.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts")
        self._serving.timeouts = timeouts

    @property
    def limits(self) -> Limits:
        """The server's limits.

        They may be replaced at any time. Lower limits close no open connection.
        """
        return self._serving.admission.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        check_type("limits", limits, Limits, "a Limits")
        self._serving.set_limits(limits)

    @property
    def draining(self) -> trio.Event:
        """Set when the server drains, after the listeners are closed."""
        return self._serving.draining

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of its listeners, with the ports that the system chose.

        Listeners without an address are left out.
        """
        found = (address_in(a.address) for a in self._serving.loops.acceptors)
        return tuple(address for address in found if address is not None)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The open connections, oldest first."""
        return tuple(self._serving.ledger.open.values())

    def statistics(self) -> Statistics:
        """Return the server's counters at this moment."""
        return self._serving.statistics()

    def certificates(self) -> tuple[Certificate, ...]:
        """Return the certificates that its :class:`TlsOptions` have, as they are now.

        Those of an ``ssl.SSLContext`` of your own are not among them. Files that have
        changed are read first, as when a handshake begins: at most once a minute.
        """
        found = self._serving.loops.certificates
        for each in found:
            each.look()
        return tuple(state for each in found for state in each.states())

    def reload_certificates(self) -> tuple[Certificate, ...]:
        """Read the files of its :class:`TlsOptions` again, now; return what is in use.

        Without this call, a handshake reads files that have changed, at most once a
        minute. Connections that are open keep their certificate. If a file can't be
        used, the certificate from before stays in use; the logger
        ``trioserve.certificates`` and the ``error`` of the :class:`Certificate` say
        why. An ``ssl.SSLContext`` of your own is left alone.
        """
        found = self._serving.loops.certificates
        for each in found:
            each.reload()
        return tuple(state for each in found for state in each.states())

    def add_listener(
        self, listener: trio.abc.Listener[Any], *, layers: Layers | None = None
    ) -> None:
        """Start accepting connections from another listener.

        Args:
          listener: a Trio listener of any kind; the server closes it at the end.
          layers: for its connections; default: the ``layers`` of :func:`serve`.

        Raises:
          TypeError: ``listener`` is not a listener, or ``layers`` not a Layers.
          ValueError: the server has this listener already, or it can't have these
            layers.
          OSError: the listener's socket is closed.
          RuntimeError: the server is draining or has ended.
        """
        check_type("listener", listener, trio.abc.Listener, "a listener")
        if layers is not None:
            check_type("layers", layers, Layers, "a Layers or None")
        _set_up([listener], self._settings)
        self._serving.loops.add(listener, layers)

    async def close_listener(self, listener: trio.abc.Listener[Any]) -> None:
        """Stop accepting from one listener, and close it.

        Connections in its kernel queue are served while there are tokens; the rest are
        refused. Open connections and other listeners are not affected. A server
        without a listener keeps running until it is drained. Cancelling the wait does
        not undo the close.

        Raises:
          TypeError: ``listener`` is not a listener.
          ValueError: the server does not have this listener.
        """
        check_type("listener", listener, trio.abc.Listener, "a listener")
        await self._serving.loops.close(listener)

    def start_draining(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> None:
        """Start to drain: stop accepting, set :attr:`draining`, reset the rest later.

        A second call can only bring the deadline forward.

        Args:
          within: seconds until connections that are still open are reset; default
            ``Timeouts.drain``, or the deadline of an earlier call. The first call
            adds ``Timeouts.lame_duck``.
          reason: for the summary, which keeps that of the first call. If a later
            call brings the deadline forward, its reason is the ``error`` in the
            reports of connections that are reset at the deadline.

        Raises:
          TypeError, ValueError: an argument is invalid; the message names it.
        """
        if within is not None:
            check_seconds("within", within)
        check_type("reason", reason, str, "a str")
        self._serving.start_draining(within, reason)

    async def drain(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> DrainSummary:
        """Start to drain, as :meth:`start_draining` does, and wait for the end.

        It returns when all connections are closed and reported. If a handler does not
        end, it returns ``Timeouts.cleanup`` seconds after the deadline and names that
        task in the summary; the collector then has the same time again. Cancelling
        the wait does not undo the drain. A handler that calls this would wait for
        itself: call :meth:`start_draining` there.
        """
        self.start_draining(within, reason=reason)
        drain = self._serving.drain
        await drain.over.wait()
        assert drain.summary is not None
        return drain.summary


def _check(
    *,
    handler: object,
    limits: object,
    timeouts: object,
    layers: object,
    sockets: object,
    collector: object,
    report_buffer: object,
    handler_nursery: object,
    on_start: object,
    task_status: object,
) -> None:
    """Check the arguments before anything is opened or started."""
    check_handler(handler)
    if limits is not None:
        check_type("limits", limits, Limits, "a Limits or None")
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    if layers is not None:
        check_type("layers", layers, Layers, "a Layers or None")
    if sockets is not None:
        check_type("sockets", sockets, SocketOptions, "a SocketOptions or None")
    check_callable("collector", collector, "an async function of one argument")
    if report_buffer != math.inf:
        check_count("report_buffer", report_buffer, least=0, what="an int or math.inf")
    if handler_nursery is not None:
        check_method("handler_nursery", handler_nursery, "start_soon")
    if on_start is not None:
        check_sync("on_start", on_start)
    check_method("task_status", task_status, "started")


def _checked_listeners(listeners: object) -> list[trio.abc.Listener[Any]]:
    check_type("listeners", listeners, Iterable, "a list of listeners")
    found = list(cast("Iterable[trio.abc.Listener[Any]]", listeners))
    for each in found:
        check_type("listeners", each, trio.abc.Listener, "listeners, each of them")
    if len({id(accept_source(each)) for each in found}) < len(found):
        raise ValueError("listeners must not contain a listener twice")
    return found


def _settings_of(sockets: SocketOptions) -> Sequence[Setting]:
    return (
        *keepalive_settings(sockets.keepalive),
        *user_timeout_settings(sockets.user_timeout),
    )


def _set_up(
    listeners: Iterable[trio.abc.Listener[Any]], settings: Sequence[Setting]
) -> None:
    """Set the options of listening TCP sockets."""
    for listener in listeners:
        source = accept_source(listener)
        if isinstance(source, trio.socket.SocketType) and source.family in _TCP:
            apply(settings, source)


async def serve(
    handler: Handler,
    listeners: Iterable[trio.abc.Listener[Any]],
    *,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    layers: Layers | None = None,
    sockets: SocketOptions | None = None,
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    handler_nursery: Spawns | None = None,
    on_start: Callable[[Connection], object] | None = None,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve connections from ``listeners`` until drained or cancelled.

    Each connection gets a task that runs ``handler(stream)``. An exception in a
    handler resets its connection and is in that connection's report; only
    ``KeyboardInterrupt`` and ``SystemExit`` end the server. Start it with
    ``server = await nursery.start(serve, ...)``.

    Args:
      handler: an async callable of one argument, a :class:`Connection`, which has all
        methods of a :class:`trio.SocketStream`. Its return value is the ``result`` of
        the report.
      listeners: Trio listeners of any kind; the server closes them at the end.
      limits: how many connections at a time; default ``Limits()``.
      timeouts: in seconds; default ``Timeouts()``.
      layers: applied to a connection before its handler, such as access rules;
        default ``Layers()``: none.
      sockets: of TCP connections; default ``SocketOptions()``. It is applied to the
        listeners, whose connections have the options of these.
      collector: an async callable of one argument, the receiving end of a channel of
        :class:`ConnectionReport`; the channel ends after the last report. If the
        collector raises, the error is logged, later reports count as lost, and
        serving goes on; if it is not async, ``serve`` raises TypeError. Default
        :func:`log_reports`.
      report_buffer: reports that may wait for the collector, an int or ``math.inf``;
        default 10,000. Further ones are dropped and counted as lost.
      handler_nursery: where the tasks of connections are started; default: a nursery
        of the server. The server starts nothing else in yours and never cancels it.
        If serving is cancelled, ``serve`` ends at once, and the connections go on
        there, with their timers and reports.
      on_start: called with each connection just before its handler, in the same task.
        It must not wait. An exception in it counts as the handler's.
      task_status: gets the :class:`Server`.

    Returns:
      how the drain went.

    Raises:
      TypeError, ValueError: an argument is invalid, or ``listeners`` is empty; the
        message names the argument.
      OSError: no listener can accept connections; raised after a drain.
      RuntimeError: a task inside ``serve`` has cancelled the nursery that it runs in.
      trio.Cancelled: cancelled from outside; all connections were reset, and
        all reports sent.
    """
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        layers=layers,
        sockets=sockets,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        on_start=on_start,
        task_status=task_status,
    )
    checked = _checked_listeners(listeners)
    settings = _settings_of(SocketOptions() if sockets is None else sockets)
    _set_up(checked, settings)
    serving = Serving(
        checked,
        Limits() if limits is None else limits,
        Timeouts() if timeouts is None else timeouts,
        Layers() if layers is None else layers,
        report_buffer,
        handler_nursery,
    )
    server = Server(serving, settings)
    return await serving.run(
        handler, collector, on_start, lambda: task_status.started(server)
    )


async def serve_tcp(
    handler: Handler,
    port: int,
    *,
    host: str | None = None,
    backlog: int | None = None,
    handler_nursery: Spawns | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    layers: Layers | None = None,
    sockets: SocketOptions | None = None,
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    on_start: Callable[[Connection], object] | None = None,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve TCP connections on ``port`` until drained or cancelled.

    It takes the arguments of :func:`trio.serve_tcp`, and those of :func:`serve`.

    Args:
      handler: as for :func:`serve`.
      port: 0 to 65535; 0 picks a free port, the same for IPv4 and IPv6.
      host: a name or an address; default: all interfaces, as in Trio.
      backlog: as for :func:`open_listeners`.

    The other arguments, the return value and the errors are those of :func:`serve`.
    ``OSError`` is also raised if an address can't be bound.
    """
    if host is not None:
        check_type("host", host, str, "a str or None")
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        layers=layers,
        sockets=sockets,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        on_start=on_start,
        task_status=task_status,
    )
    listeners = await open_listeners(TcpAddress(host or "", port), backlog=backlog)
    return await serve(
        handler,
        listeners,
        limits=limits,
        timeouts=timeouts,
        layers=layers,
        sockets=sockets,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        on_start=on_start,
        task_status=task_status,
    )

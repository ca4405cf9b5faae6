"""Serve: the public server, and the functions that start one.

They check what they are given, and leave the work to :mod:`._serving`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, cast, overload

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
from ._collector import Collector, log_reports
from ._connection import Connection
from ._handlers import Spawns
from ._layers import Layers
from ._listeners import open_listeners, what_it_accepts_from
from ._options import Limits, Timeouts
from ._results import DrainSummary, Statistics
from ._serving import Serving

Handler: TypeAlias = (
    Callable[[Connection], Awaitable[object]]
    | Callable[[trio.SocketStream], Awaitable[object]]
)


class _TaskStatus(Protocol):
    """What ``nursery.start`` passes. Ours, because trio-typing's stubs lack Trio's."""

    def started(self, value: Server, /) -> None: ...


class Server(Sequence[trio.SocketListener]):
    """A server that runs: look at it, limit it, drain it.

    It is also the sequence of its listeners, as :func:`trio.serve_tcp` would return
    them: the ones that were passed to :func:`serve`. All methods must be called from
    the Trio thread.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

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
        # Nearly always they are; a type checker then knows of their socket.
        found = [acceptor.listener for acceptor in self._serving.loops.acceptors]
        return cast("list[trio.SocketListener]", found)

    @property
    def timeouts(self) -> Timeouts:
        """How long it waits for what.

        May be replaced at any time; a connection keeps those that it began with.
        """
        return self._serving.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts")
        self._serving.timeouts = timeouts

    @property
    def limits(self) -> Limits:
        """How many at once.

        May be replaced at any time; lower ones end nothing that is open.
        """
        return self._serving.admission.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        check_type("limits", limits, Limits, "a Limits")
        self._serving.set_limits(limits)

    @property
    def draining(self) -> trio.Event:
        """An event: it wants to stop."""
        return self._serving.draining

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the real ports; no listener without an address."""
        found = (address_in(a.address) for a in self._serving.loops.acceptors)
        return tuple(address for address in found if address is not None)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are open, oldest first."""
        return tuple(self._serving.ledger.open.values())

    def statistics(self) -> Statistics:
        """The counters now."""
        return self._serving.statistics()

    def add_listener(
        self, listener: trio.abc.Listener[Any], *, layers: Layers | None = None
    ) -> None:
        """Accept from one listener more, as from those that were passed.

        Args:
          listener: of any kind; it is closed at the end.
          layers: for its connections; default: those that were passed to
            :func:`serve`.

        Raises:
          TypeError: it is no listener.
          ValueError: it is one of this server's already.
          OSError: its socket was closed.
          RuntimeError: the server drains, or is over.
        """
        check_type("listener", listener, trio.abc.Listener, "a listener")
        if layers is not None:
            check_type("layers", layers, Layers, "a Layers or None")
        self._serving.loops.add(listener, layers)

    async def close_listener(self, listener: trio.abc.Listener[Any]) -> None:
        """Stop accepting from one listener, and close it; others go on.

        Connections that the kernel has accepted there are served if there is a token
        for them, or else refused. Those that are open go on. Cancelling the wait does
        not undo it. A server without a listener goes on, until it is drained.

        Raises:
          TypeError: it is no listener.
          ValueError: it is none of this server's.
        """
        check_type("listener", listener, trio.abc.Listener, "a listener")
        await self._serving.loops.close(listener)

    def start_draining(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> None:
        """Begin to stop: accept no more, tell handlers, cut what is left later.

        Called again it can only bring the deadline forward.

        Args:
          within: seconds until what is still open is reset; default
            ``Timeouts.drain``, or what was asked for before. The first time,
            ``Timeouts.lame_duck`` is added.
          reason: for the summary; the first one stays. A later one that brings
            the deadline forward is in the reports of those that are cut.
        """
        if within is not None:
            check_seconds("within", within)
        check_type("reason", reason, str, "a str")
        self._serving.start_draining(within, reason)

    async def drain(
        self, within: float | None = None, *, reason: str = "drain"
    ) -> DrainSummary:
        """Begin to stop, as :meth:`start_draining`, and wait for the end.

        It returns when everything is closed and reported; with a task that
        does not end, ``Timeouts.cleanup`` seconds after the deadline, with that
        task in the summary; a collector has as long again. Cancelling the wait
        does not undo it. A handler must not wait for itself: use
        :meth:`start_draining`.
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
    collector: object,
    report_buffer: object,
    handler_nursery: object,
    on_start: object,
    task_status: object,
) -> None:
    """See that these are what they may be, before anything is opened or begun."""
    check_handler(handler)
    if limits is not None:
        check_type("limits", limits, Limits, "a Limits or None")
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    if layers is not None:
        check_type("layers", layers, Layers, "a Layers or None")
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
    if len({id(what_it_accepts_from(each)) for each in found}) < len(found):
        raise ValueError("listeners must not have one of them twice")
    return found


async def serve(
    handler: Handler,
    listeners: Iterable[trio.abc.Listener[Any]],
    *,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    layers: Layers | None = None,
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    handler_nursery: Spawns | None = None,
    on_start: Callable[[Connection], object] | None = None,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve connections from ``listeners`` until drained or cancelled.

    A task runs ``handler(stream)`` for each. What a handler raises ends its
    connection, by RST, and is that connection's report; only
    ``KeyboardInterrupt`` and ``SystemExit`` end the server. Start it with
    ``server = await nursery.start(serve, ...)``.

    Args:
      handler: an async callable; gets a :class:`Connection`, which does all
        that a :class:`trio.SocketStream` does. What it returns is the report's
        ``result``.
      listeners: of any kind; they are closed at the end.
      limits: how many at once; default ``Limits()``.
      timeouts: how long to wait for what; default ``Timeouts()``.
      layers: what is done to a connection before its handler, such as access rules;
        default ``Layers()``, which is nothing.
      collector: an async callable; gets the receiving end of a channel of
        :class:`ConnectionReport`, which ends after the last. If it raises, that
        is logged, later reports count as lost, and serving goes on.
      report_buffer: reports that may wait for the collector; more are lost,
        and counted.
      handler_nursery: where connections are started, instead of a nursery of
        our own; nothing else is in it. It is never cancelled and gets no deadline
        by us: when serving is cancelled, it ends at once, and the connections go
        on, with their timers; each is reported when it ends.
      on_start: called with each connection when its handler is about to begin, in its
        task. It must return at once. What it raises is the handler's error.
      task_status: gets the :class:`Server`.

    Returns:
      how the drain went, after :meth:`Server.drain`.

    Raises:
      TypeError, ValueError: naming the argument that can't be; there is no listener.
      OSError: no listener can accept any more; after draining.
      RuntimeError: something that runs in it has cancelled a nursery of its own.
      trio.Cancelled: cancelled from outside; all connections were reset, and
        all reports sent.
    """
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        layers=layers,
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        on_start=on_start,
        task_status=task_status,
    )
    serving = Serving(
        _checked_listeners(listeners),
        Limits() if limits is None else limits,
        Timeouts() if timeouts is None else timeouts,
        Layers() if layers is None else layers,
        report_buffer,
        handler_nursery,
    )
    server = Server(serving)
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
    collector: Collector = log_reports,
    report_buffer: float = 10_000,
    on_start: Callable[[Connection], object] | None = None,
    task_status: _TaskStatus = trio.TASK_STATUS_IGNORED,
) -> DrainSummary:
    """Serve TCP on ``port``: :func:`trio.serve_tcp`, and more, under its name.

    Args:
      handler: as for :func:`serve`.
      port: 0 to 65535; 0 picks a free one, the same for IPv4 and IPv6.
      host: a name or an address; default: all interfaces, as Trio does.
      backlog: as for :func:`open_listeners`.

    The rest, what it returns and what it raises is as for :func:`serve`; and
    ``OSError`` if it can't listen there.
    """
    if host is not None:
        check_type("host", host, str, "a str or None")
    _check(
        handler=handler,
        limits=limits,
        timeouts=timeouts,
        layers=layers,
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
        collector=collector,
        report_buffer=report_buffer,
        handler_nursery=handler_nursery,
        on_start=on_start,
        task_status=task_status,
    )

"""Proxy: the function that makes a handler which relays, and what that can do.

It checks its arguments. How a connection is relayed is in :mod:`._proxy_handler`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Protocol, get_args

from ._address import Address, TcpAddress, UnixAddress, is_numeric
from ._arguments import check_count, check_sync, check_type
from ._connect import Outgoing
from ._connection import Connection
from ._dial import Dialing
from ._discovery import Discovery
from ._endpoints import Endpoints
from ._options import SocketOptions, Timeouts
from ._proxy_handler import ProxyHandler
from ._proxy_header import Version
from ._relay import Relay
from ._report import Attempt
from ._target_lists import Given, TargetList, parse_target
from ._targets import Balance, Health, Target, TargetState, check_balance
from ._tcp import keepalive_settings, user_timeout_settings
from .faults import Faults, parse_faults


class Proxy(Protocol):
    """The handler that :func:`proxy` makes."""

    async def __call__(self, conn: Connection) -> Relay:
        """Dial a target for this connection, and relay."""
        ...

    def targets(self) -> Sequence[TargetState]:
        """What is known of each target now, in the order in which they were given.

        Call it in a Trio run, at any time.
        """
        ...

    async def run_beside(self) -> None:
        """Check the targets and follow lists of targets, until cancelled.

        A server does this itself if its handler is this one, or comes from
        :func:`by_server_name` with it. If your own handler calls this one, start it:
        ``nursery.start_soon(handler.run_beside)``. A second call waits until the first
        one ends. It returns at once without checks and lists.
        """
        ...

    def reload_targets(self) -> bool:
        """Read all files that list targets now, and ask name servers for all records.

        The logger ``trioserve.targets`` has the results. Call it in the Trio run that
        serves.

        Returns:
          whether the handler has such files or records.
        """
        ...

    def drain(self, target: str | Address | Target | TargetList) -> None:
        """Give a target no new connections, until :meth:`revive`.

        Connections that it has go on, those included that are being dialed;
        ``TargetState.open`` says how many there are. Connections that wait for room
        get another target. If all targets are drained, clients wait for one that is
        revived, up to ``Timeouts.connect``; then they are reset, with the reason
        ``target_full``. Idempotent. Call it in the Trio run that serves.

        Args:
          target: one that was given to :func:`proxy`, or that a list has now, as a
            text, an address or a :class:`Target`. An address is that of all targets
            that have it. A name, or a list, is all its targets, and those that come
            later.

        Raises:
          TypeError, ValueError: it is none of the handler's targets; the message names
            the argument.
        """
        ...

    def revive(self, target: str | Address | Target | TargetList) -> None:
        """Give a target connections again, if it is up; the opposite of :meth:`drain`.

        Idempotent. Its arguments and errors are those of :meth:`drain`.
        """
        ...


def proxy(
    target: str | Address | Target | TargetList,
    *others: str | Address | Target | TargetList,
    balance: Balance = "first",
    health: Health | None = None,
    max_per_target: int | None = None,
    timeouts: Timeouts | None = None,
    faults: str | Faults | None = None,
    seed: int = 0,
    on_attempt: Callable[[Address, Attempt], object] | None = None,
    on_target: Callable[[TargetState], object] | None = None,
    send_proxy: Version | None = None,
    sockets: SocketOptions | None = None,
    source: str | None = None,
) -> Proxy:
    """Make a handler that dials one of the targets, or else the next, and relays.

    Each connection gets a target by ``balance``. If that can't be reached, the next one
    is tried, until ``Timeouts.connect`` is over; the addresses of one name are tried
    side by side (RFC 8305). A target that fails again and again is left out for a while
    (:class:`Health`). While another target is up, one that does not answer is waited
    for a little longer than connecting usually takes: 0.25 to 1 s, or at least 0.05 s
    if it is down and tried again. Else each gets an equal share of the time.

    If no target can be reached, the client is reset and the report says why; its
    ``attempts`` has all attempts. While it dials, it does not receive from the client.
    It stops dialing if the client resets the connection, or one second after the
    client's EOF if the client has sent no byte.

    Names are looked up in threads, one per name. An answer is used for 10 seconds; the
    last good one is used for longer if a new look-up fails.

    A file that lists targets is read now, and again within a second after it has
    changed, while a server serves. A name of which each address is a target is looked
    up again when its answer is 8 seconds old, and records when their TTL is over;
    as long as a proxy knows of no target at all, connections wait. A target that stays
    in a list keeps its state; one that is gone gets no new connections, and those that
    it has go on. If a list can't be used, it stays as it was, and the logger
    ``trioserve.targets`` says why.

    A loop is detected: a connection that this handler has dialed, directly or through
    other proxies of this run, is reset. A loop over several processes is not detected;
    ``Limits`` bound it.

    Args:
      target, others: texts for :func:`parse_target` (``db1:5432``,
        ``db1:5432?weight=3``, ``db2:5432?backup``, ``file:/etc/targets``,
        ``dns://db:5432``, ``srv://_postgresql._tcp.example.org``), addresses,
        :class:`Target`, or lists of targets, :class:`TargetFile`,
        :class:`AddressRecords` and :class:`SrvRecords`. Each target has a host and a
        port, or the path of a Unix socket.
      balance: which target a connection gets, of those that are up: ``"first"``
        (default), in the order in which they are given; ``"round-robin"``, in turn;
        ``"least-connections"``, the one with the fewest; ``"random"``, the one of two
        that has fewer, drawn at random; ``"source"``, by the client's IP address, the
        same one as long as it is up (rendezvous hashing). All but the first go by
        weight.
      health: when a target counts as down, and whether targets are checked; default
        ``Health()``: they are not.
      max_per_target: connections that a target has at a time. If all targets that are
        up are full, further connections wait, in the order in which they came, up to
        ``Timeouts.connect``. Default None: any number.
      timeouts: for dialing and relaying, in seconds; default: those of the server.
      faults: applied to each connection, for tests: a
        :class:`trioserve.faults.Faults`, or its text. The report says which were
        applied. Default: none.
      seed: of the random numbers in the faults. With the same seed, the same bytes of
        the n-th connection get the same faults. Default 0.
      on_attempt: called with the target (as an address) and an :class:`Attempt` when an
        attempt to connect has succeeded or failed, long before the connection's
        report; not for attempts that were cancelled. It must not wait. An exception in
        it ends the connection as ``handler_error``.
      on_target: called with a :class:`TargetState` when a target goes down, and when it
        is up again; under the same rules. If that is because of a check, an exception
        in it is logged.
      send_proxy: ``"v1"`` or ``"v2"``: begin each connection to a target with a header
        of the PROXY protocol, of this version, which declares the client, and in
        version 2 what is known of its TLS. The target must be told to expect it. The
        bytes of the header are in no count. Default: no header.
      sockets: of connections to targets; default ``SocketOptions()``.
      source: an IP address of this machine to connect from; targets of the other family
        can't be dialed then. Default: the system chooses.

    Raises:
      TypeError, ValueError: an argument is invalid, a target can't be dialed, or a file
        can't be used; the message names it.

    If the handler is cancelled, it closes the sockets that it dials; a relay is reset
    if it holds bytes.
    """
    kinds = (str, TcpAddress, UnixAddress, Target, *get_args(TargetList))
    for name, each in (("target", target), *(("others", other) for other in others)):
        check_type(name, each, kinds, "a text, an address, a Target or a list of them")
    check_balance(balance)
    if health is not None:
        check_type("health", health, Health, "a Health or None")
    if max_per_target is not None:
        check_count("max_per_target", max_per_target, least=1)
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    if faults is not None:
        check_type("faults", faults, (str, Faults), "a text, a Faults or None")
    check_type("seed", seed, int, "an int")
    for name, callback in (("on_attempt", on_attempt), ("on_target", on_target)):
        if callback is not None:
            check_sync(name, callback)
    if send_proxy is not None and send_proxy not in get_args(Version):
        raise ValueError(f"send_proxy must be 'v1', 'v2' or None, not {send_proxy!r}")
    if sockets is not None:
        check_type("sockets", sockets, SocketOptions, "a SocketOptions or None")
    if source is not None:
        check_type("source", source, str, "a str or None")
    given = [_as_given(each) for each in (target, *others)]
    discovery = Discovery(given)
    parsed = parse_faults(faults) if isinstance(faults, str) else faults
    health = health or Health()
    dialing = Dialing(
        Endpoints(
            discovery.targets,
            balance,
            health,
            max_per_target,
            given=given[0],
            origins=discovery.origins,
        ),
        _outgoing(sockets or SocketOptions(), source),
        on_attempt,
        on_target,
    )
    return ProxyHandler(discovery, dialing, health, timeouts, parsed, seed, send_proxy)


def _outgoing(sockets: SocketOptions, source: str | None) -> Outgoing:
    settings = user_timeout_settings(sockets.user_timeout)
    later = keepalive_settings(sockets.keepalive)
    if source is None:
        return Outgoing(settings, later)
    if not is_numeric(source) or "%" in source:
        raise ValueError(f"source must be an IP address without a zone, not {source!r}")
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return Outgoing(settings, later, (family, source))


def _as_given(target: str | Address | Target | TargetList) -> Given:
    if isinstance(target, str):
        return parse_target(target)
    return Target(target) if isinstance(target, Address) else target

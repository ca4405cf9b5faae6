"""Proxy: a handler that relays each connection to a target, with optional faults."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol, get_args

import trio

from ._address import Address, TcpAddress, UnixAddress, is_numeric
from ._arguments import check_count, check_sync, check_type
from ._checks import Checks
from ._connect import Outgoing, is_local_shortage
from ._connection import Connection, lifecycle_of
from ._dial import DialCancelledError, Dialer, Dialing, NoRoomError
from ._dispatch import PromptHandler
from ._endpoints import Endpoints
from ._errors import is_ours, isolated
from ._handlers import Companion
from ._lifecycle import Lifecycle
from ._options import SocketOptions, Timeouts
from ._origins import origin_of
from ._proxy_header import Version, header_for, header_for_check
from ._reason import Phase, Reason
from ._relay import Relay, no_relay, relay_to_target
from ._report import Attempt
from ._targets import (
    Balance,
    Health,
    Target,
    TargetState,
    check_balance,
    parse_target,
)
from ._tcp import keepalive_settings, user_timeout_settings
from ._tls_layer import agreed_alpn
from ._transport import Transport
from .faults import Faults, parse_faults
from .faults._relay import ActiveFaults, FaultyRelay

#: Dialing ends so many seconds after the EOF of a client that has sent no byte. It may
#: have closed only its own direction; HAProxy ends such a session at once.
_PATIENCE: Final = 1.0

#: Don't watch the client in the first so many seconds of dialing: most targets answer
#: within them, and watching costs as much as connecting.
_UNWATCHED: Final = 0.05


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

    async def run_checks(self) -> None:
        """Check the targets until cancelled, if ``Health.check`` is set.

        A server does this by itself if its handler is this one, or one that
        :func:`by_server_name` has made with it. Call it for a handler of your own that
        calls this one: ``nursery.start_soon(handler.run_checks)``. If the checks run
        already, it waits until that has ended.

        Raises:
          RuntimeError: ``Health.check`` is not set.
        """
        ...

    def drain(self, target: str | Address | Target) -> None:
        """Give a target no new connections, until :meth:`revive`.

        Connections that it has go on, those included that are being dialed;
        ``TargetState.open`` says how many there are. Connections that wait for room
        get another target. If all targets are drained, clients wait for one that is
        revived, up to ``Timeouts.connect``; then they are reset, with the reason
        ``target_full``. Idempotent. Call it in the Trio run that serves.

        Args:
          target: one that was given to :func:`proxy`, as a text, an address or a
            :class:`Target`. An address is that of all targets that have it.

        Raises:
          TypeError, ValueError: it is none of the handler's targets; the message names
            the argument.
        """
        ...

    def revive(self, target: str | Address | Target) -> None:
        """Give a target connections again, if it is up; the opposite of :meth:`drain`.

        Idempotent. Its arguments and errors are those of :meth:`drain`.
        """
        ...


def proxy(
    target: str | Address | Target,
    *others: str | Address | Target,
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

    A loop is detected: a connection that this handler has dialed, directly or through
    other proxies of this run, is reset. A loop over several processes is not detected;
    ``Limits`` bound it.

    Args:
      target, others: texts for :func:`parse_address`, which may have options behind it
        (``db1:5432?weight=3``, ``db2:5432?backup``), addresses, or :class:`Target`;
        each with a host and a port, or with the path of a Unix socket.
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
      TypeError, ValueError: an argument is invalid, or a target can't be dialed; the
        message names it.

    If the handler is cancelled, it closes the sockets that it dials; a relay is reset
    if it holds bytes.
    """
    for name, each in (("target", target), *(("others", other) for other in others)):
        _check_target(name, each)
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
    targets = [_as_target(each) for each in (target, *others)]
    parsed = parse_faults(faults) if isinstance(faults, str) else faults
    health = health or Health()
    dialing = Dialing(
        Endpoints(targets, balance, health, max_per_target),
        _outgoing(sockets or SocketOptions(), source),
        on_attempt,
        on_target,
    )
    return _Proxy(dialing, health, timeouts, parsed, seed, send_proxy)


class _Proxy(PromptHandler, Companion):
    """The handler; see :func:`proxy`."""

    def __init__(
        self,
        dialing: Dialing,
        health: Health,
        timeouts: Timeouts | None,
        faults: Faults | None,
        seed: int,
        send_proxy: Version | None,
    ) -> None:
        self._dialing = dialing
        self._outgoing = dialing.outgoing
        #: Its identity in the origins of the sockets that it dials.
        self._mark = object()
        self._first = (self._mark,)
        self._timeouts = timeouts
        self._faults = faults or None  # asked once: that takes 3 us
        self._seed = seed
        self._send_proxy: Version | None = send_proxy
        self._checks: Checks | None = None
        if health.check is not None:
            header = b"" if send_proxy is None else header_for_check(send_proxy)
            self._checks = Checks(dialing, health, self._first, header)

    def targets(self) -> Sequence[TargetState]:
        return self._dialing.endpoints.states(trio.current_time())

    def drain(self, target: str | Address | Target) -> None:
        found = _given(target)
        if not self._dialing.endpoints.drain(found):
            raise self._unknown(target)

    def revive(self, target: str | Address | Target) -> None:
        found = _given(target)
        if not self._dialing.endpoints.revive(found):
            raise self._unknown(target)

    async def run_checks(self) -> None:
        if self._checks is None:
            raise RuntimeError("this proxy has no checks: its Health has no check")
        await self._checks.run()

    async def run_beside(self) -> None:
        if self._checks is not None:
            await self._checks.run()

    def _unknown(self, target: object) -> ValueError:
        known = ", ".join(str(each.target) for each in self._dialing.endpoints.all)
        return ValueError(
            f"target must be a target of this proxy ({known}), not {str(target)!r}"
        )

    async def __call__(self, conn: Connection) -> Relay:
        check_type("conn", conn, Connection, "a Connection")
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.begin(conn) or await self.go_on(conn)

    def begin(self, conn: Connection) -> Relay | None:
        life = lifecycle_of(conn)
        life.check_not_handed_over()
        life.transport.check_open()
        if self._faults is not None:
            active = ActiveFaults(self._faults, self._seed, life.id)
            life.active_faults = active
            if active.refuse:
                return _refuse(life, Reason.FAULT)
        life.phase = Phase.CONNECT
        origin = origin_of(*(life.direct or (life.peer, life.local)))
        if life.dialer is not None:  # a relay before this one is over
            life.dialer.release()
        version = self._send_proxy
        dialer = life.dialer = Dialer(
            self._dialing,
            (*origin, self._mark) if origin else self._first,
            life.peer,
            b"" if version is None else header_for(life, version),
            agreed_alpn(life),
        )
        if self._mark in origin:
            return _refuse(life, Reason.LOOP)
        if life.transport.is_reset():
            # The client is gone: don't dial. Proxies that lead to each other would
            # pass on a reset without end.
            return _refuse(life, Reason.CLIENT_RESET, life.transport.error)
        if life.transport.for_engine() is None:
            # The relay needs a task in any case. And the client may be one of a test's
            # network, in which the target is: dial() asks for that, which takes 2 us.
            return None
        upstream = dialer.connect_now()
        return None if upstream is None else self._relay_to(upstream, life)

    async def go_on(self, conn: Connection) -> Relay:
        life = lifecycle_of(conn)
        assert isinstance(life.dialer, Dialer)
        upstream = await _dial(life, life.dialer, self._timeouts_for(life).connect)
        if upstream is None:
            life.transport.abort()
            return no_relay(life)
        return self._relay_to(upstream, life)

    def _relay_to(self, upstream: Transport, life: Lifecycle) -> Relay:
        if self._send_proxy is not None and is_ours(upstream.error):
            upstream.abort()  # the header was not sent
            return _refuse(life, Reason.RESOURCE, upstream.error)
        life.phase = Phase.DATA
        life.connected_at = upstream.moved_at  # the transport is new: this is now
        timeouts = self._timeouts_for(life)
        if self._faults is not None:
            assert isinstance(life.active_faults, ActiveFaults)
            upstream.apply(self._outgoing.later)
            faulty = FaultyRelay(life.active_faults, life, upstream, timeouts)
            return Relay(faulty, life)
        return relay_to_target(life, upstream, timeouts, self._outgoing.later)

    def _timeouts_for(self, life: Lifecycle) -> Timeouts:
        return self._timeouts or life.timeouts


def _refuse(
    life: Lifecycle, reason: Reason, error: BaseException | None = None
) -> Relay:
    """Reset a client for which no target is dialed."""
    life.close_as(reason, exception=error)
    life.transport.abort()
    return no_relay(life)


class _ClientWatch:
    """Ends the dialing when the client is gone."""

    __slots__ = ("_dialer", "_life", "_scope", "timer_due")

    def __init__(self, life: Lifecycle, dialer: Dialer) -> None:
        self.timer_due = math.inf
        self._life = life
        self._dialer = dialer
        self._scope: trio.CancelScope | None = None

    def begin(self) -> None:
        """Start the watch after :data:`_UNWATCHED` seconds."""
        self._life.timers.watch(self, trio.current_time() + _UNWATCHED)

    def end(self) -> None:
        self._life.timers.forget(self)
        if self._scope is not None:
            self._scope.cancel(reason="dialed")

    def on_timer(self, now: float) -> None:
        if self._scope is None:
            self._scope = trio.CancelScope()
            name = f"trioserve watch of conn-{self._life.id} {self._life.peer}"
            trio.lowlevel.spawn_system_task(self._run, self._scope, name=name)

    async def _run(self, scope: trio.CancelScope) -> None:
        # Without descriptors or memory for the watch, dialing goes on unwatched.
        with scope, isolated():
            await self._life.transport.wait_peer_gone(_PATIENCE)
            self._dialer.cancel()


async def _dial(life: Lifecycle, dialer: Dialer, seconds: float) -> Transport | None:
    """Connect; if that fails, keep the reason and return None."""
    watch = _ClientWatch(life, dialer)
    dialer.on_wait = watch.begin
    try:
        return await dialer.dial(seconds)
    except OSError as failed:
        reason = _reason(failed)
        limit: float | None = None
        if reason is Reason.CONNECT_TIMEOUT:
            limit = seconds
        elif reason is Reason.TARGET_FULL:
            limit = dialer.max_open
        life.close_as(reason, limit=limit, exception=failed)
    except DialCancelledError:
        pass
    finally:
        dialer.on_wait = None
        watch.end()
    dialer.raise_callback_error()
    if life.close_reason is None:
        reset = life.transport.error
        life.close_as(
            Reason.CLIENT_GONE if reset is None else Reason.CLIENT_RESET,
            exception=reset,
        )
    return None


def _outgoing(sockets: SocketOptions, source: str | None) -> Outgoing:
    settings = user_timeout_settings(sockets.user_timeout)
    later = keepalive_settings(sockets.keepalive)
    if source is None:
        return Outgoing(settings, later)
    if not is_numeric(source) or "%" in source:
        raise ValueError(f"source must be an IP address without a zone, not {source!r}")
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return Outgoing(settings, later, (family, source))


def _check_target(name: str, target: object) -> None:
    kinds = (str, TcpAddress, UnixAddress, Target)
    check_type(name, target, kinds, "a text, an address or a Target")


def _given(target: str | Address | Target) -> Address | Target:
    """What an argument means; the address, if it is a text without options."""
    _check_target("target", target)
    if not isinstance(target, str):
        return target
    found = parse_target(target)
    return found if "?" in target or found.tls is not None else found.address


def _as_target(target: str | Address | Target) -> Target:
    if isinstance(target, str):
        return parse_target(target)
    return target if isinstance(target, Target) else Target(target)


def _reason(error: OSError) -> Reason:
    if is_local_shortage(error):
        return Reason.RESOURCE
    if isinstance(error, NoRoomError):
        return Reason.TARGET_FULL
    if isinstance(error, TimeoutError):
        return Reason.CONNECT_TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Reason.CONNECT_REFUSED
    return Reason.CONNECT_FAILED

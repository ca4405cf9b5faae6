"""Proxy: a handler that relays each connection to a target, with optional faults."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, get_args

import trio

from ._address import Address, TcpAddress, UnixAddress, is_numeric, parse_address
from ._arguments import check_sync, check_type
from ._connect import Outgoing, is_local_shortage
from ._connection import Connection, lifecycle_of
from ._dial import DialCancelledError, Dialer, OnAttempt
from ._dispatch import PromptHandler
from ._errors import is_ours, isolated
from ._lifecycle import Lifecycle
from ._options import SocketOptions, Timeouts
from ._origins import origin_of
from ._proxy_header import Version, header_for
from ._reason import Phase, Reason
from ._relay import Relay, no_relay, relay_to_target
from ._report import Attempt
from ._socket_transport import SocketTransport
from ._tcp import apply, keepalive_settings, user_timeout_settings
from .faults import Faults, parse_faults
from .faults._relay import ActiveFaults, FaultyRelay

#: Dialing ends so many seconds after the EOF of a client that has sent no byte. It may
#: have closed only its own direction; HAProxy ends such a session at once.
_PATIENCE: Final = 1.0

#: Don't watch the client in the first so many seconds of dialing: most targets answer
#: within them, and watching costs as much as connecting.
_UNWATCHED: Final = 0.05


def proxy(
    target: str | Address,
    *others: str | Address,
    timeouts: Timeouts | None = None,
    faults: str | Faults | None = None,
    seed: int = 0,
    on_attempt: Callable[[Address, Attempt], object] | None = None,
    send_proxy: Version | None = None,
    sockets: SocketOptions | None = None,
    source: str | None = None,
) -> Callable[[Connection], Awaitable[Relay]]:
    """Make a handler that dials ``target``, or else the next of ``others``, and relays.

    Targets are tried in order, each with an equal share of the rest of
    ``Timeouts.connect``; the addresses of one name are tried side by side (RFC 8305).
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
      target, others: texts for :func:`parse_address`, or addresses; each with a host
        and a port, or with the path of a Unix socket.
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
      send_proxy: ``"v1"`` or ``"v2"``: begin each connection to a target with a header
        of the PROXY protocol, of this version, which declares the client. The target
        must be told to expect it. The bytes of the header are in no count. Default: no
        header.
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
        check_type(name, each, (str, TcpAddress, UnixAddress), "a text or an address")
    if timeouts is not None:
        check_type("timeouts", timeouts, Timeouts, "a Timeouts or None")
    if faults is not None:
        check_type("faults", faults, (str, Faults), "a text, a Faults or None")
    check_type("seed", seed, int, "an int")
    if on_attempt is not None:
        check_sync("on_attempt", on_attempt)
    if send_proxy is not None and send_proxy not in get_args(Version):
        raise ValueError(f"send_proxy must be 'v1', 'v2' or None, not {send_proxy!r}")
    if sockets is not None:
        check_type("sockets", sockets, SocketOptions, "a SocketOptions or None")
    if source is not None:
        check_type("source", source, str, "a str or None")
    targets = [_dialable(each) for each in (target, *others)]
    parsed = parse_faults(faults) if isinstance(faults, str) else faults
    outgoing = _outgoing(sockets or SocketOptions(), source)
    return _Proxy(targets, timeouts, parsed, seed, on_attempt, send_proxy, outgoing)


class _Proxy(PromptHandler):
    """The handler; see :func:`proxy`."""

    def __init__(
        self,
        targets: Sequence[Address],
        timeouts: Timeouts | None,
        faults: Faults | None,
        seed: int,
        on_attempt: OnAttempt | None,
        send_proxy: Version | None,
        outgoing: Outgoing,
    ) -> None:
        self._on_attempt = on_attempt
        self._targets = targets
        #: Its identity in the origins of the sockets that it dials.
        self._mark = object()
        self._first = (self._mark,)
        self._timeouts = timeouts
        self._faults = faults or None  # asked once: that takes 3 us
        self._seed = seed
        self._send_proxy: Version | None = send_proxy
        self._outgoing = outgoing

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
        dialer = life.dialer = Dialer(
            self._targets,
            (*origin, self._mark) if origin else self._first,
            self._on_attempt,
            self._outgoing,
        )
        if self._mark in origin:
            return _refuse(life, Reason.LOOP)
        if life.transport.is_reset():
            # The client is gone: don't dial. Proxies that lead to each other would
            # pass on a reset without end.
            return _refuse(life, Reason.CLIENT_RESET, life.transport.error)
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

    def _relay_to(self, upstream: SocketTransport, life: Lifecycle) -> Relay:
        if self._send_proxy is not None:
            upstream.send_preface(header_for(life, self._send_proxy))
            if is_ours(upstream.error):
                upstream.abort()
                return _refuse(life, Reason.RESOURCE, upstream.error)
        life.phase = Phase.DATA
        life.connected_at = upstream.moved_at  # the transport is new: this is now
        timeouts = self._timeouts_for(life)
        if self._faults is not None:
            assert isinstance(life.active_faults, ActiveFaults)
            apply(self._outgoing.later, upstream.sock)
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


async def _dial(
    life: Lifecycle, dialer: Dialer, seconds: float
) -> SocketTransport | None:
    """Connect; if that fails, keep the reason and return None."""
    watch = _ClientWatch(life, dialer)
    dialer.on_wait = watch.begin
    try:
        return await dialer.dial(seconds)
    except OSError as failed:
        reason = _reason(failed)
        limit = seconds if reason is Reason.CONNECT_TIMEOUT else None
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


def _dialable(target: str | Address) -> Address:
    address = parse_address(target) if isinstance(target, str) else target
    match address:
        case TcpAddress(host="", port=port):
            raise ValueError(
                f"the target {str(address)!r} has no host;"
                f" did you mean 127.0.0.1:{port}?"
            )
        case TcpAddress(port=0):
            raise ValueError(
                f"the target {str(address)!r} has port 0: it can't be dialed"
            )
        case UnixAddress(mode=int()):
            raise ValueError(
                f"the target {str(address)!r} has a mode, which is for listening;"
                f" did you mean unix:{address.path}?"
            )
        case _:
            return address


def _reason(error: OSError) -> Reason:
    if is_local_shortage(error):
        return Reason.RESOURCE
    if isinstance(error, TimeoutError):
        return Reason.CONNECT_TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Reason.CONNECT_REFUSED
    return Reason.CONNECT_FAILED

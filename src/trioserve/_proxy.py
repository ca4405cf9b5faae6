"""Proxy: each connection is relayed to a target, perhaps with faults on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from ._address import Address, TcpAddress, UnixAddress, parse_address
from ._arguments import check_sync, check_type
from ._connect import is_local_shortage
from ._connection import Connection, lifecycle_of
from ._dial import DialCancelledError, Dialer, OnAttempt
from ._errors import isolated
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._origins import origin_of
from ._reason import Phase, Reason
from ._relay import Relay, no_relay, relay_to_target
from ._report import Attempt
from ._timers import TimerEntry
from ._transport import Transport
from .faults import Faults, parse_faults
from .faults._relay import ActiveFaults, FaultyRelay

#: Seconds after which dialing ends for a client that has closed and sent nothing. It
#: may have closed only its own direction; HAProxy ends such a session at once.
_PATIENCE: Final = 1.0

#: Seconds of dialing before the client is watched: most targets are connected by then,
#: and to watch would cost as much as to connect.
_UNWATCHED: Final = 0.05


def proxy(
    target: str | Address,
    *others: str | Address,
    timeouts: Timeouts | None = None,
    faults: str | Faults | None = None,
    seed: int = 0,
    on_attempt: Callable[[Address, Attempt], object] | None = None,
) -> Callable[[Connection], Awaitable[Relay]]:
    """A handler that dials ``target``, or the first of ``others``, and relays.

    Targets are tried in the order in which they are given, each with an equal
    share of what is left of ``Timeouts.connect``; the addresses of one name side
    by side (RFC 8305). If none can be reached, the client is reset and the
    report says why; its ``attempts`` has every try. While it dials, nothing is
    read from the client. If the client resets meanwhile, or has closed for a
    second and never said a thing, that is the end of it.

    Names are looked up in threads, one at a time for a name. An answer is used
    for 10 seconds; the last good one is kept for when there is no new one.

    A connection whose other end this handler has dialed itself, or another proxy
    of this run on its behalf, is reset: the target leads back to the proxy. A
    loop over several processes is not seen; ``Limits`` bound it.

    Args:
      target, others: what :func:`parse_address` reads, with a host and a port
        or a Unix socket's path; or addresses.
      timeouts: for dialing and relaying; default: those of the server.
      faults: applied to each connection, for tests: a
        :class:`trioserve.faults.Faults`, or its text. The report says which were
        applied.
      seed: decides what is random in the faults. With the same seed, the same
        bytes of the n-th connection get the same faults.
      on_attempt: called with the target (as an address) and an
        :class:`Attempt` the moment a try to connect has succeeded or failed,
        long before the connection's report; not for tries that were given up.
        It must return at once. What it raises is the connection's
        ``handler_error``.

    Raises:
      TypeError, ValueError: naming what can't be; a target can't be read or dialed,
        or faults can't be read.
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
    targets = [_dialable(each) for each in (target, *others)]
    parsed = parse_faults(faults) if isinstance(faults, str) else faults
    return _Proxy(targets, timeouts, parsed, seed, on_attempt)


class _Proxy:
    """The handler; see :func:`proxy`."""

    def __init__(
        self,
        targets: Sequence[Address],
        timeouts: Timeouts | None,
        faults: Faults | None,
        seed: int,
        on_attempt: OnAttempt | None,
    ) -> None:
        self._on_attempt = on_attempt
        self._targets = targets
        #: Its identity, in the origin of what it dials.
        self._mark = object()
        self._first = (self._mark,)
        self._timeouts = timeouts
        self._faults = faults
        self._seed = seed

    async def __call__(self, conn: Connection) -> Relay:
        check_type("conn", conn, Connection, "a Connection")
        life = lifecycle_of(conn)
        life.check_not_handed_over()
        life.transport.check_open()
        timeouts = self._timeouts or life.timeouts
        active = None
        if self._faults:
            active = ActiveFaults(self._faults, self._seed, life.id)
            life.active_faults = active
            if active.refuse:
                return _refuse(life, Reason.FAULT)
        life.phase = Phase.CONNECT
        origin = origin_of(life.peer, life.local)
        dialer = life.dialer = Dialer(
            self._targets,
            (*origin, self._mark) if origin else self._first,
            self._on_attempt,
        )
        if self._mark in origin:
            return _refuse(life, Reason.LOOP)
        if life.transport.is_reset():
            # There is no client to dial for. Proxies that lead to each other would
            # pass a reset on for ever.
            return _refuse(life, Reason.CLIENT_RESET, life.transport.error)
        upstream = await _dial(life, dialer, timeouts.connect)
        if upstream is None:
            life.transport.abort()
            return no_relay(life)
        life.phase = Phase.DATA
        life.connected_at = upstream.moved_at  # it was made just now
        if active is not None:
            return Relay(FaultyRelay(active, life, upstream, timeouts), life)
        return relay_to_target(life, upstream, timeouts)


def _refuse(
    life: Lifecycle, reason: Reason, error: BaseException | None = None
) -> Relay:
    """Reset a client for which no target is dialed."""
    life.close_as(reason, exception=error)
    life.transport.abort()
    return no_relay(life)


class _ClientWatch:
    """Ends the dialing for a client that is gone."""

    __slots__ = ("_dialer", "_life", "_scope", "timer_entry")

    def __init__(self, life: Lifecycle, dialer: Dialer) -> None:
        self.timer_entry: TimerEntry | None = None
        self._life = life
        self._dialer = dialer
        self._scope: trio.CancelScope | None = None

    def begin(self) -> None:
        """Watch, unless it is over soon."""
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
        # When descriptors or memory have run out, the client is not watched.
        with scope, isolated():
            await self._life.transport.wait_peer_gone(_PATIENCE)
            self._dialer.cancel()


async def _dial(life: Lifecycle, dialer: Dialer, seconds: float) -> Transport | None:
    """Connect; if that fails, keep why, which may be that the client is gone."""
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

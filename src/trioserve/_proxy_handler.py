"""Proxy handler: what :func:`proxy` makes, which relays each connection to a target.

Its arguments are checked already. This module does not know which target is next, or
how one is dialed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import trio

from ._address import Address, TcpAddress, UnixAddress
from ._arguments import check_type
from ._checks import Checks
from ._connection import Connection, lifecycle_of
from ._dial import Dialer, Dialing
from ._discovery import Discovery
from ._dispatch import PromptHandler
from ._errors import is_ours
from ._handlers import Companion
from ._lifecycle import Lifecycle
from ._options import Timeouts
from ._origins import origin_of
from ._proxy_header import Version, header_for, header_for_check
from ._reason import Phase, Reason
from ._relay import Relay, no_relay, relay_to_target
from ._target_lists import TargetList, parse_target
from ._targets import Health, Target, TargetState
from ._tls_layer import agreed_alpn
from ._transport import Transport
from ._watched_dial import dial_for
from .faults import Faults
from .faults._relay import ActiveFaults, FaultyRelay


class ProxyHandler(PromptHandler, Companion):
    """The handler; see :func:`proxy`."""

    def __init__(
        self,
        discovery: Discovery,
        dialing: Dialing,
        health: Health,
        timeouts: Timeouts | None,
        faults: Faults | None,
        seed: int,
        send_proxy: Version | None,
    ) -> None:
        self._discovery = discovery
        self._dialing = dialing
        self._outgoing = dialing.outgoing
        #: Its identity in the origins of the sockets that it dials.
        self._mark = object()
        self._first = (self._mark,)
        self._timeouts = timeouts
        self._faults = faults or None  # asked once: that takes 3 us
        self._seed = seed
        self._send_proxy: Version | None = send_proxy
        # Several servers may serve the same proxy; what runs beside is that of one.
        self._turn = trio.Lock()
        self._checks: Checks | None = None
        if health.check is not None:
            header = b"" if send_proxy is None else header_for_check(send_proxy)
            self._checks = Checks(dialing, health, self._first, header)

    def targets(self) -> Sequence[TargetState]:
        return self._dialing.endpoints.states(trio.current_time())

    def drain(self, target: str | Address | Target | TargetList) -> None:
        found = _given_target(target)
        if not self._dialing.endpoints.drain(found):
            raise self._unknown(target)

    def revive(self, target: str | Address | Target | TargetList) -> None:
        found = _given_target(target)
        if not self._dialing.endpoints.revive(found):
            raise self._unknown(target)

    def reload_targets(self) -> bool:
        self._discovery.reload(self._dialing.endpoints)
        return self._discovery.has_lists

    async def run_beside(self) -> None:
        endpoints = self._dialing.endpoints
        async with self._turn, trio.open_nursery() as nursery:
            if self._checks is not None:
                nursery.start_soon(self._checks.run, name="trioserve checks")
            if self._discovery.can_change:
                follow = self._discovery.run
                nursery.start_soon(follow, endpoints, name="trioserve targets")

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
        upstream = await dial_for(life, life.dialer, self._timeouts_for(life).connect)
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


def _given_target(target: str | Address | Target | TargetList) -> object:
    """What an argument means; the address, if it is a text without options."""
    kinds = (str, TcpAddress, UnixAddress, Target, *get_args(TargetList))
    check_type("target", target, kinds, "a text, an address or a Target")
    if not isinstance(target, str):
        return target
    found = parse_target(target)
    if isinstance(found, Target) and "?" not in target and found.tls is None:
        return found.address
    return found

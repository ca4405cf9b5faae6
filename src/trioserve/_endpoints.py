"""Endpoints: the targets of a proxy, and which of them a connection gets next.

It counts the connections of each, leaves out those that are down, drained or full, and
lets connections wait for room. It knows nothing of sockets or tasks, and no clock:
callers pass the time, and say how each attempt went.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from random import Random
from typing import Protocol

from ._address import Address
from ._balance import choose_by
from ._endpoint import Endpoint
from ._targets import Balance, Health, Target, TargetState


class Waiter(Protocol):
    """A connection that waits until a target has room for it."""

    def try_again(self) -> bool:
        """Call :meth:`Endpoints.pick` again; whether it waits no longer.

        Called when an endpoint may have room, or when there is nothing to wait for any
        more, in the order in which they began to wait.
        """
        ...


class Endpoints:
    """The targets of one proxy.

    Every endpoint that :meth:`pick` returns is given back: after a dial that does not
    connect by :meth:`failed` or :meth:`given_up`, after one that does by
    :meth:`connected`, and at the end of the connection :meth:`closed`.

    Args:
      targets: at least one.
      max_open: the connections that each may have at a time; None for any number.
      random: where random numbers come from.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        balance: Balance = "first",
        health: Health | None = None,
        max_open: int | None = None,
        random: Random | None = None,
    ) -> None:
        self.max_open = math.inf if max_open is None else max_open
        self._random = random or Random()
        self._health = health or Health()
        self._choose = choose_by(balance, self._random)
        self._all = [Endpoint(target) for target in targets]
        self._backups = [each for each in self._all if each.backup]
        self._others = [each for each in self._all if not each.backup]
        self._out = 0  # that are down, and that are drained: one may be both
        self._warming: list[Endpoint] = []
        self._waiting: dict[Waiter, None] = {}  # in the order of arrival
        # Chosen from as long as none is down, drained, full or tried.
        self._usual = self._others or self._backups
        self._is_bounded = max_open is not None

    @property
    def first(self) -> Endpoint:
        """The one that was given first."""
        return self._all[0]

    @property
    def all(self) -> Sequence[Endpoint]:
        """All of them, in the order in which they were given."""
        return self._all

    def states(self, now: float) -> list[TargetState]:
        """The state of each, in the order in which they were given."""
        return [each.state(now) for each in self._all]

    def drain(self, target: Target | Address) -> bool:
        """Give a target no new connections; those that it has go on.

        Connections that wait for it get another one.

        Returns:
          False if there is no such target.
        """
        return self._set_drained(target, drained=True)

    def revive(self, target: Target | Address) -> bool:
        """End :meth:`drain`; False if there is no such target."""
        return self._set_drained(target, drained=False)

    def are_drained(self) -> bool:
        """Whether all are drained."""
        return all(each.is_drained for each in self._all)

    def _set_drained(self, target: Target | Address, *, drained: bool) -> bool:
        found = [each for each in self._all if target in (each.target, each.address)]
        for each in found:
            if each.is_drained is not drained:
                each.is_drained = drained
                self._out += 1 if drained else -1
        self._let_in(math.inf)
        return bool(found)

    # -- who is next

    def pick(
        self, now: float, peer: str, tried: Collection[Endpoint] = ()
    ) -> Endpoint | None:
        """The endpoint that a connection should dial now; it counts as open.

        These are left out: those that it has tried, those that are drained or full,
        those whose pause is not over, and backups as long as another one may get it. If
        all that are left are down, it is the one that has been down longest, and that
        nobody tries, if there is one.

        Args:
          peer: the client's address.

        Returns:
          None if all that may be picked are full, or there are none; see
          :meth:`must_wait`.
        """
        if self._warming:
            slow_start = self._health.slow_start
            warming = [each for each in self._warming if each.warm_up(slow_start, now)]
            self._warming = warming
        if self._out or self._is_bounded or tried:
            chosen = self._pick_left(now, peer, tried)
            if chosen is None:
                return None
        else:
            chosen = self._choose(self._usual, peer)
        chosen.open += 1
        chosen.dialing += 1
        return chosen

    def _pick_left(
        self, now: float, peer: str, tried: Collection[Endpoint]
    ) -> Endpoint | None:
        for group in (self._others, self._backups):
            ready = [e for e in _untried(group, tried) if e.is_ready(now)]
            if ready:
                roomy = [each for each in ready if each.open < self.max_open]
                return self._choose(roomy, peer) if roomy else None
        left = [e for e in _untried(self._all, tried) if e.open < self.max_open]
        return min(left, key=_tried_last, default=None)

    def must_wait(self, tried: Collection[Endpoint]) -> bool:
        """Whether an endpoint may be there later, after :meth:`pick` returned None.

        One that is full may have room. If all are drained, one may be revived, unless
        the connection has tried one before, and has an error of that.
        """
        return not tried or bool(_untried(self._all, tried))

    def wait(self, waiter: Waiter) -> None:
        """Let a connection wait for the next endpoint that has room."""
        self._waiting[waiter] = None

    def forget(self, waiter: Waiter) -> None:
        """End :meth:`wait`. Idempotent."""
        self._waiting.pop(waiter, None)

    def patience(
        self, endpoint: Endpoint, now: float, tried: Collection[Endpoint], left: float
    ) -> float:
        """Seconds to wait for an endpoint that was picked.

        While another one could answer, it is what connecting usually takes, with
        reserve (:meth:`Endpoint.patience`); else an equal share of the rest of the
        time.

        Args:
          tried: the endpoints before it.
          left: the rest of the time.
        """
        others = [e for e in _untried(self._all, tried) if e is not endpoint]
        share = max(0.0, left) / (1 + len(others))
        if not any(e.is_ready(now) and e.open < self.max_open for e in others):
            return share
        usual = (e.usual for e in self._all if e is not endpoint)
        known = max((each for each in usual if each is not None), default=None)
        return min(share, endpoint.patience(known))

    # -- how it went

    def connected(self, endpoint: Endpoint, seconds: float, now: float) -> bool:
        """Note that a dial has connected; whether the endpoint was down until now.

        Args:
          seconds: how long it took.
        """
        endpoint.dialing -= 1
        if not endpoint.has_connected(seconds, now):
            return False
        self._came_up(endpoint)
        return True

    def _came_up(self, endpoint: Endpoint) -> None:
        self._out -= 1
        if self._health.slow_start and endpoint not in self._warming:
            self._warming.append(endpoint)
        self._let_in(self.max_open - endpoint.open)

    def set_checked(self, is_so: bool) -> None:
        """Say whether checks run, so that only these say that a target is up again."""
        for each in self._all:
            each.is_checked = is_so

    def check_passed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a check; whether the endpoint was down until now."""
        if not endpoint.check_passed(self._health, now):
            return False
        self._came_up(endpoint)
        return True

    def check_failed(self, endpoint: Endpoint, error: str, now: float) -> bool:
        """Note a check, and why it has failed; whether it is down from now on."""
        luck = self._random.random()
        is_down = endpoint.check_failed(error, self._health, now=now, luck=luck)
        self._out += is_down
        if is_down:
            self._let_in(math.inf)  # those that wait may get a backup now
        return is_down

    def failed(
        self, endpoint: Endpoint, error: str, *, began: float, now: float, late: bool
    ) -> bool:
        """Give an endpoint back that has failed; whether it is down from now on.

        Args:
          error: why, in one line.
          began: when the dial began.
          late: whether it took too long.
        """
        is_down = endpoint.has_failed(
            error,
            self._health,
            began=began,
            now=now,
            late=late,
            luck=self._random.random(),
        )
        self._out += is_down
        self.given_up(endpoint)
        return is_down

    def given_up(self, endpoint: Endpoint) -> None:
        """Give an endpoint back whose dial has ended without a result."""
        endpoint.dialing -= 1
        self.closed(endpoint)

    def closed(self, endpoint: Endpoint) -> None:
        """Give an endpoint back at the end of its connection."""
        endpoint.open -= 1
        if self._waiting and not endpoint.is_drained:
            self._let_in(1)

    def _let_in(self, most: float) -> None:
        """Let those that wait pick again, until so many wait no longer."""
        for waiter in list(self._waiting):
            if most <= 0:
                return
            if waiter.try_again():
                self.forget(waiter)
                most -= 1


def _untried(
    endpoints: Sequence[Endpoint], tried: Collection[Endpoint]
) -> list[Endpoint]:
    """Those that a connection may still get."""
    return [e for e in endpoints if not e.is_drained and e not in tried]


def _tried_last(endpoint: Endpoint) -> tuple[bool, float]:
    assert endpoint.down_since is not None
    return endpoint.dialing > 0, endpoint.down_since

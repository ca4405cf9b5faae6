"""Endpoints: the targets of a proxy, and which of them a connection gets next.

It counts the connections of each, leaves out those that are down, drained or full, and
lets connections wait for room. It knows nothing of sockets or tasks, and no clock:
callers pass the time, and say how each attempt went.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Protocol, TypeAlias

from ._balance import choose_by
from ._endpoint import Endpoint
from ._errors import copy_of
from ._targets import Balance, Health, Target, TargetState


class Waiter(Protocol):
    """A connection that waits until a target has room for it."""

    def try_again(self) -> bool:
        """Call :meth:`Endpoints.pick` again; whether it waits no longer.

        Called when an endpoint may have room, or when there is nothing to wait for any
        more, in the order in which they began to wait.
        """
        ...


#: What lists a target, if it was not given by itself.
Origins: TypeAlias = Mapping[Target, object]


class Endpoints:
    """The targets of one proxy, which :meth:`replace` may change.

    Every endpoint that :meth:`pick` returns is given back: after a dial that does not
    connect by :meth:`failed` or :meth:`given_up`, after one that does by
    :meth:`connected`, and at the end of the connection :meth:`closed`.

    Args:
      targets: the first ones.
      max_open: the connections that each may have at a time; None for any number.
      random: where random numbers come from.
      given: what stands for them as long as there is none.
      origins: as for :meth:`replace`.

    Attributes:
      on_replaced: called without arguments after :meth:`replace` has changed which
        there are.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        balance: Balance = "first",
        health: Health | None = None,
        max_open: int | None = None,
        random: Random | None = None,
        given: object = None,
        origins: Origins = MappingProxyType({}),
    ) -> None:
        self.max_open = math.inf if max_open is None else max_open
        self._random = random or Random()
        self._health = health or Health()
        self._choose = choose_by(balance, self._random)
        self.on_replaced: Callable[[], None] = lambda: None
        self._are_checked = False
        self._given = given
        self._missing: OSError | None = None
        self._drained = frozenset[object]()  # what lists those that are
        self._gone: list[Endpoint] = []  # that have connections
        self._warming: list[Endpoint] = []
        self._waiting: dict[Waiter, None] = {}  # in the order of arrival
        self._is_bounded = max_open is not None
        first = [Endpoint(each, origins.get(each, each)) for each in targets]
        self._arrange(first)

    def _arrange(self, endpoints: list[Endpoint]) -> None:
        self._all = endpoints
        ranks = sorted({each.rank for each in endpoints})
        self._groups = [[e for e in endpoints if e.rank == rank] for rank in ranks]
        # Chosen from as long as none is down, drained, full or tried.
        self._usual = self._groups[0] if self._groups else []
        self._count_out()

    def _count_out(self) -> None:
        """Call it when one has gone down or up, or is drained or revived."""
        out = [e for e in self._all if e.is_drained or e.down_since is not None]
        self._are_some_out = bool(out) or not self._all  # or there is none at all

    @property
    def shown(self) -> object:
        """The address of the first one; or what was given, as long as there is none."""
        return self._all[0].address if self._all else self._given

    @property
    def missing(self) -> OSError | None:
        """Why there is none, if that is known; otherwise connections wait."""
        if self._all or self._missing is None:
            return None
        return copy_of(self._missing)

    def are_missing(self, why: OSError) -> None:
        """Note why there is none as yet; those that wait get the error."""
        self._missing = why
        self._let_in(math.inf)

    @property
    def all(self) -> Sequence[Endpoint]:
        """All of them, in the order in which they were given."""
        return self._all

    def states(self, now: float) -> list[TargetState]:
        """The state of each, in their order; then those gone that have connections."""
        return [each.state(now) for each in (*self._all, *self._gone)]

    def replace(
        self,
        targets: Sequence[Target],
        now: float,
        origins: Origins = MappingProxyType({}),
    ) -> tuple[int, int]:
        """Replace the list of targets.

        An endpoint whose address is in both lists stays, with its state and its
        connections. One that is gone keeps its connections, and gets no new ones. One
        that is new is drained if what it comes from is. Those that wait pick again.

        Args:
          origins: of those that were not given by themselves, what lists them.

        Returns:
          how many are in this list and not in the last one, and the other way round.

        Raises:
          ValueError: the TLS of one can't be used; then nothing is changed.
        """
        left = dict[object, list[Endpoint]]()
        for each in (*self._all, *self._gone):
            left.setdefault(_identity(each.target), []).append(each)
        arranged, new = list[Endpoint](), list[Endpoint]()
        for target in targets:
            if found := left.get(_identity(target)):
                arranged.append(found.pop(0))
            else:
                arranged.append(Endpoint(target, target))
                new.append(arranged[-1])
        gone = [each for several in left.values() for each in several]
        back = sum(each.is_gone for each in arranged)
        count = len(new) + back, sum(not each.is_gone for each in gone)
        for endpoint, target in zip(arranged, targets, strict=True):
            endpoint.listed_as(target, origins.get(target, target))
            endpoint.is_gone = False
            endpoint.is_checked = self._are_checked
            endpoint.credit = 0.0  # of the round robin: their sum has to be 0
        for endpoint in new:
            endpoint.begin(now)
            endpoint.is_drained = endpoint.origin in self._drained
        self._drained &= {each.origin for each in arranged}
        if self._health.slow_start and len(new) < len(arranged):
            self._warming += new
        for endpoint in gone:
            endpoint.is_gone = True
        self._gone = [each for each in gone if each.open]
        self._arrange(arranged)
        self.on_replaced()
        self._let_in(math.inf)
        return count

    def drain(self, target: object) -> bool:
        """Give a target no new connections; those that it has go on.

        Connections that wait for it get another one.

        Args:
          target: a target, its address, or what lists it: then those that it lists
            later are drained, too.

        Returns:
          False if there is no such target.
        """
        return self._set_drained(target, drained=True)

    def revive(self, target: object) -> bool:
        """End :meth:`drain`; False if there is no such target."""
        return self._set_drained(target, drained=False)

    def are_drained(self) -> bool:
        """Whether all are drained."""
        return all(each.is_drained for each in self._all)

    def _set_drained(self, target: object, *, drained: bool) -> bool:
        found = [each for each in self._all if _is_meant(target, each)]
        for each in found:
            each.is_drained = drained
        whole = {each.origin for each in found if target in _names_of(each.origin)}
        self._drained = self._drained | whole if drained else self._drained - whole
        self._count_out()
        self._let_in(math.inf)
        return bool(found)

    # -- who is next

    def pick(
        self, now: float, peer: str, tried: Collection[Endpoint] = ()
    ) -> Endpoint | None:
        """The endpoint that a connection should dial now; it counts as open.

        These are left out: those that it has tried, those that are drained or full,
        those whose pause is not over, and those of a rank as long as one of a lower
        rank may get it. If all that are left are down, it is the one that has been down
        longest, and that nobody tries, if there is one.

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
        if self._are_some_out or self._is_bounded or tried:
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
        for group in self._groups:
            ready = [e for e in _untried(group, tried) if e.is_ready(now)]
            if ready:
                roomy = [each for each in ready if each.open < self.max_open]
                return self._choose(roomy, peer) if roomy else None
        left = [e for e in _untried(self._all, tried) if e.open < self.max_open]
        return min(left, key=_tried_last, default=None)

    def must_wait(self, tried: Collection[Endpoint]) -> bool:
        """Whether an endpoint may be there later, after :meth:`pick` returned None.

        One that is full may have room. If all are drained, one may be revived, and if
        there is none, there may be one soon, unless the connection has tried one
        before, and has an error of that.
        """
        if tried:
            return bool(_untried(self._all, tried))
        return self.missing is None

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
        if not endpoint.has_connected(seconds, now) or endpoint.is_gone:
            return False
        self._came_up(endpoint)
        return True

    def _came_up(self, endpoint: Endpoint) -> None:
        self._count_out()
        if self._health.slow_start and endpoint not in self._warming:
            self._warming.append(endpoint)
        self._let_in(self.max_open - endpoint.open)

    def set_checked(self, is_so: bool) -> None:
        """Say whether checks run, so that only these say that a target is up again."""
        self._are_checked = is_so
        for each in self._all:
            each.is_checked = is_so

    def check_passed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a check; whether the endpoint was down until now."""
        if not endpoint.check_passed(self._health, now) or endpoint.is_gone:
            return False
        self._came_up(endpoint)
        return True

    def check_failed(self, endpoint: Endpoint, error: str, now: float) -> bool:
        """Note a check, and why it has failed; whether it is down from now on."""
        luck = self._random.random()
        is_down = endpoint.check_failed(error, self._health, now=now, luck=luck)
        is_down = is_down and not endpoint.is_gone
        if is_down:
            self._count_out()
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
        is_down = is_down and not endpoint.is_gone
        if is_down:
            self._count_out()
        self.given_up(endpoint)
        return is_down

    def given_up(self, endpoint: Endpoint) -> None:
        """Give an endpoint back whose dial has ended without a result."""
        endpoint.dialing -= 1
        self.closed(endpoint)

    def closed(self, endpoint: Endpoint) -> None:
        """Give an endpoint back at the end of its connection."""
        endpoint.open -= 1
        if endpoint.is_gone:
            if not endpoint.open:
                self._gone.remove(endpoint)
        elif self._waiting and not endpoint.is_drained:
            self._let_in(1)

    def _let_in(self, most: float) -> None:
        """Let those that wait pick again, until this many wait no longer."""
        for waiter in list(self._waiting):
            if most <= 0:
                return
            if waiter.try_again():
                self.forget(waiter)
                most -= 1


def _is_meant(target: object, endpoint: Endpoint) -> bool:
    return target in (*_names_of(endpoint.target), *_names_of(endpoint.origin))


def _names_of(given: object) -> tuple[object, ...]:
    """What :meth:`Endpoints.drain` may call it."""
    return (given, given.address) if isinstance(given, Target) else (given,)


def _identity(target: Target) -> object:
    """What two targets have in common that are the same endpoint."""
    return target.address, target.tls


def _untried(
    endpoints: Sequence[Endpoint], tried: Collection[Endpoint]
) -> list[Endpoint]:
    """Those that a connection may still get."""
    return [e for e in endpoints if not e.is_drained and e not in tried]


def _tried_last(endpoint: Endpoint) -> tuple[bool, float]:
    assert endpoint.down_since is not None
    return endpoint.dialing > 0, endpoint.down_since

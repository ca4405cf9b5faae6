"""Endpoints: who is next, what counts as down, and that each place is given back.

All of it is pure, so time is a number here.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import math
import random
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from trioserve import Health, Target, TcpAddress
from trioserve._endpoint import Endpoint
from trioserve._endpoints import Endpoints
from trioserve._targets import Balance

PEER = "192.0.2.7:4711"
WEIGHTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def targets(*weights: int, backups: Sequence[int] = ()) -> list[Target]:
    return [
        Target(TcpAddress(f"10.0.0.{number}", 80), weight, number in backups)
        for number, weight in enumerate(weights, 1)
    ]


def endpoints(*weights: int, backups: Sequence[int] = (), **options: Any) -> Endpoints:
    options.setdefault("random", random.Random(1))
    return Endpoints(targets(*weights, backups=backups), **options)


def pick(
    among: Endpoints, now: float = 0, peer: str = PEER, tried: Sequence[Endpoint] = ()
) -> Endpoint:
    chosen = among.pick(now, peer, tried)
    assert chosen is not None
    return chosen


def number(endpoint: Endpoint) -> int:
    """From 1."""
    return int(endpoint.text.partition(":")[0].rpartition(".")[2])


def number_of(target: Target) -> int:
    """The same, of a target."""
    return int(str(target).partition(":")[0].rpartition(".")[2])


def fail(
    among: Endpoints,
    endpoint: Endpoint,
    now: float,
    began: float | None = None,
    late: bool = False,
) -> bool:
    began = now if began is None else began
    return among.failed(endpoint, "refused", began=began, now=now, late=late)


def serve(among: Endpoints, endpoint: Endpoint, now: float = 0) -> None:
    """A connection that is over at once."""
    among.connected(endpoint, 0.001, now)
    among.closed(endpoint)


def serve_in(among: Endpoints, seconds: float) -> None:
    """A connection that took this long to connect."""
    chosen = pick(among)
    among.connected(chosen, seconds, 0)
    among.closed(chosen)


def take_down(among: Endpoints, which: int, now: float = 0) -> Endpoint:
    """Let one fail until it is down; others that are picked meanwhile do well."""
    tried: list[Endpoint] = []
    while number(chosen := pick(among, now, PEER, tried)) != which:
        serve(among, chosen, now)
        tried.append(chosen)
    while not fail(among, chosen, now):
        chosen.open += 1  # picked again
        chosen.dialing += 1
    return chosen


# -- balances


@given(WEIGHTS, st.integers(1, 3))
def test_round_robin_is_exact(weights: list[int], rounds: int) -> None:
    """In as many turns as the weights add up to, each gets its weight."""
    among = endpoints(*weights, balance="round-robin")
    for _ in range(rounds):
        turns = collections.Counter(number(pick(among)) for _ in range(sum(weights)))
        assert [turns[which] for which in range(1, len(weights) + 1)] == weights


def test_round_robin_spreads_the_turns_of_a_heavy_one() -> None:
    """The example of nginx."""
    among = endpoints(5, 1, 1, balance="round-robin")
    assert [number(pick(among)) for _ in range(7)] == [1, 1, 2, 1, 3, 1, 1]


@given(WEIGHTS, st.integers(1, 60))
def test_least_connections_are_as_even_as_the_weights_allow(
    weights: list[int], count: int
) -> None:
    """No connection could have been put where there would be fewer for the weight."""
    among = endpoints(*weights, balance="least-connections")
    taken = [pick(among) for _ in range(count)]
    everyone = {number(each): each for each in taken}
    most = max(each.open / each.weight for each in everyone.values())
    for which, weight in enumerate(weights, 1):
        held = everyone[which].open if which in everyone else 0
        assert (held + 1) / weight >= most


def test_least_connections_takes_turns_among_equals() -> None:
    """So that short connections don't all go to the first."""
    among = endpoints(1, 1, 1, balance="least-connections")
    turns = []
    for _ in range(6):
        turns.append(number(chosen := pick(among)))
        serve(among, chosen)
    assert turns == [1, 2, 3, 1, 2, 3]


def test_random_of_two_is_nearly_even() -> None:
    """With n connections on n targets, two choices leave a gap of log log n.

    Mitzenmacher, 2001; one choice would leave one of log n, some 3 to 5 here.
    """
    among = endpoints(*[1] * 100, balance="random")
    taken = [pick(among) for _ in range(10_000)]
    assert max(each.open for each in taken) <= 100 + 4


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers())
def test_random_goes_by_weight(weights: list[int], seed: int) -> None:
    """If connections end at once, the first of the two is taken, drawn by weight."""
    among = endpoints(*weights, balance="random", random=random.Random(seed))
    turns = collections.Counter[int]()
    for _ in range(400):
        turns[number(chosen := pick(among))] += 1
        serve(among, chosen)
    for which, weight in enumerate(weights, 1):
        share = weight / sum(weights)
        # Six standard deviations.
        assert abs(turns[which] - 400 * share) <= 6 * math.sqrt(400 * share) + 1


PEERS = [f"{ipaddress.ip_address(0x0A000000 + 7 * n)}:{n}" for n in range(2000)]


@given(WEIGHTS, st.data())
def test_source_moves_only_the_peers_of_the_one_that_goes(
    weights: list[int], data: st.DataObject
) -> None:
    """Which is 1/n of them, by weight; so does one that comes."""
    among = endpoints(*weights, balance="source")
    gone = data.draw(st.integers(1, len(weights)))
    peers = data.draw(st.lists(st.sampled_from(PEERS), max_size=20))
    before = {peer: number(pick(among, peer=peer)) for peer in peers}
    take_down(among, gone)
    for peer, which in before.items():
        if which != gone:
            assert number(pick(among, peer=peer)) == which


def test_source_shares_peers_out_by_weight() -> None:
    among = endpoints(1, 2, 5, balance="source")
    turns = collections.Counter(number(pick(among, peer=peer)) for peer in PEERS)
    for which, weight in enumerate((1, 2, 5), 1):
        share = len(PEERS) * weight / 8
        assert abs(turns[which] - share) <= 4 * math.sqrt(share)


def test_source_does_not_look_at_the_port() -> None:
    """Of IPv4 and of IPv6."""
    among = endpoints(1, 1, 1, 1, balance="source")
    for host in ("192.0.2.1", "[2001:db8::1]"):
        chosen = {number(pick(among, peer=f"{host}:{port}")) for port in range(50)}
        assert len(chosen) == 1


@pytest.mark.parametrize("peer", ["unix:", "unix:/run/client", ""])
def test_source_without_an_address_is_a_round_robin(peer: str) -> None:
    among = endpoints(1, 1, balance="source")
    assert [number(pick(among, peer=peer)) for _ in range(4)] == [1, 2, 1, 2]


@pytest.mark.parametrize("balance", get_args(Balance))
def test_each_balance_takes_every_other_one_in_the_end(balance: Balance) -> None:
    """A connection tries each once, and then there is none."""
    among = endpoints(1, 1, 1, balance=balance)
    tried: list[Endpoint] = []
    while (chosen := among.pick(0, PEER, tried)) is not None:
        fail(among, chosen, 0)
        tried.append(chosen)
    assert sorted(map(number, tried)) == [1, 2, 3]
    assert not among.must_wait(tried)


# -- down and up


def test_first_takes_the_first_that_is_up() -> None:
    among = endpoints(1, 1, 1)
    assert number(pick(among)) == 1
    take_down(among, 1)
    assert number(pick(among)) == 2


def test_it_is_down_after_so_many_failures_in_a_row() -> None:
    among = endpoints(1, 1, health=Health(fall=3))
    for _ in range(5):
        assert not fail(among, pick(among), 0)
        assert not fail(among, pick(among), 0)
        serve(among, pick(among))
    for is_last in (False, False, True):
        assert number(chosen := pick(among)) == 1
        assert fail(among, chosen, 0) is is_last
    assert number(pick(among)) == 2


def test_one_that_connects_others_meanwhile_is_not_silent() -> None:
    """Its queue was full for a moment: all that waited for it are late at once."""
    among = endpoints(1, 1, health=Health(fall=3))
    waiting = [pick(among) for _ in range(9)]
    serve(among, pick(among), 0.2)
    for each in waiting:
        assert not fail(among, each, 0.25, began=0, late=True)
    assert number(chosen := pick(among)) == 1
    assert among.patience(chosen, 0.25, [], 10) == 0.25
    state = among.states(0.25)[0]
    assert (state.up, state.failed, state.error) == (True, 9, None)
    # Those that began later are late without such an excuse; a refusal has none.
    assert not fail(among, chosen, 0.5, began=0.21, late=True)
    assert not fail(among, pick(among), 0.5, began=0.21, late=True)
    assert fail(among, pick(among), 0.5, began=0)


def test_what_it_connected_in_another_run_is_no_excuse() -> None:
    """Its clock may be behind."""
    among = endpoints(1, 1, health=Health(fall=1))
    serve(among, pick(among), 1e6)
    assert fail(among, pick(among), 1000.25, began=1000, late=True)


def test_when_its_pause_is_over_one_connection_tries_it() -> None:
    """Nobody else, until that is known."""
    among = endpoints(1, 1, health=Health(pause=1))
    down = take_down(among, 1, now=10)
    assert down.retry_at == pytest.approx(11, abs=0.1)
    assert number(pick(among, 10.99)) == 2
    trial = pick(among, 11.2)
    assert trial is down
    assert number(pick(among, 11.3)) == 2
    assert among.connected(trial, 0.001, 11.4)
    assert [number(pick(among, 11.4)) for _ in range(3)] == [1, 1, 1]


def test_in_another_run_its_pause_is_over() -> None:
    """Its clock may be behind."""
    among = endpoints(1, 1)
    down = take_down(among, 1, now=1e6)
    assert pick(among, 1000) is down


def test_a_trial_that_was_given_up_says_nothing() -> None:
    """The next connection tries it."""
    among = endpoints(1, 1)
    down = take_down(among, 1)
    among.given_up(pick(among, 2))
    assert pick(among, 2) is down


def test_pauses_double_up_to_a_bound() -> None:
    """And begin anew when it was up."""
    among = endpoints(1, 1, health=Health(pause=1, max_pause=30))
    down = take_down(among, 1)
    pauses, now = [], 0.0
    for _ in range(7):
        pauses.append(down.retry_at - now)
        now = down.retry_at
        assert pick(among, now) is down
        fail(among, down, now)
    for pause, least in zip(pauses, (1, 2, 4, 8, 16, 30, 30), strict=True):
        assert least <= pause <= 1.1 * least
    assert pick(among, down.retry_at) is down
    among.connected(down, 0.001, down.retry_at)
    while not fail(among, down, 500):
        down.dialing += 1
    assert 501 <= down.retry_at <= 501.1


def test_pauses_differ() -> None:
    """So that several proxies don't try at the same time."""
    ends = {
        take_down(endpoints(1, 1, random=random.Random(seed)), 1).retry_at
        for seed in range(10)
    }
    assert len(ends) == 10


def test_attempts_from_before_the_pause_don_t_make_it_longer() -> None:
    """Two hundred clients that wait for the same silence are one failure."""
    among = endpoints(1, 1)
    waiting = [pick(among) for _ in range(200)]
    for each in waiting:
        fail(among, each, 1, began=0, late=True)
    assert 2 <= waiting[0].retry_at <= 2.1
    assert (waiting[0].open, waiting[0].dialing) == (0, 0)


def test_a_pause_of_0_leaves_no_target_out() -> None:
    among = endpoints(1, 1, health=Health(pause=0))
    for _ in range(10):
        assert number(chosen := pick(among)) == 1
        assert not fail(among, chosen, 0)


def test_if_all_are_down_the_one_that_is_down_longest_is_tried() -> None:
    """Nobody is refused unheard; two clients at the same time try two of them."""
    among = endpoints(1, 1, 1)
    for now, which in enumerate((2, 3, 1)):
        take_down(among, which, now=now / 10)
    assert [number(pick(among, 0.5)) for _ in range(4)] == [2, 3, 1, 2]


def test_those_that_are_down_are_tried_after_all_that_are_up() -> None:
    """If these have failed, too."""
    among = endpoints(1, 1, 1)
    take_down(among, 1)
    tried: list[Endpoint] = []
    for _ in range(3):
        tried.append(pick(among, 0.1, PEER, tried))
    assert [number(each) for each in tried] == [2, 3, 1]


def test_a_backup_gets_connections_only_when_the_others_are_down() -> None:
    among = endpoints(1, 1, 1, balance="round-robin", backups=[2])

    def turns() -> set[int]:
        chosen = [pick(among) for _ in range(4)]
        for each in chosen:
            serve(among, each)
        return {number(each) for each in chosen}

    assert turns() == {1, 3}
    take_down(among, 1)
    assert turns() == {3}
    take_down(among, 3)
    assert turns() == {2}
    # One connection tries each of the two, then.
    assert {number(pick(among, 5)) for _ in range(2)} == {1, 3}
    assert number(pick(among, 5)) == 2


def test_only_backups() -> None:
    """They are as good as others then."""
    assert number(pick(endpoints(1, 1, backups=[1, 2]))) == 1


# -- slow start


def up_again(balance: Balance, *weights: int, seconds: float = 10) -> Endpoints:
    """The second of these has come up at 100, and warms up for this time."""
    among = endpoints(*weights, balance=balance, health=Health(slow_start=seconds))
    down = take_down(among, 2, now=50)
    down.open += 1
    down.dialing += 1
    among.connected(down, 0.001, 100)
    among.closed(down)
    return among


def shares(among: Endpoints, now: float, count: int = 1000) -> dict[int, float]:
    """The part of so many connections, that last as long as the others, of each."""
    taken = [pick(among, now, peer) for peer in PEERS[:count]]
    turns = collections.Counter(map(number, taken))
    for each in taken:
        serve(among, each, now)
    return {which: turns[which] / count for which in (1, 2)}


@pytest.mark.parametrize(
    "balance", ["round-robin", "least-connections", "random", "source"]
)
def test_the_share_of_one_that_comes_up_grows(balance: Balance) -> None:
    """Linearly: with so much of its weight, it has that share of the connections."""
    among = up_again(balance, 1, 3)
    for part in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0):
        weight = 3 * min(max(part, 0.01), 1)
        share = shares(among, 100 + 10 * part)[2]
        assert share == pytest.approx(weight / (1 + weight), abs=0.06)


def test_the_first_one_gets_all_connections_at_once() -> None:
    among = up_again("first", 1, 1)
    take_down(among, 1, now=100)
    assert number(pick(among, 100)) == 2


def test_warm_again_round_robin_is_exact() -> None:
    among = up_again("round-robin", 1, 3)
    for now in (100, 103, 107):
        shares(among, now, 100)
    shares(among, 110, 100)
    turns = collections.Counter(number(pick(among, 111)) for _ in range(40))
    assert turns == {1: 10, 2: 30}


def test_one_that_goes_down_while_it_warms_up_begins_anew() -> None:
    among = up_again("round-robin", 1, 1)
    down = take_down(among, 2, now=105)
    assert shares(among, 105)[2] == 0
    assert down.weight == 1
    pick(among, 120, PEER, [among.all[0]])
    among.connected(down, 0.001, 120)
    assert shares(among, 125)[2] == pytest.approx(1 / 3, abs=0.01)


def test_in_another_run_it_is_warm() -> None:
    """Its clock may be behind."""
    among = up_again("round-robin", 1, 1)
    assert shares(among, 5)[2] == pytest.approx(1 / 2, abs=0.01)


def test_when_serving_begins_all_are_warm() -> None:
    among = endpoints(1, 1, balance="round-robin", health=Health(slow_start=10))
    assert shares(among, 0)[2] == 0.5


# -- another list


@given(WEIGHTS, WEIGHTS, st.integers(0, 9))
def test_round_robin_is_exact_with_a_new_list(
    weights: list[int], others: list[int], turns: int
) -> None:
    """From then on, whatever the turns before."""
    among = endpoints(*weights, balance="round-robin")
    for _ in range(turns):
        pick(among)
    among.replace(targets(*others), 0)
    got = collections.Counter(number(pick(among)) for _ in range(sum(others)))
    assert [got[which] for which in range(1, len(others) + 1)] == others


@given(WEIGHTS, st.data())
def test_source_moves_only_the_peers_of_what_has_changed(
    weights: list[int], data: st.DataObject
) -> None:
    """Those of one that is gone; and some to one that is new."""
    among = endpoints(*weights, 1, balance="source")
    before = {peer: number(pick(among, peer=peer)) for peer in PEERS[:50]}
    gone = data.draw(st.integers(1, len(weights)))
    new = Target(TcpAddress("10.0.0.99", 80))
    stay = [each for each in targets(*weights, 1) if number_of(each) != gone]
    among.replace([*stay, new], 0)
    for peer, which in before.items():
        assert number(pick(among, peer=peer)) in (which, 99) or which == gone


def test_a_new_one_warms_up_beside_the_others() -> None:
    """Of a list in which all are new, each has its weight at once."""
    options: dict[str, Any] = {"health": Health(slow_start=10)}
    among = endpoints(1, balance="round-robin", **options)
    among.replace(targets(1, 1), 100)
    assert shares(among, 105)[2] == pytest.approx(1 / 3, abs=0.01)
    assert shares(among, 110)[2] == pytest.approx(1 / 2, abs=0.01)
    among.replace([Target(TcpAddress(f"10.0.0.{n}", 80)) for n in (3, 4)], 120)
    assert [number(pick(among, 120)) for _ in range(4)] == [3, 4, 3, 4]


def test_the_same_address_twice_is_two() -> None:
    """Each with its own state, also when one of them is gone."""
    twice = targets(1) * 2
    among = Endpoints(twice, max_open=1)
    taken = [pick(among), pick(among)]
    assert taken[0] is not taken[1]
    assert among.replace(twice, 0) == (0, 0)
    assert among.pick(0, PEER) is None
    assert among.replace(targets(1), 0) == (0, 1)
    assert [state.open for state in among.states(0)] == [1, 1]
    assert among.replace(targets(1), 0) == (0, 0)
    assert among.replace(twice, 0) == (1, 0)


def test_what_is_heard_of_one_that_is_gone_changes_nothing() -> None:
    """It is not said to be up or down."""
    among = endpoints(1, 1, health=Health(fall=1, check=1, rise=1))
    one, two = among.all
    for _ in range(2):
        one_again = pick(among)
        assert one_again is one
    among.replace(targets(1, 1)[1:], 0)
    assert not fail(among, one, 0)
    assert not among.check_passed(one, 0)
    assert not among.check_failed(one, "refused", 0)
    assert not among.connected(one, 0.1, 1)
    assert pick(among) is two
    among.closed(one)
    assert [state.target for state in among.states(0)] == [two.target]


# -- room


class Waiting:
    """A connection that waits for room."""

    def __init__(self, among: Endpoints, tried: Sequence[Endpoint] = ()) -> None:
        self.among, self.tried = among, tried
        self.got: Endpoint | None = None
        self.tries = 0
        among.wait(self)

    def try_again(self) -> bool:
        self.tries += 1
        self.got = self.among.pick(1, PEER, self.tried)
        return self.got is not None


def test_a_target_that_is_full_is_left_out() -> None:
    among = endpoints(1, 1, max_open=2)
    taken = [pick(among) for _ in range(4)]
    assert [number(each) for each in taken] == [1, 1, 2, 2]
    assert among.pick(0, PEER) is None
    assert among.must_wait([])
    among.closed(taken[0])
    assert number(pick(among)) == 1


def test_room_goes_to_the_one_that_has_waited_longest() -> None:
    """And a newcomer does not get it."""
    among = endpoints(1, max_open=1)
    taken = pick(among)
    one, other, third = (Waiting(among) for _ in range(3))
    among.forget(one)
    among.closed(taken)
    assert one.got is None
    assert other.got is taken
    assert third.got is None
    assert among.pick(0, PEER) is None
    fail(among, taken, 0)
    assert third.got is taken
    among.forget(third)  # idempotent
    among.closed(taken)
    assert taken.open == 0


def test_one_that_has_tried_it_lets_the_next_one_go_first() -> None:
    among = endpoints(1, 1, max_open=1)
    one, two = pick(among), pick(among)
    waits, next_one = Waiting(among, [one]), Waiting(among)
    among.closed(one)
    assert (waits.got, next_one.got) == (None, one)
    among.closed(two)
    assert waits.got is two


def test_a_target_that_is_up_again_lets_in_as_many_as_it_has_room_for() -> None:
    """Those who wait for the others."""
    among = endpoints(1, 1, max_open=2)
    down = take_down(among, 1)
    taken = [pick(among), pick(among)]
    assert {number(each) for each in taken} == {2}
    waiting = [Waiting(among) for _ in range(3)]
    assert pick(among, 5) is down
    among.connected(down, 0.001, 5)
    assert [each.got for each in waiting] == [down, None, None]


def test_the_end_of_a_drained_one_s_connections_wakes_nobody() -> None:
    """There is no room for those that wait, who may be as many."""
    among = endpoints(1, 1, max_open=2)
    taken = [pick(among) for _ in range(4)]
    waits = Waiting(among)
    for target in targets(1, 1):
        among.drain(target)
    assert waits.tries == 2
    fail(among, taken[0], 0)
    for each in taken[1:]:
        among.closed(each)
    assert waits.tries == 2
    among.revive(targets(1, 1)[1])
    assert waits.got is taken[3]


def test_nobody_waits_for_a_backup_while_another_one_is_up() -> None:
    """Being full is not being down."""
    among = endpoints(1, 1, max_open=1, backups=[2])
    pick(among)
    assert among.pick(0, PEER) is None


def test_if_the_full_one_goes_down_those_who_wait_try_the_others() -> None:
    among = endpoints(1, 1, max_open=1, health=Health(fall=1))
    take_down(among, 2)
    full = pick(among)
    waits = Waiting(among)
    fail(among, full, 1)
    assert waits.got is not None
    assert number(waits.got) == 2  # it has been down longest


# -- patience


def test_an_unknown_target_gets_a_second() -> None:
    """RFC 6298, section 2.1; but not more than its share."""
    among = endpoints(1, 1)
    assert among.patience(pick(among), 0, [], 5) == 1
    assert among.patience(pick(among), 0, [], 0.5) == 0.25


def test_the_last_one_gets_all_the_rest() -> None:
    among = endpoints(1, 1)
    first = pick(among)
    assert among.patience(pick(among, 0, PEER, [first]), 0, [first], 4.5) == 4.5
    assert among.patience(first, 0, [], -1) == 0


def test_one_that_is_up_gets_its_share_if_all_others_are_down() -> None:
    """It is the best hope."""
    among = endpoints(1, 1, 1)
    take_down(among, 1)
    take_down(among, 3)
    assert among.patience(pick(among), 0, [], 6) == 2


@pytest.mark.parametrize(
    ("own", "others", "up", "down"),
    [
        (None, 0.001, 0.25, 0.05),
        (0.001, None, 0.25, 0.05),
        (0.001, 0.3, 0.25, 0.05),
        (0.2, 0.001, 0.6, 0.6),
        (None, 0.2, 0.6, 0.6),
        (0.5, None, 1.5, 1.5),
    ],
)
def test_patience_is_what_it_usually_takes(
    own: float | None, others: float | None, up: float, down: float
) -> None:
    """Its own time, or else that of the others; twice the first one more as reserve."""
    among = endpoints(1, 1)
    first = pick(among)
    if own is not None:
        among.connected(first, own, 0)
    if others is not None:
        among.connected(pick(among, 0, PEER, [first]), others, 0)
    assert among.patience(first, 0, [], 10) == pytest.approx(up)
    take_down(among, 1)
    assert among.patience(first, 0, [], 10) == pytest.approx(down)


def test_a_name_that_has_never_connected_gets_a_second() -> None:
    """It has to be looked up, and may have several addresses."""
    name = Target(TcpAddress("db.internal", 80))
    among = Endpoints([name, *targets(1)])
    first = pick(among)
    among.connected(pick(among, 0, PEER, [first]), 0.001, 0)
    assert among.patience(first, 0, [], 10) == 1


def test_patience_doubles_with_each_late_attempt() -> None:
    """So that one that is slow, and not down, connects in the end."""
    among = endpoints(1, 1, health=Health(fall=9, pause=1, max_pause=1))
    first = pick(among)
    among.connected(pick(among, 0, PEER, [first]), 0.001, 0)
    waits = []
    for _ in range(9):
        waits.append(among.patience(first, 0, [], 10))
        fail(among, first, 0, late=True)
        first.dialing += 1
    assert waits == [0.25, 0.5, *[1] * 7]
    down = []
    for now in range(2, 16, 2):
        down.append(among.patience(first, 0, [], 10))
        fail(among, first, now, late=True)
        first.dialing += 1
    assert down == [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1]
    among.connected(first, 0.001, 99)
    assert among.patience(first, 99, [], 10) == 0.25


def test_clients_that_wait_for_the_same_silence_double_the_patience_once() -> None:
    """And not at all for the trials, if they began before it was down."""
    among = endpoints(1, 1, health=Health(fall=5))
    first = pick(among)
    among.connected(pick(among, 0, PEER, [first]), 0.001, 0)
    waiting = [pick(among) for _ in range(9)]
    for each in waiting[:4]:
        fail(among, each, 0.25, began=0, late=True)
    assert among.patience(first, 0.25, [], 10) == 0.5
    for each in waiting[4:]:
        fail(among, each, 0.25, began=0, late=True)
    assert among.patience(first, 0.25, [], 10) == 0.05


def test_the_usual_time_follows_what_is_measured() -> None:
    """RFC 6298, section 2."""
    among = endpoints(1)
    chosen = pick(among)
    for seconds in (0.1, 0.1, 0.2):
        among.connected(chosen, seconds, 0)
    (state,) = among.states(0)
    assert state.connect == pytest.approx(0.1125)


@given(st.lists(st.floats(0, 10)))
@example([float(number) for number in range(1500)])
def test_percentiles_are_those_of_the_last_thousand(times: list[float]) -> None:
    """By nearest rank: the smallest one that this many don't exceed."""
    among = endpoints(1)
    for seconds in times:
        serve_in(among, seconds)
    (state,) = among.states(0)
    last = times[-1000:]
    for percent, found in ((50, state.connect_p50), (99, state.connect_p99)):
        if found is None:
            assert not times
            continue
        assert found in last
        assert 100 * sum(time <= found for time in last) >= percent * len(last)
        assert 100 * sum(time < found for time in last) < percent * len(last)


# -- state


def test_the_state_says_what_is_known() -> None:
    among = endpoints(1, 1)
    pick(among)
    down = take_down(among, 2, now=10)
    one, two = among.states(12)
    assert (one.up, one.seconds, one.open, one.failed) == (True, None, 1, 0)
    assert (one.connect, one.error, one.retry) == (0.001, None, None)
    assert (two.up, two.seconds, two.open, two.failed) == (False, 2, 0, 3)
    assert (two.connect, two.error, two.retry) == (None, "refused", 0)
    assert among.states(10)[1].retry == down.retry_at - 10
    pick(among, 12, PEER, [among.all[0]])
    among.connected(down, 0.5, 13)
    two = among.states(14)[1]
    assert (two.up, two.seconds, two.open, two.connected) == (True, 1, 1, 1)
    assert (two.error, two.retry, two.target) == (None, None, targets(1, 1)[1])


class Schedule(RuleBasedStateMachine):
    """Any order of connections, against a model that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dialing: list[tuple[Endpoint, float]] = []
        self.open: list[Endpoint] = []

    @rule(
        balance=st.sampled_from(get_args(Balance)),
        weights=WEIGHTS,
        backups=st.sets(st.integers(1, 6)),
        most=st.none() | st.integers(1, 3),
        fall=st.integers(1, 3),
    )
    @precondition(lambda self: not hasattr(self, "among"))
    def begin(
        self,
        balance: Balance,
        weights: list[int],
        backups: set[int],
        most: int | None,
        fall: int,
    ) -> None:
        self.most = math.inf if most is None else most
        self.among = endpoints(
            *weights,
            backups=sorted(backups),
            balance=balance,
            max_open=most,
            health=Health(fall=fall),
        )

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(peer=st.sampled_from(PEERS))
    @precondition(lambda self: hasattr(self, "among"))
    def connect(self, peer: str) -> None:
        states = self.among.states(self.now)
        before = [state for state in states if not state.gone]
        chosen = self.among.pick(self.now, peer)
        if chosen is None:
            assert self.among.must_wait([])
            full = [state for state in before if state.open >= self.most]
            assert any(state.up or state.retry == 0 for state in full) or len(
                full
            ) == len(before)
            return
        (state,) = (each for each in before if each.target is chosen.target)
        assert state.open < self.most
        if not state.up and state.retry:
            # Only if all others are down, too.
            assert not any(other.up for other in before)
        self.dialing.append((chosen, self.now))

    @rule(data=st.data(), how=st.sampled_from(["connected", "failed", "given up"]))
    @precondition(lambda self: self.dialing)
    def dialed(self, data: st.DataObject, how: str) -> None:
        index = data.draw(st.integers(0, len(self.dialing) - 1))
        endpoint, began = self.dialing.pop(index)
        was_up = endpoint.down_since is None
        match how:
            case "connected":
                is_up_again = self.among.connected(endpoint, 0.01, self.now)
                assert is_up_again is (not was_up and not endpoint.is_gone)
                assert endpoint.down_since is None
                self.open.append(endpoint)
            case "failed":
                is_down = fail(self.among, endpoint, self.now, began)
                went_down = was_up and endpoint.down_since is not None
                assert is_down is (went_down and not endpoint.is_gone)
            case _:
                self.among.given_up(endpoint)
                assert (endpoint.down_since is None) is was_up

    @rule(
        weights=st.dictionaries(st.integers(1, 8), st.integers(1, 7), min_size=1),
        backups=st.sets(st.integers(1, 8)),
        data=st.data(),
    )
    @precondition(lambda self: hasattr(self, "among"))
    def replace(
        self, weights: dict[int, int], backups: set[int], data: st.DataObject
    ) -> None:
        """Those that stay keep all that is known of them."""
        numbers = data.draw(st.permutations(sorted(weights)))
        listed = [
            Target(TcpAddress(f"10.0.0.{which}", 80), weights[which], which in backups)
            for which in numbers
        ]
        before = {state.target.address: state for state in self.among.states(self.now)}
        new, gone = self.among.replace(listed, self.now)
        after = self.among.states(self.now)[: len(listed)]
        assert [state.target for state in after] == listed
        addresses = {target.address for target in listed}
        were = {address for address, state in before.items() if not state.gone}
        assert gone == len(were - addresses)
        assert new == len(addresses - were)
        for state in after:
            old = before.get(state.target.address)
            if old is not None:
                kept = dataclasses.replace(old, target=state.target, gone=False)
                assert state == kept
            else:
                assert (state.up, state.seconds, state.open) == (True, 0, 0)

    @rule(data=st.data())
    @precondition(lambda self: self.open)
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        self.among.closed(self.open.pop(index))

    @invariant()
    def everything_is_counted(self) -> None:
        """Also of those that are gone."""
        if not hasattr(self, "among"):
            return
        everyone = [*self.open, *(each for each, _ in self.dialing)]
        states = self.among.states(self.now)
        assert len({state.target.address for state in states}) == len(states)
        assert sum(state.open for state in states) == len(everyone)
        for state in states:
            held = sum(each.address == state.target.address for each in everyone)
            assert held or not state.gone
            assert state.open == held <= self.most
            assert (state.retry is None) is state.up
            assert state.up or (state.error is not None and state.failed)


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=40, stateful_step_count=40)
TestSchedule.__doc__ = (
    "Law 2: a target has at most its limit of connections; what was taken is counted."
)


# -- values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Health(fall=0), "fall must be 1 or more, not 0"),
        (lambda: Health(pause=-1), "pause must be 0 or more, not -1"),
        (lambda: Health(pause=math.inf), "pause must be finite"),
        (lambda: Health(slow_start=-1), "slow_start must be 0 or more, not -1"),
        (lambda: Health(slow_start=math.inf), "slow_start must be finite"),
        (
            lambda: Health(pause=5, max_pause=4),
            "max_pause must be at least pause, 5, not 4",
        ),
        (lambda: Target(TcpAddress("a", 1), 0), "weight must be 1 or more, not 0"),
        (lambda: Target(TcpAddress("a", 1), 1001), "weight must be 1 to 1000"),
        (lambda: Target(TcpAddress("", 1)), "has no host"),
    ],
)
def test_a_wrong_value_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("argument", ["db:1", None])
def test_a_target_has_an_address(argument: Any) -> None:
    with pytest.raises(TypeError, match="address must be an address"):
        Target(argument)

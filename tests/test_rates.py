"""Rates: how often each peer may connect."""

from __future__ import annotations

import collections
from fractions import Fraction

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from support import receive_all, run, serving
from trioserve import Layers, Limits, Reason, echo
from trioserve._rates import Rates

#: Milliseconds until the next turn, and who wants it.
Script = list[tuple[int, str]]

counts = st.integers(1, 5)
#: Of a second: also those that are no whole numbers of nanoseconds.
times = st.sampled_from([0.5, 1.0, 1 / 3, 2.0, 0.007])


def scripts(keys: str) -> st.SearchStrategy[Script]:
    wait = st.sampled_from([0, 0, 0, 1, 7, 100, 200, 333, 1000])
    return st.lists(st.tuples(wait, st.sampled_from(keys)), max_size=60)


def turns(rates: Rates, script: Script) -> list[tuple[Fraction, str, bool]]:
    """When each turn was asked for, by whom, and whether it was given."""
    found, at = [], 0
    for wait, key in script:
        at += wait
        found.append((Fraction(at, 1000), key, rates.take(key, at / 1000)))
    return found


@given(counts, times, scripts("abc"))
def test_no_key_gets_more_than_its_rate_in_any_time(
    count: int, seconds: float, script: Script
) -> None:
    """Law 2: at most N + N * t / T in t seconds, and all of N at first."""
    given_at = collections.defaultdict[str, list[Fraction]](list)
    for at, key, is_given in turns(Rates(count, seconds), script):
        if is_given:
            given_at[key].append(at)
    for ats in given_at.values():
        for first, start in enumerate(ats):
            for last, end in enumerate(ats[first:], first):
                time = Fraction(seconds).limit_denominator(1000)
                most = count + count * (end - start) / time
                assert last - first + 1 <= most


@given(counts, st.sampled_from([1, 2, 3, 10]), scripts("abc"))
def test_it_is_a_token_bucket(count: int, interval: int, script: Script) -> None:
    """A turn is given if and only if the bucket has one: a refusal costs nothing."""
    level = dict.fromkeys("abc", Fraction(count))
    before = dict.fromkeys("abc", Fraction(0))
    for at, key, is_given in turns(Rates(count, float(interval * count)), script):
        level[key] = min(Fraction(count), level[key] + (at - before[key]) / interval)
        before[key] = at
        assert is_given == (level[key] >= 1)
        level[key] -= is_given


@given(counts, times, scripts("abcdefgh"), st.integers(1, 4))
def test_the_table_is_bounded_and_who_is_forgotten_is_not_punished(
    count: int, seconds: float, script: Script, most: int
) -> None:
    """Law 2: whoever is not in the table has a full bucket."""
    rates = Rates(count, seconds, most=most)
    at = 0
    for wait, key in script:
        at += wait
        is_forgotten = key not in rates._full_at
        assert rates.take(key, at / 1000) or not is_forgotten
        assert len(rates) <= most


def test_full_buckets_are_forgotten() -> None:
    rates = Rates(2, 1.0)
    for number in range(100):
        assert rates.take(str(number), number * 0.1)
        assert len(rates) <= 6


@pytest.mark.parametrize("declared", [False, True])
async def test_a_peer_that_connects_too_often_is_refused(
    declared: bool, autojump_clock: object
) -> None:
    """Behind a load balancer it is the declared client that counts."""
    limits = Limits(max_connections=100, rate_per_peer=(2, 10.0))
    layers = Layers(accept_proxy=["127.0.0.1"] if declared else [])
    async with serving(echo, limits=limits, layers=layers) as running:

        async def served(host: str) -> bool:
            source = "127.0.0.1" if declared else host
            header = f"PROXY TCP4 {host} {host} 1 2\r\n" if declared else ""
            client = await running.connect(source=source)
            try:
                await client.send_all(header.encode() + b"?")
                return await client.receive_some(1) == b"?"
            except trio.BrokenResourceError:
                return False
            finally:
                await client.aclose()

        one, other = "127.0.0.2", "127.0.0.3"
        assert [await served(one) for _ in range(4)] == [True, True, False, False]
        assert [await served(other) for _ in range(3)] == [True, True, False]
        await trio.sleep(5)
        assert [await served(one) for _ in range(2)] == [True, False]
        await trio.sleep(100)
        assert [await served(one) for _ in range(3)] == [True, True, False]
        running.server.limits = Limits(rate_per_peer=(3, 10.0))
        assert [await served(one) for _ in range(4)] == [True, True, True, False]
        running.server.limits = Limits()
        assert all([await served(one) for _ in range(9)])
    refused = [r for r in running.reports if r.reason is Reason.RATE]
    assert [report.limit for report in refused] == [2, 2, 2, 2, 2, 3]
    assert {r.phase for r in refused} == {"handshake" if declared else "queue"}
    assert {r.termination_state for r in refused} == {"PR"}


@given(st.integers(1, 3), st.lists(st.sampled_from([0, 0, 1, 3, 7]), max_size=12))
@settings(deadline=None, max_examples=20)
def test_a_server_serves_no_more_than_the_rate(count: int, waits: list[int]) -> None:
    """Law 2, in virtual time."""
    run(_serves_no_more, count, waits)


async def _serves_no_more(count: int, waits: list[int]) -> None:
    limits = Limits(max_connections=100, rate_per_peer=(count, 5.0))
    async with serving(echo, limits=limits) as running:
        for wait in waits:
            await trio.sleep(wait)
            client = await running.connect()
            await client.send_eof()
            assert await receive_all(client) == b""
    refused = sum(report.reason is Reason.RATE for report in running.reports)
    assert len(running.reports) == len(waits)
    assert len(waits) - refused <= count + count * sum(waits) / 5
    assert refused == 0 or len(waits) > count


async def test_clients_of_a_unix_socket_have_no_rate(
    tmp_path: object, autojump_clock: object
) -> None:
    limits = Limits(max_connections=100, rate_per_peer=(1, 10.0))
    addresses = (f"unix:{tmp_path}/socket",)
    async with serving(echo, addresses=addresses, limits=limits) as running:
        for _ in range(3):
            client = await running.connect()
            await client.send_eof()
            assert await receive_all(client) == b""
    assert {report.reason for report in running.reports} == {Reason.CLIENT_CLOSED}

"""How many connections are in their handshakes: above the limit, the oldest go."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Running, is_reset, receive_all, receive_exactly, run, serving
from trioserve import (
    Connection,
    Layers,
    Limits,
    Reason,
    Timeouts,
    by_server_name,
    echo,
)
from trioserve._handshakes import Handshakes
from wire.hellos import hello, named

HELLO = hello(named())
BEHIND = Layers(accept_proxy=["127.0.0.0/8"])
HEADER = b"PROXY UNKNOWN\r\n"
BY_NAME = by_server_name({"git.example.org": echo})


class _Member:
    """A connection that notes what ends it."""

    def __init__(self, id: int, listener: str = "here") -> None:
        self.id = id
        self.listener = listener
        self.error: str | None = None

    def stop(self, reason: Reason, *, error: str | None = None) -> None:
        assert reason is Reason.HANDSHAKE
        assert self.error is None
        self.error = error


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc-"), st.integers(0, 9)), max_size=30),
)
def test_the_newest_stay(most: int, steps: list[tuple[str, int]]) -> None:
    """In any order of beginnings and ends, and for each listener by itself."""
    handshakes = Handshakes(most)
    begun: list[tuple[_Member, contextlib.AbstractContextManager[None]]] = []
    expected: dict[str, list[_Member]] = {"a": [], "b": [], "c": []}
    for number, (what, which) in enumerate(steps):
        if what != "-":
            member = _Member(number, what)
            begun.append((member, handshakes.under_way(member)))
            begun[-1][1].__enter__()
            expected[what].append(member)
            for gone in expected[what][:-most]:
                assert gone.error == f"more than {most} handshakes at a time"
            del expected[what][:-most]
        elif begun:
            member, ended = begun.pop(which % len(begun))
            ended.__exit__(None, None, None)
            with contextlib.suppress(ValueError):
                expected[member.listener].remove(member)
        here = [member for members in expected.values() for member in members]
        assert all(member.error is None for member in here)
        assert all(member in here or member.error for member, _ in begun)
    for _, left in begun:
        left.__exit__(None, None, None)


def test_the_oldest_goes_even_if_its_handshake_has_begun_last() -> None:
    """Tasks that start together start in any order."""
    handshakes = Handshakes(1)
    first, second = _Member(1), _Member(2)
    with handshakes.under_way(second), handshakes.under_way(first):
        assert first.error == "more than 1 handshakes at a time"
    assert second.error is None


def test_without_a_limit_all_stay_and_a_limit_may_come_later() -> None:
    handshakes = Handshakes()
    members = [_Member(number) for number in range(5)]
    with contextlib.ExitStack() as stack:
        for member in members[:4]:
            stack.enter_context(handshakes.under_way(member))
        assert not any(member.error for member in members)
        handshakes.most = 2
        stack.enter_context(handshakes.under_way(members[4]))
    assert [member.id for member in members if not member.error] == [3, 4]


async def served(running: Running, *chunks: bytes, index: int = 0) -> bool:
    """Whether a client that sends this at once gets it back."""
    client = await running.connect(index)
    data = b"".join(chunks)
    await client.send_all(data)
    expected = data.removeprefix(HEADER)
    return await receive_exactly(client, len(expected)) == expected


@pytest.mark.parametrize(
    "kind", [pytest.param("layer", marks=pytest.mark.long("as by name")), "name"]
)
async def test_a_flood_of_silent_clients_keeps_nobody_waiting(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: of 1,000 clients, most are reset at once, and the rest in time."""
    limits = Limits(max_connections=200, max_handshakes=50)
    handler, layers, data = (
        (echo, BEHIND, HEADER + b"?") if kind == "layer" else (BY_NAME, Layers(), HELLO)
    )
    async with serving(
        handler, limits=limits, layers=layers, timeouts=Timeouts(handshake=10)
    ) as running:
        assert await served(running, data)
        flood = []
        for number in range(1000):
            flood.append(await running.connect())
            if number % 100 == 99:
                assert await served(running, data)
        assert autojump_clock.current_time() < 5
        await trio.testing.wait_all_tasks_blocked()
        statistics = running.server.statistics()
        assert statistics.accepted == 1011
        assert statistics.open <= 11 + 50
        await trio.sleep(10.1)
        assert running.server.statistics().open == 11  # those that are served
        for client in flood:
            assert await is_reset(client)
    silent = [report for report in running.reports if not report.bytes_received]
    errors = {report.error for report in silent}
    assert errors == {"more than 50 handshakes at a time", None}
    for report in silent:
        assert report.reason is Reason.HANDSHAKE
        assert report.limit == (10 if report.error is None else None)
        assert report.duration <= 10.1


async def test_who_is_past_it_is_not_affected(autojump_clock: object) -> None:
    """Nor are connections of another listener."""
    addresses = ("127.0.0.1:0", "127.0.0.1:0")
    limits = Limits(max_handshakes=1)
    async with serving(BY_NAME, addresses=addresses, limits=limits) as running:
        first = await running.connect(0)
        await first.send_all(HELLO)
        assert await receive_exactly(first, len(HELLO)) == HELLO
        other = await running.connect(1)
        await trio.testing.wait_all_tasks_blocked()
        silent = await running.connect(0)
        await trio.testing.wait_all_tasks_blocked()
        assert await served(running, HELLO)
        assert await is_reset(silent)
        for client in (first, other):
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO


async def test_it_may_be_changed_while_it_serves(autojump_clock: object) -> None:
    async with serving(BY_NAME) as running:
        silent = [await running.connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        running.server.limits = Limits(max_handshakes=1)
        assert await served(running, HELLO)
        for client in silent:
            assert await is_reset(client)


@given(st.lists(st.sampled_from(["silent", "slow", "quick"]), max_size=8))
@settings(deadline=None, max_examples=20)
def test_tokens_and_reports_of_those_that_have_to_go(kinds: list[str]) -> None:
    """Laws 2 and 3: each token comes back, each connection has a report."""
    run(_some_go, kinds)


async def _some_go(kinds: list[str]) -> None:
    started: list[Connection] = []
    limits = Limits(max_connections=20, max_handshakes=2)
    async with serving(
        BY_NAME, layers=BEHIND, limits=limits, on_start=started.append
    ) as running:
        for kind in kinds:
            client = await running.connect()
            with contextlib.suppress(trio.BrokenResourceError):
                if kind == "slow":
                    await client.send_all(HEADER + HELLO[:9])
                elif kind == "quick":
                    await client.send_all(HEADER + HELLO)
                    await client.send_eof()
                    assert await receive_all(client) == HELLO
            await trio.testing.wait_all_tasks_blocked()
        waiting = running.server.statistics().open
        assert waiting <= 2
    reasons = [report.reason for report in running.reports]
    assert reasons.count(Reason.CLIENT_CLOSED) == kinds.count("quick")

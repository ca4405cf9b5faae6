"""Active checks: what passes, when a target is down and up again, and what is left."""

from __future__ import annotations

import contextlib
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support import open_fds, run, serving
from sweep import Begin, sweep
from targets import black_hole, refusing
from test_balancing import Told, echoes, talk
from trioserve import (
    Connection,
    Health,
    Layers,
    Target,
    TcpAddress,
    by_server_name,
    echo,
    proxy,
)
from trioserve._endpoint import Endpoint
from trioserve._endpoints import Endpoints

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

PING = Health(check=1, rise=2, check_send=b"PING\r\n", check_expect=b"+PONG\r\n")


# -- when it is down, and up again


class Results(RuleBasedStateMachine):
    """Any order of checks and connections, against the rule as it is documented.

    A target goes down after ``fall`` checks or ``fall`` connections in a row have
    failed, or if its first check fails; it is up after ``rise`` checks in a row.
    """

    @initialize(fall=st.integers(1, 4), rise=st.integers(1, 4))
    def begin(self, fall: int, rise: int) -> None:
        self.health = Health(check=1, fall=fall, rise=rise)
        target = Target(TcpAddress("10.0.0.1", 80))
        self.among = Endpoints([target], health=self.health, random=random.Random(1))
        self.among.set_checked(True)
        self.endpoint: Endpoint = self.among.all[0]
        self.now = 0.0
        self.is_up = True
        self.checks = [""]  # their results since the last change
        self.dials = [""]
        self.has_passed = False

    def changes(self, *, is_up: bool) -> bool:
        if self.is_up is is_up:
            return False
        self.is_up, self.checks = is_up, [""]
        if is_up:
            self.dials = [""]
        return True

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def check_passes(self) -> None:
        self.checks.append("+")
        self.has_passed = True
        in_row = self.checks[-self.health.rise :] == ["+"] * self.health.rise
        changes = in_row and self.changes(is_up=True)
        assert self.among.check_passed(self.endpoint, self.now) is changes

    @rule()
    def check_fails(self) -> None:
        self.checks.append("-")
        fall = self.health.fall if self.has_passed else 1
        in_row = self.checks[-fall:] == ["-"] * fall
        changes = in_row and self.changes(is_up=False)
        assert self.among.check_failed(self.endpoint, "no", self.now) is changes

    def picked(self) -> bool:
        """A client gets it even if it is down: it is the only one."""
        return self.among.pick(self.now, "") is self.endpoint

    @rule()
    def connects(self) -> None:
        assert self.picked()
        self.dials.append("+")
        assert not self.among.connected(self.endpoint, 0.001, self.now)
        self.among.closed(self.endpoint)

    @rule()
    def does_not_connect(self) -> None:
        assert self.picked()
        self.dials.append("-")
        fall = self.health.fall
        in_row = self.dials[-fall:] == ["-"] * fall
        changes = in_row and self.changes(is_up=False)
        now = self.now
        failed = self.among.failed
        assert failed(self.endpoint, "no", began=now, now=now, late=False) is changes

    @invariant()
    def the_state_is_that_of_the_rule(self) -> None:
        if not hasattr(self, "among"):
            return
        (state,) = self.among.states(self.now)
        assert state.up is self.is_up
        assert (self.endpoint.is_ready(self.now)) is self.is_up
        assert (state.error, state.retry) == (state.error, None)
        if not self.is_up or self.checks[-1] == "-" or self.dials[-1] == "-":
            assert state.error == "no"
        else:
            assert state.error is None


TestResults = Results.TestCase
TestResults.settings = settings(max_examples=60, stateful_step_count=30)
TestResults.__doc__ = "Law 15: fall and rise, whatever checks and connections come."


def test_without_checks_a_connection_tries_it_again() -> None:
    """When the server that checked has ended."""
    target = Target(TcpAddress("10.0.0.1", 80))
    among = Endpoints([target], health=Health(check=1, pause=1))
    among.set_checked(True)
    (endpoint,) = among.all
    assert among.check_failed(endpoint, "no", 0)
    assert not endpoint.is_ready(50)
    among.set_checked(False)
    assert not endpoint.is_ready(0.5)
    assert endpoint.is_ready(50)
    among.pick(50, "")
    assert among.connected(endpoint, 0.001, 50)


# -- what passes


@contextlib.asynccontextmanager
async def checked(
    handler: Callable[[Connection], Awaitable[object]], health: Health = PING
) -> AsyncGenerator[tuple[Any, Told]]:
    """A proxy whose only target is served by this handler."""
    told = Told()
    async with serving(handler) as there:
        made = proxy(there.address, health=health, on_target=told)
        async with serving(made) as running:
            yield made, told
        assert not running.reports


async def _pong(conn: Connection) -> None:
    assert await conn.receive_some() == b"PING\r\n"
    await conn.send_all(b"+PONG\r\n")


async def _pong_in_pieces(conn: Connection) -> None:
    for number in b"+PONG\r\n":
        await conn.send_all(bytes([number]))
        await trio.sleep(0.01)


async def _pong_and_more(conn: Connection) -> None:
    await conn.send_all(b"+PONG\r\n+PONG\r\n")


async def _endless_pong(conn: Connection) -> None:
    while True:
        await conn.send_all(b"+PONG\r\n" * 10_000)


@pytest.mark.parametrize(
    "handler", [_pong, _pong_in_pieces, _pong_and_more, _endless_pong]
)
async def test_what_passes(
    handler: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """An answer that begins as is expected, in pieces or without an end."""
    async with checked(handler) as (made, told):
        await trio.sleep(10)
        (state,) = made.targets()
        assert state.up
        assert 8 <= state.checks <= 11
        assert (state.checks_failed, state.connected, state.open) == (0, 0, 0)
        assert state.error is None
    assert not told.states


async def _wrong(conn: Connection) -> None:
    await conn.send_all(b"-ERR \x1b[2J\xff\r\n" + b"x" * 200)


async def _endless(conn: Connection) -> None:
    while True:
        await conn.send_all(bytes(100_000))


async def _wrong_at_last(conn: Connection) -> None:
    await conn.send_all(b"+PONG")
    await conn.send_all(b"\n")


async def _short(conn: Connection) -> None:
    await conn.receive_some()
    await conn.send_all(b"+PO")


async def _resets(conn: Connection) -> None:
    conn.abort()


async def _waits(conn: Connection) -> None:
    await trio.sleep_forever()


async def _drips(conn: Connection) -> None:
    for number in b"+PONG\r\n":
        await conn.send_all(bytes([number]))
        await trio.sleep(0.5)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (_wrong, r"it sent '-ERR \x1b[2J\xff\r\nxxxx"),
        (_endless, r"it sent '\x00\x00\x00"),
        (_wrong_at_last, r"instead of '+PONG\r\n'"),
        (_short, r"it sent '+PO' instead of '+PONG\r\n'"),
        (_resets, "ConnectionResetError: [Errno 104]"),
        (_waits, "TimeoutError: [Errno 110] no answer within 1 s"),
        (_drips, "TimeoutError: [Errno 110] no answer within 1 s"),
    ],
)
async def test_what_does_not_pass(
    handler: Any, error: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: why is said, escaped and short, as soon as the first check has failed."""
    async with checked(handler) as (made, told):
        await trio.sleep(10)
        (state,) = made.targets()
        assert (state.up, state.retry) == (False, None)
        assert state.checks == state.checks_failed > 4
        assert state.error is not None
        assert state.error.startswith("check: ")
        assert error in state.error
        assert state.error.isascii()
        assert len(state.error) < 200
        assert state.open == 0
    assert [up for *_, up in told.changes] == [False]
    assert told.changes[0][0] <= 2


@pytest.mark.parametrize("kind", ["refuses", "says nothing", "no such name"])
async def test_a_target_that_can_not_be_connected_to(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: no client has to find that out; those that come get the other one."""
    told = Told()
    how = {"refuses": refusing, "says nothing": black_hole, "no such name": _no_name}
    async with echoes(1) as (good,):
        with how[kind]() as bad:
            health = Health(check=0.5)
            handler = proxy(bad, good.address, health=health, on_target=told)
            async with serving(handler) as running:
                await trio.sleep(2)
                assert [state.up for state in handler.targets()] == [False, True]
                for _ in range(20):
                    assert await talk(running) == good.address
                    await trio.sleep(0.5)
            assert all(len(report.attempts) == 1 for report in running.reports)
    assert [up for *_, up in told.changes] == [False]


@contextlib.contextmanager
def _no_name() -> Any:
    yield TcpAddress("no-such-name.invalid", 80)


async def test_a_target_that_is_back_is_up_after_some_checks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: it is down after three that fail; no client tries it meanwhile."""
    told = Told()
    async with echoes(2) as (one, two):
        port = one.port
        health = Health(check=1, rise=2)
        handler = proxy(one.address, two.address, health=health, on_target=told)
        async with serving(handler) as running:
            await trio.sleep(5)
            await one.server.drain()
            began = trio.current_time()
            await trio.sleep(10)
            assert await talk(running) == two.address
            async with serving(echo, addresses=(f"127.0.0.1:{port}",)):
                back = trio.current_time()
                await trio.sleep(5)
                assert await talk(running) == one.address
    (down, _, _), (up, _, _) = told.changes
    assert 1.5 <= down - began <= 3.5
    assert 0.8 <= up - back <= 2.3
    assert [state.up for state in told.states] == [False, True]
    assert told.states[1].error is None


async def test_a_target_that_connects_and_does_not_answer_is_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Clients that connect to it don't say that it is well."""
    calm = True

    async def flaky(conn: Connection) -> None:
        if calm and await conn.receive_some() == b"PING\r\n":
            await conn.send_all(b"+PONG\r\n")
        await trio.sleep(0.1)

    async with serving(flaky) as there:
        handler = proxy(there.address, health=PING)
        async with serving(handler) as running:
            await trio.sleep(3)
            calm = False
            for _ in range(50):
                client = await running.connect()
                await trio.sleep(0.1)
                await client.aclose()
            (state,) = handler.targets()
            assert not state.up
            assert state.connected == 50


async def test_backups_take_over_those_that_wait_for_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with echoes(2) as (one, two):
        health = Health(check=1, fall=1)
        backup = f"{two.address}?backup"
        handler = proxy(one.address, backup, health=health, max_per_target=1)
        async with serving(handler) as running:
            await trio.sleep(2)
            holds, waits = await running.connect(), await running.connect()
            await holds.send_all(b"x")
            await waits.send_all(b"y")
            assert await holds.receive_some() == b"x"
            one.server.start_draining()
            await trio.sleep(3)
            assert await waits.receive_some() == b"y"
            assert [state.open for state in handler.targets()] == [1, 1]


@pytest.mark.parametrize(
    ("version", "header"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")],
)
async def test_a_check_declares_no_client(
    version: Any, header: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    got: list[bytes] = []

    async def receives(conn: Connection) -> None:
        got.extend([data async for data in conn])

    async with serving(receives) as there:
        handler = proxy(there.address, health=Health(check=1), send_proxy=version)
        async with serving(handler):
            await trio.sleep(1.1)
    assert got
    assert set(got) == {header}


@pytest.mark.parametrize("speaks_tls", [True, False])
async def test_a_target_with_tls_shakes_hands(
    speaks_tls: bool, autojump_clock: trio.testing.MockClock
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    layers = Layers(tls=context) if speaks_tls else Layers()
    async with serving(_pong if speaks_tls else echo, layers=layers) as there:
        address = TcpAddress("127.0.0.1", there.port)
        handler = proxy(Target(address, tls=trusting), health=PING)
        async with serving(handler):
            await trio.sleep(5)
            (state,) = handler.targets()
            assert state.up is speaks_tls
            assert state.checks > 3
            if not speaks_tls:
                assert state.error is not None
                assert "TlsError" in state.error


# -- when they run


async def test_checks_are_spread_over_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also those of proxies that begin at the same time."""
    times: list[float] = []

    async def notes(conn: Connection) -> None:
        times.append(trio.current_time())

    async with contextlib.AsyncExitStack() as stack:
        there = [await stack.enter_async_context(serving(notes)) for _ in range(5)]
        for _ in range(4):
            targets = [each.address for each in there]
            made = proxy(*targets, health=Health(check=10))
            await stack.enter_async_context(serving(made))
        await trio.sleep(100)
    assert 180 <= len(times) <= 220
    for begin in range(0, 90, 10):
        here = [time for time in times if begin <= time < begin + 10]
        assert max(here) - min(here) > 5
        assert len({round(time, 2) for time in here}) > 10


@pytest.mark.parametrize("way", ["by name", "by itself", "twice"])
async def test_checks_run_whatever_calls_the_proxy(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Once, while at least one server serves it."""

    async def wraps(conn: Connection) -> None:
        await (await made(conn))

    async with serving(echo) as there, trio.open_nursery() as nursery:
        made = proxy(there.address, health=Health(check=1))
        handlers: dict[str, list[Any]] = {
            "by name": [by_server_name({"a.test": made, "b.test": made, "c": echo})],
            "by itself": [wraps],
            "twice": [made, made],
        }
        if way == "by itself":
            nursery.start_soon(made.run_beside)
        async with contextlib.AsyncExitStack() as stack:
            for each in handlers[way]:
                await stack.enter_async_context(serving(each))
            await trio.sleep(10)
            assert 8 <= made.targets()[0].checks <= 11
        nursery.cancel_scope.cancel()
    checks = made.targets()[0].checks
    await trio.sleep(10)
    assert made.targets()[0].checks == checks


async def test_another_server_goes_on_with_the_checks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(echo) as there:
        made = proxy(there.address, health=Health(check=1))
        async with serving(made) as one, serving(made):
            await trio.sleep(2)
            await one.server.drain()
            before = made.targets()[0].checks
            await trio.sleep(10)
            assert made.targets()[0].checks >= before + 8


@pytest.mark.parametrize("end", ["drain", "cancel"])
async def test_checks_end_with_a_server_in_a_lent_nursery(
    end: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 13: although its connections may go on."""
    async with serving(echo) as there, trio.open_nursery() as lent:
        made = proxy(there.address, health=Health(check=1))
        async with serving(made, handler_nursery=lent) as running:
            client = await running.connect()
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            await trio.sleep(2)
            if end == "cancel":
                running.scope.cancel()
            else:
                await client.aclose()
                await running.server.drain()
            await running.ended.wait()
            checks = made.targets()[0].checks
            assert checks
            await trio.sleep(5)
            assert made.targets()[0].checks == checks
            lent.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while not running.reports:
                    await trio.lowlevel.checkpoint()


async def test_without_checks_there_is_nothing_to_run() -> None:
    await proxy("127.0.0.1:1").run_beside()


@pytest.mark.untraced
@pytest.mark.parametrize("how", ["cancel", "drain"])
def test_stopped_at_every_step_nothing_is_left(how: str) -> None:
    """Law 13: neither a task nor a descriptor, whatever a check is doing."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(_pong) as good, serving(_waits) as waits:
            made = proxy(good.address, waits.address, health=PING)
            async with serving(made) as running:
                stop = running.scope.cancel
                begin(stop if how == "cancel" else running.server.start_draining)
                await trio.sleep(1.3)
                running.scope.cancel()
            for state in made.targets():
                assert state.open == 0
        assert open_fds() == before

    assert sweep(scenario) > 20


async def test_a_late_process_blames_no_target() -> None:
    """Law 15: it was stopped, and its checks with it."""

    def main() -> None:
        async def late() -> None:
            with black_hole() as silent:
                handler = proxy(silent, health=Health(check=5, fall=1))
                async with serving(handler):
                    await trio.sleep(5)
                    clock = trio.lowlevel.current_clock()
                    assert isinstance(clock, trio.testing.MockClock)
                    clock.jump(60)
                    await trio.testing.wait_all_tasks_blocked()
                    (state,) = handler.targets()
                    assert (state.up, state.checks) == (True, 0)

        run(late)

    await trio.to_thread.run_sync(main)


async def test_a_shortage_of_this_machine_says_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: here, no address of the target's family."""
    handler = proxy("[::1]:1", source="127.0.0.1", health=Health(check=1))
    async with serving(handler):
        await trio.sleep(5)
        (state,) = handler.targets()
        assert (state.up, state.checks, state.error) == (True, 0, None)


# -- callbacks


async def test_an_exception_in_on_target_is_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 13: there is no connection to end, and the checks go on."""

    def on_target(state: object) -> None:
        raise ValueError("a bug")

    with refusing() as bad:
        handler = proxy(bad, health=Health(check=1), on_target=on_target)
        async with serving(handler):
            with caplog.at_level(logging.ERROR):
                await trio.sleep(5)
            assert handler.targets()[0].checks > 3
    assert [r.getMessage() for r in caplog.records] == [
        "on_target raised ValueError: a bug"
    ]


async def test_one_that_ends_the_program_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def on_target(state: object) -> None:
        raise SystemExit(5)

    with refusing() as bad, pytest.raises(BaseExceptionGroup) as raised:
        handler = proxy(bad, health=Health(check=1), on_target=on_target)
        async with serving(handler):
            await trio.sleep(5)
    assert raised.group_contains(SystemExit)


# -- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": 0}, "check must be more than 0"),
        ({"check": float("inf")}, "check must be more than 0, and finite"),
        ({"check": 1, "rise": 0}, "rise must be 1 or more, not 0"),
        ({"check_expect": b"x"}, "check_expect is for checks; set check, too"),
        ({"check": 1, "check_send": b"x"}, "check_send needs check_expect"),
    ],
)
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Health(**options)

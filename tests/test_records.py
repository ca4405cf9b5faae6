"""Records that list the targets, of a name server on loopback."""

from __future__ import annotations

import collections
import contextlib
import logging
import re
import sys
from collections.abc import AsyncGenerator
from typing import Any

import dns.rcode
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from name_server import NameServer
from support import Running, receive_exactly, serving
from targets import Resolver
from test_balancing import echoes, talk
from test_draining_targets import holds
from trioserve import (
    AddressRecords,
    Health,
    Proxy,
    Reason,
    SrvRecords,
    Target,
    TcpAddress,
    Timeouts,
    parse_target,
    proxy,
)
from trioserve._name_servers import SrvRecord, check_installed, make_resolver
from trioserve._target_lists import targets_of

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NAME = "_pg._tcp.example.org"


@contextlib.asynccontextmanager
async def name_server(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[NameServer]:
    """A name server; the names of targets are all those of this machine."""
    trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.1"]))
    server = NameServer()
    module = "trioserve._name_servers"
    monkeypatch.setattr(f"{module}.make_resolver", server.resolver)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


async def port_of(running: Running) -> int | None:
    """The port of the target that a client gets; None if it is reset."""
    target = await talk(running)
    return None if target is None else int(target.rpartition(":")[2])


def lists(server: NameServer, *records: str, ttl: int = 30) -> None:
    server.answers[(NAME, "SRV")] = ttl, records


# -- what records mean

RECORDS = st.lists(
    st.builds(
        SrvRecord,
        priority=st.integers(0, 65_535),
        weight=st.integers(0, 65_535),
        port=st.integers(1, 65_535),
        host=st.sampled_from(["a.test", "b.test", "c.test"]),
    ),
    min_size=1,
)


@given(RECORDS)
def test_targets_are_those_of_the_records(records: list[SrvRecord]) -> None:
    """RFC 2782: in the order of priorities, with the shares of the weights."""
    targets = targets_of(records)
    assert [each.address for each in targets] == [
        TcpAddress(each.host, each.port) for each in records
    ]
    for one, mine in zip(records, targets, strict=True):
        for other, its in zip(records, targets, strict=True):
            assert (one.priority < other.priority) is (mine.priority < its.priority)
            assert one.weight > other.weight or mine.weight <= its.weight


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 3], [1, 3]),
        ([0, 0], [1, 1]),
        ([1000, 500], [1000, 500]),
        ([60_000, 30_000, 1], [1000, 500, 1]),
        ([0, 1, 1], [1, 1000, 1000]),
        ([0, 5, 10], [1, 500, 1000]),
    ],
)
def test_weights(weights: list[int], expected: list[int]) -> None:
    """One of weight 0 has a very small chance beside others."""
    records = [SrvRecord(0, weight, 1, "a") for weight in weights]
    assert [each.weight for each in targets_of(records)] == expected


@pytest.mark.parametrize("text", [f"srv://{NAME}", f" SRV://{NAME} "])
def test_a_service_is_a_text(text: str) -> None:
    assert parse_target(text) == SrvRecords(NAME)
    assert str(SrvRecords(NAME)) == f"srv://{NAME}"


@pytest.mark.parametrize("text", ["dns://db.test:80", " DNS://db.test:80 "])
def test_a_name_of_name_servers_is_a_text(text: str) -> None:
    assert parse_target(text) == AddressRecords("db.test", 80)
    assert str(AddressRecords("db.test", 80)) == "dns://db.test:80"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dns://10.0.0.1:80", "host '10.0.0.1' is not a name; leave dns:// out"),
        ("dns://:80", "host '' is not a name"),
        ("dns://a.test:0", "the target 'a.test:0' has port 0"),
        ("dns://unix:/a", "'dns://unix:/a' has no name; use dns://HOST:PORT"),
        ("dns://a.test", "'a.test' has no port"),
        ("dns+tls://a.test?sni=b", "'a.test' has no port"),
        ("srv+tls://?sni=b", "'srv+tls://?sni=b' is not the name of a"),
    ],
)
def test_a_wrong_name_of_name_servers_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        proxy(text)


@pytest.mark.parametrize(
    "text",
    [
        "srv://",
        "srv://127.0.0.1",
        "srv://a b",
    ],
)
def test_a_wrong_name_is_an_error(text: str) -> None:
    message = f"'{re.escape(text)}' is not the name of a service; use one like srv://_"
    with pytest.raises(ValueError, match=message):
        proxy(text)


def test_without_dnspython_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    message = r"^'srv://a.b' needs dnspython: pip install 'trioserve\[dns\]'$"
    with pytest.raises(ValueError, match=message):
        proxy("srv://a.b")
    monkeypatch.undo()
    check_installed("srv://a.b")


def test_the_name_servers_are_those_of_the_system() -> None:
    """As they are now: each question reads the file anew."""
    one, other = make_resolver(), make_resolver()
    assert one is not other
    assert list(one.nameservers) == list(other.nameservers)


# -- records that are followed


async def test_clients_get_the_targets_by_priority_and_weight(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with name_server(monkeypatch) as names, echoes(3) as there:
        one, two, three = (each.port for each in there)
        lists(
            names,
            f"20 1 {three} c.test.",
            f"10 1 {two} b.test.",
            f"10 3 {one} a.test.",
        )
        handler = proxy(
            f"srv://{NAME}", balance="round-robin", health=Health(fall=1, pause=20)
        )
        async with serving(handler) as running:
            turns = collections.Counter([await port_of(running) for _ in range(8)])
            assert turns == {one: 6, two: 2}
            assert [str(state.target) for state in handler.targets()] == [
                f"a.test:{one}?weight=3",
                f"b.test:{two}",
                f"c.test:{three}?priority=1",
            ]
            for each in there[:2]:
                await each.server.drain(within=0)
            for _ in range(4):
                assert await port_of(running) == there[2].port
    assert running.reports[0].target == f"a.test:{one}"


async def test_records_are_asked_for_again_when_their_ttl_is_over(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Old connections go on; and they are at once if a program says so."""
    caplog.set_level(logging.INFO, "trioserve.targets")
    async with name_server(monkeypatch) as names, echoes(2) as (one, two):
        lists(names, f"0 0 {one.port} a.test.", ttl=30)
        handler = proxy(SrvRecords(NAME))
        async with serving(handler) as running:
            client = await holds(running)
            began = names.asked[0]
            lists(names, f"0 0 {two.port} b.test.", ttl=0)
            await trio.sleep(29)
            assert len(names.asked) == 1
            await trio.sleep(1.5)
            assert names.asked[1] - began == pytest.approx(30, abs=0.1)
            assert await port_of(running) == two.port
            lists(names, f"0 0 {one.port} a.test.", ttl=3600)
            await trio.sleep(2)
            assert len(names.asked) == 3  # a TTL of 0 is one second
            assert await port_of(running) == one.port
            lists(names, f"0 7 {one.port} a.test.", f"0 0 {two.port} b.test.", ttl=5)
            assert handler.reload_targets()
            await trio.sleep(1)
            assert [state.target.weight for state in handler.targets()] == [1000, 1]
            await client.send_all(b"y")
            assert await receive_exactly(client, 1) == b"y"
    assert caplog.messages == [
        f"srv://{NAME} has 1 target now: 1 new, 0 gone",
        f"srv://{NAME} has 1 target now: 1 new, 1 gone",
        f"srv://{NAME} has 1 target now: 1 new, 1 gone",
        f"srv://{NAME} has 2 targets now: 1 new, 0 gone",
    ]


FAILURES = {
    "no such name": f"{NAME} has no SRV records",
    "no such records": f"{NAME} has no SRV records",
    "not available": f"{NAME} is not available",
    "broken": "name servers can't answer: ",
    "silent": "no name server has answered within 5 s",
    "port 0": "the target 'a.test:0' has port 0: it can't be dialed",
}


def fail(names: NameServer, how: str) -> None:
    names.answers = {}
    match how:
        case "no such records":
            names.answers[(NAME, "A")] = 30, ["127.0.0.1"]
        case "not available":
            lists(names, "0 0 0 .")
        case "port 0":
            lists(names, "0 0 0 a.test.")
        case "broken":
            names.rcode = dns.rcode.REFUSED
        case "silent":
            names.is_silent = True
        case _:
            pass


@pytest.mark.parametrize("how", FAILURES)
async def test_targets_stay_when_a_look_up_fails(
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: the log says so once; and they are followed again when it succeeds."""
    async with name_server(monkeypatch) as names, echoes(2) as (one, two):
        lists(names, f"0 0 {one.port} a.test.", ttl=2)
        handler = proxy(f"srv://{NAME}")
        async with serving(handler) as running:
            assert await port_of(running) == one.port
            fail(names, how)
            await trio.sleep(60)
            assert await port_of(running) == one.port
            (message,) = caplog.messages
            assert message.startswith(f"srv://{NAME}: {FAILURES[how]}")
            end = "; the targets of before stay in use until that is mended"
            assert message.endswith(end)
            names.rcode, names.is_silent = dns.rcode.NOERROR, False
            lists(names, f"0 0 {two.port} a.test.")
            await trio.sleep(11)
            assert await port_of(running) == two.port
    assert max(report.connect or 0 for report in running.reports) < 0.1


@pytest.mark.parametrize("how", FAILURES)
async def test_if_no_target_was_ever_known_clients_get_the_error(
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: as soon as it is known; and the first target serves those that come."""
    async with name_server(monkeypatch) as names, echoes(1) as (there,):
        fail(names, how)
        handler = proxy(f"srv://{NAME}")
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            began = trio.current_time()
            assert await talk(running) is None
            waited = trio.current_time() - began
            assert (4 < waited <= 6) if how == "silent" else waited < 1
            assert await talk(running) is None
            assert handler.targets() == []
            for report in running.reports:
                assert report.reason is Reason.CONNECT_FAILED
                assert FAILURES[how] in str(report.error)
                assert report.target == f"srv://{NAME}"
            names.rcode, names.is_silent = dns.rcode.NOERROR, False
            lists(names, f"0 0 {there.port} a.test.")
            await trio.sleep(11)
            assert await port_of(running) == there.port


async def test_the_addresses_of_a_name_are_asked_for_when_their_ttl_is_over(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The smaller one of both kinds; one kind alone is enough."""
    async with name_server(monkeypatch) as names:
        a, aaaa = ("db.test", "A"), ("db.test", "AAAA")
        names.answers[a] = 20, ["10.0.0.2", "10.0.0.1"]
        handler = proxy("dns://DB.test:5432")
        async with serving(handler):
            await trio.sleep(1)
            assert told(handler) == ["10.0.0.1:5432", "10.0.0.2:5432"]
            names.answers[aaaa] = 5, ["2001:db8::1"]
            await trio.sleep(18)
            assert len(names.asked) == 2
            await trio.sleep(2)
            names.answers[a] = 100, ["10.0.0.3"]
            assert "[2001:db8::1]:5432" in told(handler)
            await trio.sleep(5)
            assert told(handler) == ["10.0.0.3:5432", "[2001:db8::1]:5432"]
            del names.answers[a]
            await trio.sleep(5)
            assert told(handler) == ["[2001:db8::1]:5432"]


def told(handler: Proxy) -> list[str]:
    return [str(state.target) for state in handler.targets()]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("no such name", "db.test has no addresses"),
        ("no such records", "db.test has no addresses"),
        ("silent", "no name server has answered within 5 s"),
    ],
)
async def test_a_name_without_addresses(
    how: str,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: the client hears why."""
    async with name_server(monkeypatch) as names:
        fail(names, how)
        if how == "no such records":
            names.answers[("db.test", "TXT")] = 30, ["x"]
        handler, timeouts = proxy(AddressRecords("db.test", 80)), Timeouts(connect=60)
        async with serving(handler, timeouts=timeouts) as running:
            assert await talk(running) is None
    (report,) = running.reports
    assert report.target == "dns://db.test:80"
    assert report.reason is Reason.CONNECT_FAILED
    assert str(report.error).endswith(error)


async def test_clients_wait_for_the_first_answer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Within their time; a client that has waited for longer is told so."""
    async with name_server(monkeypatch) as names, echoes(1) as (there,):
        fail(names, "silent")
        handler = proxy(f"srv://{NAME}")
        async with serving(handler, timeouts=Timeouts(connect=3)) as running:
            assert await talk(running) is None
            client = await running.connect()
            names.is_silent = False
            lists(names, f"0 0 {there.port} a.test.")
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
    report = running.reports[0]
    assert (report.reason, report.limit) == (Reason.CONNECT_TIMEOUT, 3)
    assert report.error == "TimeoutError: [Errno 110] no target was known within 3 s"


async def test_another_target_serves_meanwhile(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: nobody waits for a name server, if there is another target."""
    async with name_server(monkeypatch) as names, echoes(1) as (there,):
        fail(names, "silent")
        handler = proxy(f"srv://{NAME}", there.address)
        async with serving(handler) as running:
            for _ in range(20):
                assert await port_of(running) == there.port
                await trio.sleep(1)
    assert max(report.connect or 0 for report in running.reports) < 0.1


async def test_one_service_that_fails_leaves_hope_for_another(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with name_server(monkeypatch) as names, echoes(1) as (there,):
        lists(names, f"0 0 {there.port} a.test.")
        handler = proxy("srv://_none._tcp.example.org", f"srv://{NAME}")
        async with serving(handler) as running:
            for _ in range(3):
                assert await port_of(running) == there.port


async def test_a_drained_service_is_drained_with_the_targets_that_come(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with name_server(monkeypatch) as names, echoes(2) as (one, two):
        lists(names, f"0 0 {one.port} a.test.", ttl=1)
        handler = proxy(f"srv://{NAME}", Target(TcpAddress("127.0.0.1", two.port)))
        async with serving(handler) as running:
            await trio.sleep(0.5)
            assert await port_of(running) == one.port
            handler.drain(f"srv://{NAME}")
            lists(names, f"0 0 {one.port} a.test.", f"0 0 {two.port} b.test.", ttl=1)
            await trio.sleep(3)
            assert await port_of(running) == two.port
            assert [each.drained for each in handler.targets()] == [True, True, False]
            handler.revive(SrvRecords(NAME))
            assert not any(each.drained for each in handler.targets())


async def test_a_look_up_is_cancelled_with_the_server(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 13: it does not wait for a name server."""
    async with name_server(monkeypatch) as names:
        names.is_silent = True
        handler: Any = proxy(f"srv://{NAME}")
        async with serving(handler):
            await trio.sleep(1)
            began = trio.current_time()
        assert trio.current_time() == began
        assert len(names.asked) == 1

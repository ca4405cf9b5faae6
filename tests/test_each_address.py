"""A name of which each address is a target of its own."""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from support import Running, receive_exactly, serving
from targets import Resolver
from test_balancing import talk
from test_draining_targets import holds
from test_target_files import write
from trioserve import (
    Health,
    Layers,
    Reason,
    Target,
    TcpAddress,
    Timeouts,
    TlsClientOptions,
    TlsOptions,
    UnixAddress,
    echo,
    parse_target,
    proxy,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

HOSTS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


@contextlib.asynccontextmanager
async def servers(**options: Any) -> AsyncGenerator[tuple[int, list[Running]]]:
    """Servers at all of :data:`HOSTS`, with the same port, and that port."""
    async with contextlib.AsyncExitStack() as stack:
        port, there = 0, list[Running]()
        for host in HOSTS:
            made = serving(echo, addresses=(f"{host}:{port}",), **options)
            there.append(await stack.enter_async_context(made))
            port = there[0].port
        yield port, there


def resolver(*answer: str) -> Resolver:
    made = Resolver(list(answer))
    trio.socket.set_custom_hostname_resolver(made)
    return made


def hosts(handler: Any) -> list[str]:
    return [state.target.address.host for state in handler.targets()]


async def test_each_address_gets_its_part(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With the weight of the name, and with a state of its own."""
    resolver(*HOSTS)
    async with servers() as (port, there):
        handler = proxy(f"db.test:{port}?weight=2&each-address", balance="round-robin")
        async with serving(handler) as running:
            await trio.sleep(1)
            turns = collections.Counter([await talk(running) for _ in range(9)])
        assert turns == {each.address: 3 for each in there}
        states = handler.targets()
        assert [str(state.target) for state in states] == [
            f"{host}:{port}?weight=2" for host in HOSTS
        ]
        assert [state.connected for state in states] == [3, 3, 3]


async def test_an_address_that_is_down_is_left_out_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: which one it is, is said."""
    resolver("127.0.0.9", *HOSTS)
    told = list[str]()
    async with servers() as (port, _):
        handler = proxy(
            f"db.test:{port}?each-address",
            balance="round-robin",
            health=Health(check=1),
            on_target=lambda state: told.append(str(state.target)),
        )
        async with serving(handler) as running:
            await trio.sleep(5)
            for _ in range(9):
                assert await talk(running)
        assert told == [f"127.0.0.9:{port}"]
        states = handler.targets()
        assert [state.connected for state in states] == [0, 3, 3, 3]


async def test_a_changed_answer_is_followed(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """When the last one is 10 seconds old: old connections go on, no client fails.

    The order of an answer changes nothing.
    """
    caplog.set_level(logging.INFO, "trioserve.targets")
    names = resolver(*HOSTS[:2])
    async with servers() as (port, there):
        handler = proxy(f"db.test:{port}?each-address")
        async with serving(handler) as running:
            await trio.sleep(1)
            client = await holds(running)
            names.answer = HOSTS[1::-1]
            await trio.sleep(20)
            assert hosts(handler) == HOSTS[:2]
            names.answer = [HOSTS[2], HOSTS[1]]
            for _ in range(30):
                assert await talk(running)
                await trio.sleep(0.5)
            assert hosts(handler) == [HOSTS[1], HOSTS[2], HOSTS[0]]
            states = handler.targets()
            assert [state.gone for state in states] == [False, False, True]
            assert states[0].seconds == states[2].seconds is not None
            assert states[1].seconds is not None
            assert states[1].seconds >= 15 - 11
            accepted = [each.server.statistics().accepted for each in there]
            assert accepted[1] > 8
            assert accepted[2] == 0  # the balance is "first"
            await client.send_all(b"y")
            assert await receive_exactly(client, 1) == b"y"
    assert caplog.messages == [
        f"db.test:{port} has 2 targets now: 2 new, 1 gone",
        f"db.test:{port} has 2 targets now: 1 new, 1 gone",
    ]


@pytest.mark.parametrize("seconds", [0, 1e6])
async def test_addresses_stay_when_a_look_up_fails(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Or has no answer; and a numeric target is not concerned at all."""
    names = resolver(*HOSTS[:2])
    async with servers() as (port, there):
        targets = f"db.test:{port}?each-address", there[2].address
        handler = proxy(*targets, balance="round-robin")
        async with serving(handler) as running:
            await trio.sleep(1)
            names.answer = socket.gaierror(socket.EAI_NONAME, "gone")
            names.seconds = seconds
            for _ in range(30):
                assert await talk(running)
                await trio.sleep(1)
        assert [state.connected for state in handler.targets()] == [10, 10, 10]
        assert max(report.connect or 0 for report in running.reports) < 0.01


async def test_a_name_that_is_not_known_yet_is_one_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: its error is that of the look-up; and it is followed from then on."""
    names = resolver()
    names.answer = socket.gaierror(socket.EAI_NONAME, "not yet")
    async with servers() as (port, _):
        text = f"db.test:{port}?each-address"
        handler = proxy(text)
        async with serving(handler) as running:
            assert await talk(running) is None
            assert [str(state.target) for state in handler.targets()] == [text]
            names.answer = HOSTS[1:]
            await trio.sleep(15)
            assert hosts(handler) == HOSTS[1:]
            assert await talk(running) == f"{HOSTS[1]}:{port}"
    assert running.reports[0].reason is Reason.CONNECT_FAILED
    assert "not yet" in str(running.reports[0].attempts[0].error)


async def test_a_drained_name_is_drained_with_the_addresses_that_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    names = resolver(HOSTS[0])
    async with servers() as (port, there):
        name = TcpAddress("db.test", port)
        spare = f"{there[2].address}?backup"
        handler = proxy(Target(name, each_address=True), spare)
        async with serving(handler, timeouts=Timeouts(connect=1)) as running:
            handler.drain(name)
            await trio.sleep(2)
            names.answer = HOSTS[:2]
            await trio.sleep(15)
            drained = [state.drained for state in handler.targets()]
            assert drained == [True, True, False]
            assert await talk(running) == there[2].address
            handler.revive(f"db.test:{port}?each-address")
            assert await talk(running) == there[0].address
            handler.drain(there[0].address)
            names.answer = HOSTS
            await trio.sleep(15)
            drained = [state.drained for state in handler.targets()]
            assert drained == [True, False, False, False]


async def test_names_in_a_file_are_followed_as_long_as_they_are_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """And keep what is known of their addresses when the weight changes."""
    asked = list[float]()

    class Names(Resolver):
        async def getaddrinfo(self, host: Any, *args: Any, **options: Any) -> list[Any]:
            asked.append(trio.current_time())
            return await super().getaddrinfo(host, *args, **options)

    trio.socket.set_custom_hostname_resolver(names := Names(HOSTS[:2]))
    path = tmp_path / "targets"
    async with servers() as (port, there):
        write(path, there[2].address)
        handler = proxy(f"file:{path}", balance="round-robin")
        async with serving(handler) as running:
            await trio.sleep(30)
            assert asked == []
            write(path, f"db.test:{port}?each-address")
            await trio.sleep(3)
            assert hosts(handler) == HOSTS[:2]
            assert [await talk(running) for _ in range(4)]
            write(path, f"db.test:{port}?each-address&weight=3")
            handler.reload_targets()
            assert [state.connected for state in handler.targets()] == [2, 2]
            assert [state.target.weight for state in handler.targets()] == [3, 3]
            names.answer = HOSTS[1:]
            await trio.sleep(15)
            assert hosts(handler) == HOSTS[1:]
            write(path, there[0].address)
            await trio.sleep(2)
            count = len(asked)
            await trio.sleep(60)
            assert len(asked) == count >= 3


async def test_the_certificate_of_each_address_is_for_the_name(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """And not for its number."""
    authority, paths = trustme.CA(), [str(tmp_path / name) for name in ("ca", "pem")]
    authority.cert_pem.write_to_path(paths[0])
    issued = authority.issue_cert("db.test")
    issued.private_key_and_cert_chain_pem.write_to_path(paths[1])
    resolver(*HOSTS[:2])
    layers = Layers(tls=TlsOptions(cert=paths[1]))
    async with servers(layers=layers) as (port, _):
        for options in ("", "&verify=no", "&sni=db.test"):
            ca = "" if "no" in options else f"&ca={paths[0]}"
            text = f"tls://DB.test:{port}?each-address{ca}{options}"
            handler = proxy(text, balance="round-robin")
            async with serving(handler) as running:
                await trio.sleep(1)
                assert [await talk(running) for _ in range(2)] == [
                    f"{host}:{port}" for host in HOSTS[:2]
                ]


async def test_a_file_of_tls_that_is_gone_changes_nothing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: it is said once; the name is a target as before."""
    ca = tmp_path / "ca"
    trustme.CA().cert_pem.write_to_path(str(ca))
    names = resolver(HOSTS[0])
    handler = proxy(f"tls://db.test:1?each-address&ca={ca}")
    async with serving(handler):
        await trio.sleep(5)
        assert hosts(handler) == [HOSTS[0]]
        ca.unlink()
        names.answer = HOSTS
        await trio.sleep(60)
        assert hosts(handler) == [HOSTS[0]]
        (message,) = caplog.messages
        assert message == (
            f"ca: can't read '{ca}': No such file or directory; the targets of before"
            " stay in use until that is mended"
        )


def test_it_is_a_word_of_the_text() -> None:
    target = Target(TcpAddress("db.test", 1), backup=True, each_address=True)
    assert str(target) == "db.test:1?backup&each-address"
    assert parse_target(str(target)) == target
    tls = TlsClientOptions(verify=False)
    target = Target(TcpAddress("db.test", 1), tls=tls, each_address=True)
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_target("[::1]:1?each-address"), r"'\[::1\]:1' is one address;"),
        (
            lambda: Target(UnixAddress("/a"), each_address=True),
            "'unix:/a' is one address; each-address is for names",
        ),
        (
            lambda: Target(
                TcpAddress("a", 1),
                tls=ssl.create_default_context(),
                each_address=True,
            ),
            "each_address needs TlsClientOptions in place of an SSLContext",
        ),
    ],
)
def test_it_is_for_names(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

"""Socket options: of accepted and dialed connections, and of listeners."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioserve._connect
import trioserve._origins
from support import receive_all, serving
from targets import Resolver, listening
from trioserve import (
    Connection,
    ConnectionReport,
    Reason,
    SocketOptions,
    echo,
    open_listeners,
    proxy,
)
from trioserve._tcp import apply, keepalive_settings

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the numbers and the errors are Linux's"
)

_TCP = socket.IPPROTO_TCP


def keepalive_of(sock: Any) -> list[int] | None:
    """When it is asked, how often and at which intervals; None without keepalive."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT, socket.TCP_KEEPINTVL)
    return [sock.getsockopt(_TCP, option) for option in options]


def user_timeout_of(sock: Any) -> int:
    milliseconds: int = sock.getsockopt(_TCP, socket.TCP_USER_TIMEOUT)
    return milliseconds


@pytest.fixture
def dialed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int] | None, int]]:
    """The options of each socket that was dialed, when it is closed."""
    found: list[tuple[list[int] | None, int]] = []

    class Dialed(trioserve._origins.DialedSocket):
        def close(self) -> None:
            if self.fileno() >= 0:
                found.append((keepalive_of(self), user_timeout_of(self)))
            super().close()

    monkeypatch.setattr(trioserve._connect, "DialedSocket", Dialed)
    return found


OPTIONS = [
    (None, [60, 6, 10], 0),
    (SocketOptions(keepalive=5), [5, 6, 1], 0),
    (SocketOptions(keepalive=0.1), [1, 6, 1], 0),
    (SocketOptions(keepalive=61.5), [62, 6, 11], 0),
    (SocketOptions(keepalive=math.inf), None, 0),
    (SocketOptions(keepalive=math.inf, user_timeout=1.5), None, 1500),
]


@pytest.mark.parametrize(("options", "keepalive", "user_timeout"), OPTIONS)
async def test_accepted_connections_have_them(
    options: SocketOptions | None,
    keepalive: list[int] | None,
    user_timeout: int,
    autojump_clock: object,
) -> None:
    """Those of a listener that is added later, too."""
    found: list[object] = []

    async def handler(conn: Connection) -> None:
        found.append((keepalive_of(conn.socket), user_timeout_of(conn.socket)))

    (later,) = await open_listeners("[::1]:0")
    async with serving(handler, sockets=options) as running:
        running.server.add_listener(later)
        for index in range(2):
            assert await receive_all(await running.connect(index)) == b""
    assert found == 2 * [(keepalive, user_timeout)]


@pytest.mark.parametrize(("options", "keepalive", "user_timeout"), OPTIONS)
async def test_dialed_connections_have_them(
    options: SocketOptions | None,
    keepalive: list[int] | None,
    user_timeout: int,
    dialed: list[tuple[list[int] | None, int]],
    autojump_clock: object,
) -> None:
    """Also if the addresses of a name are tried side by side, and with faults."""
    trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.1", "127.0.0.2"]))
    async with serving(echo) as there:
        for host, faults in (
            ("127.0.0.1", None),
            ("target.test", None),
            ("127.0.0.1", "latency=1s"),
        ):
            target = f"{host}:{there.port}"
            handler = proxy(target, sockets=options, faults=faults)
            async with serving(handler) as running:
                client = await running.connect()
                await trio.sleep(1.5)
                await client.send_eof()
                assert await receive_all(client) == b""
    assert dialed == 3 * [(keepalive, user_timeout)]


async def test_a_short_connection_is_dialed_without_keepalive(
    dialed: list[tuple[list[int] | None, int]], autojump_clock: object
) -> None:
    """It costs four system calls, which it does not need; the user timeout it does."""
    options = SocketOptions(user_timeout=1.5)
    async with serving(echo) as there:
        handler = proxy(there.address, sockets=options)
        async with serving(handler) as running:
            client = await running.connect()
            await client.send_eof()
            assert await receive_all(client) == b""
    assert dialed == [(None, 1500)]


async def test_what_is_switched_on_already_stays(autojump_clock: object) -> None:
    listeners = await open_listeners("127.0.0.1:0")
    listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found: list[object] = []

    async def handler(conn: Connection) -> None:
        found.append(keepalive_of(conn.socket))

    options = SocketOptions(keepalive=math.inf)
    async with serving(handler, listeners=listeners, sockets=options) as running:
        assert await receive_all(await running.connect()) == b""
    assert found != [None]


def test_a_setting_that_the_system_lacks_is_left_out() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        apply(keepalive_settings(5), sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_unix_sockets_are_left_alone(tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/socket"
    async with serving(echo, addresses=(place,)) as there:
        assert not there.server[0].socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE
        )
        handler = proxy(place, source="127.0.0.1")
        async with serving(handler) as running:
            client = await running.connect()
            await client.send_eof()
            assert await receive_all(client) == b""
    assert running.reports[0].reason is Reason.CLIENT_CLOSED


# -- where a proxy connects from


async def reports_from(target: str, source: str) -> ConnectionReport:
    async with serving(proxy(target, source=source)) as running:
        client = await running.connect()
        await client.send_eof()
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_all(client)
    (report,) = running.reports
    return report


@pytest.mark.parametrize("host", ["127.0.0.1", "target.test"])
async def test_a_proxy_connects_from_its_source(
    host: str, autojump_clock: object
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.1", "127.0.0.2"]))
    async with serving(echo) as there:
        report = await reports_from(f"{host}:{there.port}", "127.0.0.9")
    assert report.reason is Reason.CLIENT_CLOSED
    assert there.reports[0].peer.startswith("127.0.0.9:")


async def test_a_source_over_ipv6() -> None:
    async with serving(echo, addresses=("[::1]:0",)) as there:
        report = await reports_from(there.address, "::1")
    assert report.reason is Reason.CLIENT_CLOSED


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("::1", "can't connect from ::1: the target has another family"),
        ("192.0.2.1", "can't connect from 192.0.2.1: Cannot assign requested address"),
    ],
)
async def test_a_source_that_does_not_fit_is_this_machines_fault(
    source: str, error: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The target is not to blame."""
    with listening() as address:
        report = await reports_from(str(address), source)
    assert report.reason is Reason.RESOURCE
    assert [attempt.ours for attempt in report.attempts] == [True]
    assert error in str(report.error)


# -- listeners


async def test_several_processes_may_share_a_port() -> None:
    (first,) = await open_listeners("127.0.0.1:0", reuse_port=True)
    address = "127.0.0.1:{1}".format(*first.socket.getsockname())
    (second,) = await open_listeners(address, reuse_port=True)
    with pytest.raises(OSError, match="in use"):
        await open_listeners(address)
    await first.aclose()
    await second.aclose()


async def test_without_saying_so_they_may_not() -> None:
    (first,) = await open_listeners("127.0.0.1:0")
    address = "127.0.0.1:{1}".format(*first.socket.getsockname())
    with pytest.raises(OSError, match="in use"):
        await open_listeners(address, reuse_port=True)
    await first.aclose()

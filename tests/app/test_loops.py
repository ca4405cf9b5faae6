from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
import trio.testing

from support import DeadNames
from trioserve import Address, TcpAddress, UnixAddress, open_listeners, parse_address
from trioserve.app._loops import _leads_to, find_loop


@contextlib.asynccontextmanager
async def bound(*addresses: str) -> AsyncGenerator[list[trio.socket.SocketType]]:
    listeners = await open_listeners(*addresses)
    try:
        yield [listener.socket for listener in listeners]
    finally:
        for listener in listeners:
            await listener.aclose()


async def _find(
    sockets: list[trio.socket.SocketType], *targets: Address
) -> Address | None:
    return await find_loop(sockets, targets, within=5)


def _own_address() -> str:
    """An address of this machine that is not on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # This chooses an interface; nothing is sent.
            sock.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("no network interface but the loopback")
        return str(sock.getsockname()[0])


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:0", "127.0.0.1"),
        ("127.0.0.1:0", "localhost"),
        ("127.0.0.1:0", "LOCALHOST"),
        ("127.0.0.1:0", "0.0.0.0"),
        ("127.0.0.1:0", "::ffff:127.0.0.1"),
        ("0.0.0.0:0", "127.1.2.3"),
        (":0", "localhost"),
        (":0", "::1"),
        ("[::1]:0", "::1"),
        ("[::1]:0", "::"),
    ],
)
async def test_a_target_that_leads_to_a_listener_is_a_loop(
    listen: str, target: str
) -> None:
    async with bound("127.0.0.1:0", listen) as sockets:
        port = sockets[-1].getsockname()[1]
        loop = TcpAddress(target, port)
        assert await _find(sockets, TcpAddress("127.0.0.1", 1), loop) == loop


def test_a_link_local_address_on_another_interface_is_not_a_loop() -> None:
    name = ("fe80::1", 80, 0, 2)
    assert _leads_to(("fe80::1", 80, 0, 2), name)
    assert not _leads_to(("fe80::1", 80, 0, 3), name)


async def test_any_address_of_this_machine_leads_to_all_interfaces() -> None:
    host = _own_address()
    async with bound("0.0.0.0:0") as sockets:
        loop = TcpAddress(host, sockets[0].getsockname()[1])
        assert await _find(sockets, loop) == loop


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:0", "127.0.0.2"),
        ("127.0.0.1:0", "::1"),
        ("[::1]:0", "127.0.0.1"),
        ("0.0.0.0:0", "192.0.2.1"),
        ("0.0.0.0:0", "255.255.255.255"),  # connect(2) forbids it
        ("127.0.0.1:0", "nobody.invalid"),
    ],
)
async def test_a_target_elsewhere_is_not_a_loop(listen: str, target: str) -> None:
    async with bound(listen) as sockets:
        port = sockets[0].getsockname()[1]
        assert await _find(sockets, TcpAddress(target, port)) is None


async def test_a_name_is_looked_up_only_if_a_listener_has_its_port(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bound("127.0.0.1:0") as sockets:
        DeadNames()
        port = sockets[0].getsockname()[1]
        assert await _find(sockets, TcpAddress("dead.test", port ^ 1)) is None
        assert trio.current_time() == 0
        # With that port it is looked up, but not forever.
        assert await _find(sockets, TcpAddress("dead.test", port)) is None
        assert trio.current_time() == 5


async def test_unix_sockets_are_the_same_if_their_files_are(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    link = tmp_path / "link"
    abstract = f"unix:@trioserve-loop-{os.getpid()}"
    async with bound(f"unix:{path}", abstract, "127.0.0.1:0") as sockets:
        link.symlink_to(path)
        for loop in (UnixAddress(str(path)), UnixAddress(str(link))):
            assert await _find(sockets, loop) == loop
        assert await _find(sockets, parse_address(abstract)) == parse_address(abstract)
        assert await _find(sockets, UnixAddress(str(tmp_path / "other"))) is None
        assert await _find(sockets, UnixAddress("@another")) is None
        assert await _find(sockets, TcpAddress("127.0.0.1", 1)) is None

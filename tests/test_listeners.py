"""Listeners: binding, and whatever accept(2) says."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from support import (
    open_fds,
)
from trioserve import (
    Address,
    open_listeners,
)

# -- binding


async def _close(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        await listener.aclose()


async def test_each_address_gets_its_listener() -> None:
    listeners = await open_listeners("127.0.0.1:0", Address("127.0.0.1", 0), backlog=7)
    names = {listener.socket.getsockname() for listener in listeners}
    assert len(names) == 2
    await _close(listeners)


async def test_all_interfaces_share_one_port() -> None:
    """With port 0, IPv4 and IPv6 listeners get the same number."""
    listeners = await open_listeners(":0")
    ports = {listener.socket.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    assert len(listeners) == (2 if socket.has_dualstack_ipv6() else 1)
    await _close(listeners)


async def test_a_port_taken_in_the_other_family_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A free IPv4 port that is taken in IPv6 costs another attempt, not an error."""
    kind = _trio_socket_type()
    bind = kind.bind
    failures = ["first attempt", "second attempt"]

    async def taken_twice(self: Any, address: Any) -> None:
        if self.family == socket.AF_INET6 and failures:
            raise OSError(errno.EADDRINUSE, failures.pop())
        await bind(self, address)

    monkeypatch.setattr(kind, "bind", taken_twice)
    listeners = await open_listeners(":0")
    assert len(listeners) == 2
    assert not failures
    await _close(listeners)


def _trio_socket_type() -> Any:
    with trio.socket.socket() as sock:
        return type(sock)


@pytest.mark.parametrize("failing", ["EADDRNOTAVAIL", "EACCES"])
async def test_a_missing_family_is_no_matter(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv6 switched off by the system is passed over; other errors are not."""
    kind = _trio_socket_type()
    bind = kind.bind

    async def no_ipv6(self: Any, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(getattr(errno, failing), "no")
        await bind(self, address)

    monkeypatch.setattr(kind, "bind", no_ipv6)
    before = open_fds()
    if failing == "EACCES":
        with pytest.raises(PermissionError) as caught:
            await open_listeners(":0")
        assert caught.value.filename == ":0"
        assert open_fds() == before
        return
    (listener,) = await open_listeners(":0")
    assert listener.socket.family == socket.AF_INET
    await listener.aclose()


async def test_all_or_none() -> None:
    """An address that is taken leaves nothing bound, and is named."""
    (first,) = await open_listeners("127.0.0.1:0")
    name = first.socket.getsockname()
    before = open_fds()
    with pytest.raises(OSError, match="in use") as caught:
        await open_listeners("127.0.0.1:0", f"127.0.0.1:{name[1]}")
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.filename == f"127.0.0.1:{name[1]}"
    assert open_fds() == before
    await first.aclose()


async def test_unknown_names_and_foreign_addresses_are_named() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid:80"):
        await open_listeners("no-such-host.invalid:80")
    with pytest.raises(OSError, match=r"192\.0\.2\.1:80") as caught:
        await open_listeners("192.0.2.1:80")
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_bad_addresses_raise_before_anything_is_bound() -> None:
    before = open_fds()
    with pytest.raises(ValueError, match="bare port"):
        await open_listeners("127.0.0.1:0", "8080")
    with pytest.raises(ValueError, match="no address"):
        await open_listeners()
    assert open_fds() == before

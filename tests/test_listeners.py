"""Listeners: bind addresses, all or none."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shell import free_port
from support import open_fds
from trioserve import TcpAddress, open_listeners

# -- binding


async def _close(listeners: Sequence[trio.abc.AsyncResource]) -> None:
    for listener in listeners:
        await listener.aclose()


async def test_each_address_gets_its_listener() -> None:
    listeners = await open_listeners(
        "127.0.0.1:0", TcpAddress("127.0.0.1", 0), backlog=7
    )
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
    """A free IPv4 port that is taken for IPv6 costs another attempt, not an error."""
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
async def test_a_missing_family_is_skipped(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If IPv6 is switched off, IPv4 is enough; other errors are raised."""
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


# -- the same address, given twice


class _Names(trio.abc.HostnameResolver):
    """A resolver that knows a few names, some of them twice."""

    known: ClassVar[dict[bytes, list[str]]] = {
        b"twice.test": ["127.0.0.1", "127.0.0.1"],
        b"both.test": ["::1", "127.0.0.1", "::1", "::ffff:127.0.0.1"],
        b"none.test": [],
    }

    async def getaddrinfo(self, host: Any, port: Any, *_: int, **__: int) -> list[Any]:
        return [
            found
            for number in self.known[host]
            for found in socket.getaddrinfo(number, port, type=socket.SOCK_STREAM)
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


_SPELLINGS = {
    "127.0.0.1": {"127.0.0.1"},
    "127.0.0.2": {"127.0.0.2"},
    "tcp://127.0.0.1": {"127.0.0.1"},
    "[::ffff:127.0.0.1]": {"127.0.0.1"},
    "twice.test": {"127.0.0.1"},
    "both.test": {"127.0.0.1", "::1"},
    "[::1]": {"::1"},
    "[0:0::1]": {"::1"},
}


@given(st.lists(st.sampled_from(sorted(_SPELLINGS)), min_size=1, max_size=6))
@settings(deadline=None)
def test_each_address_is_bound_once(hosts: list[str]) -> None:
    """Law 13: however often it is given, and however it is written."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(_Names())
        port = free_port()
        listeners = await open_listeners(*(f"{host}:{port}" for host in hosts))
        names = [listener.socket.getsockname()[:2] for listener in listeners]
        await _close(listeners)
        wanted = set[str]().union(*(_SPELLINGS[host] for host in hosts))
        assert sorted(names) == sorted((host, port) for host in wanted)

    trio.run(main)


@pytest.mark.parametrize("host", ["twice.test", "both.test"])
async def test_a_name_that_has_an_address_twice_gets_one_free_port(host: str) -> None:
    """The resolver may return duplicates: a line that is twice in the hosts file."""
    trio.socket.set_custom_hostname_resolver(_Names())
    listeners = await open_listeners(f"{host}:0", f"{host}:0")
    each = len(_SPELLINGS[host])
    assert len(listeners) == 2 * each
    ports = [listener.socket.getsockname()[1] for listener in listeners]
    assert len(set(ports[:each])) == len(set(ports[each:])) == 1
    await _close(listeners)


async def test_an_address_that_is_bound_already_makes_up_for_a_missing_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without IPv6, the IPv4 address of a name is enough."""
    kind = _trio_socket_type()
    bind = kind.bind

    async def no_ipv6(self: Any, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "no")
        await bind(self, address)

    monkeypatch.setattr(kind, "bind", no_ipv6)
    trio.socket.set_custom_hostname_resolver(_Names())
    port = free_port()
    (listener,) = await open_listeners(f"127.0.0.1:{port}", f"both.test:{port}")
    await listener.aclose()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("[::]", "[::1]"),
        ("[::1]", "[::]"),
    ],
)
async def test_all_interfaces_and_one_of_them_conflict(first: str, second: str) -> None:
    """The error names both of them: no other program is in the way."""
    before = open_fds()
    port = free_port()
    addresses = [f"{first}:{port}", f"{second}:{port}"]
    with pytest.raises(OSError, match="in use") as caught:
        await open_listeners("127.0.0.2:0", *addresses)
    assert caught.value.errno == errno.EADDRINUSE
    assert [caught.value.filename2, caught.value.filename] == addresses
    assert open_fds() == before


async def test_a_port_that_another_program_has_is_not_blamed_on_us(
    tmp_path: Path,
) -> None:
    """Nor on all interfaces of the other family."""
    port = free_port()
    with socket.create_server(("127.0.0.2", port)):
        for others in (
            [f"127.0.0.1:{port}"],
            [f"[::]:{port}"],
            [f"unix:{tmp_path}/socket", "0.0.0.0:0"],
        ):
            with pytest.raises(OSError, match="in use") as caught:
                await open_listeners(*others, f"127.0.0.2:{port}")
            assert caught.value.filename2 is None


async def test_a_name_without_an_address_cannot_be_listened_on() -> None:
    trio.socket.set_custom_hostname_resolver(_Names())
    with pytest.raises(OSError, match=r"no address: 'none\.test:80'"):
        await open_listeners("none.test:80")


# -- Unix sockets


async def test_a_unix_socket_is_bound_once(tmp_path: Path) -> None:
    """However its path is written; its mode need be given only once."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    path = tmp_path / "folder" / "socket"
    spellings = [f"{tmp_path}/folder/./socket", f"{tmp_path}/link/socket"]
    for first, second in itertools.permutations([str(path), *spellings], 2):
        for modes in (("", "?mode=0620"), ("?mode=0620", ""), 2 * ("?mode=0620",)):
            (listener,) = await open_listeners(
                f"unix:{first}{modes[0]}", f"unix:{second}{modes[1]}"
            )
            assert stat.S_IMODE(path.stat().st_mode) == 0o620
            await listener.aclose()
            assert not path.exists()


async def test_a_unix_socket_cannot_have_two_modes(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/socket"
    with pytest.raises(ValueError, match="are one Unix socket: give one mode"):
        await open_listeners("127.0.0.1:0", f"{path}?mode=0600", f"{path}?mode=0660")
    assert os.listdir(tmp_path) == []


async def test_an_abstract_name_is_bound_once() -> None:
    name = f"unix:@trioserve-twice-{os.getpid()}"
    (listener,) = await open_listeners(name, name)
    await listener.aclose()


async def test_a_unix_socket_has_a_file_until_it_is_closed(tmp_path: Path) -> None:
    """Law 13: with the given mode, and removed at the end."""
    path = tmp_path / "socket"
    (listener,) = await open_listeners(f"unix:{path}?mode=0620")
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    client = await trio.open_unix_socket(path)
    accepted = await listener.accept()
    await client.send_all(b"hello")
    assert await accepted.receive_some() == b"hello"
    for stream in (client, accepted, listener, listener):
        await stream.aclose()
    assert not path.exists()


async def test_a_file_that_was_replaced_is_left_alone(
    tmp_path: Path,
) -> None:
    """Law 1: another server may have bound the path."""
    path = tmp_path / "socket"
    (first,) = await open_listeners(f"unix:{path}")
    path.unlink()
    (second,) = await open_listeners(f"unix:{path}")
    await first.aclose()
    assert path.is_socket()
    path.unlink()
    await second.aclose()


@pytest.mark.parametrize("mode", ["", "?mode=0600"])
async def test_a_file_that_was_left_over_is_replaced(mode: str, tmp_path: Path) -> None:
    """After a crash it need not be removed by hand."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    (listener,) = await open_listeners(f"unix:{path}{mode}")
    await (await trio.open_unix_socket(path)).aclose()
    await listener.aclose()


@pytest.mark.parametrize("kind", ["listening", "datagram", "file", "folder"])
async def test_a_path_in_use_or_of_another_file_is_left_alone(
    kind: str, tmp_path: Path
) -> None:
    """Law 1: and the error names the address."""
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        match kind:
            case "file":
                path.write_text("precious")
            case "folder":
                path.mkdir()
            case _:
                datagram = kind == "datagram"
                kind_of = socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM
                other = stack.enter_context(socket.socket(socket.AF_UNIX, kind_of))
                other.bind(str(path))
                if not datagram:
                    other.listen()
        before, fds = path.lstat(), open_fds()
        with pytest.raises(OSError, match="in use") as caught:
            await open_listeners("127.0.0.1:0", f"unix:{path}")
        assert caught.value.filename == f"unix:{path}"
        assert os.path.samestat(before, path.lstat())
        assert open_fds() == fds


async def test_a_failed_bind_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 13: all addresses or none; also if only the mode can't be set."""
    with pytest.raises(FileNotFoundError):
        await open_listeners(f"unix:{tmp_path}/no/socket")
    with pytest.raises(ValueError, match="bare port"):
        await open_listeners(f"unix:{tmp_path}/socket", "8080")
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await open_listeners(f"unix:{tmp_path}/socket", "192.0.2.1:0")

    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    with pytest.raises(PermissionError):
        await open_listeners(f"unix:{tmp_path}/socket?mode=0600")
    assert os.listdir(tmp_path) == []


async def test_an_abstract_name_needs_no_file() -> None:
    """It is in use while a socket is bound to it, and free at once afterwards."""
    name = f"unix:@trioserve-test-{os.getpid()}"
    for _ in range(2):
        (listener,) = await open_listeners(name)
        with pytest.raises(OSError, match="in use"):
            await open_listeners(name)
        sockaddr = listener.socket.getsockname()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(sockaddr)
        await listener.aclose()


async def test_bad_addresses_raise_before_anything_is_bound() -> None:
    before = open_fds()
    with pytest.raises(ValueError, match="bare port"):
        await open_listeners("127.0.0.1:0", "8080")
    with pytest.raises(ValueError, match="addresses must not be empty"):
        await open_listeners()
    assert open_fds() == before

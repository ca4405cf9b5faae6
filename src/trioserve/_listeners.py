"""Listeners: from addresses to bound, listening sockets; all or none.

It knows nothing of who accepts from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from os.path import samestat
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from ._address import (
    Address,
    TcpAddress,
    UnixAddress,
    parse_address,
    sockaddr_text,
)
from ._arguments import check_count, check_type
from ._names import AddrInfo, resolve
from ._tcp import set_up

#: As large as the kernel allows; it clamps.
_BACKLOG: Final = 0xFFFF

_ALL_INTERFACES: Final = frozenset(("0.0.0.0", "::"))


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """A listener on a Unix socket, which takes its file along when it is closed.

    Attributes:
      socket: the listening socket.
    """

    def __init__(self, sock: trio.socket.SocketType, path: str) -> None:
        check_type("sock", sock, trio.socket.SocketType, "a Trio socket")
        check_type("path", path, str, "a str")
        self.socket = sock
        self._listener = trio.SocketListener(sock)
        self._path = Path(path)
        self._file = self._path.lstat()

    async def accept(self) -> trio.SocketStream:
        """Accept a connection, as :meth:`trio.SocketListener.accept`."""
        return await self._listener.accept()

    def close(self) -> None:
        """Close it, and remove its file unless it is somebody else's by now."""
        with contextlib.suppress(OSError):
            if self.socket.fileno() >= 0 and samestat(self._file, self._path.lstat()):
                self._path.unlink()
        self.socket.close()

    async def aclose(self) -> None:
        """:meth:`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()


Listener: TypeAlias = trio.SocketListener | UnixListener


async def open_listeners(
    *addresses: str | Address, backlog: int | None = None
) -> list[Listener]:
    """Bind all ``addresses`` and listen, or none.

    A name, or no host at all, may stand for several addresses, a listener
    each; with port 0 they get one number. IPv6 listeners take IPv6 only. An
    address that is given twice, under whatever names, is listened on once; each
    port 0 is another free port.

    The file of a Unix socket that nobody listens on any more is replaced; it is
    removed when the listener is closed.

    Args:
      addresses: what :func:`parse_address` reads, or addresses.
      backlog: connections the kernel may hold for us; default: as many as it
        allows.

    Raises:
      ValueError: an address can't be read, or there is none, or a Unix socket is
        given with two modes; nothing was bound.
      OSError: an address can't be bound; its ``filename`` is the address, and its
        ``filename2`` another one of ``addresses`` if that has its port already.
        Nothing stays bound.
    """
    if not addresses:
        raise ValueError("addresses must not be empty: there is none to listen on")
    check_backlog(backlog)
    for address in addresses:
        kinds = (str, TcpAddress, UnixAddress)
        check_type("addresses", address, kinds, "texts or addresses")
    parsed = [parse_address(a) if isinstance(a, str) else a for a in addresses]
    backlog = _BACKLOG if backlog is None else backlog
    listeners: list[Listener] = []
    try:
        for address in _each_socket_once(parsed):
            if isinstance(address, UnixAddress):
                listeners.append(_bind_unix(address, backlog))
            else:
                bound = [each.socket.getsockname() for each in listeners]
                listeners += await _bind(address, backlog, bound)
    except BaseException:
        for listener in listeners:
            _close(listener)
        raise
    return listeners


def check_backlog(backlog: object) -> None:
    """See that it is one.

    Raises:
      TypeError, ValueError: naming it.
    """
    if backlog is not None:
        check_count("backlog", backlog, least=0, what="an int or None")


def _close(listener: Listener) -> None:
    if isinstance(listener, UnixListener):
        listener.close()
    else:
        listener.socket.close()


def _each_socket_once(addresses: Iterable[Address]) -> list[Address]:
    """Without the Unix sockets that are given again, under the same path or another.

    What a TCP address stands for is known when its name has been looked up.
    """
    once: dict[object, Address] = {}
    for address in addresses:
        if not isinstance(address, UnixAddress):
            once[object()] = address
            continue
        name = address.path
        if not address.is_abstract:
            name = os.path.realpath(name)
        first = once.setdefault(name, address)
        assert isinstance(first, UnixAddress)
        modes = {first.mode, address.mode} - {None}
        if len(modes) > 1:
            raise ValueError(
                f"{first} and {address} are one Unix socket: give one mode"
            )
        if modes:
            once[name] = dataclasses.replace(first, mode=modes.pop())
    return list(once.values())


def what_it_accepts_from(listener: object) -> object:
    """Its socket, so that two listeners on one are the same; or the listener itself.

    TLS over a listener accepts from what that one accepts from.
    """
    while isinstance(listener, trio.SSLListener):
        listener = listener.transport_listener
    sock: object = getattr(listener, "socket", None)
    return listener if sock is None else sock


async def _bind(
    address: TcpAddress, backlog: int, bound: Sequence[Any]
) -> list[trio.SocketListener]:
    """Bind what ``address`` stands for, unless it is ``bound`` already."""
    try:
        infos = await resolve(address, passive=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(address)) from error
    # A free port of one family may be taken in the other: then try another.
    for attempts_left in reversed(range(8)):
        try:
            return await _bind_each(address, infos, backlog, bound)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE and address.port == 0
            if not (taken and attempts_left):
                raise
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


async def _bind_each(
    address: TcpAddress, infos: Iterable[AddrInfo], backlog: int, bound: Sequence[Any]
) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    failed: OSError | None = None
    works = False
    port = address.port
    for info in infos:
        name = (info.sockaddr[0], port, *info.sockaddr[2:])
        if name in bound:
            works = True
            continue
        try:
            listener = await _listen(info, name, backlog)
        except OSError as error:
            # A family that this system lacks, or has switched off, is no
            # matter if another one works; any other error is.
            rival = _rival(name, bound) if error.errno == errno.EADDRINUSE else None
            failed = OSError(error.errno, error.strerror, str(address), None, rival)
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            for opened in listeners:
                opened.socket.close()
            raise failed from error
        works = True
        port = listener.socket.getsockname()[1]
        listeners.append(listener)
    if not works:
        assert failed is not None
        raise failed
    return listeners


def _rival(name: tuple[Any, ...], bound: Iterable[Any]) -> str | None:
    """One of those that are bound which leaves this port to nobody else."""
    for other in bound:
        if (
            isinstance(other, tuple)
            and other[1:2] == name[1:2]
            and _overlap(other, name)
        ):
            return sockaddr_text(other)
    return None


def _overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and not _ALL_INTERFACES.isdisjoint((one[0], other[0]))


async def _listen(
    info: AddrInfo, name: tuple[Any, ...], backlog: int
) -> trio.SocketListener:
    sock = trio.socket.socket(info.family, info.kind, info.protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if info.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(name)
        set_up(sock)  # once, instead of each that is accepted
        sock.listen(backlog)
        return trio.SocketListener(sock)
    except BaseException:
        sock.close()
        raise


def _bind_unix(address: UnixAddress, backlog: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        try:
            sock.bind(address.sockaddr)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_over(address):
                raise
            Path(address.path).unlink()
            sock.bind(address.sockaddr)
        bound = True
        if address.mode is not None:
            # Nobody can connect before it listens.
            Path(address.path).chmod(address.mode)
        sock.listen(backlog)
        sock.setblocking(False)
        made = trio.socket.from_stdlib_socket(sock)
        if address.is_abstract:
            return trio.SocketListener(made)
        return UnixListener(made, address.path)
    except OSError as error:
        sock.close()
        if bound and not address.is_abstract:
            with contextlib.suppress(OSError):
                Path(address.path).unlink()
        raise OSError(error.errno, error.strerror, str(address)) from error


def _is_left_over(address: UnixAddress) -> bool:
    """Whether there is a socket's file that nobody listens on."""
    if address.is_abstract:
        return False
    before = Path(address.path).lstat()
    if not stat.S_ISSOCK(before.st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(address.sockaddr)
    # Another server may have replaced it since.
    same = samestat(before, Path(address.path).lstat())
    return code == errno.ECONNREFUSED and same

"""Listeners: bind addresses and listen, all or none.

This module does not know what accepts from them.
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

#: The kernel clamps this to the largest that it allows.
_BACKLOG: Final = 0xFFFF

_ALL_INTERFACES: Final = frozenset(("0.0.0.0", "::"))


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """A listener on a Unix socket; its close removes the socket's file.

    Args:
      sock: the listening Trio socket.
      path: the path of its file.

    Raises:
      TypeError: an argument has the wrong type.
      OSError: there is no file at ``path``.

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
        """Close it, and remove its file unless that was replaced meanwhile."""
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
    *addresses: str | Address,
    backlog: int | None = None,
    reuse_port: bool = False,
) -> list[Listener]:
    """Bind ``addresses`` and listen: on all of them or on none.

    A name, or an empty host, may stand for several addresses; each gets a listener,
    and with port 0 they share one port number. IPv6 listeners accept IPv6 only. If
    two arguments mean the same address, it is bound once; each argument with port 0
    gets another free port.

    The file of a Unix socket on which nobody listens is replaced; closing the listener
    removes it.

    Args:
      addresses: texts for :func:`parse_address`, or addresses.
      backlog: connections that the kernel may queue; default: as many as it allows.
      reuse_port: let other processes of this user listen on the same TCP addresses, if
        they say so too; the kernel then shares connections out (``SO_REUSEPORT`` in
        socket(7)). Default False.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: no address is given, one can't be parsed, or a Unix socket is given
        with two modes; nothing was bound.
      OSError: an address can't be bound; ``filename`` is the address, and
        ``filename2`` the other one of ``addresses`` that has the port, if one does.
        Nothing stays bound.

    If it is cancelled while it looks up a name, nothing stays bound.
    """
    if not addresses:
        raise ValueError("addresses must not be empty")
    check_backlog(backlog)
    check_type("reuse_port", reuse_port, bool, "a bool")
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
                listeners += await _bind(address, (backlog, reuse_port), bound)
    except BaseException:
        for listener in listeners:
            _close(listener)
        raise
    return listeners


def check_backlog(backlog: object) -> None:
    """Check that ``backlog`` is None or an int of 0 or more.

    Raises:
      TypeError, ValueError: it is not.
    """
    if backlog is not None:
        check_count("backlog", backlog, least=0, what="an int or None")


def _close(listener: Listener) -> None:
    if isinstance(listener, UnixListener):
        listener.close()
    else:
        listener.socket.close()


def _each_socket_once(addresses: Iterable[Address]) -> list[Address]:
    """Drop Unix sockets that are given twice, also under different paths.

    TCP addresses are compared later, when their names are looked up.
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


def accept_source(listener: object) -> object:
    """The listener's socket, or the listener itself if it has none.

    Two listeners on one socket have the same. For a ``trio.SSLListener``, that of the
    listener below.
    """
    while isinstance(listener, trio.SSLListener):
        listener = listener.transport_listener
    sock: object = getattr(listener, "socket", None)
    return listener if sock is None else sock


async def _bind(
    address: TcpAddress, how: tuple[int, bool], bound: Sequence[Any]
) -> list[trio.SocketListener]:
    """Look ``address`` up, and bind all results that are not ``bound`` already."""
    try:
        infos = await resolve(address, passive=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(address)) from error
    # With port 0, a port that is free for IPv4 may be taken for IPv6: try another.
    for attempts_left in reversed(range(8)):
        try:
            return await _bind_each(address, infos, how, bound)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE and address.port == 0
            if not (taken and attempts_left):
                raise
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


async def _bind_each(
    address: TcpAddress,
    infos: Iterable[AddrInfo],
    how: tuple[int, bool],
    bound: Sequence[Any],
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
            listener = await _listen(info, name, *how)
        except OSError as error:
            # A family that this system lacks, or has switched off, is skipped if
            # another one works. Any other error is raised.
            conflict = (
                _conflicting(name, bound) if error.errno == errno.EADDRINUSE else None
            )
            failed = OSError(error.errno, error.strerror, str(address), None, conflict)
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


def _conflicting(name: tuple[Any, ...], bound: Iterable[Any]) -> str | None:
    """The address among ``bound`` that conflicts with ``name``, if one does."""
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
    info: AddrInfo, name: tuple[Any, ...], backlog: int, reuse_port: bool
) -> trio.SocketListener:
    sock = trio.socket.socket(info.family, info.kind, info.protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if info.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(name)
        set_up(sock)  # accepted sockets inherit the options
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
            # Before listen(), so that no client connects with the old mode.
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
    """Whether the path is the file of a socket on which nobody listens."""
    if address.is_abstract:
        return False
    before = Path(address.path).lstat()
    if not stat.S_ISSOCK(before.st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(address.sockaddr)
    # Another server may have replaced the file meanwhile.
    same = samestat(before, Path(address.path).lstat())
    return code == errno.ECONNREFUSED and same

"""Connect: one socket to one address.

It has two steps: :func:`begin_connect` calls connect(2), which does not wait, and
:func:`finish_connect` waits for the result. So a caller finds out at once whether
there was a descriptor for the socket, or even that it is connected. This module does
not know what is tried next if it fails.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import trio

from ._errors import errno_of, is_a, is_shortage
from ._names import AddrInfo
from ._origins import DialedSocket, Origin
from ._socket_transport import SocketTransport
from ._tcp import Setting, apply

#: Seconds between attempts to connect to a Unix socket whose backlog is full, at first
#: and at most. The kernel has no event for it. unix(7)
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25

#: SO_ERROR of a connection that was established and then reset; EPIPE if the peer had
#: sent a FIN before. A peer that does not listen is ECONNREFUSED.
_RESET_AFTERWARDS: Final = (errno.ECONNRESET, errno.EPIPE)

#: Saves a system call on systems with such a flag.
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)

#: Errors of connect(2) when no local port is free, or no local address fits. HAProxy
#: attributes the same ones to its own machine.
_NO_LOCAL_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EADDRINUSE)


def is_local_shortage(error: OSError) -> bool:
    """Whether this machine lacks a resource, so that the target is not to blame.

    EPERM and EACCES, from a firewall of this machine, don't count.
    """
    if is_a(error, socket.gaierror):
        return errno_of(error) == socket.EAI_MEMORY
    return is_shortage(error) or errno_of(error) in _NO_LOCAL_ADDRESS


#: Let connect(2) choose the port of a socket that is bound to an address, so that
#: connections to different targets may share one. ip(7)
_BIND_ADDRESS_NO_PORT: Final = 24


class Outgoing(NamedTuple):
    """How TCP sockets are made that connect.

    Attributes:
      settings: their options.
      later: options that a relay applies when it is a second old at most. Most
        connections of a busy proxy are over by then, and need no keepalive; its four
        system calls are 2 % of such a connection.
      source: the family and the number of the address that they connect from; None for
        the one that the system chooses.
    """

    settings: Sequence[Setting] = ()
    later: Sequence[Setting] = ()
    source: tuple[int, str] | None = None


#: As the system does it.
PLAIN: Final = Outgoing()


class Connecting(NamedTuple):
    """A socket on which connect(2) was called.

    Attributes:
      info: the address that it connects to.
      code: 0 if it is connected; EINPROGRESS; EAGAIN for a Unix socket whose backlog
        is full; or another error.
      began: when it began, on Trio's clock.
    """

    info: AddrInfo
    sock: socket.socket
    code: int
    began: float


def begin_connect(
    info: AddrInfo, origin: Origin, now: float, outgoing: Outgoing = PLAIN
) -> Connecting:
    """Start to connect; the socket belongs to the caller.

    Args:
      origin: the proxies that dial, for :func:`~._origins.origin_of`.
      now: the time, on Trio's clock.
      outgoing: how a TCP socket is made.

    Raises:
      OSError: no socket can be made, it can't have the source address, or connect(2)
        can't be called with this address.
    """
    sock = DialedSocket(info.family, info.kind | _NONBLOCK, info.protocol)
    try:
        if not _NONBLOCK:  # pragma: no cover - on other systems
            sock.setblocking(False)
        if info.family == socket.AF_UNIX:
            queued = info.sockaddr in _backlog_locks()
            # Others wait for room already: queue behind them.
            code = errno.EAGAIN if queued else sock.connect_ex(info.sockaddr)
        else:
            apply(outgoing.settings, sock)
            if outgoing.source is not None:
                _bind(sock, *outgoing.source)
            code = sock.connect_ex(info.sockaddr)
            # Registered before another task runs, because that may accept it.
            local = sock.getsockname()
            sock.register(local, info, origin)
            if code in (0, errno.EINPROGRESS):
                code = _connect_state(sock, local)
    except BaseException:
        sock.close()
        raise
    return Connecting(info, sock, code, now)


def _bind(sock: socket.socket, family: int, host: str) -> None:
    """Let a socket connect from an address.

    Raises:
      OSError: the address is of another family, or not of this machine.
    """
    try:
        if sock.family != family:
            raise OSError(errno.EADDRNOTAVAIL, "the target has another family")
        if sys.platform == "linux":  # pragma: no branch
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind((host, 0))
    except OSError as error:
        text = f"can't connect from {host}: {error.strerror}"
        raise OSError(error.errno, text) from None


async def finish_connect(
    connecting: Connecting, on_wait: Callable[[], None]
) -> SocketTransport:
    """Wait until it is connected. If it fails or is cancelled, it closes the socket.

    Args:
      on_wait: called before a wait.

    Raises:
      OSError: it could not connect.
    """
    info, sock, code, _ = connecting
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
        if code == errno.EAGAIN and info.family == socket.AF_UNIX:
            on_wait()
            code = await _connect_when_room(sock, info.sockaddr)
        if code == errno.EINPROGRESS:
            on_wait()
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and _is_connected_to_itself(sock):
                code = errno.ECONNREFUSED
        if code in _NO_LOCAL_ADDRESS:
            raise OSError(code, f"no local port or address: {os.strerror(code)}")
        if code and code not in _RESET_AFTERWARDS:
            raise OSError(code, os.strerror(code))
        transport = SocketTransport(sock)
        if code:
            # Bytes that came before the reset are still to be received. The kernel
            # reports the error only once, and would report EOF after these bytes.
            transport.error = OSError(code, os.strerror(code))
        return transport
    except BaseException:
        sock.close()
        raise


def _is_connected_to_itself(sock: socket.socket) -> bool:
    return _connect_state(sock, sock.getsockname()) == errno.ECONNREFUSED


def _connect_state(sock: socket.socket, local: Any) -> int:
    """0 if it is connected, ECONNREFUSED if connected to itself, else EINPROGRESS."""
    try:
        remote = sock.getpeername()
    except OSError:
        return errno.EINPROGRESS  # or it has failed; SO_ERROR has the error
    # The kernel may give the target's port, if it is free, to this socket, which then
    # connects to itself (RFC 9293, section 3.5, simultaneous open).
    return errno.ECONNREFUSED if remote == local else 0


#: A lock per Unix socket whose backlog is full; its holder polls connect(2).
_locks: trio.lowlevel.RunVar[dict[Any, trio.Lock]] = trio.lowlevel.RunVar(
    "trioserve_backlog_locks"
)


def _backlog_locks() -> dict[Any, trio.Lock]:
    try:
        return _locks.get()
    except LookupError:
        locks: dict[Any, trio.Lock] = {}
        _locks.set(locks)
        return locks


async def _connect_when_room(sock: socket.socket, path: Any) -> int:
    """Connect when there is room in the backlog of ``path``, in order of arrival.

    Only the first waiter polls, so that the cost does not grow with their number.

    Returns:
      0 or an errno.
    """
    locks = _backlog_locks()
    lock = locks.setdefault(path, trio.Lock())
    try:
        async with lock:
            pause = _FIRST_PAUSE
            while (code := sock.connect_ex(path)) == errno.EAGAIN:
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            return code
    finally:
        if not lock.locked():
            locks.pop(path, None)

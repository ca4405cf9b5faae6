"""TCP socket options that transports set and read.

For a Unix socket, and on a system without an option, each function returns a harmless
default.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final, TypeAlias

import trio

# As plain numbers: an enum costs as much as the system call.
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

_INFO: Final = getattr(socket, "TCP_INFO", 11)
#: The first byte of tcp_info: TCP_CLOSE in Linux's include/net/tcp_states.h.
_CLOSED: Final = b"\7"
#: tcpi_last_data_sent (ms) and tcpi_notsent_bytes in struct tcp_info of linux/tcp.h.
_PROGRESS: Final = struct.Struct("=44xI96xI")

#: Times that a silent peer is asked for a sign of life.
_PROBES: Final = 6

_KEEPALIVE: Final = (int(socket.SOL_SOCKET), int(socket.SO_KEEPALIVE))
#: Linux's numbers, if this system does not name them.
_IDLE: Final = (_TCP, getattr(socket, "TCP_KEEPIDLE", 4))
_INTERVAL: Final = (_TCP, getattr(socket, "TCP_KEEPINTVL", 5))
_COUNT: Final = (_TCP, getattr(socket, "TCP_KEEPCNT", 6))
_USER_TIMEOUT: Final = (_TCP, getattr(socket, "TCP_USER_TIMEOUT", 18))

#: Arguments of setsockopt(2).
Setting: TypeAlias = tuple[tuple[int, int], int]

#: The longest delay of an ACK, in ms. RFC 1122 (4.2.3.2) allows 500; Linux takes 40 to
#: 200.
_DELAYED_ACK: Final = 200

#: Unsent bytes that the kernel may hold before a socket stops being writable; Trio sets
#: the same. With it the kernel holds ~160 KB for a peer that never reads, without it
#: ~4 MB, and a write timeout would start late.
NOTSENT_LOWAT: Final = 16384


def set_up(sock: socket.socket | trio.socket.SocketType) -> None:
    """Set ``TCP_NODELAY`` and ``TCP_NOTSENT_LOWAT``; do nothing on a Unix socket."""
    try:
        sock.setsockopt(_TCP, _NODELAY, 1)
        sock.setsockopt(_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
    except OSError:
        pass  # a Unix socket


def keepalive_settings(seconds: float) -> tuple[Setting, ...]:
    """Settings for :func:`apply`: give up a connection that answers no probe.

    Args:
      seconds: without a packet, before the first probe; then again until it is given
        up. ``math.inf``: no settings.
    """
    if seconds == math.inf:
        return ()
    return (
        (_KEEPALIVE, 1),
        (_IDLE, math.ceil(seconds)),
        (_INTERVAL, math.ceil(seconds / _PROBES)),
        (_COUNT, _PROBES),
    )


def user_timeout_settings(seconds: float) -> tuple[Setting, ...]:
    """Settings for :func:`apply`: give up after ``seconds`` without an acknowledgement.

    With ``math.inf``: no settings.
    """
    if seconds == math.inf:
        return ()
    return ((_USER_TIMEOUT, math.ceil(seconds * 1000)),)


def apply(
    settings: Iterable[Setting], sock: socket.socket | trio.socket.SocketType
) -> None:
    """Apply settings to a TCP socket; those that the system lacks are left out.

    Sockets that a listening one accepts have its settings.
    """
    for (level, option), value in settings:
        try:  # noqa: SIM105 - it would cost as much as the system call
            sock.setsockopt(level, option, value)
        except OSError:
            pass  # the system lacks it


def sets_up(listening: socket.socket) -> bool:
    """Whether accepted sockets inherit the options of :func:`set_up`, as on Linux."""
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        held = listening.getsockopt(_TCP, _TCP_NOTSENT_LOWAT)
        return held == NOTSENT_LOWAT and bool(listening.getsockopt(_TCP, _NODELAY))
    except OSError:
        return False  # a Unix socket


def is_dead(sock: socket.socket) -> bool:
    """Whether the kernel has ended a connection whose socket is still open.

    The peer has reset it, or no longer acknowledges. The question takes neither
    bytes nor the error from the socket. False for a Unix socket, and on a system that
    does not tell.
    """
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        return sock.getsockopt(_TCP, _INFO, 1) == _CLOSED
    except OSError:
        return False  # a Unix socket


def set_notsent_lowat(sock: socket.socket, size: int) -> int:
    """Set how many unsent bytes the kernel may hold; 0 means no limit.

    A large value is for bulk: with a small one, a flow costs a third more CPU. See
    ``TCP_NOTSENT_LOWAT`` in Linux's tcp(7).

    Returns:
      the value before.
    """
    before = NOTSENT_LOWAT
    with contextlib.suppress(OSError):  # a Unix socket
        before = sock.getsockopt(_TCP, _TCP_NOTSENT_LOWAT)
        sock.setsockopt(_TCP, _TCP_NOTSENT_LOWAT, size)
    return before


def bytes_not_sent(sock: socket.socket, held: int) -> tuple[int, bool]:
    """How many of ``held`` bytes wait for room at the peer, and whether the others
    have just left.

    Bytes that have just left will be acknowledged soon, perhaps by a delayed ACK
    (RFC 1122, section 4.2.3.2). That ACK does not mean that the peer reads.
    """
    try:
        info = sock.getsockopt(_TCP, _INFO, _PROGRESS.size)
        milliseconds, waiting = _PROGRESS.unpack(info)
    except (OSError, struct.error):  # a Unix socket, or another system
        return held, False
    return waiting, milliseconds < _DELAYED_ACK

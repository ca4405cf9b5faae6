"""TCP: how a socket that we send through is set up.

It knows options, and not who sends or accepts.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Final

import trio

# As plain numbers: an enum costs as much as the system call.
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

_INFO: Final = getattr(socket, "TCP_INFO", 11)
#: The first byte of tcp_info: TCP_CLOSE in Linux's include/net/tcp_states.h.
_CLOSED: Final = b"\7"

#: Unsent bytes that the kernel may hold before a socket stops being writable;
#: as Trio sets it. It keeps what a peer that never reads costs to ~160 KB of
#: kernel memory instead of ~4 MB, and makes write timeouts mean something.
_LITTLE: Final = 16384


def set_up(sock: socket.socket | trio.socket.SocketType) -> None:
    """Send at once, and let the kernel hold little. A Unix socket does it anyway."""
    try:
        sock.setsockopt(_TCP, _NODELAY, 1)
        sock.setsockopt(_TCP, _NOTSENT_LOWAT, _LITTLE)
    except OSError:
        pass  # a Unix socket


def sets_up(listening: socket.socket) -> bool:
    """Whether what is accepted there is set up already: Linux hands it down."""
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        held = listening.getsockopt(_TCP, _NOTSENT_LOWAT)
        return held == _LITTLE and bool(listening.getsockopt(_TCP, _NODELAY))
    except OSError:
        return False  # a Unix socket


def is_dead(sock: socket.socket) -> bool:
    """Whether the kernel has given up a connection that we have not closed.

    Its peer has reset it, or does not acknowledge. Nothing is taken from it: no
    byte, and not the error. False of a Unix socket, and where nobody can tell.
    """
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        return sock.getsockopt(_TCP, _INFO, 1) == _CLOSED
    except OSError:
        return False  # a Unix socket


def let_kernel_hold(sock: socket.socket, most: int) -> int:
    """How much the kernel may hold unsent, 0: as it likes; and how much it might.

    Much is for bulk: with little, one flow costs a third more. Linux, tcp(7).
    """
    before = _LITTLE
    with contextlib.suppress(OSError):  # a Unix socket
        before = sock.getsockopt(_TCP, _NOTSENT_LOWAT)
        sock.setsockopt(_TCP, _NOTSENT_LOWAT, most)
    return before

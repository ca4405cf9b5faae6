"""What a transport sets and asks of TCP, by socket options.

This module does not know what is sent, or what is accepted. Of a Unix socket, and on a
system that does not tell, each answer is one that does no harm.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Final

import trio

# As plain numbers: an enum costs as much as the system call.
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

_INFO: Final = getattr(socket, "TCP_INFO", 11)
#: The first byte of tcp_info: TCP_CLOSE in Linux's include/net/tcp_states.h.
_CLOSED: Final = b"\7"
#: Of struct tcp_info in linux/tcp.h: tcpi_last_data_sent (ms), tcpi_notsent_bytes.
_PROGRESS: Final = struct.Struct("=44xI96xI")

#: Milliseconds that an ACK may be delayed by. RFC 1122 allows 500; Linux takes 40,
#: and 200 at most.
_DELAYED_ACK: Final = 200

#: Unsent bytes that the kernel may hold before a socket stops being writable;
#: Trio sets the same. It keeps the kernel's memory for a peer that never reads at
#: ~160 KB, where it would be ~4 MB, and makes write timeouts mean something.
NOTSENT_LOWAT: Final = 16384


def set_up(sock: socket.socket | trio.socket.SocketType) -> None:
    """Set ``TCP_NODELAY`` and ``TCP_NOTSENT_LOWAT``; nothing on a Unix socket."""
    try:
        sock.setsockopt(_TCP, _NODELAY, 1)
        sock.setsockopt(_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
    except OSError:
        pass  # a Unix socket


def sets_up(listening: socket.socket) -> bool:
    """Whether what this socket accepts is set up already: on Linux it inherits that."""
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        held = listening.getsockopt(_TCP, _TCP_NOTSENT_LOWAT)
        return held == NOTSENT_LOWAT and bool(listening.getsockopt(_TCP, _NODELAY))
    except OSError:
        return False  # a Unix socket


def is_dead(sock: socket.socket) -> bool:
    """Whether the kernel has given up a connection that is not closed here.

    Its peer has reset it, or does not acknowledge. This takes nothing from the
    socket: no byte, and not the error. False for a Unix socket, and on a system that
    does not tell.
    """
    if sys.platform != "linux":  # pragma: no cover - on other systems
        return False
    try:
        return sock.getsockopt(_TCP, _INFO, 1) == _CLOSED
    except OSError:
        return False  # a Unix socket


def set_notsent_lowat(sock: socket.socket, size: int) -> int:
    """Set how many unsent bytes the kernel may hold, 0: as many as it likes.

    A large value is for bulk: with a small one, a flow costs a third more. See
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
    """Of ``held`` bytes, how many wait for room at the peer; and whether others have
    just left.

    Those that have just left are acknowledged in a moment, perhaps by a delayed ACK
    (RFC 1122, section 4.2.3.2). That does not say that the peer reads.
    """
    try:
        info = sock.getsockopt(_TCP, _INFO, _PROGRESS.size)
        milliseconds, waiting = _PROGRESS.unpack(info)
    except (OSError, struct.error):  # a Unix socket, or another system
        return held, False
    return waiting, milliseconds < _DELAYED_ACK

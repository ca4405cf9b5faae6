"""How many clients wait to be accepted: the length of the kernel's accept queues.

A server's listeners in, a number out. Nothing here knows why they wait.
"""

from __future__ import annotations

import select
import socket
import struct

import trio

from trioserve import Server

#: The beginning of struct tcp_info in linux/tcp.h, up to tcpi_unacked. For a
#: listening socket, that is how many connections wait to be accepted.
_TCP_INFO = struct.Struct("=8B5I")


def backlog_length(server: Server) -> int | None:
    """How many clients wait in the accept queues of a server.

    None if no listener can tell: the kernel counts TCP clients only, and only
    while the listener is open.
    """
    lengths = [_length(listener.socket) for listener in server]
    known = [length for length in lengths if length is not None]
    return sum(known) if known else None


def has_backlog(server: Server) -> bool:
    """Whether a client waits in an accept queue; works for every kind of socket."""
    poll = select.poll()
    for listener in server:
        if (number := listener.socket.fileno()) >= 0:
            poll.register(number, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _length(listening: trio.socket.SocketType) -> int | None:
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except (OSError, AttributeError):  # closed, a Unix socket, or another system
        return None
    unacked: int = _TCP_INFO.unpack(info)[-1]
    return unacked

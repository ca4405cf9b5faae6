"""Who waits to be accepted: the length of the kernel's queues.

A server's listeners in, a number out. Nothing here knows why they wait.
"""

from __future__ import annotations

import select
import socket
import struct

import trio

from trioserve import Server

#: The beginning of struct tcp_info in linux/tcp.h, up to tcpi_unacked. Of a
#: listening socket that is how many connections wait to be accepted.
_TCP_INFO = struct.Struct("=8B5I")


def waiting(server: Server) -> int | None:
    """How many clients wait in the kernel's queues to be accepted.

    None if no listener can tell: a Unix socket can't, nor one that is closed.
    """
    queues = [_queue(listener.socket) for listener in server]
    known = [queue for queue in queues if queue is not None]
    return sum(known) if known else None


def somebody_waits(server: Server) -> bool:
    """Whether there is a client in one of the kernel's queues; any socket can tell."""
    poll = select.poll()
    for listener in server:
        if (number := listener.socket.fileno()) >= 0:
            poll.register(number, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _queue(listening: trio.socket.SocketType) -> int | None:
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except (OSError, AttributeError):  # closed, a Unix socket, or another system
        return None
    unacked: int = _TCP_INFO.unpack(info)[-1]
    return unacked

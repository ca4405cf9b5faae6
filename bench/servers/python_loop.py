"""The least that a proxy in Python does: one epoll, and each system call once.

It has no backpressure, deadlines, limits or reports, and an error of a system call
ends it. So it shows what Python and the kernel cost without a framework.

A peer of the benchmark: python python_loop.py PORT TARGET-PORT
"""

from __future__ import annotations

import select
import socket
import sys

IN = select.EPOLLIN


class Side:
    """One end: what comes in here goes out through ``other``."""

    other: Side

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ended = False


def main() -> None:
    port, target = int(sys.argv[1]), ("127.0.0.1", int(sys.argv[2]))
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, IN)
    sides = dict[int, Side]()
    buffer = bytearray(65536)
    view = memoryview(buffer)

    def accept() -> None:
        client, _ = listener.accept()
        upstream = socket.socket()
        upstream.setblocking(False)
        upstream.connect_ex(target)  # on loopback, it is connected at once
        one, other = Side(client), Side(upstream)
        one.other, other.other = other, one
        for side in (one, other):
            side.sock.setblocking(False)
            side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sides[side.sock.fileno()] = side
            epoll.register(side.sock, IN)

    def end(side: Side) -> None:
        for each in (side, side.other):
            del sides[each.sock.fileno()]
            each.sock.close()
            del each.other

    while True:
        for fd, _ in epoll.poll():
            side = sides.get(fd)
            if side is None:
                if fd == listener.fileno():
                    accept()
                continue
            try:
                count = side.sock.recv_into(buffer)
                if count:
                    side.other.sock.send(view[:count])
                    continue
            except ConnectionError:
                end(side)
                continue
            side.ended = True
            if side.other.ended:
                end(side)
            else:
                epoll.unregister(fd)
                side.other.sock.shutdown(socket.SHUT_WR)


main()

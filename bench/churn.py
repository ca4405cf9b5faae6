"""Connections that end in a known way: connect, 64 bytes there and back, close.

``churn.py target PORT`` is what a proxy relays to: it echoes, and closes after EOF.
``churn.py fin|rst PORT N COUNT`` makes COUNT connections, N at a time, and prints how
many it made, and how long that took. With ``fin`` the client sends FIN after the
answer, and waits for the other FIN; with ``rst`` it closes by RST.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import time

_MESSAGE = bytes(64)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def main() -> None:
    match sys.argv[1:]:
        case ["target", port]:
            _target(int(port))
        case ["fin" | "rst" as how, port, at_once, count]:
            began = time.monotonic()
            _Churn(int(port), int(count), resets=how == "rst").run(int(at_once))
            print(count, time.monotonic() - began)
        case _:
            sys.exit(__doc__)


def _target(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        listener.setblocking(False)
        poll = select.epoll()
        poll.register(listener, select.EPOLLIN)
        served: dict[int, socket.socket] = {}
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            sock, _ = listener.accept()
                            sock.setblocking(False)
                            served[sock.fileno()] = sock
                            poll.register(sock, select.EPOLLIN)
                elif not _echo(served[fd]):
                    served.pop(fd).close()


def _echo(sock: socket.socket) -> bool:
    try:
        return bool(sock.send(data)) if (data := sock.recv(4096)) else False
    except OSError:
        return False


class _Churn:
    """Makes connections until it has made this many."""

    def __init__(self, port: int, count: int, *, resets: bool) -> None:
        self._port = port
        self._left = count
        self._resets = resets
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._closing = set[int]()

    def run(self, at_once: int) -> None:
        for _ in range(min(at_once, self._left)):
            self._connect()
        while self._open:
            for fd, events in self._poll.poll():
                if events & select.EPOLLOUT:
                    self._open[fd].send(_MESSAGE)
                    self._poll.modify(fd, select.EPOLLIN)
                else:
                    self._receive(fd)

    def _connect(self) -> None:
        self._left -= 1
        sock = socket.socket()
        sock.setblocking(False)
        if self._resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.connect_ex(("127.0.0.1", self._port))
        self._open[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLOUT)

    def _receive(self, fd: int) -> None:
        sock = self._open[fd]
        data = sock.recv(4096)
        if bool(data) is (fd in self._closing):
            sys.exit(
                "the answer was cut short" if not data else "there is a second one"
            )
        if data and not self._resets:
            sock.shutdown(socket.SHUT_WR)
            self._closing.add(fd)
            return
        self._closing.discard(fd)
        self._open.pop(fd).close()
        if self._left:
            self._connect()


if __name__ == "__main__":
    main()

"""The least that a proxy in Python does: one epoll, and each system call once.

It has no backpressure, deadlines, limits or reports, and an error of a system call
ends it. So it shows what Python and the kernel cost without a framework. With a
certificate, its clients speak TLS, and OpenSSL's part comes on top.

A peer of the benchmark: python python_loop.py PORT TARGET-PORT [CERTIFICATE]
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys

IN = select.EPOLLIN


class Side:
    """One end: what comes in here goes out through ``other``."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other = self  # until it is connected
        self.ended = False

    def receive(self) -> memoryview | bytes | None:
        """What has arrived; nothing at EOF, None if there are no whole bytes yet."""
        return view[: self.sock.recv_into(buffer)]

    def send(self, data: memoryview | bytes) -> None:
        self.sock.send(data)

    def send_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class Secure(Side):
    """An end that speaks TLS. Its other side is connected after the handshake."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.is_open = False

    def receive(self) -> bytes | None:
        count = self.sock.recv_into(buffer)
        if not count:
            if not self.is_open:
                raise ConnectionError("it ended within the handshake")
            return b""
        self.incoming.write(view[:count])
        if not self.is_open:
            try:
                self.tls.do_handshake()
                self.is_open = True
            except ssl.SSLWantReadError:
                return None
            finally:
                self.sock.send(self.outgoing.read())
            connect(self)
        data = None
        try:
            while self.incoming.pending:
                data = (data or b"") + self.tls.read(16384)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return b""
        return data

    def send(self, data: memoryview | bytes) -> None:
        self.tls.write(data)
        self.sock.send(self.outgoing.read())

    def send_eof(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.sock.send(self.outgoing.read())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.send_eof()
        super().close()


def accept() -> None:
    client, _ = listener.accept()
    if context is None:
        side = Side(client)
        connect(side)
    else:
        side = Secure(client, context)
    watch(side)


def connect(side: Side) -> None:
    upstream = socket.socket()
    upstream.setblocking(False)
    upstream.connect_ex(target)  # on loopback, it is connected at once
    side.other = Side(upstream)
    side.other.other = side
    watch(side.other)


def watch(side: Side) -> None:
    side.sock.setblocking(False)
    side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sides[side.sock.fileno()] = side
    epoll.register(side.sock, IN)


def end(side: Side) -> None:
    for each in {side, side.other}:
        del sides[each.sock.fileno()]
        each.close()
        each.other = each  # no cycle is left


def loop() -> None:
    while True:
        for fd, _ in epoll.poll():
            side = sides.get(fd)
            if side is None:
                if fd == listener.fileno():
                    accept()
                continue
            try:
                data = side.receive()
                if data:
                    side.other.send(data)
                if data is None or data:
                    continue
            except ConnectionError:
                end(side)
                continue
            side.ended = True
            if side.other.ended:
                end(side)
            else:
                epoll.unregister(fd)
                side.other.send_eof()


port, target = int(sys.argv[1]), ("127.0.0.1", int(sys.argv[2]))
listener = socket.create_server(("127.0.0.1", port), backlog=4096)
listener.setblocking(False)
epoll = select.epoll()
epoll.register(listener, IN)
sides = dict[int, Side]()
buffer = bytearray(65536)
view = memoryview(buffer)
context = None
if sys.argv[3:]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[3])
loop()

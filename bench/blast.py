"""Flows as fast as possible: 256 KiB at a time, and nothing else.

``blast.py sink PORT`` receives; ``blast.py PORT N S`` sends in N flows for S seconds,
and prints how many bytes arrived, and how long it took. iperf3 does more work for
each piece, and is slower.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

_PIECE = 262_144


def main() -> None:
    match sys.argv[1:]:
        case ["sink", port]:
            _sink(int(port))
        case [port, number, seconds]:
            began = time.monotonic()
            total = _blast(int(port), int(number), float(seconds))
            print(total, time.monotonic() - began)
        case _:
            sys.exit(__doc__)


def _sink(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_take, args=(sock,), daemon=True).start()


def _take(sock: socket.socket) -> None:
    buffer = bytearray(4 * _PIECE)
    total = 0
    with sock:
        while count := sock.recv_into(buffer):
            total += count
        sock.sendall(total.to_bytes(8))


def _blast(port: int, number: int, seconds: float) -> int:
    until = time.monotonic() + seconds

    def send(_: int) -> int:
        piece = bytes(_PIECE)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            while time.monotonic() < until:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            return int.from_bytes(sock.recv(8, socket.MSG_WAITALL))

    with ThreadPoolExecutor(number) as pool:
        return sum(pool.map(send, range(number)))


if __name__ == "__main__":
    main()

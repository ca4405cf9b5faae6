"""TLS connections: a handshake, 64 bytes there and back, close.

``handshakes.py full|resumed PORT N COUNT CA`` makes COUNT connections, N at a time, and
prints how many it made, and how long that took. With ``resumed`` each one resumes the
session of the one before. ``churn.py target`` is what a proxy relays to.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor

_MESSAGE = bytes(64)


def main() -> None:
    match sys.argv[1:]:
        case ["full" | "resumed" as how, port, at_once, count, ca]:
            client = _Client(int(port), ca, resumes=how == "resumed")
            each, began = int(count) // int(at_once), time.monotonic()
            with ThreadPoolExecutor(int(at_once)) as pool:
                made = sum(pool.map(client.connect_often, [each] * int(at_once)))
            print(made, time.monotonic() - began)
        case _:
            sys.exit(__doc__)


class _Client:
    """Connects again and again, in several threads."""

    def __init__(self, port: int, ca: str, *, resumes: bool) -> None:
        self._port = port
        self._resumes = resumes
        self._context = ssl.create_default_context(cafile=ca)

    def connect_often(self, count: int) -> int:
        session: ssl.SSLSession | None = None
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self._port))
            # With Nagle's algorithm, the end of the handshake holds up the message.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            with self._context.wrap_socket(
                sock, server_hostname="localhost", session=session
            ) as client:
                if self._resumes and number and not client.session_reused:
                    sys.exit("a session was not resumed")
                client.sendall(_MESSAGE)
                answer = b""
                while len(answer) < len(_MESSAGE):
                    if not (more := client.recv(len(_MESSAGE))):
                        sys.exit("the answer was cut short")
                    answer += more
                if self._resumes:
                    # In TLS 1.3 the tickets come before the answer.
                    session = client.session
        return count


if __name__ == "__main__":
    main()

"""Flows as fast as possible: 256 KiB at a time, and nothing else.

``blast.py target PORT`` is what a proxy relays to. ``blast.py up PORT N S`` sends in N
flows for S seconds, and ``blast.py down PORT N S`` receives; each prints how many bytes
arrived, and how long it took. With one more word, the file of an authority, they speak
TLS. iperf3 does more work for each piece, and is slower.
``blast.py ping PORT N S`` sends a message and waits for its echo, again and again,
beside N flows; it prints how many, and the median and the 99th percentile of the
seconds that one took.
"""

from __future__ import annotations

import os
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_PIECE = 262_144

#: The first bytes of a flow: for how many seconds the target sends; 0 if it receives,
#: negative if it echoes.
_ASKED = struct.Struct("!d")
_ECHO = -1.0

_MESSAGE = 64

#: Seconds until flows are at full speed, and the fewest messages that tell something.
_WARM_UP = 1.0
_FEWEST = 20


def main() -> None:
    match sys.argv[1:]:
        case ["target", port]:
            _target(int(port))
        case ["up" | "down" as way, port, number, seconds, *ca]:
            began = time.monotonic()
            flow = _up if way == "up" else _down
            total = _flows(flow, int(port), int(number), float(seconds), *ca)
            print(total, time.monotonic() - began)
        case ["ping", port, number, seconds]:
            print(*_ping(port, number, float(seconds)))
        case ["echo", descriptor]:  # run by the target
            _echo(int(descriptor))
        case _:
            sys.exit(__doc__)


def _target(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(sock,), daemon=True).start()


def _serve(sock: socket.socket) -> None:
    with sock:
        asked = sock.recv(_ASKED.size, socket.MSG_WAITALL)
        if len(asked) < _ASKED.size:
            return  # a look whether it listens
        (seconds,) = _ASKED.unpack(asked)
        if seconds < 0:
            # In a process of its own, so that it does not wait for the other threads.
            command = [sys.executable, __file__, "echo", str(sock.fileno())]
            subprocess.run(command, pass_fds=[sock.fileno()], check=False)
        elif seconds:
            _send(sock, seconds)
        else:
            sock.sendall(_receive(sock).to_bytes(8))


def _flows(
    flow: Callable[[socket.socket, float], int],
    port: int,
    number: int,
    seconds: float,
    ca: str | None = None,
) -> int:
    context = None if ca is None else ssl.create_default_context(cafile=ca)

    def run(_: int) -> int:
        sock = socket.create_connection(("127.0.0.1", port))
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        with sock:
            return flow(sock, seconds)

    with ThreadPoolExecutor(number) as pool:
        return sum(pool.map(run, range(number)))


def _up(sock: socket.socket, seconds: float) -> int:
    sock.sendall(_ASKED.pack(0.0))
    _send(sock, seconds)
    return int.from_bytes(sock.recv(8, socket.MSG_WAITALL))


def _down(sock: socket.socket, seconds: float) -> int:
    sock.sendall(_ASKED.pack(seconds))
    return _receive(sock)


def _ping(port: str, number: str, seconds: float) -> tuple[int, float, float]:
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", int(port))) as sock:
        sock.sendall(_ASKED.pack(_ECHO))
        _exchange(sock)  # before the flows, which delay what is new
        command = [sys.executable, __file__, "up", port, number]
        flows = subprocess.Popen(
            [*command, str(_WARM_UP + 10 * seconds)], stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(_WARM_UP)
            until = time.monotonic() + seconds
            while (began := time.monotonic()) < until or len(took) < _FEWEST:
                _exchange(sock)
                took.append(time.monotonic() - began)
        finally:
            flows.kill()
            flows.wait()
    return len(took), statistics.median(took), statistics.quantiles(took, n=100)[98]


def _exchange(sock: socket.socket) -> None:
    sock.sendall(bytes(_MESSAGE))
    if len(sock.recv(_MESSAGE, socket.MSG_WAITALL)) < _MESSAGE:
        sys.exit("the connection was closed")


def _echo(descriptor: int) -> None:
    while message := os.read(descriptor, _MESSAGE):
        os.write(descriptor, message)


def _send(sock: socket.socket, seconds: float) -> None:
    _yield_to_pings()
    piece, until = bytes(_PIECE), time.monotonic() + seconds
    while time.monotonic() < until:
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def _receive(sock: socket.socket) -> int:
    _yield_to_pings()
    buffer, total = bytearray(4 * _PIECE), 0
    while count := sock.recv_into(buffer):
        total += count
    return total


def _yield_to_pings() -> None:
    # So that a ping waits for the proxy, and not for a core. It is for this thread.
    os.nice(10)


if __name__ == "__main__":
    main()

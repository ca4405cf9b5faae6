"""Slow readers and stopped processes: a connection that moves never counts as idle."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from os import kill

from real.tools import (
    PATIENCE,
    Received,
    Serve,
    Target,
    Trioserve,
    all_of,
    is_silent,
    needs_linux,
    random_bytes,
    receive,
    send,
)

_REPLY = random_bytes(4_000_000, seed=1)
#: Bytes that the reader reads slowly, and how many at a time.
_TAIL, _PIECE = 1_500_000, 100_000


def test_a_slow_reader_that_takes_longer_than_the_timer_gets_everything(
    serve: Serve, target: Target, threads: ThreadPoolExecutor
) -> None:
    """Law 14: 4 MB at 0.4 MB/s at the end, with a timer of a second."""
    proxy = serve("proxy", target.address, "--half-closed", "1s")
    client, server = target.through(proxy)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
    with client, server:
        sending = threads.submit(send, server, _REPLY)
        assert _received_slowly(client) == all_of(_REPLY)
        sending.result(PATIENCE)
    (report,) = proxy.stop()
    assert report["bytes_sent"] == len(_REPLY)
    assert report["upstream_bytes_discarded"] == 0


def _received_slowly(sock: socket.socket) -> Received:
    count, digest = 0, sha256()
    never = threading.Event()
    while data := sock.recv(_PIECE):
        count += len(data)
        digest.update(data)
        if count > len(_REPLY) - _TAIL:
            never.wait(0.25)
    return Received(count, digest.hexdigest())


#: Seconds of each timer; the process is stopped for twice as long.
_TIMER = 3


@needs_linux
def test_a_process_that_was_stopped_misses_nothing(
    serve: Serve, target: Target, threads: ThreadPoolExecutor
) -> None:
    """Law 14: what came meanwhile is relayed, and no timer ends a connection."""
    plays: list[tuple[str, Callable[..., None]]] = [
        ("idle", _silent),
        ("half-closed", _half_closed),
        ("write-stall", _stalled),
    ]
    proxies = [
        serve("proxy", target.address, f"--{timer}", f"{_TIMER}s") for timer, _ in plays
    ]
    ends = [target.through(proxy) for proxy in proxies]
    played = [
        threads.submit(play, proxy, *both)
        for (_, play), proxy, both in zip(plays, proxies, ends, strict=True)
    ]
    for each in played:
        each.result(3 * PATIENCE)
    for proxy in proxies:
        (report,) = proxy.stop()
        assert report["outcome"] == "ok"
        assert any("a timer is" in line for line in proxy.lines)


def _stopped(proxy: Trioserve, client: socket.socket) -> None:
    """Stop it for twice the timer, then let it go on."""
    assert is_silent(client, 2 * _TIMER)
    kill(proxy.pid, signal.SIGCONT)


def _silent(proxy: Trioserve, client: socket.socket, server: socket.socket) -> None:
    with client, server:
        kill(proxy.pid, signal.SIGSTOP)
        client.sendall(b"question")
        _stopped(proxy, client)
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"


def _half_closed(
    proxy: Trioserve, client: socket.socket, server: socket.socket
) -> None:
    with client, server:
        client.shutdown(socket.SHUT_WR)
        assert server.recv(100) == b""
        kill(proxy.pid, signal.SIGSTOP)
        server.sendall(b"answer")
        _stopped(proxy, client)
        assert client.recv(100) == b"answer"
        server.close()
        assert client.recv(100) == b""


def _stalled(proxy: Trioserve, client: socket.socket, server: socket.socket) -> None:
    # Without a timeout, with which sending would wait for room.
    with client, server, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(send, client, _REPLY + _REPLY)
        began = server.recv(1)  # and no more: the rest waits in buffers on the way
        kill(proxy.pid, signal.SIGSTOP)
        began += server.recv(100_000)
        _stopped(proxy, client)
        rest = receive(server)
        sending.result(PATIENCE)
        assert rest.count + len(began) == 2 * len(_REPLY)
        assert not rest.reset

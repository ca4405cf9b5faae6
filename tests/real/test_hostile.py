"""Hostile or broken clients, which can't affect others."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import random
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from certificates import Authority
from real.tools import (
    PATIENCE,
    Serve,
    Target,
    Trioserve,
    all_of,
    as_record,
    connect,
    needs,
    needs_linux,
    random_bytes,
    receive,
    receive_exactly,
    reset,
    send,
)
from wire.hellos import from_python

pytestmark = pytest.mark.long

_MEBIBYTE = 1 << 20


# -- clients that reset


class _Resetting:
    """A client that does a few random things, and then resets."""

    def __init__(self, port: int, random: random.Random) -> None:
        self.half_closed = False
        self._random = random
        self._sock = connect(port)
        self._sock.setblocking(False)
        # Four in ten only connect and reset.
        self._moves = max(0, random.randrange(-3, 7))

    def move(self) -> bool:
        """Do something, without waiting; return False if it was the reset."""
        self._moves -= 1
        if self._moves < 0:
            reset(self._sock)
            return False
        with contextlib.suppress(BlockingIOError):
            match self._random.randrange(4):
                case 0 | 1 if not self.half_closed:
                    self._sock.send(bytes(self._random.randrange(1, 100_000)))
                case 2 if not self._moves:
                    self._sock.shutdown(socket.SHUT_WR)
                    self.half_closed = True
                case _:
                    self._sock.recv(self._random.randrange(1, 100_000))
        return True


def _reset_many(port: int, count: int, seed: int) -> int:
    # Up to ten at a time; return how many had not ended their direction before.
    rng = random.Random(seed)
    left, in_the_middle = count, 0
    clients: list[_Resetting] = []
    while left or clients:
        if left and len(clients) < 10:
            clients.append(_Resetting(port, rng))
            left -= 1
        # Half of the time the newest, whose reset may arrive before accept(2).
        client = rng.choice([clients[-1], rng.choice(clients)])
        if not client.move():
            clients.remove(client)
            in_the_middle += not client.half_closed
    return in_the_middle


def _transfer_until(over: threading.Event, sock: socket.socket) -> None:
    # Have bytes echoed until the event, and 1 MiB more; check that all come back.
    sent, count = hashlib.sha256(), 0
    block = random_bytes(_MEBIBYTE)
    with ThreadPoolExecutor(1) as thread:
        received = thread.submit(receive, sock)
        for number in itertools.count():
            last = over.is_set()
            data = number.to_bytes(8) + block
            sock.sendall(data)
            sent.update(data)
            count += len(data)
            if last:
                break
        sock.shutdown(socket.SHUT_WR)
        assert received.result(PATIENCE).error is None
        assert received.result().count == count
        assert received.result().sha256 == sent.hexdigest()


def _is_served(server: Trioserve) -> bool:
    with connect(server.port) as client:
        client.sendall(b"hello")
        return receive_exactly(client, 5) == b"hello"


@needs_linux
@pytest.mark.parametrize("command", ["echo", "proxy"])
def test_a_thousand_resets_affect_no_other_client(
    serve: Serve, threads: ThreadPoolExecutor, command: str
) -> None:
    echo = serve("echo")
    server = echo if command == "echo" else serve("proxy", echo.address)
    over = threading.Event()
    with connect(server.port) as bystander:
        transfer = threads.submit(_transfer_until, over, bystander)
        try:
            resets = [
                threads.submit(_reset_many, server.port, 50, seed) for seed in range(20)
            ]
            in_the_middle = sum(each.result(PATIENCE) for each in resets)
        finally:
            over.set()
        transfer.result(PATIENCE)
    assert _is_served(server)

    reports = server.stop()
    # A connection that was reset in the backlog is accepted anyway.
    assert len(reports) == 1000 + 2
    reasons = [report["reason"] for report in reports]
    assert set(reasons) <= {"client_reset", "client_closed"}
    assert in_the_middle <= reasons.count("client_reset") <= 1000
    if server is not echo:
        dialed = [report for report in reports if report["connect"] is not None]
        assert len(echo.stop()) == len(dialed)


@needs_linux
def test_resets_leave_nothing_for_the_garbage_collector(
    serve: Serve, target: Target, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Law 13: with Python's collector off, memory does not grow."""
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()")
    proxy = serve("proxy", target.address, under=("env", f"PYTHONPATH={tmp_path}"))

    def resets(count: int) -> None:
        for _ in range(count):
            client, server = target.through(proxy)
            with server:
                receiving = threads.submit(receive, server)
                client.sendall(bytes(_MEBIBYTE))
                reset(client)
                assert receiving.result(PATIENCE).reset

    resets(200)
    before = proxy.resident_bytes()
    resets(_RESETS)
    assert proxy.resident_bytes() - before < 5 * _MEBIBYTE
    assert {report["reason"] for report in proxy.stop()} == {"client_reset"}


#: Each reset used to leave 28 kB.
_RESETS = 1000


# -- clients that never read


@needs_linux
@pytest.mark.parametrize("reader", ["client", "target"])
def test_a_reader_that_never_reads_costs_no_memory(
    serve: Serve,
    target: Target,
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
    reader: str,
) -> None:
    proxy = serve("proxy", target.address)
    data = random_bytes(20 * _MEBIBYTE)

    def transfer() -> None:
        client, server = target.through(proxy)
        with client, server:
            up = threads.submit(send, client, data)
            assert receive(server) == all_of(data)
            down = threads.submit(send, server, data)
            assert receive(client) == all_of(data)
            up.result(PATIENCE)
            down.result(PATIENCE)

    # Memory that it needed for the first connections, it may keep.
    transfer()
    transfer()
    before = proxy.resident_bytes()

    client, server = (closing.enter_context(s) for s in target.through(proxy))
    source, sink = (server, client) if reader == "client" else (client, server)
    sent = _send_what_goes(source, 200 * _MEBIBYTE)
    assert sent < 50 * _MEBIBYTE
    assert proxy.resident_bytes() - before < _MEBIBYTE
    transfer()
    assert proxy.resident_bytes() - before < _MEBIBYTE

    # Its bytes were not lost, either.
    source.shutdown(socket.SHUT_WR)
    sink.shutdown(socket.SHUT_WR)
    assert receive(sink).count == sent
    assert receive(source) == all_of(b"")
    reports = proxy.stop()
    assert len(reports) == 4
    assert {report["outcome"] for report in reports} == {"ok"}


def _send_what_goes(sock: socket.socket, most: int) -> int:
    # Send until no byte was taken for a second; return how many were.
    sock.setblocking(False)
    block = bytes(1 << 16)
    sent = 0
    while sent < most and select.select([], [sock], [], 1.0)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(block)
    sock.settimeout(PATIENCE)
    return sent


# -- too many clients


@needs_linux
@needs("prlimit")
def test_without_descriptors_it_uses_little_cpu_and_recovers(
    serve: Serve, closing: contextlib.ExitStack
) -> None:
    server = serve(
        "echo", "--max-connections", "1000", under=("prlimit", "--nofile=64")
    )
    clients = [closing.enter_context(connect(server.port)) for _ in range(100)]
    established, told = _ask_all(clients)
    assert 40 <= len(established) < 64
    assert len(established) + told == 100

    began, cpu = time.monotonic(), server.cpu_seconds()
    lines = server.during(3.0)
    cpu = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
    assert cpu < 0.05
    events = [as_record(line) for line in lines]
    refused = [e for e in events if e["event"] in ("connection", "suppressed")]
    assert {e["reason"] for e in refused} <= {"no_fds"}
    assert sum(e.get("count", 1) for e in refused) == told
    names = {e["event"] for e in events}
    expected = {"connection", "open-files", "suppressed", "limit-reached"}
    assert names <= expected | {"limit-cleared", "server"}
    said = [e for e in events if e["event"] == "server"]
    # At most one a second; each may be written a little later.
    said_at = [datetime.fromisoformat(e["ts"]) for e in said]
    if said_at:
        assert len(said_at) - 1 <= round((said_at[-1] - said_at[0]).total_seconds())
    assert _ask_all(established) == (established, 0)

    for client in established:
        client.close()
    with connect(server.port) as late:
        late.sendall(b"?")
        assert _answer(late) == b"?"
    reasons = collections.Counter(report["reason"] for report in server.stop())
    assert reasons == {"client_closed": len(established) + 1, "no_fds": told}


def _ask_all(clients: list[socket.socket]) -> tuple[list[socket.socket], int]:
    # Send a byte each, and wait for all answers: those with an echo, and how many
    # without.
    for client in clients:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"?")
    answers = [_answer(client) for client in clients]
    echoing = [c for c, answer in zip(clients, answers, strict=True) if answer == b"?"]
    return echoing, len(clients) - len(echoing)


def _answer(client: socket.socket) -> bytes:
    try:
        return client.recv(1)
    except ConnectionError:
        return b""


# -- clients that don't shake hands

_OF_EACH = 100


def test_clients_that_do_not_shake_hands_affect_no_other_client(
    serve: Serve, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """They are silent, slow or speak no TLS; each has the end of its kind."""
    authority = Authority(tmp_path)
    cert = authority.issue("localhost")
    echo = serve("echo", "--tls-cert", cert, "--handshake", "5s")
    context = authority.client_context()

    def is_served() -> bool:
        with context.wrap_socket(
            connect(echo.port), server_hostname="localhost"
        ) as client:
            client.sendall(b"hello")
            answer = client.recv(5)
            client.unwrap()
            return answer == b"hello"

    assert is_served()
    begins = [b"", from_python("localhost")[:-1], b"EHLO example.org\r\n"]
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(connect(echo.port)) for _ in begins * _OF_EACH]
        for client, begin in zip(flood, itertools.cycle(begins), strict=False):
            client.sendall(begin)
        served = [threads.submit(is_served) for _ in range(_OF_EACH)]
        ends = [receive(client) for client in flood]
        assert all(each.result(PATIENCE) for each in served)
    assert is_served()
    silent, slow, plain = (ends[kind::3] for kind in range(3))
    assert all(end.reset for end in silent + slow)
    assert not any(end.reset for end in plain)
    reasons = collections.Counter(report["reason"] for report in echo.stop())
    assert reasons == {
        "handshake": 2 * _OF_EACH,
        "tls_failed": _OF_EACH,
        "client_closed": _OF_EACH + 2,
    }

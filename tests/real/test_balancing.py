"""Three Redis servers behind the proxy: what a killed, stopped or full one costs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from real.tools import (
    Process,
    Serve,
    Start,
    Trioserve,
    connect,
    needs,
    on_free_port,
    receive_exactly,
    send,
)
from targets import black_hole

pytestmark = [needs("redis-server"), pytest.mark.long]

BALANCES = ["first", "round-robin", "least-connections", "random"]


def redis(start: Start, folder: Path, port: int) -> Process:
    return start(
        *("redis-server", "--port", str(port), "--bind", "127.0.0.1"),
        *("--save", "", "--appendonly", "no", "--dir", str(folder)),
        *("--tcp-backlog", "1"),
    )


def on_a_port(start: Start, folder: Path) -> tuple[Process, int]:
    ready = "Ready to accept connections"
    return on_free_port(lambda port: redis(start, folder, port), ready)


def ask(proxy: Trioserve, count: int) -> None:
    """This many clients, one after the other; each gets its answer."""
    for _ in range(count):
        with connect(proxy.port) as client:
            send(client, b"PING\r\n")
            assert receive_exactly(client, 7) == b"+PONG\r\n"


def until_up(proxy: Trioserve, port: int) -> None:
    """Connect until the target at this port is tried, and answers."""
    while True:
        ask(proxy, 1)
        for event in proxy.events():
            if event["event"] == "target-up" and event["address"].endswith(f":{port}"):
                return
        proxy.during(0.05)


@pytest.mark.parametrize("balance", BALANCES)
def test_a_killed_target_costs_no_client(
    start: Start, serve: Serve, tmp_path: Path, balance: str
) -> None:
    """Law 15: with kill -9; and it serves again when it is back."""
    (first, port), (_, other) = (on_a_port(start, tmp_path) for _ in range(2))
    targets = f"127.0.0.1:{port}", f"127.0.0.1:{other}"
    proxy = serve("proxy", *targets, "--balance", balance, "--fall", "1")
    ask(proxy, 20)
    first.kill()
    ask(proxy, 20)
    redis(start, tmp_path, port).until("Ready to accept connections")
    until_up(proxy, port)
    reports = proxy.stop()
    assert {report["outcome"] for report in reports} == {"ok"}


def test_a_target_with_a_full_queue_is_left_out(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    """Law 12: its first clients wait for it, and are served by the others."""
    servers = [on_a_port(start, tmp_path) for _ in range(2)]
    with black_hole() as full:
        one, other = (f"127.0.0.1:{port}" for _, port in servers)
        proxy = serve("proxy", one, str(full), other, "--balance", "round-robin")
        ask(proxy, 30)
        assert proxy.event("target-left-out")["target"] == str(full)
        tries = len([each for each in proxy.events() if each["event"] == "target-down"])
        assert tries == 1
        reports = proxy.stop()
    assert {report["outcome"] for report in reports} == {"ok"}
    late = [report for report in reports if len(report["attempts"]) > 1]
    assert 3 <= len(late) <= 6
    for report in late:
        attempt = report["attempts"][0]
        assert (attempt["address"], attempt["error"]) == (str(full), "no answer")


def test_a_stopped_target_is_left_out_when_its_queue_is_full(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    """Law 12: until then the kernel accepts for it; after SIGCONT it serves again."""
    (stopped, port), (_, other) = (on_a_port(start, tmp_path) for _ in range(2))
    targets = f"127.0.0.1:{port}", f"127.0.0.1:{other}"
    proxy = serve("proxy", *targets, "--balance", "round-robin")
    ask(proxy, 10)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # these fill its queue
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            ask(proxy, 30)
            assert proxy.event("target-left-out")["target"] == f"127.0.0.1:{port}"
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    until_up(proxy, port)
    reports = proxy.stop()
    assert {report["outcome"] for report in reports} == {"ok"}


def test_a_stopped_target_is_found_by_checks(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    """Law 15: it still connects, but does not answer; and no client has to find out."""
    (stopped, port), (_, other) = (on_a_port(start, tmp_path) for _ in range(2))
    targets = f"127.0.0.1:{port}", f"127.0.0.1:{other}"
    checks = "--check", "100ms", "--check-send", r"PING\r\n", "--check-expect", "+PONG"
    proxy = serve("proxy", *targets, "--balance", "round-robin", *checks)
    ask(proxy, 10)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        left_out = proxy.event("target-left-out")
        assert left_out["target"] == targets[0]
        assert left_out["error"].endswith("no answer within 0.1 s")
        ask(proxy, 30)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert proxy.event("target-up")["address"] == targets[0]
    ask(proxy, 10)
    reports = proxy.stop()
    assert {report["outcome"] for report in reports} == {"ok"}
    assert all(len(report["attempts"]) == 1 for report in reports)
    assert reports[-1]["target"] in targets

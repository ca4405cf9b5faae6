"""Two proxies in two processes that dial each other: what limits the loop."""

from __future__ import annotations

import re
import signal
import socket
import struct
import time

from app.process import Command, Start
from shell import free_port

_MOST = 5
_PATIENCE = 120.0


def _open(command: Command) -> int:
    """How many connections it has now, which never exceed its limit."""
    command.signal(signal.SIGUSR1)
    found = re.search(r" open=(\d+) ", command.err.until("event=status"))
    assert found
    assert int(found[1]) <= _MOST
    return int(found[1])


def _wait_until_each_has(count: int, *commands: Command) -> None:
    deadline = time.monotonic() + _PATIENCE
    while any(_open(command) != count for command in commands):
        assert time.monotonic() < deadline


def test_a_loop_takes_all_tokens_and_ends_with_its_client(
    start: Start,
) -> None:
    """Law 2: both stay alive, and serve again when the client is gone."""
    options = ["--max-connections", str(_MOST)]
    port = free_port()
    first = start("proxy", "127.0.0.1:0", f"127.0.0.1:{port}", *options)
    there = first.port()
    second = start("proxy", f"127.0.0.1:{port}", f"127.0.0.1:{there}", *options)
    second.err.until("event=listening")
    for _ in range(2):
        with first.connect(there) as client:
            _wait_until_each_has(_MOST, first, second)
            reset = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        _wait_until_each_has(0, first, second)
    for command in (first, second):
        command.signal(signal.SIGTERM)
        assert command.code() == 0

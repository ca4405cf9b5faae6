"""The command as a process, and the lines that it writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Generator
from typing import IO

#: Seconds that anything may take, even on a busy machine.
PATIENCE = 120.0


#: Options with which no timer ends an open connection.
HELD = ["--drain", "1h", "--idle", "never"]


def say_hello(sock: socket.socket) -> None:
    """Send something to an echo server, and receive it."""
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"


def read_all(fd: int) -> list[str]:
    """The lines of a pipe until EOF; then close it."""
    with os.fdopen(fd) as file:
        return file.read().splitlines()


def fill(fd: int) -> int:
    """Fill a pipe, so that the next write to it waits; return how much it took."""
    os.set_blocking(fd, False)
    taken = 0
    try:
        while True:
            taken += os.write(fd, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(fd, True)
        return taken


def without_time(line: str) -> str:
    """A line of the text log without what is before it: the time, or an indent."""
    return re.sub(r"^(\d\d:\d\d:\d\d| {8}) ", "", line)


class Lines:
    """The lines of a stream, read in a thread so that waiting for one can time out."""

    def __init__(self, stream: IO[str]) -> None:
        self.seen: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def join(self) -> None:
        """Wait until the stream has ended, and its thread with it."""
        self._reader.join(PATIENCE)

    def until(self, part: str) -> str:
        """The next line with ``part`` in it."""
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.seen.append(line)
            if part in line:
                return line
        self._queue.put(None)
        raise AssertionError(f"{part!r} is not in {self.seen}")

    def rest(self) -> list[str]:
        """The lines until the end."""
        rest: list[str] = []
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            rest.append(line)
        self._queue.put(None)
        self.seen += rest
        return rest


@dataclasses.dataclass
class Command:
    """A running ``trioserve``."""

    process: subprocess.Popen[str]
    out: Lines
    err: Lines

    def port(self) -> int:
        """The port that it says it listens on (in logfmt)."""
        line = self.err.until("event=listening")
        found = re.search(r"addresses=\S*?:(\d+)", line)
        assert found
        return int(found[1])

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        """Wait for its end, return its exit code."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it, and read what it wrote before that."""
        self.process.kill()
        self.process.wait()
        for lines in (self.out, self.err):
            lines.join()


@contextlib.contextmanager
def spawned(
    argv: list[str], stderr: int = subprocess.PIPE
) -> Generator[subprocess.Popen[str]]:
    """A process, with its stdout in a pipe, that does not outlive the block."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Command]

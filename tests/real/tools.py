"""The command and other programs as processes, and sockets to talk through them.

Every wait here has a deadline. Nothing here knows a test.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import queue
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shell import free_port

#: Seconds that anything may take that is not expected to take long. Only a failure
#: waits for so long, however busy the machine is.
PATIENCE = 120.0

#: A report, or an event of the log, as read from JSON.
Record = Mapping[str, Any]

_PORT = re.compile(r":(\d+)$")


def _find(tool: str) -> str | None:
    # Servers, and programs that only git or PostgreSQL call, are often not on PATH.
    folders = ["/usr/sbin", "/usr/lib/git-core", "/usr/libexec/git-core"]
    postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    where = [*os.get_exec_path(), *folders, *map(str, postgresql)]
    return shutil.which(tool, path=os.pathsep.join(where))


def program(tool: str) -> str:
    """The path of a program, on PATH or not."""
    path = _find(tool)
    assert path, f"{tool} is not installed; does the test say what it needs?"
    return path


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test where one of these programs is not installed."""
    missing = [tool for tool in tools if _find(tool) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {', '.join(missing)}"
    )


def needs_namespace(*unshare: str) -> pytest.MarkDecorator:
    """Skip a test where this user may not have such namespaces.

    Args:
      unshare: the command that makes them, which another command follows.
    """
    try:
        tried = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    except OSError:
        has = False
    else:
        has = tried.returncode == 0
    return pytest.mark.skipif(not has, reason="no right to make namespaces")


needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into Linux's /proc, or at its sockets"
)


class Process:
    """A program that runs, and the lines that it writes to stdout and stderr.

    Args:
      pass_fds: descriptors that it inherits under the same numbers.
    """

    def __init__(self, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def until(self, part: str) -> str:
        """The next line with ``part`` in it."""
        deadline = time.monotonic() + PATIENCE
        try:
            while (line := self._next(deadline)) is not None:
                if part in line:
                    return line
        except queue.Empty:
            raise TimeoutError(f"no {part!r} yet: {self.lines[-20:]}") from None
        raise AssertionError(f"it ended without {part!r}: {self.lines[-20:]}")

    def during(self, seconds: float) -> list[str]:
        """The lines it writes in the next ``seconds``; it must not end meanwhile."""
        deadline = time.monotonic() + seconds
        lines: list[str] = []
        try:
            while (line := self._next(deadline)) is not None:
                lines.append(line)
        except queue.Empty:
            return lines
        raise AssertionError(f"it ended: {self.lines[-20:]}")

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until it ends, return its exit code; then ``lines`` has all lines."""
        code = self._popen.wait(seconds)
        deadline = time.monotonic() + PATIENCE
        while self._next(deadline) is not None:
            pass
        return code

    def terminate(self) -> None:
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self._popen.kill()
        self._popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._popen.stdout
        self._popen.stdout.close()

    def cpu_seconds(self) -> float:
        """The CPU time that it has used so far, in user and kernel mode."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        utime, stime = int(fields[11]), int(fields[12])
        return (utime + stime) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Its resident memory."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        found = re.search(r"^Rss:\s+(\d+) kB$", rollup, re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def _read(self) -> None:
        assert self._popen.stdout
        for line in self._popen.stdout:
            self._unread.put(line.rstrip("\n"))
        self._unread.put(None)

    def _next(self, deadline: float) -> str | None:
        line = self._unread.get(timeout=max(0.0, deadline - time.monotonic()))
        if line is None:
            self._unread.put(None)
        else:
            self.lines.append(line)
        return line


class Trioserve(Process):
    """``trioserve echo`` or ``trioserve proxy``, on a free port of loopback.

    Args:
      reports_file: where it writes its reports.
      words: the command and its options; LISTEN is filled in.
      under: a command that runs it, such as ``prlimit --nofile=64``.
    """

    def __init__(
        self, reports_file: Path, command: str, *words: str, under: tuple[str, ...] = ()
    ) -> None:
        super().__init__(
            *under,
            *(sys.executable, "-m", "trioserve", command, "127.0.0.1:0", *words),
            *("--log", "json", "--reports", str(reports_file)),
        )
        self._reports_file = reports_file
        self._port: int | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            found = _PORT.search(self.event("listening")["addresses"].split(",")[0])
            assert found
            self._port = int(found[1])
        return self._port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def event(self, name: str) -> Record:
        """The next event of this name in the log."""
        return as_record(self.until(f'"event":"{name}"'))

    def events(self) -> list[Record]:
        """All events that were read so far, waited for or passed over."""
        return [as_record(line) for line in self.lines]

    def stop(self) -> list[Record]:
        """Drain it, check that nothing was cut, return all reports."""
        self.terminate()
        assert self.wait() == 0, self.lines[-20:]
        return self.reports()

    def reports(self) -> list[Record]:
        """The reports, after it has ended."""
        reports = [as_record(x) for x in self._reports_file.read_text().splitlines()]
        drained = next(e for e in self.events() if e["event"] == "drained")
        assert len(reports) == drained["accepted"]
        assert [e for e in self.events() if e["level"] == "error"] == []
        for report in reports:
            check_ledger(report)
        return reports


#: The fixtures that start processes, and stop them at the end of the test.
Start = Callable[..., Process]
Serve = Callable[..., Trioserve]


def as_record(line: str) -> Record:
    record: Record = json.loads(line)
    return record


def check_ledger(report: Record) -> None:
    """Check that bytes received from one side went to the other or were discarded."""
    if report["upstream_bytes_sent"] is None:
        return
    passed_on = report["upstream_bytes_sent"] + report["bytes_discarded"]
    passed_back = report["bytes_sent"] + report["upstream_bytes_discarded"]
    assert report["bytes_received"] == passed_on
    assert report["upstream_bytes_received"] == passed_back


def total(reports: list[Record], field: str) -> int:
    """The sum of a field over reports; None counts as 0."""
    return sum(report[field] or 0 for report in reports)


def on_free_port(start: Callable[[int], Process], ready: str) -> tuple[Process, int]:
    """Start a program that can't choose a port; try again if the port is taken.

    Args:
      start: starts it on a port.
      ready: part of the line that it prints when it listens.
    """
    for attempts_left in reversed(range(5)):
        port = free_port()
        process = start(port)
        try:
            process.until(ready)
        except AssertionError:
            if not attempts_left:
                raise
        else:
            return process, port
    raise AssertionError


# -- sockets


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


class Target:
    """A listening socket for a proxy to dial; the test plays the server."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.settimeout(PATIENCE)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def through(self, proxy: Trioserve) -> tuple[socket.socket, socket.socket]:
        """Connect through a proxy: the client's end, and the server's."""
        client = connect(proxy.port)
        try:
            return client, self.accept()
        except BaseException:
            client.close()
            raise

    def accept(self) -> socket.socket:
        """The server's end of the next connection."""
        server, _ = self._listener.accept()
        server.settimeout(PATIENCE)
        return server

    def close(self) -> None:
        self._listener.close()


@dataclasses.dataclass(frozen=True)
class Received:
    """What a socket received until its end.

    Attributes:
      error: what ended it, or None for EOF.
    """

    count: int
    sha256: str
    error: ConnectionError | None = None

    @property
    def reset(self) -> bool:
        return isinstance(self.error, ConnectionResetError)


def receive(sock: socket.socket) -> Received:
    """Receive until EOF or an error."""
    count, digest = 0, hashlib.sha256()
    error: ConnectionError | None = None
    try:
        while data := sock.recv(1 << 18):
            count += len(data)
            digest.update(data)
    except ConnectionError as caught:
        error = caught
    return Received(count, digest.hexdigest(), error)


def all_of(data: bytes) -> Received:
    """What `receive` returns if exactly this arrives, and EOF."""
    return Received(len(data), hashlib.sha256(data).hexdigest())


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, f"EOF after {len(data)} of {count} bytes"
        data += more
    return data


def send(sock: socket.socket, data: bytes) -> None:
    """Send, and then EOF."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def send_forever(sock: socket.socket) -> ConnectionError:
    """Send until an error, and return it."""
    block = bytes(1 << 16)
    try:
        while True:
            sock.sendall(block)
    except ConnectionError as error:
        return error


def is_silent(sock: socket.socket, seconds: float) -> bool:
    """Whether neither bytes nor an end arrive within ``seconds``."""
    return not select.select([sock], [], [], seconds)[0]


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_until_taken(sock: socket.socket) -> None:
    """Wait until the peer has acknowledged everything; there is no event for it."""
    deadline = time.monotonic() + PATIENCE
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < deadline, "what was sent is not acknowledged"
        assert is_silent(sock, 0.0002)


# -- data


def sha256(data: bytes) -> str:
    """A hash to compare, so that a failure does not print millions of bytes."""
    return hashlib.sha256(data).hexdigest()


@functools.cache
def random_bytes(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)

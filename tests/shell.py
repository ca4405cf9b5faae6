"""A shell for pasted commands, with ``trioserve`` on its PATH.

This module does not know the commands or their output.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Seconds that a command may take until its next line, also on a busy machine.
PATIENCE = 120.0


def environment(folder: Path) -> dict[str, str]:
    """A user's environment, with the command ``trioserve`` of this Python.

    ``folder`` holds the command and is HOME. The only setting of trioserve is that
    the log is text, as it is when stderr is a terminal. Coverage is not
    measured: other tests run the same lines.
    """
    command = folder / "bin" / "trioserve"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trioserve "$@"\n')
    command.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRIOSERVE_") and name not in ("FORCE_COLOR", "NO_COLOR")
    }
    path = f"{command.parent}:{kept['PATH']}"
    return {
        **kept,
        "PATH": path,
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "TRIOSERVE_LOG": "text",
    }


#: Below the kernel's ephemeral ports, so that a free port stays free on every
#: address: a port that is in use on one address may be given out on another.
_PORTS = range(10_000, 30_000)


def free_ports(numbers: Iterable[str]) -> dict[str, str]:
    """A free port for each of these port numbers of a text."""
    return {number: str(free_port()) for number in numbers}


def free_port() -> int:
    """A free port.

    No other call gives the same port, here or in the other processes of this run,
    until all of them were given.
    """
    for _ in _PORTS:
        port = next(_candidates)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _ports_of_this_process() -> Iterator[int]:
    """Those that no other process of this run takes; after the last the first again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = _PORTS[worker::workers]
    return itertools.cycle(random.Random().sample(ours, len(ours)))


#: One for all tests of this process, so that no port comes twice in one test.
_candidates = _ports_of_this_process()


def replaced(text: str, words: dict[str, str]) -> str:
    """``text`` with these words replaced, unless they are part of a larger number."""
    for word, other in words.items():
        text = re.sub(rf"(?<!\d){word}(?!\d)", other, text)
    return text


class Shell:
    """A bash that reads commands, and the lines that it prints.

    They include stdout and stderr of all programs that it starts.
    """

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        # In a session of its own, so that all its processes can be killed at once.
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def paste(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def line(self) -> str | None:
        """The next line, or None at the end.

        Raises:
          queue.Empty: no line came within :data:`PATIENCE`.
        """
        line = self._unread.get(timeout=PATIENCE)
        if line is not None:
            self.seen.append(line)
        return line

    def end(self) -> list[str]:
        """Send EOF; return the lines that it prints after that."""
        assert self.process.stdin
        self.process.stdin.close()
        rest: list[str] = []
        while (line := self.line()) is not None:
            rest.append(line)
        return rest

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._unread.put(line.rstrip("\n"))
        self._unread.put(None)

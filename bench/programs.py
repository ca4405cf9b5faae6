"""Find programs, start them, pin them to cores, wait for them, end them by their ids.

Nothing here knows what they are for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Generator, Sequence
from importlib import metadata
from pathlib import Path

#: Seconds that a program gets for something that should take a moment.
PATIENCE = 20.0

_FREE = sorted(os.sched_getaffinity(0))

#: A core for the proxy, and all others for the load and its target.
PROXY_CORES = {_FREE[-1]}
LOAD_CORES = set(_FREE[:-1]) or PROXY_CORES

_SBIN = "/usr/sbin:/usr/local/sbin"


class ProgramError(Exception):
    """A program did not do what it was started for."""


def find(program: str) -> str | None:
    """The path of a program; servers are often not on an ordinary user's PATH."""
    return shutil.which(program) or shutil.which(program, path=_SBIN)


def version(needed: str) -> str:
    """The version of a program or a Python module."""
    if needed in sys.stdlib_module_names:
        return platform.python_version()
    if importlib.util.find_spec(needed):
        return metadata.version(needed)
    program = find(needed)
    if program is None:
        return "not installed"
    option = {"haproxy": "-v", "nginx": "-v", "socat": "-V"}.get(needed, "--version")
    shown = subprocess.run([program, option], capture_output=True, text=True)
    said = shown.stdout + shown.stderr
    found = re.search(r"(?:version |v=|/|benchmark |iperf )(\d\S*)", said)
    return found[1] if found else "unknown"


def raise_open_files_limit() -> int:
    """Raise the limit for this process and those it starts; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Generator[None]:
    """Pin this process, and those it starts within the block, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, on: Collection[int], folder: Path
) -> Generator[int]:
    """A server that listens on ``port`` before the block begins, and ends with it.

    Args:
      on: the cores that it may use.
      folder: for its output and its files.

    Raises:
      ProgramError: it ended, or does not listen after `PATIENCE` seconds.
    """
    said = folder / f"said-at-{port}"
    with said.open("wb") as output, pinned(on):
        process = subprocess.Popen(
            # So that it ends even if this process is killed.
            ["setpriv", "--pdeathsig", "TERM", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            process_group=0,
        )
    try:
        for _ in range(int(PATIENCE / 0.01)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                raise ProgramError(
                    f"{command[0]} ended: {last_line(said.read_bytes())}"
                )
            if _is_listening(port):
                break
        else:
            raise ProgramError(f"{command[0]} does not listen after {PATIENCE:g} s")
        yield process.pid
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and what it has started: nothing in it is worth waiting for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


def last_line(output: bytes) -> str:
    """The last line of a program's output, for a message."""
    lines = output.decode(errors="replace").strip().splitlines()
    return ascii(lines[-1])[1:-1] if lines else "it said nothing"


def _is_listening(port: int) -> bool:
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and local.endswith(suffix):
                    return True
    return False

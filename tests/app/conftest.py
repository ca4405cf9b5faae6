from __future__ import annotations

import contextlib
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from app.process import PATIENCE, Command, Lines, Start, spawned
from app.scene import Scene


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``python -m trioserve`` with arguments; kill it at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*args: str, **env: str) -> Command:
            argv = ["env", *(f"{name}={value}" for name, value in env.items())]
            process = stack.enter_context(
                spawned([*argv, sys.executable, "-m", "trioserve", *args])
            )
            assert process.stdout
            assert process.stderr
            command = Command(process, Lines(process.stdout), Lines(process.stderr))
            stack.callback(command.kill)
            return command

        yield start


@pytest.fixture(autouse=True)
def dispositions() -> Iterator[None]:
    """Restore what signals do: a command that serves sets it for its process."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    """Restore the limit of open files: a command raises it for its process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    with trio.fail_after(PATIENCE):
        yield scene
    for client in scene.clients:
        await client.aclose()

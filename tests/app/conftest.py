from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

import pytest

from app.process import Command, Lines, Start, spawned


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``python -m trioserve`` with arguments; whatever still runs is killed."""
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
    """Put back what signals do: a command that serves sets it for its process."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)

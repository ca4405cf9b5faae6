from __future__ import annotations

import contextlib
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

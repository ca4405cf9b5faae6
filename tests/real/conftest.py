from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from real.tools import Process, Serve, Start, Target, Trioserve


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program, ``start("redis-server", "--port", "0")``."""
    with contextlib.ExitStack() as running:

        def start(*command: str) -> Process:
            process = Process(*command)
            running.callback(process.kill)
            return process

        yield start


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start trioserve, ``serve("proxy", target)``."""
    with contextlib.ExitStack() as running:
        numbers = itertools.count(1)

        def serve(*words: str, under: tuple[str, ...] = ()) -> Trioserve:
            reports_file = tmp_path / f"reports-{next(numbers)}.jsonl"
            process = Trioserve(reports_file, *words, under=under)
            running.callback(process.kill)
            return process

        yield serve


@pytest.fixture
def target() -> Iterator[Target]:
    with contextlib.closing(Target()) as target:
        yield target


@pytest.fixture
def threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads for what a test does in parallel; their errors fail the test."""
    with concurrent.futures.ThreadPoolExecutor(128) as pool:
        yield pool


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """Closes what is entered in it at the end, before the threads are joined."""
    with contextlib.ExitStack() as stack:
        yield stack

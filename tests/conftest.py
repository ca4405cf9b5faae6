"""For every test: no time passes but virtually, and no signal is ignored.

Nor does a test fail because the machine is slow.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings

from support import open_fds, virtual_clock

TESTS = str(Path(__file__).parent)

settings.register_profile(
    "patient",
    settings.default,
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def sleeps_pass_on_a_virtual_clock_only() -> Iterator[None]:
    """`trio.sleep` in a test is fine under a `MockClock`, and slow or flaky else."""
    sleep = trio.sleep

    # Not async itself: it would be the line on which a task that sleeps stands.
    def checked_sleep(seconds: float) -> Coroutine[Any, Any, None]:
        caller = sys._getframe(1).f_code
        if caller.co_filename.startswith(TESTS):
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, trio.testing.MockClock), caller
        return sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "sleep", checked_sleep)
        yield


@pytest.fixture(scope="session", autouse=True)
def what_is_imported_is_no_garbage() -> Iterator[None]:
    """Python's collector does not look at it each time that a test calls it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """Run by `nohup` too: what ignores a signal hands that down to its children."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Property tests run without coverage, and so do those that are marked.

    It doubles their time, and they run no line that others don't.
    """
    trace = sys.gettrace()
    if any(map(item.get_closest_marker, ("hypothesis", "untraced"))):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)


@pytest.fixture(scope="session", autouse=True)
def coverage_of_processes() -> Iterator[dict[str, str]]:
    """What turns it on. It is off, because it takes as long as the process itself."""
    names = [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]
    variables = {name: os.environ.pop(name) for name in names}
    yield variables
    os.environ.update(variables)


@pytest.fixture
def traced(
    coverage_of_processes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a test whose processes run lines that no other test runs."""
    for name, value in coverage_of_processes.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """Law 13, for each test that uses it."""
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Instead of pytest-trio's: patient enough for a busy machine's loopback."""
    return virtual_clock()

"""Schedules: the order in which ready tasks run, decided by a seed.

This is the only module of the kit that uses private names of a dependency. Trio
shuffles the tasks that are ready, and has no public way to seed that: its random
generator and the switch that sorts tasks before the shuffle are private. Hypothesis
and pytest-trio set the same two names for the same reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import trio._core._run

#: Typed as Any, because mypy does not let the constant be set.
_run: Any = trio._core._run


@contextlib.contextmanager
def schedule(seed: int) -> Generator[None]:
    """Within the block, ``seed`` decides the order in which ready tasks run."""
    before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r.seed(seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        _run._r.setstate(before[0])
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[1]

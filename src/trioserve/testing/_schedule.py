"""Schedules: the order in which tasks run that could run, from a seed.

Trio shuffles them so that nobody relies on any order. What decides is private
to Trio; pytest-trio and Hypothesis set the same two things for the same reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import trio._core._run

#: Untyped: its names are not for everybody.
_run: Any = trio._core._run


@contextlib.contextmanager
def schedule(seed: int) -> Generator[None]:
    """For the block, what runs in Trio runs in the order that ``seed`` decides."""
    before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r.seed(seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        _run._r.setstate(before[0])
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[1]

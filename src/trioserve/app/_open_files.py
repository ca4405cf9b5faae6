"""How many open files the system allows this process."""

from __future__ import annotations

import contextlib
import math
import resource


def raise_open_files_limit() -> None:
    """Raise the soft limit to the hard one, where that is allowed.

    The soft limit protects programs that still call select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files_allowed() -> float:
    """The soft limit; `math.inf` if there is none."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if allowed == resource.RLIM_INFINITY else allowed

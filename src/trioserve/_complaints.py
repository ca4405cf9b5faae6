"""Complaints: what goes wrong again and again is said once a second at most."""

from __future__ import annotations

import logging
import math

import trio

logger = logging.getLogger("trioserve")


class Complaints:
    """Warnings about one thing.

    Args:
      message: a format of :mod:`logging`.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._said_at = -math.inf
        self._kept_silent = 0

    def say(self, *args: object) -> None:
        """Log the message with ``args``, and how often it was not since the last time."""
        now = trio.current_time()
        if now - self._said_at < 1:
            self._kept_silent += 1
            return
        more = f" ({self._kept_silent} more)" if self._kept_silent else ""
        logger.warning(f"{self._message}%s", *args, more)
        self._said_at, self._kept_silent = now, 0

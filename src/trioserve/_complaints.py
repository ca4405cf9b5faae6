"""Complaints: log a repeated warning at most once a second."""

from __future__ import annotations

import logging
import math

import trio

logger = logging.getLogger("trioserve")


class Complaints:
    """A warning that may be repeated.

    Args:
      message: a format, with ``%s`` for each argument of :meth:`say`.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._said_at = -math.inf
        self._suppressed = 0

    def say(self, *args: object) -> None:
        """Log the message with ``args``, and how often it was suppressed before."""
        now = trio.current_time()
        if now - self._said_at < 1:
            self._suppressed += 1
            return
        more = f" ({self._suppressed} more)" if self._suppressed else ""
        logger.warning("%s%s", self._message % args, more)
        self._said_at, self._suppressed = now, 0

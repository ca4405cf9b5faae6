"""Saturation: whether the connection limit is reached while clients wait.

A server in, changes out. Nothing here reports them, or decides how often to look.
"""

from __future__ import annotations

import dataclasses

import trio

from trioserve import Server

from ._backlog import backlog_length, has_backlog


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitReached:
    """The connection limit is reached, and clients wait.

    Args:
      limit: the connection limit.
      waiting: clients in the accept queues, or None if the kernel can't tell.
    """

    limit: int
    waiting: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitCleared:
    """No client waits any longer.

    Args:
      tokens_used: connections that count against the limit now.
      limit: the connection limit.
      seconds: for how long the server was saturated.
    """

    tokens_used: int
    limit: int
    seconds: float


class SaturationMonitor:
    """Tells when a server reaches its limit while clients wait, and when none does."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._since: float | None = None

    def check(self) -> LimitReached | LimitCleared | None:
        """What has changed since the last check, or None.

        A server that drains is not saturated: it accepts no clients, whatever its
        limit is.
        """
        if self._server.draining.is_set():
            return None
        # One poll(2) is cheap; statistics() goes through all connections.
        clients_wait = has_backlog(self._server)
        if not clients_wait and self._since is None:
            return None
        now = self._server.statistics()
        if clients_wait and now.tokens_used >= now.limit:
            if self._since is not None:
                return None
            self._since = trio.current_time()
            # The kernel can't count clients of a Unix socket: 0 would be wrong.
            waiting = backlog_length(self._server) or None
            return LimitReached(limit=now.limit, waiting=waiting)
        if clients_wait or self._since is None:
            return None
        seconds, self._since = trio.current_time() - self._since, None
        return LimitCleared(
            tokens_used=now.tokens_used, limit=now.limit, seconds=seconds
        )

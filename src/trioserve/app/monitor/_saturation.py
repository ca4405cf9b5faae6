"""Saturation: whether the connection limit is reached while clients wait.

A server in, changes out. Nothing here reports them, or decides how often to look.
"""

from __future__ import annotations

import dataclasses

import trio

from trioserve import Server

from ._backlog import backlog_length, has_backlog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturated:
    """The limit is reached, and clients wait.

    Args:
      limit: how many connections may be open at once; as many are.
      waiting: clients in the accept queues, or None if the kernel can't tell.
    """

    limit: int
    waiting: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relieved:
    """No client waits any more.

    Args:
      tokens_used: connections that count against the limit now.
      limit: how many may.
      seconds: for how long the server was saturated.
    """

    tokens_used: int
    limit: int
    seconds: float


class SaturationMonitor:
    """Compares a server's connections with its limit each time it is asked."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._since: float | None = None

    def check(self) -> Saturated | Relieved | None:
        """What has changed since the last check, or None.

        A server that drains is not saturated: it accepts nobody, whatever its
        limit is.
        """
        if self._server.draining.is_set():
            return None
        # One poll(2) is cheap; statistics() goes through all connections.
        is_waited_for = has_backlog(self._server)
        if not is_waited_for and self._since is None:
            return None
        now = self._server.statistics()
        if is_waited_for and now.tokens_used >= now.limit:
            if self._since is not None:
                return None
            self._since = trio.current_time()
            # Clients of a Unix socket are not counted: 0 would be wrong.
            waiting = backlog_length(self._server) or None
            return Saturated(limit=now.limit, waiting=waiting)
        if is_waited_for or self._since is None:
            return None
        seconds, self._since = trio.current_time() - self._since, None
        return Relieved(tokens_used=now.tokens_used, limit=now.limit, seconds=seconds)

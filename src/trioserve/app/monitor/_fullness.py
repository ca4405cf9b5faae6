"""Fullness: whether all slots are taken, and somebody waits for one.

A server in, what has changed out. Nothing here says it to anybody, or decides
how often to look.
"""

from __future__ import annotations

import dataclasses

import trio

from trioserve import Server

from ._backlog import somebody_waits, waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full:
    """It has become full.

    Args:
      slots: all of them are taken.
      waiting: clients in the kernel's queues, or None if nobody knows.
    """

    slots: int
    waiting: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """Nobody has to wait any more.

    Args:
      slots_used, slots: how many are taken now, and how many there are.
      seconds: for how long it was full.
    """

    slots_used: int
    slots: int
    seconds: float


class Fullness:
    """Looks at a server now and then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._since: float | None = None

    def look(self) -> Full | Room | None:
        """What has changed since the last look, if anything has."""
        if self._server.draining.is_set():
            return None  # who comes now comes to nobody, full or not
        # Asked first because it costs little: to count goes through all
        # connections.
        is_waited_for = somebody_waits(self._server)
        if not is_waited_for and self._since is None:
            return None
        now = self._server.statistics()
        if is_waited_for and now.slots_used >= now.slots:
            if self._since is not None:
                return None
            self._since = trio.current_time()
            # A Unix socket does not count who waits.
            return Full(slots=now.slots, waiting=waiting(self._server) or None)
        if is_waited_for or self._since is None:
            return None
        seconds, self._since = trio.current_time() - self._since, None
        return Room(slots_used=now.slots_used, slots=now.slots, seconds=seconds)

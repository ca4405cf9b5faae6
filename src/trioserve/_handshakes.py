"""Handshakes: bound how many connections of a listener are in their handshakes.

When one more begins, the oldest of them has to go. So clients that stay silent can't
keep others from being served, however many they are. This module does not know what is
done in a handshake.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Protocol

from ._reason import Reason


class _Connection(Protocol):
    id: int
    listener: str

    def stop(self, reason: Reason, *, error: str | None = None) -> None:
        """End it from outside."""


class Handshakes:
    """The handshakes under way in one server.

    Attributes:
      most: how many there may be at a time for each listener; None for any number. It
        may be changed at any time; a lower number applies when the next one begins.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        #: By listener, and by the number of the connection.
        self._under_way: dict[str, dict[int, _Connection]] = {}
        #: Those that had to go, by their numbers.
        self._gone = set[int]()

    @contextlib.contextmanager
    def under_way(self, connection: _Connection) -> Generator[None]:
        """Count a connection for the block; above the limit, reset the oldest."""
        try:
            self.begin(connection)
            yield
        finally:
            self.end(connection)

    def begin(self, connection: _Connection) -> None:
        """Count a connection until :meth:`end`; above the limit, reset the oldest.

        For one that is counted already it does nothing.
        """
        here = self._under_way.setdefault(connection.listener, {})
        if connection.id in here or connection.id in self._gone:
            return
        here[connection.id] = connection
        most = len(here) if self.most is None else self.most
        while len(here) > most:
            # By number: tasks that start together start in any order.
            oldest = here.pop(min(here))
            self._gone.add(oldest.id)
            oldest.stop(
                Reason.HANDSHAKE, error=f"more than {most} handshakes at a time"
            )

    def end(self, connection: _Connection) -> None:
        """Stop counting it. Idempotent."""
        self._under_way[connection.listener].pop(connection.id, None)
        self._gone.discard(connection.id)

"""Ledger: the open connections of a server, and its totals.

``accepted == open + closed`` holds at any moment.
"""

from __future__ import annotations

import itertools

from ._connection import Connection, lifecycle_of
from ._report import ConnectionReport


class Ledger:
    """The connections of one server.

    Attributes:
      open: the open connections by their number, oldest first.
      accepted, closed, refused: the number of connections since the start.
    """

    def __init__(self) -> None:
        self.open: dict[int, Connection] = {}
        self.accepted = 0
        self.closed = 0
        self.refused = 0
        self._numbers = itertools.count(1)
        self._received = 0
        self._sent = 0
        self._discarded = 0

    def next_number(self) -> int:
        """The number of the next connection."""
        return next(self._numbers)

    def add(self, connection: Connection) -> None:
        """Count an accepted connection."""
        self.accepted += 1
        self.open[connection.id] = connection

    def close(self, report: ConnectionReport) -> None:
        """Count a connection that was taken out of :attr:`open`, by its report."""
        self.closed += 1
        self._received += report.bytes_received
        self._sent += report.bytes_sent
        self._discarded += report.bytes_discarded

    def bytes(self) -> tuple[int, int, int]:
        """Bytes received, sent and discarded, those of open connections included."""
        received, sent, discarded = self._received, self._sent, self._discarded
        for connection in self.open.values():
            received += connection.bytes_received
            sent += connection.bytes_sent
            discarded += lifecycle_of(connection).discarded
        return received, sent, discarded

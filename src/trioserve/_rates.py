"""Rates: how often each of many keys may do something.

A token bucket for each key, in a table of bounded size. This module reads no clock, and
does not know what a key is.
"""

from __future__ import annotations

import math
from typing import Final

#: Keys in a table, by default; each takes about 150 bytes.
_MOST: Final = 65_536


class Rates:
    """At most ``count`` turns at once for each key, and then ``count`` in ``seconds``.

    In any time of t seconds, a key gets at most ``count + count * t / seconds`` turns.
    A turn that is refused costs nothing. If there are more than ``most`` keys, the one
    whose last turn is the oldest is forgotten: its bucket is full again.

    The algorithm is GCRA (ITU-T I.371, virtual scheduling): for each key, the time at
    which its bucket is full again. It counts whole nanoseconds, so that nothing is
    rounded in favour of a key.
    """

    def __init__(self, count: int, seconds: float, *, most: int = _MOST) -> None:
        self._interval = math.ceil(seconds * 1e9 / count)
        self._burst = self._interval * (count - 1)
        self._most = most
        #: In the order of their last turns.
        self._full_at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str, now: float) -> bool:
        """Take a turn at a time in seconds, never before an earlier one; False if the
        key has none.
        """
        at, table = round(now * 1e9), self._full_at
        full_at = max(table.get(key, at), at)
        if full_at - at > self._burst:
            return False
        table.pop(key, None)
        table[key] = full_at + self._interval
        # Buckets that are full again say nothing.
        while (first := next(iter(table))) != key and (
            table[first] <= at or len(table) > self._most
        ):
            del table[first]
        return True

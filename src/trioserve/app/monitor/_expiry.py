"""Expiry: which certificates of a server expire soon, or have expired.

A server in, certificates out. Nothing here reports them, or decides how often to look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from trioserve import Certificate, Server

_DAY = 86_400.0

#: Seconds before its end from which a certificate is due.
_AHEAD = 14 * _DAY


class ExpiryMonitor:
    """Tells of each certificate that expires soon, and a day later again.

    Args:
      now: returns the time, in seconds since the epoch.
    """

    def __init__(self, server: Server, now: Callable[[], float] = time.time) -> None:
        self._server = server
        self._now = now
        #: By file and end: when it was due the last time, and whether it had expired.
        self._told: dict[tuple[str, float], tuple[float, bool]] = {}

    def check(self) -> list[tuple[Certificate, float]]:
        """The certificates that are due, each with the seconds until it expires.

        They are negative if it has expired. A certificate is due 14 days before it
        expires, or when it is found later than that; a day after it was due; and when
        it expires.
        """
        now, before = self._now(), self._told
        self._told, due = {}, []
        for certificate in self._server.certificates():
            key = certificate.cert, certificate.expires
            left = certificate.expires - now
            if left > _AHEAD or key in self._told:
                continue
            told, had_expired = before.get(key, (-math.inf, False))
            if not told <= now < told + _DAY or (left <= 0 and not had_expired):
                due.append((certificate, left))
                told = now
            self._told[key] = told, left <= 0
        return due

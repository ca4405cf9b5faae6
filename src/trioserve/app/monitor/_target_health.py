"""Which addresses of the targets answer, according to the attempts to connect.

Attempts in, changes out. Nothing here dials or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trioserve import Address, Attempt


class TargetChange(NamedTuple):
    """An address went down, or is up again.

    Args:
      address: as it was dialed; a name, if it could not be looked up.
      error: why it is down, or None if it is up.
    """

    address: str
    error: str | None


class TargetHealth:
    """The addresses that are down now."""

    def __init__(self) -> None:
        self._down: set[str] = set()

    def record(self, target: Address, attempt: Attempt) -> Sequence[TargetChange]:
        """Record an attempt to connect to ``target``; return what it changes.

        An attempt that failed because of this machine, and one that was given up
        because another was faster, change nothing.
        """
        if attempt.failed:
            return self._set(attempt.address, attempt.error)
        if attempt.error is not None or not self._down:
            return ()
        # A name has an attempt of its own only if it can't be looked up.
        return (*self._set(attempt.address, None), *self._set(str(target), None))

    def answers(self, address: str) -> None:
        """Note that an address is up, which is known from elsewhere."""
        self._down.discard(address)

    def _set(self, address: str, error: str | None) -> Sequence[TargetChange]:
        if (address in self._down) is (error is not None):
            return ()
        self._down ^= {address}
        return (TargetChange(address, error),)

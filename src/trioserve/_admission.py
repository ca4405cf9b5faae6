"""Admission: how many at once, exactly.

Slots over a :class:`trio.CapacityLimiter`. It does not know what is admitted,
or where it waits meanwhile.
"""

from __future__ import annotations

import trio


class Slot:
    """The right to be one of the many. Released once, however often it is said."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: trio.CapacityLimiter | None = limiter

    def release(self) -> None:
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter = None


class Slots:
    """At most ``total`` slots are held, at any time.

    Every slot borrows for itself: two waiters with the same borrower would
    both be let in, and count as one.
    """

    def __init__(self, total: int) -> None:
        self._limiter = trio.CapacityLimiter(total)

    @property
    def total(self) -> int:
        """May be changed at any time. Lowered, it takes no slot away."""
        return int(self._limiter.total_tokens)

    @total.setter
    def total(self, total: int) -> None:
        self._limiter.total_tokens = total

    @property
    def used(self) -> int:
        return self._limiter.borrowed_tokens

    async def take(self) -> Slot:
        """Wait for a slot; first come, first served."""
        slot = Slot(self._limiter)
        await self._limiter.acquire_on_behalf_of(slot)
        return slot

    def take_nowait(self) -> Slot | None:
        """A slot if one is free and nobody waits for it."""
        slot = Slot(self._limiter)
        try:
            self._limiter.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            return None
        return slot

"""Attempts: how each attempt of one dial went, and which error is the reason.

This module does not know how attempts are made, or what is tried next.
"""

from __future__ import annotations

import abc
import dataclasses

import trio

from ._connect import is_local_shortage
from ._errors import copy_of, is_a
from ._names import AddrInfo
from ._report import GIVEN_UP, LOST_RACE, NO_ANSWER, Attempt, unfinished_attempt


class AttemptLog(abc.ABC):
    """The attempts of one dial.

    It is a base class of the dialer, and not an attribute, because each open connection
    would have one more object.
    """

    __slots__ = ("_answer", "_attempts", "_connected", "_seconds", "_shortage")

    def __init__(self) -> None:
        self._attempts: tuple[Attempt, ...] = ()
        # The attempt that succeeded at once, if one did, and how long it took.
        self._connected: AddrInfo | None = None
        self._seconds = 0.0
        # The first shortage of this machine, and the last error that a target sent.
        self._shortage: OSError | None = None
        self._answer: OSError | None = None

    @abc.abstractmethod
    def attempt_ended(self, attempt: Attempt) -> None:
        """Called when an attempt has ended, unless it was cancelled."""

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts that have ended, in that order."""
        if self._connected is None:
            return self._attempts
        # Built lazily: most dials succeed at once with one attempt, and this saves
        # memory per idle connection.
        attempt = unfinished_attempt.new()
        attempt.address = self._connected.text
        attempt.seconds = self._seconds
        attempt.error = None
        attempt.ours = False
        return (*self._attempts, unfinished_attempt.finish(attempt))

    @property
    def attempt_count(self) -> int:
        """How many there are, without one that succeeded at once."""
        return len(self._attempts)

    def connected_at_once(self, info: AddrInfo, seconds: float) -> None:
        """Note that the first attempt connected at once; it is not added again."""
        self._connected, self._seconds = info, seconds

    def keep(self, error: OSError) -> bool:
        """Keep an error that :meth:`dial` may raise; whether it is a local shortage."""
        if not is_local_shortage(error):
            if not is_a(error, TimeoutError):
                self._answer = copy_of(error)
            return False
        if self._shortage is None:
            self._shortage = copy_of(error)
        return True

    def why_all_failed(self) -> OSError | None:
        """The error that is the reason in place of the last one, if there is one.

        If this machine lacked something, the target that could not be tried might have
        answered; so a timeout of another one is not the reason.
        """
        return None if self._shortage is None else self._answer or self._shortage

    def add_attempt(
        self,
        address: str,
        began: float,
        error: str | None,
        is_ours: bool = False,
        *,
        goes_on: bool = False,
    ) -> None:
        """Note an attempt; if it goes on, :meth:`end_attempt` ends it."""
        seconds = trio.current_time() - began
        attempt = Attempt(address=address, seconds=seconds, error=error, ours=is_ours)
        self._attempts = (*self._attempts, attempt)
        if error not in (GIVEN_UP, LOST_RACE) and not goes_on:
            self.attempt_ended(attempt)

    def end_attempt(
        self, before: int, began: float, error: str | None, is_ours: bool
    ) -> None:
        """Note how the rest went of the first attempt that has connected.

        Args:
          before: attempts before this number are of other targets.
          began: when the rest began.
        """
        seconds, attempts = trio.current_time() - began, list(self._attempts)
        number = next(n for n in range(before, len(attempts)) if not attempts[n].error)
        connected = attempts[number]
        seconds += connected.seconds
        attempt = Attempt(
            address=connected.address, seconds=seconds, error=error, ours=is_ours
        )
        attempts[number] = attempt
        self._attempts = tuple(attempts)
        if error != GIVEN_UP:
            self.attempt_ended(attempt)

    def mark_unanswered(self, begin: int) -> None:
        """Note that the attempts from number ``begin`` on got no answer in time."""
        attempts = list(self._attempts)
        for number, attempt in enumerate(attempts[begin:], begin):
            if attempt.error == GIVEN_UP:
                attempts[number] = dataclasses.replace(attempt, error=NO_ANSWER)
                self.attempt_ended(attempts[number])
        self._attempts = tuple(attempts)

"""Endpoint: what is known of one target, from the attempts to connect to it.

It says whether the target is up, when it is tried again, and how long to wait for it.
It knows nothing of the other targets, of sockets or of a clock: callers pass the time.
"""

from __future__ import annotations

import collections
import math
from typing import Final

from ._address import TcpAddress
from ._targets import Health, Target, TargetState, is_name
from ._tls_client import TlsClient

#: Seconds to wait for a target of which nothing is known, while another one could
#: answer. RFC 6298, section 2.1: the timeout before the first measurement.
_UNKNOWN: Final = 1.0

#: At least so many seconds for a target that is up: as long as the head start of an
#: address in RFC 8305, section 5.
_LEAST: Final = 0.25

#: At least so many for one that is down and is tried: its client waits meanwhile.
_LEAST_DOWN: Final = 0.05

#: At least this part of its weight has a target that has just come up.
_COLDEST: Final = 0.01

#: Percentiles are of this many connects.
_MOST_TIMES: Final = 1000

#: The longest pause is made longer by up to this part of it.
_JITTER: Final = 0.1


class Endpoint:
    """The state of one target.

    Attributes:
      origin: what lists it; the target itself if it was given alone.
      open: connections that have it, those that dial it included.
      dialing: connections that dial it now.
      rank: those of a rank get a connection only if all lower ones are down.
      weight: its share now, which grows while it warms up.
      credit: of the round robin; see :mod:`._balance`.
      turn: the number of the choice by which it was last chosen.
      down_since: since when it is down; None if it is up.
      is_drained: whether it gets no new connections, because somebody said so.
      is_gone: whether its list no longer has it; then it gets none.
      is_checked: whether checks run, so that only these say that it is up again.
      retry_at: when its pause is over, if it is down.
      tls: what TLS with it begins with; None without TLS.
    """

    __slots__ = (
        "_answered_at", "_changed_at", "_checks", "_checks_failed",
        "_checks_failed_in_row", "_checks_passed_in_row", "_connected", "_deviation",
        "_error", "_failed", "_failed_in_row", "_has_passed", "_is_name", "_mean",
        "_patience", "_patience_since", "_pause", "_times", "address", "credit",
        "dialing", "down_since", "is_checked", "is_drained", "is_gone", "open",
        "origin", "rank", "retry_at", "target", "text", "tls", "turn", "weight",
    )  # fmt: skip

    def __init__(self, target: Target, origin: object) -> None:
        self.target = target
        self.origin = origin
        self.address = address = target.address
        self.weight: float = target.weight
        self.rank = target.backup, target.priority
        self.text = str(address)
        self.tls: TlsClient | None = None
        if target.tls is not None:
            assert isinstance(address, TcpAddress)
            self.tls = TlsClient(target.tls, address.host_bytes.decode())
        self.open = 0
        self.dialing = 0
        self.credit = 0.0
        self.turn = 0
        self.down_since: float | None = None
        self.is_drained = False
        self.is_checked = False
        self.is_gone = False
        self.retry_at = -math.inf
        self._is_name = is_name(address)
        self._answered_at = -math.inf
        self._changed_at: float | None = None
        self._connected = 0
        self._failed = 0
        self._failed_in_row = 0
        self._error: str | None = None
        self._checks = 0
        self._checks_failed = 0
        self._checks_failed_in_row = 0
        self._checks_passed_in_row = 0  # since it is down
        self._has_passed = False
        self._pause = 0.0
        # Of the time that a connect takes; RFC 6298, section 2.
        self._mean = -1.0
        self._deviation = 0.0
        self._times = collections.deque[float](maxlen=_MOST_TIMES)
        # Doubled by an attempt that is late, like the timeout in RFC 6298, unless it
        # began before the last change.
        self._patience = 1
        self._patience_since = -math.inf

    def listed_as(self, target: Target, origin: object) -> None:
        """Take what a list says now: maybe another weight or rank."""
        self.origin = origin
        self.target, self.weight = target, target.weight
        self.rank = target.backup, target.priority

    def begin(self, now: float) -> None:
        """Note that it is up from now on, and not from the start."""
        self._changed_at = now

    def is_ready(self, now: float) -> bool:
        """Whether it may get a connection.

        If it is down, that is one connection, when its pause is over; none if it is
        checked.
        """
        if self.down_since is None:
            return True
        if self.is_checked:
            return False
        # A handler may serve in a second Trio run, whose clock is another one.
        is_pausing = self.down_since <= now < self.retry_at
        return not is_pausing and not self.dialing

    def has_connected(self, seconds: float, now: float) -> bool:
        """Note an attempt that has connected; whether that changes it to up."""
        self._connected += 1
        self._answered_at = now
        self._times.append(seconds)
        if self._mean < 0:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            off = seconds - self._mean
            self._deviation += (abs(off) - self._deviation) / 4
            self._mean += off / 8
        if not self._failed_in_row and self.down_since is None:
            return False
        self._failed_in_row, self._patience = 0, 1
        if self.down_since is not None and not self.is_checked:
            self._come_up(now)
            return True
        self._forget_error()
        return False

    def has_failed(
        self,
        error: str,
        health: Health,
        *,
        began: float,
        now: float,
        late: bool,
        luck: float,
    ) -> bool:
        """Note an attempt that has failed; whether that changes it to down.

        Args:
          began: when the attempt began. One that began before the pause was over is no
            trial: it does not make the pause longer.
          late: whether it has failed because it took too long. If it has connected
            another one meanwhile, it is alive, and only its queue was full.
          luck: a random number from 0 to 1, for the length of the pause.
        """
        self._failed += 1
        # A handler may serve in a second Trio run, whose clock is another one.
        if late and began <= self._answered_at <= now:
            return False
        self._failed_in_row += 1
        self._error = error
        if late and began >= self._patience_since:
            self._patience, self._patience_since = min(2 * self._patience, 64), now
        if self.down_since is not None:
            if began >= self.retry_at:
                self._pause = min(2 * self._pause, health.max_pause)
                self.retry_at = now + self._pause * (1 + _JITTER * luck)
            return False
        if self._failed_in_row < health.fall or not health.pause:
            return False
        self._go_down(health, now, luck)
        return True

    def check_passed(self, health: Health, now: float) -> bool:
        """Note a check that has passed; whether that changes it to up."""
        self._checks += 1
        self._checks_failed_in_row = 0
        self._has_passed = True
        if self.down_since is None:
            self._forget_error()
            return False
        self._checks_passed_in_row += 1
        if self._checks_passed_in_row < health.rise:
            return False
        self._come_up(now)
        return True

    def check_failed(
        self, error: str, health: Health, *, now: float, luck: float
    ) -> bool:
        """Note a check that has failed; whether that changes it to down.

        Before one has passed, one is enough: nothing is known in favour of the target.

        Args:
          luck: as for :meth:`has_failed`.
        """
        self._checks += 1
        self._checks_failed += 1
        self._checks_failed_in_row += 1
        self._checks_passed_in_row = 0
        self._error = error
        is_enough = self._checks_failed_in_row >= health.fall or not self._has_passed
        if self.down_since is not None or not is_enough:
            return False
        self._go_down(health, now, luck)
        return True

    def _go_down(self, health: Health, now: float, luck: float) -> None:
        self.down_since = self._changed_at = now
        self._checks_passed_in_row = 0
        self._pause = health.pause
        self._patience, self._patience_since = 1, now
        self.retry_at = now + self._pause * (1 + _JITTER * luck)

    def _come_up(self, now: float) -> None:
        self.down_since, self._changed_at = None, now
        self._failed_in_row = self._checks_failed_in_row = 0
        self._patience, self._error = 1, None

    def _forget_error(self) -> None:
        in_row = self._failed_in_row or self._checks_failed_in_row
        if self.down_since is None and not in_row:
            self._error = None

    @property
    def usual(self) -> float | None:
        """At most this many seconds it usually takes to connect; None: not known."""
        return self._mean + 4 * self._deviation if self._mean >= 0 else None

    def patience(self, others: float | None) -> float:
        """Seconds to wait for it while another one could answer.

        Args:
          others: what others usually take; used if it has never connected, unless it
            is a name, which has to be looked up, and may have several addresses.
        """
        usual = self.usual
        if usual is None:
            usual = _UNKNOWN if self._is_name or others is None else others
        least = _LEAST if self.down_since is None else _LEAST_DOWN
        return min(max(usual, least) * self._patience, max(usual, _UNKNOWN))

    def is_late_after(self, seconds: float) -> bool:
        """Whether it is to blame if it has not answered after this many seconds.

        It is not if these are the rest of a connection's time, which has waited before.
        """
        return seconds >= max(self.usual or 0.0, _LEAST_DOWN)

    def warm_up(self, seconds: float, now: float) -> bool:
        """Set the weight, which grows from the time when it came up; whether it will.

        It grows linearly, as by ``slowstart`` in HAProxy.

        Args:
          seconds: until it has all of it.
        """
        assert self._changed_at is not None
        part = (now - self._changed_at) / seconds
        self.weight = self.target.weight
        # A handler may serve in a second Trio run, whose clock is another one.
        if self.down_since is not None or not 0 <= part < 1:
            return False
        self.weight *= max(part, _COLDEST)
        return True

    def _percentile(self, percent: int) -> float | None:
        """By nearest rank."""
        times = sorted(self._times)
        return times[-(-len(times) * percent // 100) - 1] if times else None

    def state(self, now: float) -> TargetState:
        """All of it, for people."""
        is_up, changed_at = self.down_since is None, self._changed_at
        return TargetState(
            target=self.target,
            up=is_up,
            drained=self.is_drained,
            gone=self.is_gone,
            seconds=None if changed_at is None else now - changed_at,
            open=self.open,
            connected=self._connected,
            failed=self._failed,
            connect=self._mean if self._mean >= 0 else None,
            connect_p50=self._percentile(50),
            connect_p99=self._percentile(99),
            error=self._error,
            retry=None if is_up or self.is_checked else max(0.0, self.retry_at - now),
            checks=self._checks,
            checks_failed=self._checks_failed,
        )

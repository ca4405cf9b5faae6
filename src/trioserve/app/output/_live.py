"""The live view: how a server stands, again and again.

Counters in, lines for people and fields for machines out. Nothing here knows
where they are shown.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from time import thread_time
from typing import Any, Final, NoReturn

import click
import trio

from trioserve import ConnectionReport, Outcome, Reason, Server, Statistics
from trioserve.app._values import format_bytes, format_duration
from trioserve.app.monitor._backlog import waiting

_BAR: Final = 16
#: Numbers end in the same column all the time, so that they can be read.
_ROW: Final = "  {:<6}{:>11} accepted {:>9} {:7} {:>11} in {:>11} out"

#: Counting takes longer the more connections are open. It may take this part of
#: a processor.
_SHARE: Final = 0.01

#: Rates are over this many seconds: over less they jump, and say nothing when a
#: look follows another at once.
_WINDOW: Final = 1.0

_COLOURS: Final = {Outcome.OK: "green", Outcome.REFUSED: "yellow"}


class Tally:
    """How many connections ended for which reason."""

    def __init__(self) -> None:
        self._ends = collections.Counter[Reason]()

    def add(self, report: ConnectionReport) -> None:
        self._ends[report.reason] += 1

    def most_common(self) -> list[tuple[Reason, int]]:
        """The reasons that there were, the most common one first."""
        return self._ends.most_common()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """How a server stands now, and what has changed since a moment before.

    Args:
      elapsed: seconds since the first moment.
      now, before: its counters; at the first moment the same.
      seconds: between the two.
      waiting: clients in the kernel's queues, or None if nobody knows.
      reports_lost: on the way to the collector, or after it.
      drain_left: None until it drains; then seconds until what is open is cut,
        or fewer.
    """

    elapsed: float
    now: Statistics
    before: Statistics
    seconds: float
    waiting: int | None
    reports_lost: int
    drain_left: float | None

    def rate(self, counter: str) -> float:
        """How fast a counter grows, per second."""
        if not self.seconds:
            return 0.0
        grown: int = getattr(self.now, counter) - getattr(self.before, counter)
        return grown / self.seconds


class Watch:
    """Looks at a server again and again.

    Args:
      unwritten: tells how many reports were collected and lost after that.
    """

    def __init__(self, server: Server, unwritten: Callable[[], int] = int) -> None:
        self._unwritten = unwritten
        self._server = server
        self._began = trio.current_time()
        self._looks = collections.deque([(self._began, server.statistics())])
        self._drained_since: float | None = None

    def look(self) -> Moment:
        """How it stands, and what has changed in the last second or so.

        That is since the last look that is a second ago or more; in the first
        second, since the beginning.
        """
        now, at = self._server.statistics(), trio.current_time()
        while len(self._looks) > 1 and at - self._looks[1][0] >= _WINDOW:
            self._looks.popleft()
        before_at, before = self._looks[0]
        self._looks.append((at, now))
        return Moment(
            elapsed=at - self._began,
            now=now,
            before=before,
            seconds=at - before_at,
            waiting=waiting(self._server),
            reports_lost=now.lost + self._unwritten(),
            drain_left=self._drain_left(at),
        )

    def _drain_left(self, at: float) -> float | None:
        # A server doesn't say until when it drains, but a drain can only be
        # hurried: it is not longer than the timeout. After its end, Timeouts.cleanup
        # is for what doesn't end.
        if not self._server.draining.is_set():
            return None
        if self._drained_since is None:
            self._drained_since = at
        return max(0.0, self._drained_since + self._server.timeouts.drain - at)

    async def run(
        self, show: Callable[[Moment], None], *, every: float = 0.5
    ) -> NoReturn:
        """Look and show, every so many seconds, until cancelled.

        With so many connections that it would take more than a hundredth of a
        processor, less often.
        """
        while True:
            # The thread's own time: waiting for a processor, or being stopped
            # from the keyboard, costs nothing.
            began = thread_time()
            show(self.look())
            cost = thread_time() - began
            await trio.sleep(max(every, cost / _SHARE))


def view_lines(moment: Moment, tally: Tally, *, colour: bool = False) -> Iterator[str]:
    """How it stands, for a terminal of 80 columns; only the last line may be longer.

    Five lines, and one more if there is trouble.
    """
    now = moment.now
    full = now.slots_used / now.slots if now.slots else 1.0
    bar = "#" * min(_BAR, round(full * _BAR))
    yield f"  up      {_clock(moment.elapsed)}{_draining(moment)}{_drain_left(moment)}"
    yield (
        f"  open    [{bar.ljust(_BAR, '.')}] {now.open:,} open,"
        f" {now.slots_used:,} of {now.slots:,} slots{_waiting(moment)}"
    )
    yield _ROW.format(
        "rate",
        f"{moment.rate('accepted'):,.0f}/s",
        f"{moment.rate('closed'):,.0f}/s",
        "closed",
        f"{format_bytes(round(moment.rate('bytes_received')))}/s",
        f"{format_bytes(round(moment.rate('bytes_sent')))}/s",
    )
    yield _ROW.format(
        "total",
        f"{now.accepted:,}",
        f"{now.refused:,}",
        "refused",
        format_bytes(now.bytes_received),
        format_bytes(now.bytes_sent),
    )
    if troubles := ", ".join(_troubles(moment)):
        yield f"  but     {troubles}"
    ends = (
        f"{_coloured(reason, colour)} {count:,}"
        for reason, count in tally.most_common()
    )
    yield f"  ends    {'  '.join(ends) or 'none yet'}"


def view_line(moment: Moment) -> str:
    """How it stands, in one line for a pipe."""
    now = moment.now
    line = (
        f"up {_clock(moment.elapsed)}{_draining(moment)}:"
        f" {now.open} open of {now.slots}{_waiting(moment)},"
        f" {moment.rate('accepted'):.0f}/s accepted,"
        f" {format_bytes(round(moment.rate('bytes_received')))}/s in,"
        f" {format_bytes(round(moment.rate('bytes_sent')))}/s out,"
        f" {now.accepted} accepted, {now.refused} refused"
    )
    return ", ".join([line, *_troubles(moment)])


def view_fields(moment: Moment, tally: Tally) -> dict[str, Any]:
    """How it stands, for machines. What nobody knows is None."""
    now = moment.now
    left = moment.drain_left
    return {
        "elapsed": round(moment.elapsed, 3),
        "draining": left is not None,
        "drain_left": round(left, 3) if left is not None and left < math.inf else None,
        "open": now.open,
        "slots_used": now.slots_used,
        "slots": now.slots,
        "waiting": moment.waiting,
        "accepted": now.accepted,
        "closed": now.closed,
        "refused": now.refused,
        "bytes_received": now.bytes_received,
        "bytes_sent": now.bytes_sent,
        "reports_lost": moment.reports_lost,
        "accept_errors": dict(now.accept_errors),
        "accepted_per_second": round(moment.rate("accepted"), 3),
        "closed_per_second": round(moment.rate("closed"), 3),
        "bytes_received_per_second": round(moment.rate("bytes_received")),
        "bytes_sent_per_second": round(moment.rate("bytes_sent")),
        "ends": {str(reason): count for reason, count in tally.most_common()},
    }


def _clock(seconds: float) -> str:
    return format_duration(float(round(seconds)))


def _draining(moment: Moment) -> str:
    return "" if moment.drain_left is None else ", draining"


def _drain_left(moment: Moment) -> str:
    left = moment.drain_left
    if left is None or left == math.inf or not moment.now.open:
        return ""
    return f", what is open is cut in {_clock(math.ceil(left))} at most"


def _waiting(moment: Moment) -> str:
    return f", {moment.waiting:,} waiting" if moment.waiting else ""


def _troubles(moment: Moment) -> Iterator[str]:
    # What an operator hopes never to see, only when it is there.
    if moment.reports_lost:
        yield f"{moment.reports_lost:,} reports lost"
    for name, count in moment.now.accept_errors.items():
        yield f"{name} {count:,} times"


def _coloured(reason: Reason, colour: bool) -> str:
    if not colour:
        return str(reason)
    return click.style(reason, fg=_COLOURS.get(reason.outcome, "red"))

"""The live view: how a server stands, again and again.

Counters in, lines for people and fields for machines out. Nothing here knows
where they are shown.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, NoReturn

import click
import trio

from trioserve import ConnectionReport, Outcome, Reason, Server, Statistics

from ._values import format_bytes, format_duration

_BAR: Final = 24

#: Counting takes longer the more connections are open. It may take this part of
#: the time.
_SHARE: Final = 0.01

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
      draining: whether it drains.
    """

    elapsed: float
    now: Statistics
    before: Statistics
    seconds: float
    draining: bool

    def rate(self, counter: str) -> float:
        """How fast a counter grows, per second."""
        if not self.seconds:
            return 0.0
        grown: int = getattr(self.now, counter) - getattr(self.before, counter)
        return grown / self.seconds


class Watch:
    """Looks at a server again and again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._looked_at = trio.current_time()
        self._before = server.statistics()

    def look(self) -> Moment:
        """How it stands, and what has changed since the last look."""
        now, at = self._server.statistics(), trio.current_time()
        moment = Moment(
            elapsed=at - self._began,
            now=now,
            before=self._before,
            seconds=at - self._looked_at,
            draining=self._server.draining.is_set(),
        )
        self._before, self._looked_at = now, at
        return moment

    async def run(
        self, show: Callable[[Moment], None], *, every: float = 0.5
    ) -> NoReturn:
        """Look and show, every so many seconds, until cancelled.

        With so many connections that looking takes more than a hundredth of
        that time, less often.
        """
        while True:
            began = perf_counter()
            show(self.look())
            cost = perf_counter() - began
            await trio.sleep(max(every, cost / _SHARE))


def view_lines(moment: Moment, tally: Tally, *, colour: bool = False) -> Iterator[str]:
    """How it stands, for a terminal."""
    now = moment.now
    full = now.slots_used / now.slots if now.slots else 1.0
    bar = "#" * min(_BAR, round(full * _BAR))
    yield f"  up      {_clock(moment.elapsed)}{', draining' * moment.draining}"
    yield (
        f"  open    {now.open:,} ({now.slots_used:,} of {now.slots:,} slots)"
        f"  [{bar.ljust(_BAR, '.')}]"
    )
    yield (
        f"  rate    {moment.rate('accepted'):,.0f}/s accepted"
        f"  {moment.rate('closed'):,.0f}/s closed"
        f"  {format_bytes(round(moment.rate('bytes_received')))}/s in"
        f"  {format_bytes(round(moment.rate('bytes_sent')))}/s out"
    )
    yield (
        f"  total   {now.accepted:,} accepted  {now.refused:,} refused"
        f"  {format_bytes(now.bytes_received)} in"
        f"  {format_bytes(now.bytes_sent)} out{_troubles(now)}"
    )
    ends = (
        f"{_coloured(reason, colour)} {count:,}"
        for reason, count in tally.most_common()
    )
    yield f"  ends    {'  '.join(ends) or 'none yet'}"


def view_line(moment: Moment) -> str:
    """How it stands, in one line for a pipe."""
    now = moment.now
    return (
        f"up {_clock(moment.elapsed)}{', draining' * moment.draining}:"
        f" {now.open} open of {now.slots},"
        f" {moment.rate('accepted'):.0f}/s accepted,"
        f" {format_bytes(round(moment.rate('bytes_received')))}/s in,"
        f" {format_bytes(round(moment.rate('bytes_sent')))}/s out,"
        f" {now.accepted} accepted, {now.refused} refused{_troubles(now)}"
    )


def view_fields(moment: Moment, tally: Tally) -> dict[str, Any]:
    """How it stands, for machines."""
    now = moment.now
    return {
        "elapsed": round(moment.elapsed, 3),
        "draining": moment.draining,
        "open": now.open,
        "slots_used": now.slots_used,
        "slots": now.slots,
        "accepted": now.accepted,
        "closed": now.closed,
        "refused": now.refused,
        "bytes_received": now.bytes_received,
        "bytes_sent": now.bytes_sent,
        "reports_lost": now.lost,
        "accepted_per_second": round(moment.rate("accepted"), 3),
        "bytes_received_per_second": round(moment.rate("bytes_received")),
        "bytes_sent_per_second": round(moment.rate("bytes_sent")),
        "ends": {str(reason): count for reason, count in tally.most_common()},
    }


def _clock(seconds: float) -> str:
    return format_duration(float(round(seconds)))


def _troubles(now: Statistics) -> str:
    # What an operator hopes never to see, only when it is there.
    text = f"  {now.lost:,} reports lost" if now.lost else ""
    for name, count in now.accept_errors.items():
        text += f"  {name} {count:,}"
    return text


def _coloured(reason: Reason, colour: bool) -> str:
    if not colour:
        return str(reason)
    return click.style(reason, fg=_COLOURS.get(reason.outcome, "red"))

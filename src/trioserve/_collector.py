"""Collector: the channel of reports, and the count of reports that are lost.

A report is sent synchronously, so that a cancellation can't come between a close and
its report. Each report is collected, buffered or lost, and counted as such. This
module does not know what makes reports, or what a collector does with them.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

import trio

from ._arguments import check_method
from ._describe import describe
from ._errors import PROGRAM_ENDS, log_error, only
from ._reason import Outcome, Reason
from ._report import ConnectionReport
from ._tasks import whereabouts

logger = logging.getLogger("trioserve")

Collector: TypeAlias = Callable[
    [trio.MemoryReceiveChannel[ConnectionReport]], Awaitable[object]
]


#: Reports that log_reports() handles before other tasks run.
_AT_ONCE: Final = 256

#: Seconds that a cancelled collector has to end.
_CANCEL_GRACE: Final = 1.0

#: Reports of one kind that are logged per second; further ones are only counted.
_BURST: Final = 10

_LEVELS: Final = {
    Outcome.OK: logging.DEBUG,
    Outcome.PEER_ERROR: logging.INFO,
    Outcome.REFUSED: logging.INFO,
    Outcome.HANDLER_ERROR: logging.ERROR,
}


async def log_reports(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
    """Log each report to the standard logger ``trioserve.reports``; the default.

    The levels are DEBUG for the outcome ``ok``, INFO for errors of the peer and for
    refusals, ERROR with the traceback for exceptions of handlers, WARNING for the rest.

    Except for ``ok``, ten reports of a kind (the same reason, target and type of error)
    are logged per second; one line gives the number of further ones.

    Raises:
      TypeError: ``reports`` is not a receive channel.
    """
    check_method("reports", reports, "receive", "receive_nowait")
    lines = _Lines()
    try:
        while True:
            if lines.due == math.inf:  # a scope would cost as much as the receive
                await lines.take(reports)
                continue
            with trio.move_on_at(lines.due):
                await lines.take(reports)
            if trio.current_time() >= lines.due:
                lines.sum_up()
    except trio.EndOfChannel:
        pass
    finally:
        lines.sum_up()


class _Kind(NamedTuple):
    """The fields in which reports agree that are summed up in one line."""

    level: int
    reason: Reason
    target: str | None
    error: str


class _Lines:
    """Logs reports; those over the limit of their kind are summed up each second.

    Attributes:
      due: when the next sum is due; ``math.inf`` if every report was logged.
    """

    def __init__(self) -> None:
        self.due = math.inf
        self._log = logging.getLogger("trioserve.reports")
        self._seen = collections.Counter[_Kind]()
        self._second_ends = -math.inf

    async def take(self, reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        """Wait for a report, and take all that have arrived.

        Each ``receive()`` is a pass of the scheduler, in which many connections may
        end.
        """
        self.add(await reports.receive())
        with contextlib.suppress(trio.WouldBlock):
            for _ in range(_AT_ONCE):
                self.add(reports.receive_nowait())

    def add(self, report: ConnectionReport) -> None:
        level = _LEVELS.get(report.outcome, logging.WARNING)
        if not self._log.isEnabledFor(level):
            return
        if report.outcome is Outcome.OK or self._is_one_of_few(level, report):
            log_error(
                self._log,
                level,
                "conn-%d %s: %s%s; received %d, sent %d bytes in %.3f s",
                report.id,
                report.peer,
                report.reason.sentence,
                f" ({report.error})" if report.error else "",
                report.bytes_received,
                report.bytes_sent,
                report.duration,
                error=report.exception
                if report.outcome is Outcome.HANDLER_ERROR
                else None,
            )

    def _is_one_of_few(self, level: int, report: ConnectionReport) -> bool:
        now = trio.current_time()
        if now >= self._second_ends:
            self.sum_up()
            self._second_ends = now + 1
        error = (report.error or "").partition(":")[0]
        kind = _Kind(level, report.reason, report.target, error)
        self._seen[kind] += 1
        if self._seen[kind] <= _BURST:
            return True
        self.due = self._second_ends
        return False

    def sum_up(self) -> None:
        for kind, count in self._seen.items():
            if count > _BURST:
                where = f" ({kind.target})" if kind.target else ""
                error = f": {kind.error}" if kind.error else ""
                self._log.log(
                    kind.level,
                    "%d more within 1 s: %s%s%s",
                    count - _BURST,
                    kind.reason.sentence,
                    where,
                    error,
                )
        self._seen.clear()
        self.due = math.inf


class Reports:
    """The channel of reports, and the count of reports collected, buffered and lost.

    Args:
      most: reports that may wait for the collector; further ones are lost.

    Attributes:
      lost: the number of reports that no collector took.
      over: set when the collector has ended.
    """

    def __init__(self, most: float) -> None:
        self.lost = 0
        self.over = trio.Event()
        self._send, self._receive = trio.open_memory_channel[ConnectionReport](most)
        self._sent = 0
        self._ended = False
        self._said = 0
        self._said_at = -math.inf
        self._grace = math.inf
        self._scope = trio.CancelScope(shield=True)
        self._task: trio.lowlevel.Task | None = None

    @property
    def buffered(self) -> int:
        """Reports that wait for the collector."""
        return self._receive.statistics().current_buffer_used

    @property
    def collected(self) -> int:
        """Reports that the collector has taken."""
        return self._sent - self.buffered

    def put(self, report: ConnectionReport) -> None:
        """Send a report, or count it as lost and log that, at most once a second."""
        try:
            self._send.send_nowait(report)
        except trio.WouldBlock:
            self.lost += 1
            now = trio.current_time()
            if now - self._said_at >= 1:
                self._said, self._said_at = self.lost, now
                logger.warning(
                    "the collector is too slow; reports lost so far: %d", self.lost
                )
        except trio.BrokenResourceError:
            self.lost += 1  # the collector has ended, which was logged
        else:
            self._sent += 1

    def end(self, seconds: float) -> None:
        """Close the channel; the collector has ``seconds`` to take the rest."""
        self._ended = True
        self._send.close()
        self.cancel_in(seconds)
        if self.over.is_set():
            self._say_total()

    def cancel_in(self, seconds: float) -> None:
        """Cancel the collector in ``seconds``."""
        self._grace = seconds
        self._scope.deadline = trio.current_time() + seconds

    async def wait_over(self) -> str | None:
        """Wait until the collector has ended, or has not ended after a cancellation.

        In a thread it can't be cancelled. Reports that it has not taken are lost.

        Returns:
          the line on which it waits, if it has not ended.
        """
        with trio.move_on_at(self._scope.deadline + _CANCEL_GRACE):
            await self.over.wait()
            return None
        stands = "; ".join(whereabouts(self._task)) or "nothing that runs"
        self._lose(self.buffered)
        # Empty the channel: the collector has its own clone, and may still receive.
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._receive.receive_nowait()
        self._said = self.lost
        logger.error(
            "the collector did not end within %g s, and can't be cancelled in %s;"
            " reports lost in all: %d",
            self._grace,
            stands,
            self.lost,
        )
        return stands

    def _lose(self, left: int) -> None:
        self._sent -= left
        self.lost += left

    async def collect(self, collector: Collector) -> None:
        """Run ``collector`` until it ends, shielded; only :meth:`end` cancels it.

        If it raises, or returns before the last report, that is logged, and later
        reports are lost.
        """
        # The collector gets a clone: closing the last receiver of a channel would
        # drop the buffered reports before they can be counted as lost.
        why = "returned"
        error: BaseException | None = None
        returned: object = None
        is_async = True
        self._task = trio.lowlevel.current_task()
        try:
            with self._scope:
                async with self._receive.clone() as reports:
                    returned = collector(reports)
                    if is_async := isinstance(returned, Awaitable):
                        await returned
            if self._scope.cancelled_caught:
                why = f"did not end within {self._grace:g} s"
        except BaseException as exception:  # noqa: ASYNC103 - isolation
            if (ends := only(exception, PROGRAM_ENDS)) is exception:
                raise
            if ends is not None:
                raise ends from None  # noqa: ASYNC104 - the rest is isolated
            why, error = f"raised {describe(exception)}", exception
        finally:
            left = self.buffered
            self._receive.close()
            self._lose(left)
            self._task = None
            self.over.set()
        if not is_async:
            name = getattr(collector, "__qualname__", None) or repr(collector)
            raise TypeError(
                f"collector must be an async function: {name} returned {returned!r},"
                " which can't be awaited"
            )
        if left or not self._ended:
            self._said = self.lost
            log_error(
                logger,
                logging.ERROR,
                "the collector %s; reports are lost from now on, %d already",
                why,
                self.lost,
                error=error,
            )
        del error  # its traceback refers to this frame: a cycle
        if self._ended:
            self._say_total()

    def _say_total(self) -> None:
        if self.lost > self._said:
            self._said = self.lost
            logger.warning("reports lost in all: %d", self.lost)

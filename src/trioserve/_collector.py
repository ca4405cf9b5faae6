"""Reports on their way to a collector: none unaccounted for, nobody made to wait.

A report is put synchronously, so that no cancel can come between it and what
it reports. It is then collected, buffered or lost, and counted as that. Who
makes reports, and what a collector does with them, is not known here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from ._errors import PROGRAM_ENDS, log_error, only
from ._report import ConnectionReport, Outcome, describe

logger = logging.getLogger("trioserve")

Collector: TypeAlias = Callable[
    [trio.MemoryReceiveChannel[ConnectionReport]], Awaitable[object]
]


async def log_reports(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
    """Log each report to the standard logger ``trioserve.reports``; the default.

    What went well is logged at DEBUG, what the peer did and who was refused at
    INFO, a handler's exception at ERROR with its traceback, the rest at WARNING.
    """
    log = logging.getLogger("trioserve.reports")
    levels = {
        Outcome.OK: logging.DEBUG,
        Outcome.PEER_ERROR: logging.INFO,
        Outcome.REFUSED: logging.INFO,
        Outcome.HANDLER_ERROR: logging.ERROR,
    }
    async for report in reports:
        log_error(
            log,
            levels.get(report.outcome, logging.WARNING),
            "conn-%d %s: %s%s; received %d, sent %d bytes in %.3f s",
            report.id,
            report.peer,
            report.reason.sentence,
            f" ({report.error})" if report.error else "",
            report.bytes_received,
            report.bytes_sent,
            report.duration,
            error=report.exception if report.outcome is Outcome.HANDLER_ERROR else None,
        )


class Reports:
    """A channel of reports, and the account of what became of each.

    Args:
      most: reports that may wait for the collector; more are lost.

    Attributes:
      lost: reports that nobody took.
      over: an event: the collector has ended.
    """

    def __init__(self, most: float) -> None:
        self.lost = 0
        self.over = trio.Event()
        self._send, self._receive = trio.open_memory_channel[ConnectionReport](most)
        self._sent = 0
        self._ended = False
        self._grace = math.inf
        self._scope = trio.CancelScope(shield=True)

    @property
    def buffered(self) -> int:
        """Reports that wait for the collector."""
        return self._receive.statistics().current_buffer_used

    @property
    def collected(self) -> int:
        """Reports that the collector has taken."""
        return self._sent - self.buffered

    def put(self, report: ConnectionReport) -> None:
        """Pass a report on, or count it as lost."""
        try:
            self._send.send_nowait(report)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.lost += 1
        else:
            self._sent += 1

    def end(self, seconds: float) -> None:
        """There are no more reports; the collector has ``seconds`` to take the rest."""
        self._ended = True
        self._send.close()
        self.give_up_in(seconds)

    def give_up_in(self, seconds: float) -> None:
        """Cancel the collector in ``seconds``."""
        self._grace = seconds
        self._scope.deadline = trio.current_time() + seconds

    async def collect(self, collector: Collector) -> None:
        """Run ``collector`` until it ends; shielded, cancelled only by the above.

        If it raises, or ends before the reports do, that is logged and later
        reports are lost.
        """
        # The collector gets a clone: closing the last receiver of a channel
        # would throw away what is buffered before it can be counted as lost.
        why = "returned"
        error: BaseException | None = None
        try:
            with self._scope:
                async with self._receive.clone() as reports:
                    await collector(reports)
            if self._scope.cancelled_caught:
                why = f"did not end within {self._grace:g} s"
        except BaseException as exception:  # noqa: ASYNC103 - isolation
            if (ends := only(exception, PROGRAM_ENDS)) is exception:
                raise
            if ends is not None:
                raise ends from None  # noqa: ASYNC104 - without what is isolated
            why, error = f"raised {describe(exception)}", exception
        finally:
            left = self.buffered
            self._receive.close()
            self._sent -= left
            self.lost += left
            self.over.set()
        if left or not self._ended:
            log_error(
                logger,
                logging.ERROR,
                "the collector %s; reports are lost from now on, %d already",
                why,
                left,
                error=error,
            )
        del error  # its traceback has this frame

"""The outputs of a run: the log, the file of reports, the live view.

Reports in, lines out. Nothing here opens a file, or knows how to write a line
without blocking.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import NoReturn

import trio

from trioserve import (
    Address,
    Attempt,
    ConnectionReport,
    Outcome,
    Reason,
    Server,
    TargetState,
)
from trioserve.app.monitor._expiry import ExpiryMonitor
from trioserve.app.monitor._sampler import Sampler, Snapshot
from trioserve.app.monitor._saturation import SaturationMonitor
from trioserve.app.monitor._target_health import TargetChange, TargetHealth

from ._live import view_fields, view_line, view_lines
from ._log import Log
from ._messages import (
    left_out_kind,
    log_expiry,
    log_left_out,
    log_reports_lost,
    log_saturation,
    log_suppressed,
    log_target,
    target_kind,
)
from ._screen import Screen
from ._suppression import Choice, Suppressor, connection_kind, is_wanted
from ._writer import LineWriter

#: Reports that are taken in one batch, before other tasks run.
_BATCH = 256


class Output:
    """The log, the file of reports, and the live view, if there is one.

    Args:
      log: where events go.
      log_writer: writes the lines of the log.
      reports: writes the reports, or None.
      screen: the part of the terminal below the log, or None.
      connections: which connections are logged.
    """

    def __init__(
        self,
        log: Log,
        log_writer: LineWriter,
        reports: LineWriter | None = None,
        screen: Screen | None = None,
        *,
        connections: Choice = "active",
    ) -> None:
        self.log = log
        self._log_writer = log_writer
        self._reports = reports
        self._screen = screen
        self._connections: Choice = connections
        self._reasons = Counter[Reason]()
        self._target_health = TargetHealth()
        self._suppressor = Suppressor()
        self._reports_lost_logged = 0
        self._lines_lost = 0
        self._lines_lost_logged = 0
        self._is_over = False
        self._sampler: Sampler | None = None

    async def collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        """The server's collector: log every report, and write it to the file."""
        async for report in reports:
            self._take(report)
            # A receive takes a pass of the scheduler, in which many may end.
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                for _ in range(_BATCH):
                    self._take(reports.receive_nowait())

    def _take(self, report: ConnectionReport) -> None:
        self._reasons[report.reason] += 1
        fields = None if self._reports is None else report.as_dict()
        if is_wanted(self._connections, report) and self._passes(report):
            self.log.connection(report, fields)
        if self._reports is not None:
            self._reports.write(json.dumps(fields))

    def _passes(self, report: ConnectionReport) -> bool:
        # Programs that read HAProxy's lines expect one for each connection.
        # Connections that ended well are never suppressed.
        if self.log.form == "haproxy" or report.outcome is Outcome.OK:
            return True
        return self._suppressor.passes(connection_kind(report))

    def attempt(self, target: Address, attempt: Attempt) -> None:
        """Record an attempt to connect; log if a target went down or is up again."""
        for change in self._target_health.record(target, attempt):
            if self._suppressor.passes(target_kind(change)):
                log_target(self.log, change)

    def target_changed(self, state: TargetState) -> None:
        """Log that a target is left out, or that its checks pass again.

        Without checks, :meth:`attempt` logs that it answers again.
        """
        if not state.up:
            if self._suppressor.passes(left_out_kind(state)):
                log_left_out(self.log, state)
        elif state.checks:
            change = TargetChange(str(state.target.address), None)
            self._target_health.answers(change.address)
            if self._suppressor.passes(target_kind(change)):
                log_target(self.log, change)

    @property
    def unwritten(self) -> int:
        """Reports that were collected and could not be written."""
        return 0 if self._reports is None else self._reports.lost

    async def watch(self, server: Server) -> NoReturn:
        """Log what has changed in each second until cancelled.

        These are the counts of events that were suppressed, and of reports and lines of
        the log that were lost; whether ``server`` has reached its limit; and which of
        its certificates expire soon.
        """
        saturation, expiry = SaturationMonitor(server), ExpiryMonitor(server)
        while True:
            for certificate, left in expiry.check():
                log_expiry(self.log, certificate, left)
            await trio.sleep(1)
            self._log_counts(self.unwritten)
            if (change := saturation.check()) is not None:
                log_saturation(self.log, change)

    def _log_counts(self, reports_lost: int) -> None:
        for kind, count in self._suppressor.take():
            log_suppressed(self.log, kind, count)
        # Each loss is in one event only, so that the events add up to the total.
        if reports_lost > self._reports_lost_logged:
            log_reports_lost(self.log, reports_lost - self._reports_lost_logged)
            self._reports_lost_logged = reports_lost
        self._log_lines_lost()

    def lines_lost(self, count: int) -> None:
        """Count lines of the log that were lost; it can be written again now.

        Called in the thread that writes them; logged with the next counts.
        """
        self._lines_lost += count
        if self._is_over:
            self._log_lines_lost()

    def _log_lines_lost(self) -> None:
        lost = self._lines_lost - self._lines_lost_logged
        if lost:
            self._lines_lost_logged += lost
            text = f"log lines lost: {lost}"
            self.log.say("log-lost", text, level="warning", lost=lost)

    def end_reports(self, lost: int = 0, *, within: float = 2.0) -> int:
        """Write the reports that are queued, and take no more.

        Args:
          lost: reports that never reached the collector.
          within: seconds to wait; reports that are not written by then are lost.

        Returns:
          how many were lost in all; this was logged.
        """
        if self._reports is not None:
            self._reports.close(within)
        lost += self.unwritten
        self._log_counts(lost)
        return lost

    async def show(self, server: Server) -> NoReturn:
        """Show the live view of ``server`` until cancelled.

        On a terminal, in place at the bottom; elsewhere, as an event a second.
        """
        self._sampler = Sampler(server, lambda: self.unwritten)
        if self._screen is not None:
            await self._sampler.run(self._show)
        await self._sampler.run(self._show, every=1.0)

    def end_show(self) -> None:
        """Show the final state; later lines go below it."""
        if self._sampler is not None:
            self._show(self._sampler.sample())
        if self._screen is not None:
            self._screen.close()

    def _show(self, snapshot: Snapshot) -> None:
        if self._screen is not None:
            lines = view_lines(snapshot, self._reasons, colour=self.log.colour)
            self._screen.show(list(lines))
        else:
            fields = view_fields(snapshot, self._reasons)
            self.log.say("live", view_line(snapshot), **fields)

    def reopen(self) -> bool:
        """Reopen the file of reports; False if there is none.

        The writer logs when it has.
        """
        return self._reports is not None and self._reports.reopen()

    def flush(self, within: float = 2.0) -> None:
        """Write what is queued, and take no more.

        Waits for the reports and for the log, at most ``within`` seconds each. Lines
        that are not written by then are lost; the log counts lost reports.
        """
        self._is_over = True
        self.end_reports(within=within)
        self._log_writer.close(within)

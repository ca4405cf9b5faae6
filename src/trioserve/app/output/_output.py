"""Where a run's messages and reports go: stderr, and a file if one is asked for.

Reports in, lines out. Nothing here knows when there is something to say, nor
how a line is written without waiting for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

import click
import trio

from trioserve import Address, Attempt, ConnectionReport, Outcome, Server
from trioserve.app._standard_files import STDERR, STDOUT, is_writable
from trioserve.app.monitor._fullness import Fullness
from trioserve.app.monitor._targets import Targets

from ._folding import Choice, Folding, connection_kind, is_wanted
from ._live import Moment, Tally, Watch, view_fields, view_line, view_lines
from ._log import Format, Level, Log, LogHandler, wants_colour
from ._messages import (
    say_folded,
    say_fullness,
    say_lost,
    say_target,
    target_kind,
)
from ._screen import Screen, open_screen
from ._writer import LineWriter, open_to_append

#: Reports that are taken before others get their turn.
_AT_ONCE = 256


class Output:
    """A log, the reports that are written beside it, and a view if there is one.

    Args:
      log: where it is said what happens.
      log_writer: what writes the log's lines.
      reports: what writes the reports, or None.
      screen: the terminal below the log, or None if there is none.
      connections: which of them are logged.
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
        self._tally = Tally()
        self._targets = Targets()
        self._folding = Folding()
        self._lost_said = 0
        self._lines_lost = 0
        self._lines_said = 0
        self._is_over = False
        self._watch: Watch | None = None

    async def collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        """Log every report, and write it where reports go."""
        async for report in reports:
            self._take(report)
            # A receive is a pass of the scheduler, in which many may have ended.
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                for _ in range(_AT_ONCE):
                    self._take(reports.receive_nowait())

    def _take(self, report: ConnectionReport) -> None:
        self._tally.add(report)
        if is_wanted(self._connections, report) and self._is_one_of_few(report):
            self.log.connection(report)
        if self._reports is not None:
            self._reports.write(json.dumps(report.as_dict()))

    def _is_one_of_few(self, report: ConnectionReport) -> bool:
        # What reads HAProxy's lines expects one for each; and no two that ended
        # well are equal.
        if self.log.form == "haproxy" or report.outcome is Outcome.OK:
            return True
        return self._folding.passes(connection_kind(report))

    def attempt(self, target: Address, attempt: Attempt) -> None:
        """Say it if a target has just failed, or answers again."""
        for change in self._targets.note(target, attempt):
            if self._folding.passes(target_kind(change)):
                say_target(self.log, change)

    @property
    def unwritten(self) -> int:
        """Reports that were collected and could not be written."""
        return 0 if self._reports is None else self._reports.lost

    async def watch(self, server: Server) -> NoReturn:
        """Say once a second what there is to say of many things, until cancelled.

        That is how often something was said that is not said again, how many
        reports were lost, and whether ``server`` is full.
        """
        fullness = Fullness(server)
        while True:
            await trio.sleep(1)
            self._sum_up(self.unwritten)
            if (change := fullness.look()) is not None:
                say_fullness(self.log, change)

    def _sum_up(self, lost: int) -> None:
        for kind, count in self._folding.take():
            say_folded(self.log, kind, count)
        # Each loss is said once: a sum over the events is the number of them all.
        if lost > self._lost_said:
            say_lost(self.log, lost - self._lost_said)
            self._lost_said = lost
        self._say_lines_lost()

    def lines_got_through(self, lost: int) -> None:
        """The log has a reader again, or room, after so many lines were lost.

        Called in the thread that writes them; said with the next sum.
        """
        self._lines_lost += lost
        if self._is_over:
            self._say_lines_lost()

    def _say_lines_lost(self) -> None:
        lost = self._lines_lost - self._lines_said
        if lost:
            self._lines_said += lost
            text = f"log lines lost: {lost}"
            self.log.say("log-lost", text, level="warning", lost=lost)

    def end_reports(self, lost: int = 0, *, within: float = 2.0) -> int:
        """Write the reports that are queued, and take no more.

        Args:
          lost: reports that never came here.
          within: seconds to wait; what can't be written by then is lost.

        Returns:
          how many were lost in all, which has been said.
        """
        if self._reports is not None:
            self._reports.close(within)
        lost += self.unwritten
        self._sum_up(lost)
        return lost

    async def show(self, server: Server) -> NoReturn:
        """Show how ``server`` stands, until cancelled.

        In place at the bottom of a terminal; else as an event a second.
        """
        self._watch = Watch(server, lambda: self.unwritten)
        if self._screen is not None:
            await self._watch.run(self._show_moment)
        await self._watch.run(self._show_moment, every=1.0)

    def end_show(self) -> None:
        """Show how it ended; what is said next comes below it."""
        if self._watch is not None:
            self._show_moment(self._watch.look())
        if self._screen is not None:
            self._screen.close()

    def _show_moment(self, moment: Moment) -> None:
        if self._screen is not None:
            lines = view_lines(moment, self._tally, colour=self.log.colour)
            self._screen.show(list(lines))
        else:
            fields = view_fields(moment, self._tally)
            self.log.say("live", view_line(moment), **fields)

    def reopen(self) -> None:
        """Open the file of reports anew; it is said when that is done."""
        if self._reports is None or not self._reports.reopen():
            text = "hangup: there is no file of reports to reopen"
            self.log.say("hangup", text)

    def flush(self, within: float = 2.0) -> None:
        """Write what is queued, and take no more.

        Waits for each destination ``within`` seconds at most; what can't be
        written by then is lost, and said to be lost if it was a report.
        """
        self._is_over = True
        self.end_reports(within=within)
        self._log_writer.close(within)


@contextlib.contextmanager
def open_output(
    name: str,
    form: Format | None,
    reports_file: str | None,
    *,
    connections: Choice = "active",
) -> Generator[Output]:
    """Open stderr for messages and ``reports_file`` for reports; flush at the end.

    Args:
      name: what serves, for HAProxy's format.
      form: how messages look; None is text on a terminal, else logfmt.
      reports_file: a path, ``-`` for stdout, or None for no reports.
      connections: which of them are logged.

    Raises:
      click.ClickException: if ``reports_file`` can't be opened. A named pipe that
        nobody reads yet is opened when somebody does.
    """
    reports_fd = None if reports_file is None else _open_reports(reports_file)
    output = _make_output(name, form, reports_fd, reports_file, connections)
    handler = LogHandler(output.log)
    logging.getLogger().addHandler(handler)
    try:
        yield output
    finally:
        logging.getLogger().removeHandler(handler)
        output.flush()


def _make_output(
    name: str,
    form: Format | None,
    reports_fd: int | None,
    reports_file: str | None,
    connections: Choice,
) -> Output:
    def lines_lost(count: int) -> None:
        output.lines_got_through(count)

    def reports_failed(error: OSError) -> None:
        where = "stdout" if reports_file == "-" else reports_file
        level: Level = "error"
        text = (
            f"can't write to {where}: {error.strerror}; reports are lost, serving"
            " goes on"
        )
        if error.errno == errno.ENXIO:
            level = "warning"
            text = f"nobody reads {where}; until somebody does, reports are lost"
        log.say("reports-failed", text, level=level, message=text)

    def reports_reopened(error: OSError | None) -> None:
        level: Level = "info"
        text = f"hangup: reopened {reports_file}"
        if error is not None:
            text = f"hangup: can't reopen {reports_file}: {error.strerror}"
            level = "error"
        log.say("hangup", text, level=level, message=text)

    log_writer = LineWriter(STDERR, on_lost=lines_lost)
    terminal = os.isatty(STDERR)
    # Reports on a terminal would move the cursor behind the view's back.
    shared = reports_fd is not None and os.isatty(reports_fd)
    screen = None if shared else open_screen(STDERR, log_writer.write)
    log = Log(
        screen.line if screen is not None else log_writer.write,
        form or ("text" if terminal else "logfmt"),
        name=name,
        colour=wants_colour(terminal, os.environ),
    )
    reports = None
    if reports_file is not None:
        reports = LineWriter(
            reports_fd,
            close_fd=reports_fd != STDOUT,
            path=None if reports_fd == STDOUT else reports_file,
            on_error=reports_failed,
            on_reopened=reports_reopened,
        )
    output = Output(log, log_writer, reports, screen, connections=connections)
    return output


def _open_reports(path: str) -> int | None:
    # None if it is to be opened later.
    try:
        if path == "-":
            if not is_writable(STDOUT):
                raise OSError(errno.EBADF, "it is closed")
            return STDOUT
        return open_to_append(path)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ENXIO:
            if Path(path).is_fifo():
                return None
            why = "it is neither a file nor a pipe; use one, or '-' for stdout"
        where = "stdout" if path == "-" else path
        raise click.ClickException(f"can't write reports to {where}: {why}") from error

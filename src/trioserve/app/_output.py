"""Where a run's messages and reports go: stderr, and a file if one is asked for.

Reports in, lines out. Nothing here knows when there is something to say, nor
how a line is written without waiting for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Generator
from typing import NoReturn

import click
import trio

from trioserve import ConnectionReport, Server

from ._live import Moment, Tally, Watch, view_fields, view_line, view_lines
from ._log import Format, Log, LogHandler, wants_colour
from ._messages import say_target
from ._screen import Screen, open_screen
from ._targets import Targets
from ._writer import LineWriter, open_to_append

_STDOUT, _STDERR = 1, 2

#: Reports that are taken before others get their turn.
_AT_ONCE = 256


class Output:
    """A log, the reports that are written beside it, and a view if there is one.

    Args:
      log: where it is said what happens.
      log_writer: what writes the log's lines.
      reports: what writes the reports, or None.
      screen: the terminal below the log, or None if there is none.
      quiet: whether connections are left out of the log.
    """

    def __init__(
        self,
        log: Log,
        log_writer: LineWriter,
        reports: LineWriter | None = None,
        screen: Screen | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.log = log
        self._log_writer = log_writer
        self._reports = reports
        self._screen = screen
        self._quiet = quiet
        self._tally = Tally()
        self._targets = Targets()
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
        for change in self._targets.add(report):
            say_target(self.log, change)
        if not self._quiet:
            self.log.connection(report)
        if self._reports is not None:
            self._reports.write(json.dumps(report.as_dict()))

    async def show(self, server: Server) -> NoReturn:
        """Show how ``server`` stands, until cancelled.

        In place at the bottom of a terminal; else as an event a second.
        """
        self._watch = Watch(server)
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

    def flush(self, within: float = 2.0) -> None:
        """Write what is queued, and take no more.

        Waits for each destination ``within`` seconds at most; what can't be
        written by then is lost, and said to be if it was a report.
        """
        if self._reports is not None:
            self._reports.close(within)
            if lost := self._reports.lost:
                self.log.say(
                    "reports-lost",
                    f"reports lost in all: {lost}",
                    level="warning",
                    lost=lost,
                )
        self._log_writer.close(within)


@contextlib.contextmanager
def open_output(
    name: str,
    form: Format | None,
    reports_file: str | None,
    *,
    quiet: bool = False,
) -> Generator[Output]:
    """Open stderr for messages and ``reports_file`` for reports; flush at the end.

    Args:
      name: what serves, for HAProxy's format.
      form: how messages look; None is text on a terminal, else logfmt.
      reports_file: a path, ``-`` for stdout, or None for no reports.
      quiet: whether connections are left out of the log.

    Raises:
      click.ClickException: if ``reports_file`` can't be opened.
    """
    _fill_standard_files()
    reports_fd = None if reports_file is None else _open_reports(reports_file)
    output = _make_output(name, form, reports_fd, reports_file, quiet=quiet)
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
    *,
    quiet: bool,
) -> Output:
    def log_lost(count: int) -> None:
        log.say("log-lost", f"log lines lost: {count}", level="warning", lost=count)

    def reports_lost(count: int) -> None:
        log.say("reports-lost", f"reports lost: {count}", level="warning", lost=count)

    def reports_failed(error: OSError) -> None:
        text = f"can't write to {reports_file}: {error.strerror}; serving goes on"
        log.say("reports-failed", text, level="error", message=text)

    log_writer = LineWriter(_STDERR, on_lost=log_lost)
    terminal = os.isatty(_STDERR)
    # Reports on a terminal would move the cursor behind the view's back.
    shared = reports_fd is not None and os.isatty(reports_fd)
    screen = None if shared else open_screen(_STDERR, log_writer.write)
    log = Log(
        screen.line if screen is not None else log_writer.write,
        form or ("text" if terminal else "logfmt"),
        name=name,
        colour=wants_colour(terminal, os.environ),
    )
    if reports_fd is None:
        return Output(log, log_writer, screen=screen, quiet=quiet)
    reports = LineWriter(
        reports_fd,
        close_fd=reports_fd != _STDOUT,
        path=None if reports_fd == _STDOUT else reports_file,
        on_lost=reports_lost,
        on_error=reports_failed,
    )
    return Output(log, log_writer, reports, screen, quiet=quiet)


def _open_reports(path: str) -> int:
    if path == "-":
        return _STDOUT
    try:
        return open_to_append(path)
    except OSError as error:
        raise click.ClickException(
            f"can't write reports to {path}: {error.strerror}"
        ) from error


def _fill_standard_files() -> None:
    # A process started with stderr closed would get a client's socket as file
    # 2, and send it the log.
    with contextlib.suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(fd)

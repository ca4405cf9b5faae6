"""Open the outputs of a run: stderr for the log, a file for reports.

Options in, an `Output` out. Nothing here knows what is written.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Generator
from pathlib import Path

import click

from trioserve.app._standard_files import STDERR, STDOUT, is_writable

from ._descriptors import open_to_append
from ._log import EVENTS, Format, Log, LogHandler, wants_colour
from ._messages import log_reports_failed, log_reports_reopened
from ._output import Output
from ._screen import open_screen
from ._suppression import Choice
from ._writer import LineWriter


@contextlib.contextmanager
def open_output(
    name: str,
    form: Format | None,
    reports_file: str | None,
    *,
    connections: Choice = "active",
) -> Generator[Output]:
    """Open stderr for the log and ``reports_file`` for reports; flush at the end.

    Args:
      name: the name of the backend in HAProxy's format.
      form: the format of the log; None is text on a terminal, else logfmt.
      reports_file: a path, ``-`` for stdout, or None for no reports.
      connections: which connections are logged.

    Raises:
      click.ClickException: ``reports_file`` can't be opened. A named pipe without
        a reader is not an error: it is opened when it has one.
    """
    reports_fd = None if reports_file is None else _open_reports(reports_file)
    output = _make_output(name, form, reports_fd, reports_file, connections)
    handler, root = LogHandler(output.log), logging.getLogger()
    told = [logging.getLogger(name) for name in EVENTS]
    before = [logger.level for logger in told]
    root.addHandler(handler)
    for logger in told:
        logger.setLevel(logging.INFO)
    try:
        yield output
    finally:
        for logger, level in zip(told, before, strict=True):
            logger.setLevel(level)
        root.removeHandler(handler)
        output.flush()


def _make_output(
    name: str,
    form: Format | None,
    reports_fd: int | None,
    reports_file: str | None,
    connections: Choice,
) -> Output:
    def lines_lost(count: int) -> None:
        output.lines_lost(count)

    log_writer = LineWriter(STDERR, on_lost=lines_lost)
    terminal = os.isatty(STDERR)
    # Reports on the terminal would move the cursor, and garble the view.
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
        reports = _reports_writer(log, reports_fd, reports_file)
    output = Output(log, log_writer, reports, screen, connections=connections)
    return output


def _reports_writer(log: Log, fd: int | None, path: str) -> LineWriter:
    where = "stdout" if path == "-" else path
    return LineWriter(
        fd,
        close_fd=fd != STDOUT,
        path=None if fd == STDOUT else path,
        on_error=lambda error: log_reports_failed(log, where, error),
        on_reopened=lambda error: log_reports_reopened(log, where, error),
    )


def _open_reports(path: str) -> int | None:
    # None if it is a named pipe without a reader, which is opened later.
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

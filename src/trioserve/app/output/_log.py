"""The log of a run: text for people, logfmt and JSON for machines.

Events in, lines out. Nothing here decides what to log, or knows where the lines
go.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

import click

from trioserve import ConnectionReport, Outcome, Reason
from trioserve.app._values import format_bytes, format_duration, printable

from ._formats import as_json, as_logfmt
from ._haproxy import tcplog

Format = Literal["text", "logfmt", "json", "haproxy"]
Level = Literal["info", "warning", "error"]

#: The level of a connection by its outcome; for other outcomes, a warning.
_LEVELS: dict[Outcome, Level] = {
    Outcome.OK: "info",
    Outcome.REFUSED: "info",
    Outcome.PEER_ERROR: "info",
    Outcome.TIMEOUT: "info",
    Outcome.HANDLER_ERROR: "error",
}
_LEVEL_COLOURS = {"warning": "yellow", "error": "red"}
#: As wide as the time; stands before the further lines of an event.
_INDENT = " " * 9


class Log:
    """Writes events, a line each; as text, an event may have several lines.

    Args:
      write: takes a finished line, without its newline; must not block.
      form: ``"text"``, ``"logfmt"``, ``"json"``, or ``"haproxy"``, which is text
        except for connections.
      name: the backend's name in HAProxy's format.
      colour: whether text has colours.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        form: Format,
        *,
        name: str = "trioserve",
        colour: bool = False,
    ) -> None:
        self._write = write
        self.form: Final = form
        self._name = name
        self.colour = colour

    def say(
        self, event: str, *lines: str, level: Level = "info", **fields: object
    ) -> None:
        """Log an event: ``lines`` for people, ``fields`` for machines.

        If an event has no fields, machines get its lines as ``message``.
        """
        if self.form in ("logfmt", "json"):
            self._record(event, level, fields or {"message": " ".join(lines)})
            return
        before = self._clock()
        if level != "info":
            before += self._style(f"{level}:", _LEVEL_COLOURS[level]) + " "
        for line in lines:
            self._write(before + printable(line))
            before = _INDENT

    def connection(
        self, report: ConnectionReport, fields: Mapping[str, object] | None = None
    ) -> None:
        """Log a connection that has ended.

        Args:
          fields: its ``as_dict()``, if the caller has made it already.
        """
        match self.form:
            case "text":
                self._write(self._connection_text(report))
            case "haproxy":
                self._write(tcplog(report, self._name))
            case _:
                fields = report.as_dict() if fields is None else fields
                self._record("connection", level_of(report), fields)

    def _record(self, event: str, level: Level, fields: Mapping[str, object]) -> None:
        record = {"ts": _timestamp(), "level": level, "event": event, **fields}
        self._write(as_json(record) if self.form == "json" else as_logfmt(record))

    def _connection_text(self, report: ConnectionReport) -> str:
        route = report.peer
        if report.server_name:
            route += f" for {report.server_name}"
        if report.target:
            route += f" > {report.target}"
        outcome = self._style(report.outcome, _outcome_colour(report.outcome))
        why = sentence_of(report.reason, report.target)
        if report.error:
            why += f" ({report.error})"
        if len(report.attempts) > 1:
            why += f"; attempt {len(report.attempts)}"
        if report.faults:
            why += f"; faults: {', '.join(report.faults)}"
        return (
            f"{self._clock()}#{report.id} {printable(route)} {outcome}/{report.reason}"
            f" {format_bytes(report.bytes_received)} in,"
            f" {format_bytes(report.bytes_sent)} out,"
            f" {format_duration(report.duration)}: {printable(why)}"
        )

    def _clock(self) -> str:
        return self._style(time.strftime("%H:%M:%S"), "bright_black") + " "

    def _style(self, text: str, colour: str) -> str:
        return click.style(text, fg=colour) if self.colour else text


def level_of(report: ConnectionReport) -> Level:
    """The level at which the end of a connection is logged."""
    return _LEVELS.get(report.outcome, "warning")


#: The event for what a logger of the library logs; for others it is ``server``.
EVENTS: Final = {
    "trioserve.certificates": "certificate",
    "trioserve.targets": "targets",
}


class LogHandler(logging.Handler):
    """Passes what the library logs on to a `Log`, in one line."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {error}"
        level: Level = "info"
        if record.levelno > logging.INFO:
            level = "error" if record.levelno >= logging.ERROR else "warning"
        event = EVENTS.get(record.name, "server")
        self._log.say(event, text, level=level, logger=record.name, message=text)


def sentence_of(reason: Reason, target: str | None) -> str:
    """Why a connection ended.

    A reason does not know whether the connection was proxied; ``target`` tells.
    """
    if reason is Reason.SERVER_CLOSED:
        return f"the {'target' if target else 'server'} closed first"
    return reason.sentence


def wants_colour(is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """Whether to use colours: NO_COLOR, then FORCE_COLOR, then the terminal decide."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal and environ.get("TERM") != "dumb"


def _outcome_colour(outcome: Outcome) -> str:
    if outcome is Outcome.OK:
        return "green"
    return "yellow" if outcome is Outcome.REFUSED else "red"


def _timestamp() -> str:
    now = dt.datetime.now(dt.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Records: what is read back from a file of reports, a line of JSON for each.

Lines in, frozen values out; what is no report is skipped and counted. Nothing
here knows what a record is read for.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click

from trioserve import Attempt, Outcome, Reason
from trioserve.app._values import printable

#: A longer line is no report: errors and notes have 256 characters at most.
_LONGEST: Final = 1 << 18

#: Bytes after which there is no use in reading on, if no line was a report: of a
#: device, or of a file that is something else.
_MOST_IN_VAIN: Final = 1 << 26

#: Since the epoch, that is the year 5138; twice as many are still a date.
_MOST_SECONDS: Final = 1e11

_MOST_THINGS: Final = 1 << 63


class Record(NamedTuple):
    """A report as it was read; what its line does not have is None.

    The attributes are those of :class:`trioserve.ConnectionReport`. Words are
    text, because a newer writer may use some that we don't know. The *outcome*
    is that of the *reason*; of a reason that we don't know, what the line says.
    """

    id: int
    reason: str
    outcome: str
    phase: str | None = None
    side: str | None = None
    listener: str | None = None
    peer: str | None = None
    local: str | None = None
    target: str | None = None
    attempts: tuple[Attempt, ...] = ()
    accepted_at: float | None = None
    queued: float | None = None
    connect: float | None = None
    first_byte: float | None = None
    duration: float | None = None
    bytes_received: int | None = None
    bytes_sent: int | None = None
    bytes_discarded: int | None = None
    unacknowledged: int | None = None
    upstream_bytes_received: int | None = None
    upstream_bytes_sent: int | None = None
    upstream_bytes_discarded: int | None = None
    upstream_unacknowledged: int | None = None
    bound: float | None = None
    error: str | None = None
    faults: tuple[str, ...] = ()
    draining: bool | None = None
    open_at_close: int | None = None
    notes: Mapping[str, object] | None = None

    @property
    def ended_well(self) -> bool:
        return self.outcome == Outcome.OK

    @property
    def host(self) -> str | None:
        """The peer without its port."""
        if self.peer is None or self.peer.startswith("unix:"):
            return self.peer
        host, _, _ = self.peer.rpartition(":")
        return host.strip("[]") or self.peer


def read_records(path: str) -> Iterator[Record]:
    """The reports in a file, in the order in which they were written.

    Lines that are none (torn, of something else, with a wrong type) are
    skipped, and stderr is told at the end how many there were. One line is in
    memory at a time, and of a line no more than a report may have.

    Args:
      path: of the file; ``-`` is stdin.

    Raises:
      click.ClickException: it can't be read, or has lines and no report.
    """
    name = "stdin" if path == "-" else printable(path)
    found = skipped = 0
    for line, read in _lines(path, name):
        if not found and read > _MOST_IN_VAIN:
            break
        if line is None:
            continue
        try:
            record = parse_record(line)
        except ValueError:
            skipped += 1
        else:
            found += 1
            yield record
    if skipped and not found:
        raise click.ClickException(
            f"there is no report in {name}; give a file that --reports has written"
        )
    if skipped:
        text = f"lines of {name} that are no whole report, and were skipped: {skipped}"
        click.echo(f"trioserve: warning: {text}", err=True)


def parse_record(line: bytes) -> Record:
    """Read one line. Fields that we don't know are ignored.

    Raises:
      ValueError: it is not a whole report, or a field has a wrong type.
    """
    try:
        found = json.loads(line.decode())
    except RecursionError:
        raise ValueError("no report is nested like this") from None
    if not isinstance(found, dict):
        raise ValueError("a report is an object")
    values: dict[str, Any] = {
        name: read(found[name])
        for name, read in _READERS.items()
        if found.get(name) is not None
    }
    if "id" not in values or "reason" not in values:
        raise ValueError("a report has an id and a reason")
    said = values.get("outcome", "unknown")
    values["outcome"] = _OUTCOMES.get(values["reason"], said)
    return Record(**values)


def moment(seconds: float) -> str:
    """Write an ``accepted_at`` as people do, in UTC; or when it was over."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _lines(path: str, name: str) -> Iterator[tuple[bytes | None, int]]:
    # Lines with something in them, of one that is too long only the beginning;
    # None for what is left out; and how many bytes were read so far.
    read = 0
    try:
        with _open(path) as file:
            ended = True
            for piece in iter(partial(file.readline, _LONGEST), b""):
                read += len(piece)
                begins, ended = ended, piece.endswith(b"\n")
                yield (piece if begins and not piece.isspace() else None), read
    except OSError as error:
        raise click.ClickException(f"can't read {name}: {error.strerror}") from error


def _open(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path != "-":
        return Path(path).open("rb")
    # The process may have been started with stdin closed, whatever typeshed says.
    if not sys.stdin:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return contextlib.nullcontext(sys.stdin.buffer)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _seconds(value: Any) -> float:
    # JSON as Python reads it has NaN, infinity, and numbers of any size.
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:
        raise ValueError("not a number of seconds")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_THINGS:
        raise ValueError("not a number of things")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _attempts(value: object) -> tuple[Attempt, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list of attempts")
    return tuple(map(_attempt, value))


def _attempt(value: object) -> Attempt:
    fields = _object(value)
    error = fields.get("error")
    return Attempt(
        address=_text(fields.get("address")),
        seconds=_seconds(fields.get("seconds")),
        error=None if error is None else _text(error),
        ours=_truth(fields.get("ours", False)),  # older files don't have it
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list of texts")
    return tuple(map(_text, value))


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


_OUTCOMES: Final = {str(reason): str(reason.outcome) for reason in Reason}

_NAMES: Final[dict[Callable[[Any], object], str]] = {
    _text: "reason outcome phase side error listener peer local target",
    _seconds: "accepted_at queued connect first_byte duration bound",
    _count: (
        "id bytes_received bytes_sent bytes_discarded unacknowledged"
        " upstream_bytes_received upstream_bytes_sent upstream_bytes_discarded"
        " upstream_unacknowledged open_at_close"
    ),
    _truth: "draining",
    _attempts: "attempts",
    _texts: "faults",
    _object: "notes",
}

_READERS: Final = {
    name: read for read, names in _NAMES.items() for name in names.split()
}

"""Records: reports that are read back from a file, a line of JSON each.

Lines in, frozen values out; other lines are skipped and counted. Nothing here
knows what a record is for.
"""

from __future__ import annotations

import contextlib
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

#: A longer line is not a report: errors and notes have at most 256 characters.
_LONGEST: Final = 1 << 18

#: Reading stops after this many bytes without a report: the file is a device, or
#: not a file of reports.
_MOST_WITHOUT_A_REPORT: Final = 1 << 26

#: Since the epoch, this is the year 5138; twice as much is still a valid date.
_MOST_SECONDS: Final = 1e11

_MOST_COUNTED: Final = 1 << 63


class Record(NamedTuple):
    """A report as it was read; fields that its line does not have are None.

    The attributes are those of :class:`trioserve.ConnectionReport`. Enumerations
    are text, because a newer version may have written members that this one does
    not know. The *outcome* is that of the *reason*; for an unknown reason, it is
    the one in the line.
    """

    id: int
    reason: str
    outcome: str
    phase: str | None = None
    waited_for: str | None = None
    listener: str | None = None
    peer: str | None = None
    local: str | None = None
    direct_peer: str | None = None
    declared: Mapping[str, object] | None = None
    server_name: str | None = None
    target: str | None = None
    attempts: tuple[Attempt, ...] = ()
    accepted_at: float | None = None
    queued: float | None = None
    connect: float | None = None
    first_byte: float | None = None
    duration: float | None = None
    tls: Mapping[str, object] | None = None
    bytes_received: int | None = None
    bytes_sent: int | None = None
    bytes_discarded: int | None = None
    unacknowledged: int | None = None
    upstream_bytes_received: int | None = None
    upstream_bytes_sent: int | None = None
    upstream_bytes_discarded: int | None = None
    upstream_unacknowledged: int | None = None
    upstream_tls: Mapping[str, object] | None = None
    limit: float | None = None
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

    Other lines (half a line, other text, a field with a wrong type) are skipped,
    and a warning on stderr counts them at the end. One line is in memory at a time,
    and no more of it than the longest report has.

    Args:
      path: of the file; ``-`` is stdin.

    Raises:
      click.ClickException: it can't be read, or has lines but no report.
    """
    name = "stdin" if path == "-" else printable(path)
    found = skipped = 0
    for line, read in _lines(path, name):
        if not found and read > _MOST_WITHOUT_A_REPORT:
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
            f"there is no report in {name}; give a file that --reports wrote"
        )
    if skipped:
        text = f"skipped lines of {name} that are not complete reports: {skipped}"
        click.echo(f"trioserve: warning: {text}", err=True)


def parse_record(line: bytes) -> Record:
    """Read one line. Unknown fields are ignored.

    Raises:
      ValueError: it is not a complete report, or a field has a wrong type.
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


def _lines(path: str, name: str) -> Iterator[tuple[bytes | None, int]]:
    # Each line, or the beginning of one that is too long, or None for the rest of
    # such a line and for a blank one; and how many bytes were read so far.
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
    # None if the process was started with stdin closed, whatever typeshed says.
    if not sys.stdin:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return contextlib.nullcontext(sys.stdin.buffer)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _seconds(value: Any) -> float:
    # Python reads NaN, infinity and numbers of any size from JSON.
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:
        raise ValueError("not a number of seconds")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_COUNTED:
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
    _text: (
        "reason outcome phase waited_for error listener peer local direct_peer"
        " server_name target"
    ),
    _seconds: "accepted_at queued connect first_byte duration limit",
    _count: (
        "id bytes_received bytes_sent bytes_discarded unacknowledged"
        " upstream_bytes_received upstream_bytes_sent upstream_bytes_discarded"
        " upstream_unacknowledged open_at_close"
    ),
    _truth: "draining",
    _attempts: "attempts",
    _texts: "faults",
    _object: "notes tls declared upstream_tls",
}

_READERS: Final = {
    name: read for read, names in _NAMES.items() for name in names.split()
}

"""What happened to a connection, in sentences for whoever has to find out why.

Records in, lines out. Nothing here knows where the records come from, and
nothing is said that does not stand in them.
"""

from __future__ import annotations

import collections
import shlex
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import click

from trioserve import (
    Attempt,
    Phase,
    Reason,
    UnixAddress,
    parse_address,
)
from trioserve.app._values import format_bytes, format_duration, printable
from trioserve.app.output._log import as_logfmt, sentence_of

from ._records import Record, moment


class _Story(NamedTuple):
    """What there is to say about a reason, beside its sentence."""

    next: str  #: what to do, or where to look; words in braces are _words()
    end: str = ""  #: what became of the connection
    option: str = ""  #: which decided it


_REASONS: Final = {
    "client_closed": _Story("nothing, it ended well"),
    "server_closed": _Story("nothing, it ended well"),
    "drained": _Story("nothing, it ended well", "it was closed", "--drain-idle"),
    "client_reset": _Story(
        "see the client's log at this time: it crashed, gave up, or closed before it"
        " had read everything"
    ),
    "client_gone": _Story(
        "is {host} a health check? it has only looked whether something listens here;"
        " and is {target} up? {reaching}",
        "it was given up",
    ),
    "server_reset": _Story(
        "see the log of {target} at this time: it crashed, was restarted, or closed"
        " before it had read everything",
        "the client was reset too",
    ),
    "connect_refused": _Story(
        "is something listening on {target}? {listening}", "the client was reset"
    ),
    "connect_failed": _Story(
        "can this machine find and reach {target}? {reaching}", "the client was reset"
    ),
    "connect_timeout": _Story(
        "is {target} up, and does no firewall drop what goes there? {reaching}; if it"
        " is only slow, raise --connect",
        "the client was reset",
        "--connect",
    ),
    "loop": _Story(
        "give the proxy a target that does not lead back to it, as {target} does",
        "the client was reset",
    ),
    "limit": _Story(
        "raise --max-connections, or let clients wait: --when-full wait",
        "it was refused",
        "--max-connections",
    ),
    "peer_limit": _Story(
        "what does {host} need so many connections for? if it may, raise --per-peer;"
        " if it is many hosts of one IPv6 network, raise --per-peer-prefix",
        "it was refused",
        "--per-peer",
    ),
    "no_fds": _Story(
        "raise the hard limit of open files (ulimit -Hn, LimitNOFILE= in systemd), or"
        " lower --max-connections",
        "it was refused",
    ),
    "resource": _Story(
        "the error says what this machine lacks: open files (ulimit -Hn), memory,"
        " threads (ulimit -u), or local ports (net.ipv4.ip_local_port_range) and"
        " addresses (`ip address`); or what it does not allow, such as a system call"
        " that is filtered (SystemCallFilter= in systemd); the target and the client"
        " are not at fault",
        "it was reset",
    ),
    "stopping": _Story(
        "send clients elsewhere before the server stops; --lame-duck leaves the time",
        "it was refused",
    ),
    "first_byte": _Story(
        "is {host} a health check or a scanner? if both sides may be silent for so"
        " long at first, raise --first-byte",
        "it was closed",
        "--first-byte",
    ),
    "idle": _Story(
        "raise --idle, or let the client send keep-alives", "it was closed", "--idle"
    ),
    "half_closed": _Story(
        "what was {side} waiting for? if it needs longer, raise --half-closed",
        "it was reset",
        "--half-closed",
    ),
    "write_stall": _Story(
        "why does {side} not read: is it stopped, overloaded, cut off? if it may pause"
        " so long, raise --write-stall",
        "it was reset",
        "--write-stall",
    ),
    "lifetime": _Story(
        "raise --lifetime, or let the client connect anew before that",
        "it was reset",
        "--lifetime",
    ),
    "aborted": _Story("see in the handler's code why it aborts"),
    "fault": _Story("see how both ends took it: it was broken on purpose"),
    "handler_error": _Story(
        "see the handler's code: this is its mistake, and not its peer's",
        "it was reset",
    ),
    "cut": _Story(
        "raise --drain if it should have had longer, or let silent ones go before"
        " that: --drain-idle",
        "it was reset",
        "--drain",
    ),
    "cancelled": _Story(
        "see the server's log at this time for what ended it", "it was reset"
    ),
}

#: What the bound of these is; of the others it is seconds.
_COUNTED: Final = frozenset({Reason.LIMIT, Reason.PEER_LIMIT})

_ENDS_THEN: Final = frozenset(
    {Reason.CLIENT_RESET, Reason.CUT, Reason.CANCELLED, Reason.LIFETIME}
)
#: Phase -> what it means, and for which reasons it is not said by them already.
_PHASES: Final[dict[str, tuple[str, frozenset[Reason]]]] = {
    Phase.QUEUE: (
        "Its handler had not begun.",
        frozenset({Reason.CLIENT_RESET, Reason.CUT, Reason.CANCELLED}),
    ),
    Phase.CONNECT: (
        "Its target was still being dialed.",
        frozenset({*_ENDS_THEN, Reason.ABORTED, Reason.HANDLER_ERROR}),
    ),
    Phase.CLOSING: ("Its handler was done, and it was being closed.", _ENDS_THEN),
}
#: Reason -> whom its timer waited for; for the others it is clear, or both.
_WAITED: Final[dict[str, str]] = {
    Reason.HALF_CLOSED: "It was {side} whose direction had not ended.",
    Reason.WRITE_STALL: "The receiver was {side}.",
}

_SIDES: Final = {"client": "the client", "target": "the target"}

_MOST: Final = 20


def explain(records: Iterable[Record], id: int | None = None) -> Iterator[str]:
    """What happened to connection ``id``, line by line.

    If several have that id, to the last of them. Without an id: to those that
    did not end well, the last 20 of them, newest last; and how many there are.

    Raises:
      click.ClickException: none has that id.
    """
    return _explain_failed(records) if id is None else _explain_one(records, id)


def explain_record(record: Record) -> Iterator[str]:
    """A headline and indented sentences; the last says what to do next."""
    yield printable(f"connection {record.id}: {record.outcome}/{record.reason}")
    for sentence in _sentences(record):
        yield "  " + printable(sentence)


def _explain_one(records: Iterable[Record], id: int) -> Iterator[str]:
    last: Record | None = None
    earlier = highest = 0
    for record in records:
        highest = max(highest, record.id)
        if record.id == id:
            earlier += last is not None
            last = record
    if last is None:
        there = f"the highest is {highest}" if highest else "there are none"
        raise click.ClickException(f"no connection has the id {id}; {there}")
    yield from explain_record(last)
    if earlier:
        yield ""
        yield f"earlier ones with this id: {earlier}; ids begin at 1 with each run"


def _explain_failed(records: Iterable[Record]) -> Iterator[str]:
    last: collections.deque[Record] = collections.deque(maxlen=_MOST)
    well = failed = 0
    for record in records:
        if record.ended_well:
            well += 1
        else:
            failed += 1
            last.append(record)
    for record in last:
        yield from explain_record(record)
        yield ""
    text = f"connections: {well + failed}; {well} ended well, {failed} did not"
    if failed > len(last):
        text += f"; the last {len(last)} of these are above, use --id for the others"
    yield text


def _sentences(record: Record) -> Iterator[str]:
    yield _route(record)
    yield from _end(record)
    yield from _attempts(record.attempts)
    if record.error and record.error not in (each.error for each in record.attempts):
        yield f"Error: {record.error}"
    if record.faults:
        yield f"It was made to suffer: {', '.join(record.faults)}."
    yield from _times(record)
    yield from _bytes(record)
    if record.draining:
        yield "The server was draining."
    if record.open_at_close is not None:
        yield f"Other connections that were open then: {record.open_at_close}."
    if record.notes:
        yield f"Noted: {as_logfmt(record.notes)}"
    yield f"Next: {_advice(record)}."


def _route(record: Record) -> str:
    # Who, where to, when, how long.
    here = record.local or record.listener or "the server"
    text = f"{_who(record)} came to {here}"
    if record.target:
        text += f", for {record.target}"
    if record.accepted_at is not None:
        text += f", at {moment(record.accepted_at)}"
    if record.duration is not None:
        text += f"; it was over after {format_duration(record.duration)}"
    return text + "."


def _who(record: Record) -> str:
    if record.peer == "unix:":  # the client's socket has no name
        return "Somebody on this machine"
    return record.peer or "Somebody"


def _end(record: Record) -> Iterator[str]:
    # Why, by which option, and how.
    if record.reason not in _REASONS:
        yield f"It ended for a reason that this version does not know: {record.reason}."
        return
    reason = Reason(record.reason)
    _, end, option = _REASONS[reason]
    sentence = sentence_of(reason, record.target)
    if option and not (reason is Reason.CUT and record.bound is None):
        sentence += f" ({option}{_bound(record)})"
    if end:
        sentence += f", so {end}"
    yield f"{sentence[0].upper()}{sentence[1:]}."
    if reason in _WAITED and record.side in _SIDES:
        yield _WAITED[reason].format_map(_words(record))
    for phase, (meaning, reasons) in _PHASES.items():
        if phase == record.phase and reason in reasons:
            yield meaning


def _bound(record: Record) -> str:
    # The value of the option that decided it, as one would write it behind it.
    if record.bound is None:
        return ""
    if record.reason in _COUNTED:
        return f" {record.bound:.0f}"
    return f" {format_duration(record.bound)}"


def _attempts(attempts: Iterable[Attempt]) -> Iterator[str]:
    for number, each in enumerate(attempts, 1):
        took = f"Attempt {number}: {each.address}, {format_duration(each.seconds)}"
        blame = " (this machine's fault, not the target's)" if each.ours else ""
        yield f"{took}: {each.error or 'connected'}{blame}"


def _times(record: Record) -> Iterator[str]:
    phases = {
        "a slot": record.queued,
        "its target": record.connect,
        "the client's first byte": record.first_byte,
    }
    reached = [
        f"{phase} after {format_duration(seconds)}"
        for phase, seconds in phases.items()
        if seconds is not None
    ]
    if reached:
        yield f"It got {', '.join(reached)}."


def _bytes(record: Record) -> Iterator[str]:
    received, sent = record.bytes_received, record.bytes_sent
    back, on = record.upstream_bytes_received, record.upstream_bytes_sent
    if received is not None and sent is not None:
        yield f"From the client {format_bytes(received)}, to it {format_bytes(sent)}."
    if back is not None and on is not None:
        yield f"To the target {format_bytes(on)}, from it {format_bytes(back)}."
    losses = list(_losses(record))
    yield from losses
    if not losses and (received or sent):
        yield "No byte is known to be lost."


def _losses(record: Record) -> Iterator[str]:
    missed = "the target did not get" if record.target else "no handler got"
    if lost := record.bytes_discarded:
        yield f"Lost: {format_bytes(lost)} from the client, which {missed}."
    if lost := record.upstream_bytes_discarded:
        text = format_bytes(lost)
        yield f"Lost: {text} from the target, which the client did not get."
    for side, lost in (
        ("client", record.unacknowledged),
        ("target", record.upstream_unacknowledged),
    ):
        if lost:
            yield (
                f"Lost, as far as is known: {format_bytes(lost)} sent to the {side},"
                " which did not acknowledge them."
            )


def _advice(record: Record) -> str:
    if record.reason not in _REASONS:
        return "explain it with the version of trioserve that wrote it"
    if record.reason == Reason.CUT and record.bound is None and record.error:
        return "to let it finish, send SIGTERM once; a second one and SIGQUIT cut"
    if record.ended_well and any(_losses(record)):
        return "it ended well, but not everything was read: see who closed too early"
    return _REASONS[record.reason].next.format_map(_words(record))


def _words(record: Record) -> dict[str, str]:
    listening, reaching = _checks(record.target)
    return {
        "target": record.target or "the target",
        "host": (record.host if record.host != record.peer else None) or "the client",
        "side": _SIDES.get(record.side or "", "that side"),
        "listening": listening,
        "reaching": reaching,
    }


def _checks(target: str | None) -> tuple[str, str]:
    # Where to look whether a target listens, and whether it can be reached.
    try:
        address = parse_address(target or "")
    except ValueError:
        return "see `ss -ltn` there", "see its log, and the network between"
    if not isinstance(address, UnixAddress):
        host = shlex.quote(address.host)
        return "see `ss -ltn` there", f"see `nc -vz {host} {address.port}`"
    if address.is_abstract:
        return "see `ss -lx`", "see `ss -lx`"
    return "see `ss -lx`", f"see `ls -l {shlex.quote(address.path)}`"

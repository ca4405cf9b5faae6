"""What happened to a connection, and why, in sentences for a person.

Records in, lines out. Nothing here knows where the records come from, or says
what is not in them.
"""

from __future__ import annotations

import collections
import shlex
from collections.abc import Iterable, Iterator
from typing import Final

import click

from trioserve import Attempt, Phase, Reason, UnixAddress, parse_address
from trioserve.app._values import (
    format_bytes,
    format_duration,
    format_time,
    printable,
)
from trioserve.app.output._formats import as_logfmt
from trioserve.app.output._log import sentence_of

from ._advice import ADVICE, TLS_ADVICE, TRUNCATED
from ._records import Record

#: The limits of these reasons are numbers of connections; others are seconds.
_COUNTED: Final = frozenset(
    {Reason.LIMIT, Reason.PEER_LIMIT, Reason.RATE, Reason.TARGET_FULL}
)

_ENDS_THEN: Final = frozenset(
    {Reason.CLIENT_RESET, Reason.CUT, Reason.CANCELLED, Reason.LIFETIME}
)
#: Phase -> what it means, and the reasons whose sentences don't say that.
_PHASES: Final[dict[str, tuple[str, frozenset[Reason]]]] = {
    Phase.QUEUE: (
        "Its handler had not started.",
        frozenset({Reason.CLIENT_RESET, Reason.CUT, Reason.CANCELLED}),
    ),
    Phase.CONNECT: (
        "Its target was still being dialed.",
        frozenset({*_ENDS_THEN, Reason.ABORTED, Reason.HANDLER_ERROR}),
    ),
    Phase.CLOSING: ("Its handler had returned, and it was being closed.", _ENDS_THEN),
}
#: Reason -> the side that its timer waited for. Other timers wait for both sides,
#: or always for the same one.
_WAITED: Final[dict[str, str]] = {
    Reason.HALF_CLOSED: "It was waiting for {side} to end its direction.",
    Reason.WRITE_STALL: "It was waiting for {side} to read.",
}

_SIDES: Final = {"client": "the client", "target": "the target"}

#: If its error is a timeout, TCP has given the side up, which has not sent a RST.
_LOST_SIDES: Final[dict[str, str]] = {
    Reason.CLIENT_RESET: "the client",
    Reason.SERVER_RESET: "the target",
}

_MOST: Final = 20


def explain(records: Iterable[Record], id: int | None = None) -> Iterator[str]:
    """What happened to connection ``id``, line by line.

    If several connections have that id, this is the last one. Without an id, these
    are the last 20 that did not end well, newest last, and a count of all.

    Raises:
      click.ClickException: no connection has that id.
    """
    return _explain_failed(records) if id is None else _explain_one(records, id)


def explain_record(record: Record) -> Iterator[str]:
    """A headline and indented sentences; the last one says what to do next."""
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
        yield f"earlier ones with this id: {earlier}; each run begins with id 1"


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
        yield f"Broken on purpose: {', '.join(record.faults)}."
    yield from _times(record)
    yield from _bytes(record)
    if record.draining:
        yield "The server was draining."
    if record.open_at_close is not None:
        yield f"Other connections that were open then: {record.open_at_close}."
    if record.notes:
        yield f"Notes: {as_logfmt(record.notes)}"
    yield f"Next: {_advice(record)}."


def _route(record: Record) -> str:
    # The client, the listener, the target, when and for how long.
    here = record.local or record.listener or "the server"
    text = f"{_client(record)} connected to {here}"
    if record.direct_peer:
        text += f" through {record.direct_peer}"
    if record.server_name:
        text += f", asked for {record.server_name}"
    if record.target:
        text += f", for {record.target}"
    if record.accepted_at is not None:
        text += f", at {format_time(record.accepted_at)}"
    if record.duration is not None:
        text += f"; it lasted {format_duration(record.duration)}"
    return text + "."


def _client(record: Record) -> str:
    if record.peer == "unix:":  # a Unix socket of a client has no name
        return "A client on this machine"
    return record.peer or "A client"


def _end(record: Record) -> Iterator[str]:
    # The reason, the option that ended it, and what happened to the connection.
    if record.reason not in ADVICE:
        yield f"It ended for a reason that this version does not know: {record.reason}."
        return
    reason = Reason(record.reason)
    _, end, option = ADVICE[reason]
    sentence = sentence_of(reason, record.target)
    if option and not (
        _was_hurried(record) or _makes_room(record) or _is_drained(record)
    ):
        sentence += f" ({option}{_limit(record)})"
    if end:
        sentence += f", so {end}"
    yield f"{sentence[0].upper()}{sentence[1:]}."
    if reason in _WAITED and record.waited_for in _SIDES:
        yield _WAITED[reason].format_map(_values_of(record))
    for phase, (meaning, reasons) in _PHASES.items():
        if phase == record.phase and reason in reasons:
            yield meaning


def _was_hurried(record: Record) -> bool:
    # It was not the deadline of the drain that cut it.
    return record.reason == Reason.CUT and record.limit is None


def _makes_room(record: Record) -> bool:
    # It was not its deadline that ended its handshake, but the number of others.
    return (
        record.reason == Reason.HANDSHAKE
        and record.limit is None
        and record.error is not None
    )


def _is_drained(record: Record) -> bool:
    # All targets were drained, whatever --max-per-target.
    return record.reason == Reason.TARGET_FULL and record.limit is None


def _limit(record: Record) -> str:
    # The value of the option that ended it, as on a command line.
    if record.limit is None:
        return ""
    if record.reason in _COUNTED:
        return f" {record.limit:.0f}"
    return f" {format_duration(record.limit)}"


def _attempts(attempts: Iterable[Attempt]) -> Iterator[str]:
    for number, each in enumerate(attempts, 1):
        took = f"Attempt {number}: {each.address}, {format_duration(each.seconds)}"
        blame = " (this machine's fault, not the target's)" if each.ours else ""
        yield f"{took}: {each.error or 'connected'}{blame}"


def _times(record: Record) -> Iterator[str]:
    phases = {
        "a token": record.queued,
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
                f"Possibly lost: {format_bytes(lost)} sent to the {side}, which did"
                " not acknowledge them."
            )


def _advice(record: Record) -> str:
    if record.reason not in ADVICE:
        return "explain it with the version of trioserve that wrote it"
    if _was_hurried(record) and record.error:
        return "to let it finish, send SIGTERM once; a second one, or SIGQUIT, cuts"
    if _makes_room(record):
        return (
            "if clients are slow or come in crowds, and are no scanners, raise"
            " --max-handshakes"
        )
    if record.ended_well and any(_losses(record)):
        return "it ended well, but not all was read: see which side closed too early"
    if record.reason in _LOST_SIDES and "timed out" in (record.error or ""):
        return (
            f"{_LOST_SIDES[record.reason]} did not answer any more (--keepalive,"
            " --user-timeout): it was switched off, or the network to it is broken"
        )
    advice = _tls_advice(record) or ADVICE[record.reason].next
    return advice.format_map(_values_of(record))


def _tls_advice(record: Record) -> str | None:
    error = record.error or ""
    if not error.startswith("TlsError: "):
        return None
    if "without close_notify" in error and record.reason in TRUNCATED:
        return TRUNCATED[record.reason]
    # The handshake with the target; or, in TLS 1.3, its verdict on the certificate.
    targets = (Reason.CONNECT_FAILED, Reason.SERVER_RESET)
    return TLS_ADVICE if record.reason in targets else None


def _values_of(record: Record) -> dict[str, str]:
    listening, reaching = _checks(record.target)
    return {
        "target": record.target or "the target",
        "address": shlex.quote(record.target or "HOST:PORT"),
        "sender": record.direct_peer or record.peer or "the load balancer",
        "host": (record.host if record.host != record.peer else None) or "the client",
        "side": _SIDES.get(record.waited_for or "", "that side"),
        "listening": listening,
        "reaching": reaching,
    }


def _checks(target: str | None) -> tuple[str, str]:
    # Commands that show whether a target listens, and whether it can be reached.
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

"""Reports: what happened to a connection, to a relay, to a server that drained.

Frozen values and the closed set of words in them. Nothing here knows who makes
a report or who reads it.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ._errors import cause_of, is_a, leaves

Side = Literal["client", "target"]


class Outcome(enum.StrEnum):
    """How a connection went, in one word; see :class:`Reason` for why."""

    OK = "ok"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    PEER_ERROR = "peer_error"
    TARGET_ERROR = "target_error"
    HANDLER_ERROR = "handler_error"
    ABORTED = "aborted"
    CUT = "cut"
    RESOURCE = "resource"


class Phase(enum.StrEnum):
    """Where in its life a connection was when it ended.

    The value is what is printed; :attr:`letter` is HAProxy's letter for it
    (``configuration.txt``, section 8.5).
    """

    QUEUE = "queue"
    CONNECT = "connect"
    DATA = "data"
    CLOSING = "closing"

    @property
    def letter(self) -> str:
        return {"queue": "Q", "connect": "C", "data": "D", "closing": "L"}[self.value]


class Reason(enum.StrEnum):
    """Why a connection ended. The set is closed; new releases may add to it.

    :attr:`outcome` sorts them, :attr:`sentence` says it to a person.
    """

    CLIENT_CLOSED = "client_closed"
    SERVER_CLOSED = "server_closed"
    DRAINED = "drained"
    CLIENT_RESET = "client_reset"
    CLIENT_GONE = "client_gone"
    SERVER_RESET = "server_reset"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    LOOP = "loop"
    LIMIT = "limit"
    PEER_LIMIT = "peer_limit"
    NO_FDS = "no_fds"
    RESOURCE = "resource"
    STOPPING = "stopping"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    HALF_CLOSED = "half_closed"
    WRITE_STALL = "write_stall"
    LIFETIME = "lifetime"
    ABORTED = "aborted"
    FAULT = "fault"
    HANDLER_ERROR = "handler_error"
    CUT = "cut"
    CANCELLED = "cancelled"

    @property
    def outcome(self) -> Outcome:
        return _REASONS[self][0]

    @property
    def sentence(self) -> str:
        return _REASONS[self][2]


# Reason -> outcome, HAProxy's termination state, sentence. Of the state, "t"
# stands for a timer: "c" where the client was waited for, "s" the target. The
# second letter is that of the phase where there is none.
_REASONS: dict[Reason, tuple[Outcome, str, str]] = {
    Reason.CLIENT_CLOSED: (Outcome.OK, "--", "the client closed first"),
    Reason.SERVER_CLOSED: (Outcome.OK, "--", "the handler or the target closed first"),
    Reason.DRAINED: (Outcome.OK, "--", "it was idle when the server drained"),
    Reason.CLIENT_RESET: (Outcome.PEER_ERROR, "C", "the client reset it"),
    Reason.CLIENT_GONE: (
        Outcome.PEER_ERROR,
        "C",
        "the client said nothing and left before the target answered",
    ),
    Reason.SERVER_RESET: (Outcome.TARGET_ERROR, "S", "the target reset it"),
    Reason.CONNECT_REFUSED: (Outcome.TARGET_ERROR, "S", "the target refused"),
    Reason.CONNECT_FAILED: (Outcome.TARGET_ERROR, "S", "the target can't be reached"),
    Reason.CONNECT_TIMEOUT: (
        Outcome.TARGET_ERROR,
        "s",
        "the target did not answer within the connect timeout",
    ),
    Reason.LOOP: (Outcome.TARGET_ERROR, "P", "the target led back to the proxy"),
    Reason.LIMIT: (Outcome.REFUSED, "PR", "the limit was reached"),
    Reason.PEER_LIMIT: (
        Outcome.REFUSED,
        "PR",
        "its peer had as many connections as one may",
    ),
    Reason.NO_FDS: (Outcome.REFUSED, "R", "no file descriptor was free"),
    Reason.RESOURCE: (
        Outcome.RESOURCE,
        "R",
        "this machine lacked what the connection needed, or forbade it",
    ),
    Reason.STOPPING: (Outcome.REFUSED, "K", "the server was stopping"),
    Reason.FIRST_BYTE: (Outcome.TIMEOUT, "t", "no byte came from either side in time"),
    Reason.IDLE: (Outcome.TIMEOUT, "t", "no byte moved within the idle timeout"),
    Reason.HALF_CLOSED: (
        Outcome.TIMEOUT,
        "t",
        "one direction had ended and no byte moved in the other",
    ),
    Reason.WRITE_STALL: (Outcome.TIMEOUT, "t", "the receiver took no bytes"),
    Reason.LIFETIME: (Outcome.TIMEOUT, "K", "it reached the longest time allowed"),
    Reason.ABORTED: (Outcome.ABORTED, "P", "the handler aborted it"),
    Reason.FAULT: (Outcome.ABORTED, "P", "a fault that was asked for ended it"),
    Reason.HANDLER_ERROR: (Outcome.HANDLER_ERROR, "I", "the handler raised"),
    Reason.CUT: (Outcome.CUT, "K", "it was still open when the drain ended"),
    Reason.CANCELLED: (Outcome.CUT, "K", "the server was cancelled"),
}


class Conclusion(NamedTuple):
    """Why something ended, in the words of a report."""

    reason: Reason
    side: Side | None = None
    bound: float | None = None
    error: str | None = None


#: Errors of an attempt that nobody waited for any longer.
OUTRUN: Final = "another address was faster"
GIVEN_UP: Final = "given up"
#: And of one whose time was over.
NO_ANSWER: Final = "no answer"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to connect to a target.

    Attributes:
      address: the address that was tried; the target, if it is a name that
        could not be looked up.
      seconds: how long it took.
      error: why it failed, in one line of printable ASCII; None if it did not.
      ours: whether it failed because this machine lacks something, such as
        descriptors or local ports: it says nothing about the target.
    """

    address: str
    seconds: float
    error: str | None = None
    ours: bool = False

    @property
    def failed(self) -> bool:
        """Whether the target failed.

        Not if it might have answered: nobody waited any longer, or this machine
        lacked something (:attr:`ours`).
        """
        return not self.ours and self.error not in (None, OUTRUN, GIVEN_UP)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReport:
    """The record of one connection, made once, when its last socket is closed.

    Durations are seconds since accept, on Trio's clock; ``None`` means that
    the phase was never reached. When all that a handler does is to relay, as
    :func:`proxy` does, the ledger of bytes balances:
    ``bytes_received == upstream_bytes_sent + bytes_discarded`` and
    ``upstream_bytes_received == bytes_sent + upstream_bytes_discarded``. What a
    handler itself reads or writes on either side comes on top.

    Attributes:
      id: counts the connections of one server, from 1, in the order of accept.
      listener, peer, local: addresses, as a person writes them.
      target: where it was relayed to, or should have been; None without one.
      attempts: each try to connect to a target, in the order in which they
        ended.
      accepted_at: seconds since the epoch, on the wall clock.
      queued: seconds it waited for a slot in our hands (0 in the kernel's queue
        is not seen).
      connect: seconds until the target had accepted.
      first_byte: seconds until the client's first byte.
      duration: seconds until the last close.
      bytes_received: taken from the client's socket.
      bytes_sent: taken by the client's socket from us.
      bytes_discarded: of those received, neither given to a handler nor on to
        the target.
      unacknowledged: of those sent, not acknowledged by the client when the
        connection was cut; None if it was not cut or the system doesn't tell.
      upstream_bytes_received, upstream_bytes_sent, upstream_bytes_discarded,
        upstream_unacknowledged: the same on the target's side, None without one.
      outcome, reason, phase: how, why and where it ended.
      side: whose fault a timer's end was, ``"client"`` or ``"target"``.
      bound: the value of the timer (seconds) or of the limit (connections) that
        ended it; None if it was neither. Of a cut, how long the drain was meant
        to last, and None if that was cut short.
      error: what went wrong, in one line of printable ASCII.
      exception: the exception itself; not part of :meth:`as_dict`.
      faults: the faults that a proxy has applied to it, as items that
        :func:`trioserve.faults.parse_faults` reads, like ``up:reset@4096``.
      draining: whether the server was draining when it ended.
      open_at_close: other connections that the server had open when it ended.
      result: what the handler returned; not part of :meth:`as_dict`.
      notes: what the handler noted.
    """

    id: int
    listener: str
    peer: str
    local: str
    accepted_at: float
    duration: float
    reason: Reason
    phase: Phase
    target: str | None = None
    attempts: Sequence[Attempt] = ()
    queued: float | None = None
    connect: float | None = None
    first_byte: float | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_discarded: int = 0
    unacknowledged: int | None = None
    upstream_bytes_received: int | None = None
    upstream_bytes_sent: int | None = None
    upstream_bytes_discarded: int | None = None
    upstream_unacknowledged: int | None = None
    side: Side | None = None
    bound: float | None = None
    error: str | None = None
    exception: BaseException | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    faults: Sequence[str] = ()
    draining: bool = False
    open_at_close: int = 0
    result: object = dataclasses.field(default=None, repr=False, compare=False)
    notes: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        return self.reason.outcome

    @property
    def termination_state(self) -> str:
        """HAProxy's two letters for how it ended, like ``--`` or ``sC``.

        What HAProxy 2.6 logs in the same case (configuration.txt, section 8.5).
        """
        state = _REASONS[self.reason][1]
        if state == "t":
            state = "s" if self.side == "target" else "c"
        elif state == "K" and self.phase in (Phase.DATA, Phase.CLOSING):
            state = "K-"  # as HAProxy says it of a session that is killed
        return state if len(state) == 2 else state + self.phase.letter

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON can write, in a stable order."""
        fields: dict[str, Any] = {"id": self.id, "outcome": self.outcome.value}
        for name in _TOLD:
            value = getattr(self, name)
            if isinstance(value, float):
                value = round(value, 6)
            elif isinstance(value, enum.StrEnum):
                value = value.value
            fields[name] = value
        fields["attempts"] = [
            {
                "address": a.address,
                "seconds": round(a.seconds, 6),
                "error": a.error,
                "ours": a.ours,
            }
            for a in self.attempts
        ]
        fields["faults"] = list(self.faults)
        fields["notes"] = {
            _cut(name): _plain(noted) for name, noted in self.notes.items()
        }
        fields["state"] = self.termination_state
        return fields


class Draft(ConnectionReport):
    """A report that is being made; then its class is changed to what it is.

    To make what is frozen is a call for each field, and costs more than accept(2).
    """

    __slots__ = ()

    def finished(self) -> ConnectionReport:
        """It, as a report; not to be changed any more."""
        self.__class__ = ConnectionReport  # type: ignore[assignment]
        return self

    if not TYPE_CHECKING:
        __setattr__ = object.__setattr__
        __init__ = dataclasses.make_dataclass(
            "Draft",
            [
                (each.name, each.type, each)
                for each in dataclasses.fields(ConnectionReport)
            ],
            kw_only=True,
        ).__init__


#: What a report tells under its own name.
_TOLD: Final = tuple(
    field.name
    for field in dataclasses.fields(ConnectionReport)
    if field.name not in ("id", "exception", "result")
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One direction of a relay: ``received == delivered + discarded``, to the byte.

    Attributes:
      received: taken from the side that sent.
      delivered: taken by the kernel (or the stream) of the other side.
      discarded: received and not delivered.
    """

    received: int
    delivered: int
    discarded: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelayResult:
    """How a relay went.

    Attributes:
      reason: why it ended, with ``a`` as the client and ``b`` as the target.
      a_to_b, b_to_a: the ledger of each direction.
      side: for a timer, the side that was waited for.
      bound: for a timer, its value in seconds.
      error: what went wrong, in one line of printable ASCII.
    """

    reason: Reason
    a_to_b: Flow
    b_to_a: Flow
    side: Side | None = None
    bound: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrainSummary:
    """How a server's drain went.

    Attributes:
      reason: why it was drained, as given to ``drain``.
      seconds: from the start of draining to the end, on Trio's clock.
      open_at_start: connections that were open when draining began.
      swept: connections found in the kernel's queue when accepting ended.
      finished: connections that ended by themselves, idle ones included.
      refused: connections refused while draining, for lack of a slot.
      cut: connections reset at the deadline or cancelled.
      stuck: tasks that were still alive after ``drain + cleanup`` seconds, each
        with the line it stands on.
      reports_lost: reports that no collector took, since the server started.
    """

    reason: str
    seconds: float
    open_at_start: int
    swept: int
    finished: int
    refused: int
    cut: int
    stuck: tuple[str, ...]
    reports_lost: int

    @property
    def clean(self) -> bool:
        """Whether nothing was cut and nothing hangs."""
        return not self.cut and not self.stuck


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A server's counters at one moment.

    ``accepted == open + closed`` and ``closed == collected + buffered + lost``,
    always.

    Attributes:
      accepted: connections that accept(2) returned.
      open, closed: of these, still open and closed.
      refused: of those closed, refused.
      collected, buffered, lost: reports that the collector has taken, that
        wait for it, that nobody took.
      bytes_received, bytes_sent, bytes_discarded: sums over all connections,
        open ones included.
      slots_used, slots: of the limit.
      accept_errors: errors of accept(2) by name.
    """

    accepted: int
    open: int
    closed: int
    refused: int
    collected: int
    buffered: int
    lost: int
    bytes_received: int
    bytes_sent: int
    bytes_discarded: int
    slots_used: int
    slots: int
    accept_errors: Mapping[str, int]


def escape(text: str, limit: int = 256) -> str:
    """``text`` as printable ASCII in one line, at most ``limit`` characters.

    Whatever a peer sent goes through here before it reaches a log or a
    terminal.
    """
    # 7.5 us less for nearly all texts.
    if (
        len(text) <= limit
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
    ):
        return text
    plain = "".join(
        c if " " <= c <= "~" and c != "\\" else ascii(c)[1:-1] for c in text[:limit]
    )
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


#: Errors of a group that are described; of the others, the number is told.
_MOST_DESCRIBED: Final = 3


def describe(error: BaseException) -> str:
    """``error`` in one line; of a broken stream, its cause.

    It raises nothing, whatever ``error`` is: where the error's own methods do, that
    is what is said.
    """
    found = leaves(error)
    text = "; ".join(_described(e) for e in itertools.islice(found, _MOST_DESCRIBED))
    more = sum(1 for _ in found)
    return escape(text + (f"; {more} more" if more else ""))


def _described(error: BaseException) -> str:
    cause = cause_of(error)
    if is_a(cause, OSError) and not is_a(error, OSError):
        assert cause is not None
        error = cause
    text = _told_by("__str__", str, error)
    name = _name_of(error)
    return f"{name}: {text}" if text else name


def _told_by(method: str, ask: Callable[[object], str], value: object) -> str:
    """What ``value`` says of itself, not escaped; or what it raised instead."""
    try:
        return _cut(ask(value), _MOST_TOLD)
    except BaseException as error:  # noqa: ASYNC103 - of the value's own making
        return f"its {method} raised {_name_of(error)}"  # noqa: ASYNC104


def _cut(text: str, length: int | None = None) -> str:
    """The beginning of ``text``, as a ``str`` and nothing that is derived from it."""
    return str.__getitem__(text, slice(length))


def _name_of(value: object) -> str:
    """The name of its class, whatever its metaclass says."""
    name: str = _class_name(type(value))
    return name


_class_name: Final = type.__dict__["__name__"].__get__

#: Characters that are looked at of what a value says of itself.
_MOST_TOLD: Final = 300


def _plain(value: object) -> object:
    """A noted value as JSON can write it, whatever its class does or says."""
    kind: type[Any] = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, int):
        whole = int.__index__(value)  # type: ignore[arg-type]
        if whole.bit_length() <= _MOST_BITS:
            return whole
    elif issubclass(kind, float):
        number = float.__float__(value)  # type: ignore[arg-type]
        if math.isfinite(number):
            return number
    elif issubclass(kind, str):
        return escape(_cut(value, _MOST_TOLD))  # type: ignore[arg-type]
    return escape(_told_by("__repr__", repr, value))


#: Of a number; Python writes no longer ones than of 4,300 digits, and others less.
_MOST_BITS: Final = 64

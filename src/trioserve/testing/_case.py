"""Cases: one run of a conversation, and the setting that all runs share.

A case, a handler and a setting decide everything in a run: the same case runs the
same way. It prints as the Python that runs it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from trioserve import Limits, Timeouts
from trioserve.faults import Faults

from ._arguments import check_count, check_seconds, check_type
from ._peer import Peer

Disturbance = Literal["cancel", "drain", "eof", "reset", "stall", "vanish"]

Law = Literal[
    "answer", "chunking", "schedule", "pipelining", "half_close", "ends",
    "nothing_left", "record", "errors", "memory", "cancelled", "drain", "alone",
    "always", "eventually", "deadline", "endless", "growth",
]  # fmt: skip

#: An async function of one stream.
Handler: TypeAlias = Callable[[Any], Awaitable[object]]

#: How peers play their scripts; None is as they are written.
Play = Literal[
    "pipelined", "half_closed", "all_at_once", "writes_first",
    "trickled", "endless", "repeated",
]  # fmt: skip

#: The plays of peers that do harm, whatever they receive.
HOSTILE: Final[tuple[Play, ...]] = ("trickled", "endless", "repeated")

#: Bytes that a network holds in each direction.
DEFAULT_BUFFER: Final = 16384

#: Which of the tasks that are ready run next.
Order = Literal["shuffled", "held_back", "priorities", "preempted"]

#: What each law asks for, in one sentence.
LAWS: Final[dict[Law, str]] = {
    "answer": "peers receive what their scripts expect",
    "chunking": "what peers receive does not depend on how bytes are cut",
    "schedule": "what peers receive does not depend on which ready task runs first",
    "pipelining": "a peer need not wait for an answer before it sends the next message",
    "half_close": "a peer that has sent EOF still receives all its answers",
    "ends": "the handler ends in bounded time after its peer left or it was cancelled",
    "nothing_left": "a handler leaves no task running and no state changed",
    "record": "each connection has one report, and its byte counts are right",
    "errors": "the handler raises only errors of its stream, or what `raises` names",
    "memory": "while its own send waits, the handler receives at most 64 KiB",
    "cancelled": "the handler does not swallow a Cancelled",
    "drain": "a drain ends the handler in time, and not in the middle of a message",
    "alone": "a connection is not affected by other open connections",
    "always": "what `always` names holds after every step",
    "eventually": "what `eventually` names holds when all handlers have ended",
    "deadline": "a peer whose message comes byte by byte is not served without end",
    "endless": "of a message that never ends, the handler keeps a bounded part",
    "growth": "what the handler keeps does not grow with each message",
}


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Case:
    """One run of a conversation.

    Args:
      peers: scripts. Each is one connection.
      faults: faults of the connections.
      server_faults: faults of the connections that the handler opens. With
        ``vanish@0s`` they are never made: nothing answers.
      seed: decides the order in which tasks run, and what is random in the faults.
      disturbance, at_step: what happens after scheduler step ``at_step``:

        - ``"cancel"``: the handlers are cancelled, and nothing more arrives from
          their peers;
        - ``"drain"``: the server begins to drain;
        - ``"eof"``, ``"reset"``: each peer sends EOF, or resets;
        - ``"stall"``: nothing more that a peer sends arrives;
        - ``"vanish"``: nothing more arrives in either direction, as if the cable
          was pulled.
      play: how the peers play their scripts; by default as they are written:

        - ``"pipelined"``: each sends all its messages at once, and then waits for
          the answers;
        - ``"half_closed"``: each sends EOF right after its last message;
        - ``"all_at_once"``: both: all messages and EOF, and then the answers;
        - ``"writes_first"``: each reads nothing until the messages that it sends in
          a row are sent;
        - ``"trickled"``: the last message comes byte by byte, and is not finished in
          twice the ``deadline``;
        - ``"endless"``: the last message does not end;
        - ``"repeated"``: each sends all its messages, again and again.
      order: which of the tasks that are ready run next: ``"shuffled"``, as Trio does
        it; ``"held_back"``, where some wait while others make several steps;
        ``"priorities"``, where each has a priority that changes a few times;
        ``"preempted"``, where each runs until it waits, but for the places that the
        seed stands for.
      copies: connections of each peer at the same time.
      rounds: how many times the conversation is played, one after the other.
      disturbed: the number of these rounds that the faults, disturbance, read delay,
        ``play`` and flood apply to; the rounds after them are plain.
      buffer: bytes that the network holds in each direction. It holds 16384 or more
        of what a client or a server sends that is code, because code seldom receives
        while it sends.
      read_delay: seconds until the peers begin to read.
      flood: if not 0, the peers send at least this many bytes, by repeating what
        their scripts send, and read nothing.

    Raises:
      TypeError, ValueError: an argument is wrong.
    """

    peers: tuple[Peer, ...]
    faults: Faults = dataclasses.field(default_factory=Faults)
    server_faults: Faults = dataclasses.field(default_factory=Faults)
    seed: int = 0
    disturbance: Disturbance | None = None
    at_step: int | None = None
    play: Play | None = None
    order: Order = "shuffled"
    copies: int = 1
    rounds: int = 1
    disturbed: int = 1
    buffer: int = DEFAULT_BUFFER
    read_delay: float = 0.0
    flood: int = 0

    def __post_init__(self) -> None:
        check_type("peers", self.peers, tuple, "a tuple of Peers")
        if not self.peers:
            raise ValueError("peers must not be empty: a conversation needs one")
        for peer in self.peers:
            check_type("peers", peer, Peer, "Peers only")
        for name in ("faults", "server_faults"):
            check_type(name, getattr(self, name), Faults, "a Faults, or its text")
        check_type("seed", self.seed, int, "an int")
        if self.disturbance is not None and self.disturbance not in _DISTURBANCES:
            raise ValueError(
                f"disturbance must be one of {_DISTURBANCES}, not {self.disturbance!r}"
            )
        if (self.disturbance is None) != (self.at_step is None):
            raise ValueError("disturbance and at_step go together")
        for name, words in (("play", (None, *_PLAYS)), ("order", _ORDERS)):
            if getattr(self, name) not in words:
                told = f"{name} must be one of {words}, not {getattr(self, name)!r}"
                raise ValueError(told)
        for name in ("copies", "rounds", "disturbed", "buffer"):
            check_count(name, getattr(self, name), least=1)
        if self.at_step is not None:
            check_count("at_step", self.at_step, least=0)
        check_count("flood", self.flood, least=0)
        check_seconds("read_delay", self.read_delay)

    def __repr__(self) -> str:
        return as_python(self, Setting())

    @property
    def is_undisturbed(self) -> bool:
        """Whether the peers must receive what they expect."""
        harmless = not (_breaks(self.faults) or self.breaks_servers)
        harmless = harmless and self.play not in HOSTILE
        return self.disturbance is None and not self.flood and harmless

    @property
    def room_for_code(self) -> int:
        """Bytes that the network holds of what a client or a server that is code sends.

        Two programs that both wait for room wait for ever. Between programs that is a
        mistake, but not with the few bytes of a small network.
        """
        return max(self.buffer, DEFAULT_BUFFER)

    @property
    def room_for_peers(self) -> int:
        """Bytes that the network holds of what the peers send."""
        is_code = any(peer.is_code for peer in self.peers)
        return self.room_for_code if is_code else self.buffer

    @property
    def breaks_servers(self) -> bool:
        """Whether connections that the handler opens are refused, or end early."""
        return _breaks(self.server_faults)

    @property
    def waits(self) -> float:
        """The longest time that a script waits, in seconds, with the read delay."""
        return self.read_delay + max(peer.waits for peer in self.peers)

    def save(self, path: str | Path) -> None:
        """Write the faults and the seed for ``trioserve proxy --fault @PATH``.

        Raises:
          OSError: the file can't be written.
          ValueError: the case has no faults. A disturbance happens after a scheduler
            step, which a proxy can't see in another program.
        """
        if not self.faults:
            raise ValueError(f"this case has no faults for a proxy to apply: {self!r}")
        told = {"faults": str(self.faults), "seed": self.seed, "case": repr(self)}
        Path(path).write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def _breaks(faults: Faults) -> bool:
    return faults.refuse or any(d.terminations for d in (faults.up, faults.down))


_DISTURBANCES: Final = get_args(Disturbance)
_PLAYS: Final = get_args(Play)
_ORDERS: Final = get_args(Order)
_VALUES: Final = ("cleanup", "patience", "memory", "deadline", "longest", "tls")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The arguments that all runs of a handler share.

    Args:
      raises: exceptions that the handler may raise.
      without: laws that are not checked, each with the reason.
      before_run: called before each run.
      limits: the server's limits; by default all peers may connect at once.
      timeouts: the server's timeouts; by default no timer ends a connection, unless
        there is a disturbance or a fault.
      cleanup: seconds within which a handler must end after it was cancelled, and
        after the deadline of a drain.
      patience: seconds within which it must end after all peers have left.
      memory: bytes that it may receive while its own send waits.
      servers: what the handler may connect to, such as ``"db:5432"``: a function of one
        stream that plays the server, or None if nothing listens there.
      client: the client, if it is a function and not a script.
      always: what must hold after every step of any task: functions by what they say.
      eventually: what must hold within ``patience`` after all handlers have ended.
      deadline: seconds in which the handler must have a whole message, or end; None if
        it has no such bound.
      longest: bytes of the longest message that it takes; None if it has no such bound.
      tls: whether the peers speak TLS, which the server ends.
    """

    raises: tuple[type[BaseException], ...] = ()
    without: Mapping[Law, str] = dataclasses.field(default_factory=dict)
    before_run: Callable[[], object] | None = None
    limits: Limits | None = None
    timeouts: Timeouts | None = None
    cleanup: float = 30
    patience: float = 1000
    memory: int = 65_536
    servers: Mapping[str, Handler | None] = dataclasses.field(default_factory=dict)
    client: Handler | None = None
    always: Mapping[str, Callable[[], object]] = dataclasses.field(default_factory=dict)
    eventually: Mapping[str, Callable[[], object]] = dataclasses.field(
        default_factory=dict
    )
    deadline: float | None = None
    longest: int | None = None
    tls: bool = False

    def arguments(self) -> list[str]:
        """These arguments as Python; functions and classes by their own names."""
        written = list[str]()
        if self.client is not None:
            written.append(f"client={own_name(self.client, 'client')}")
        if self.raises:
            names = ", ".join(each.__name__ for each in self.raises)
            written.append(f"raises=[{names}]")
        if self.without:
            written.append(f"without={dict(self.without)!r}")
        if self.before_run is not None:
            written.append(f"before_run={own_name(self.before_run, 'before_run')}")
        if self.limits is not None:
            written.append(f"limits={_changed(self.limits, Limits())}")
        if self.timeouts is not None:
            written.append(f"timeouts={_changed(self.timeouts, Timeouts())}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _VALUES and value != field.default:
                written.append(f"{field.name}={value!r}")
        for field_name, default in (
            ("servers", "server"),
            ("always", "holds"),
            ("eventually", "holds"),
        ):
            pairs = [
                f"{name!r}: {None if fn is None else own_name(fn, default)}"
                for name, fn in getattr(self, field_name).items()
            ]
            if pairs:
                written.append(f"{field_name}={{{', '.join(pairs)}}}")
        return written


def own_name(value: object, default: str) -> str:
    """The name by which a function or a class can be written, or else the default."""
    name = str(getattr(value, "__name__", ""))
    return name if name.isidentifier() else default


def as_python(
    case: Case, setting: Setting, *, handler: str = "handler", compare: bool = False
) -> str:
    """The call that runs a case again.

    Args:
      handler: the name of the handler.
      compare: whether the run is compared with the plain conversation.
    """
    parts = [handler, *(repr(peer) for peer in case.peers if not peer.is_code)]
    for field in dataclasses.fields(case)[1:]:
        value = getattr(case, field.name)
        if value != getattr(_PLAIN, field.name):
            shown = str(value) if isinstance(value, Faults) else value
            parts.append(f"{field.name}={shown!r}")
    parts += ["compare=True"] if compare else []
    parts += setting.arguments()
    line = f"run_conversation({', '.join(parts)})"
    if len(line) <= 88:
        return line
    return "\n".join(["run_conversation(", *(f"    {p}," for p in parts), ")"])


def _changed(options: Limits | Timeouts, default: Limits | Timeouts) -> str:
    """Options as Python, without those that have their default."""
    parts = list[str]()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != getattr(default, field.name):
            shown = "math.inf" if value == math.inf else repr(value)
            parts.append(f"{field.name}={shown}")
    return f"{type(options).__name__}({', '.join(parts)})"


#: A case with all defaults.
_PLAIN: Final = Case((Peer(),))

"""Cases, and what came of them.

With the handler and its setting, a case is everything that decides a run: the same
case runs the same way. It prints as the Python that runs it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

from trioserve import ConnectionReport, Limits, Timeouts
from trioserve.faults import Faults

from ._arguments import check_count, check_seconds, check_type
from ._peer import Peer, Tail
from ._timeline import Timeline

Act = Literal["cancel", "drain", "eof", "reset", "stall", "vanish"]

Law = Literal[
    "answer", "chunking", "schedule", "ends", "nothing_left", "record", "errors",
    "memory", "cancelled", "drain", "alone",
]  # fmt: skip

#: What each law asks for, in one sentence.
LAWS: Final[dict[Law, str]] = {
    "answer": "the peers get what their scripts expect",
    "chunking": "what it does depends on the bytes, not on how they are cut",
    "schedule": "what it does does not depend on which task runs first",
    "ends": "it ends in bounded time once its peer has left or it was cancelled",
    "nothing_left": "nothing of it is left: no task, no state that the next one sees",
    "record": "one report for each connection, and its bytes add up",
    "errors": "it raises nothing but the errors of its stream, or what `raises` names",
    "memory": "while its peer takes nothing, it takes little from its peer",
    "cancelled": "a Cancelled that it got is not swallowed",
    "drain": "a drain ends it in time, and not in the middle of a message",
    "alone": "a connection sees nothing of those beside it",
}


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Case:
    """One run of a handler: who talks to it, and what happens to them.

    Args:
      peers: their scripts; each is one connection.
      faults: what the network does to the first round's connections.
      seed: of the schedule, and of what the faults draw.
      act, at: after scheduler step ``at``, the handlers are cancelled, the
        server drains, or each peer sends EOF, resets, says nothing more
        (``"stall"``) or is cut off (``"vanish"``).
      copies: how many times each peer connects, at once.
      rounds: how many times, one after the other; faults and acts are the
        first's.
      buffer: bytes that the network holds for each direction.
      deaf: seconds for which the peers do not read at first.
      flood: bytes that the peers send, by repeating what they send, while they
        read nothing.
    """

    peers: tuple[Peer, ...]
    faults: Faults = dataclasses.field(default_factory=Faults)
    seed: int = 0
    act: Act | None = None
    at: int | None = None
    copies: int = 1
    rounds: int = 1
    buffer: int = 16384
    deaf: float = 0.0
    flood: int = 0

    def __post_init__(self) -> None:
        check_type("peers", self.peers, tuple, "a tuple of Peers")
        if not self.peers:
            raise ValueError("peers must not be empty: a conversation needs one")
        for peer in self.peers:
            check_type("peers", peer, Peer, "Peers, each of them")
        check_type("faults", self.faults, Faults, "a Faults, or its text")
        check_type("seed", self.seed, int, "an int")
        if self.act is not None and self.act not in get_args(Act):
            raise ValueError(f"act must be one of {get_args(Act)}, not {self.act!r}")
        if (self.act is None) != (self.at is None):
            raise ValueError("act and at go together")
        for name in ("copies", "rounds", "buffer"):
            check_count(name, getattr(self, name), least=1)
        if self.at is not None:
            check_count("at", self.at, least=0)
        check_count("flood", self.flood, least=0)
        check_seconds("deaf", self.deaf)

    def __repr__(self) -> str:
        return _call(self, Setting())

    @property
    def is_undisturbed(self) -> bool:
        """Whether the peers must get what they expect."""
        harmless = not (
            self.faults.refuse
            or any(d.terminations for d in (self.faults.up, self.faults.down))
        )
        return self.act is None and not self.flood and harmless

    def save(self, path: str | Path) -> None:
        """Write what the network did, for ``trioserve proxy --fault @PATH``.

        Raises:
          OSError: it can't be written.
          ValueError: the network did nothing; what happens after a step of tasks
            can't be done to another program.
        """
        if not self.faults:
            raise ValueError(f"this case has no faults that a proxy could do: {self!r}")
        told = {"faults": str(self.faults), "seed": self.seed, "case": repr(self)}
        Path(path).write_text(json.dumps(told, indent=2) + "\n", "utf-8")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is the same for all runs of a handler.

    Args:
      raises: exceptions that the handler may raise.
      without: laws that are not looked at, and why.
      before_run: called before each run.
      limits: of the server; by default there is room for everybody.
      timeouts: of the server; by default nothing ends by a timer, unless
        something happens to the network.
    """

    raises: tuple[type[BaseException], ...] = ()
    without: Mapping[Law, str] = dataclasses.field(default_factory=dict)
    before_run: Callable[[], object] | None = None
    limits: Limits | None = None
    timeouts: Timeouts | None = None

    def arguments(self) -> list[str]:
        """As they are written in Python; a function goes by its argument's name."""
        written = list[str]()
        if self.raises:
            names = ", ".join(each.__name__ for each in self.raises)
            written.append(f"raises=[{names}]")
        if self.without:
            written.append(f"without={dict(self.without)!r}")
        if self.before_run is not None:
            written.append("before_run=before_run")
        if self.limits is not None:
            written.append(f"limits={_changed(self.limits, Limits())}")
        if self.timeouts is not None:
            written.append(f"timeouts={_changed(self.timeouts, Timeouts())}")
        return written


def _call(case: Case, setting: Setting) -> str:
    """The Python that runs it again, where the handler is called ``handler``."""
    parts = ["handler", *map(repr, case.peers)]
    for field in dataclasses.fields(case)[1:]:
        value = getattr(case, field.name)
        if value != getattr(_PLAIN, field.name):
            shown = str(value) if field.name == "faults" else value
            parts.append(f"{field.name}={shown!r}")
    parts += setting.arguments()
    line = f"run_conversation({', '.join(parts)})"
    if len(line) <= 88:
        return line
    return "\n".join(["run_conversation(", *(f"    {p}," for p in parts), ")"])


def _changed(options: Limits | Timeouts, default: Limits | Timeouts) -> str:
    parts = list[str]()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != getattr(default, field.name):
            shown = "math.inf" if value == math.inf else repr(value)
            parts.append(f"{field.name}={shown}")
    return f"{type(options).__name__}({', '.join(parts)})"


#: Characters of a case from which on its bytes are left out where it is shown.
_MOST_TEXT: Final = 2000

#: A case of which nothing is said.
_PLAIN: Final = Case((Peer(),))


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """What a peer heard.

    Attributes:
      data: all bytes that came.
      tail: what came after them.
      taken: how many of them its steps have waited for.
      surprise: what it did not expect, if there was such a thing.
    """

    data: bytes
    tail: Tail
    taken: int
    surprise: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A law that was broken, and how, in a sentence."""

    law: Law
    how: str
    cause: BaseException | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a case.

    Attributes:
      case: what was run.
      heard: what each peer heard, round by round; of a round, the copies one
        after the other.
      reports: the server's, in the order in which the connections ended.
      steps: scheduler steps of the first round.
      seconds: virtual seconds that it took.
      violations: laws that were broken.
      timeline: what happened.
    """

    case: Case
    heard: Sequence[Sequence[Heard]]
    reports: Sequence[ConnectionReport]
    steps: int
    seconds: float
    violations: Sequence[Violation]
    timeline: Timeline


class HandlerFailure(AssertionError):  # noqa: N818 - it is the handler's
    """A handler broke a law.

    Attributes:
      law: its name.
      how: how, in a sentence.
      case: the case in which it did.
      run: all that came of it.
      again: the Python that runs it again.
    """

    def __init__(self, law: Law, how: str, run: Run, setting: Setting) -> None:
        self.law = law
        self.how = how
        self.case = run.case
        self.run = run
        self.again = _call(run.case, setting)
        super().__init__(
            f"law {law!r}: {how}\n\n"
            f"The law: {LAWS[law]}.\n\n"
            f"To run it again:\n\n{_indented(_brief(self.again))}\n\n"
            f"What happened:\n\n{run.timeline}"
        )


def _brief(text: str) -> str:
    """A case as people can read it, if that is not what it is."""
    if len(text) <= _MOST_TEXT:
        return text
    long = re.compile(r"b(['\"])(?:\\.|(?!\1).){200,}\1")
    brief = long.sub(lambda found: f"{found[0][:60]}…{found[1]}", text)
    return f"{brief}\n# where … is left out; all of it is failure.again"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())

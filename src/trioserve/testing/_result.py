"""Results: the outcome of a case, and what a check has tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trioserve import ConnectionReport

from ._case import Case, Law
from ._timeline import Timeline
from .network import Tail


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """What a peer received.

    Attributes:
      data: all bytes that it received.
      tail: what came after them: ``"eof"``, ``"reset"``, or ``"open"`` for neither.
      consumed: how many of these bytes its steps have waited for.
      mismatch: how these bytes differ from its script, or what its code raised; or
        None.
      sent: how many bytes it has sent.
      wire: how many bytes it has sent and received on the network; with TLS, these are
        encrypted, and those of the handshake are among them.
      handshake: how many of these its TLS handshake had; (0, 0) without TLS.
      records: of each TLS record with plain bytes that it has sent: how many encrypted
        bytes it had sent before, and how many plain ones the record has.
    """

    data: bytes
    tail: Tail
    consumed: int
    mismatch: str | None = None
    sent: int = 0
    wire: tuple[int, int] = (0, 0)
    handshake: tuple[int, int] = (0, 0)
    records: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A connection that a handler has opened.

    Attributes:
      server: what it has connected to, such as ``"db:5432"``.
      sent, received: all bytes that the handler has sent there, and received.
    """

    server: str
    sent: bytes
    received: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A broken law.

    Attributes:
      law: the name of the law.
      how: how it was broken, in a sentence.
      cause: the error that shows it, or None.
      round: the round in which it was broken, counted from 0.
    """

    law: Law
    how: str
    cause: BaseException | None = None
    round: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The outcome of a case.

    Attributes:
      case: the case that was run.
      received: what each peer received, one list for each round; in a round, the
        peers of the first copy come first.
      reports: the server's reports, in the order in which the connections ended.
      steps: scheduler steps of the first round.
      begun: how many of these it took until all TLS handshakes were over; 0 without
        TLS.
      seconds: virtual seconds that the run took.
      violations: the broken laws.
      timeline: what happened.
      opened: the connections that the handlers have opened, in that order.
      places: with ``order="preempted"``, how many other tasks could have run, at each
        place where there were some.
    """

    case: Case
    received: Sequence[Sequence[Received]]
    reports: Sequence[ConnectionReport]
    steps: int
    seconds: float
    violations: Sequence[Violation]
    timeline: Timeline
    opened: Sequence[Opened] = ()
    begun: int = 0
    places: Sequence[int] = ()

    def without_errors(self) -> Run:
        """The same run without what can't be pickled: errors, and handlers' results."""
        violations = [dataclasses.replace(v, cause=None) for v in self.violations]
        return dataclasses.replace(self, reports=(), violations=violations)


class Checked:
    """What a check has tried. ``str()`` makes a table of it.

    Attributes:
      runs: the number of runs, by what they varied.
      sampled: how many places were tried, and of how many, by what was varied there;
        only where some were left out.
      notes: what was not checked, and why, in sentences.
    """

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.sampled: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []
        self._places: dict[str, tuple[int, int]] = {}

    def note_places(self, kind: str, tried: int, of: int) -> None:
        """Note that this many more places were to be varied, and how many are tried."""
        before = self._places.get(kind, (0, 0))
        self._places[kind] = places = before[0] + tried, before[1] + of
        if places[0] < places[1]:
            self.sampled[kind] = places

    def __repr__(self) -> str:
        return f"<Checked: {sum(self.runs.values())} runs>"

    def __str__(self) -> str:
        return "\n".join([*map(self._row, self.runs), *self.notes])

    def _row(self, kind: str) -> str:
        row = f"{self.runs[kind]:5} runs: {kind}"
        if kind in self.sampled:
            tried, of = self.sampled[kind]
            row += f" at {tried} of {of} places"
        return row

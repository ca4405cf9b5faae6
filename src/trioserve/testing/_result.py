"""Results: the outcome of a case, and the failure that explains a broken law."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from trioserve import ConnectionReport

from ._case import LAWS, Case, Law, Setting, as_python
from ._timeline import Timeline
from .network import Tail

#: In a message, the bytes of a case with more characters than this are abbreviated.
_MOST_TEXT: Final = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """What a peer received.

    Attributes:
      data: all bytes that it received.
      tail: what came after them: ``"eof"``, ``"reset"``, or ``"open"`` for neither.
      consumed: how many of these bytes its steps have waited for.
      mismatch: how these bytes differ from its script, or None.
    """

    data: bytes
    tail: Tail
    consumed: int
    mismatch: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A broken law.

    Attributes:
      law: the name of the law.
      how: how it was broken, in a sentence.
      cause: the error that shows it, or None.
    """

    law: Law
    how: str
    cause: BaseException | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The outcome of a case.

    Attributes:
      case: the case that was run.
      received: what each peer received, one list for each round; in a round, the
        peers of the first copy come first.
      reports: the server's reports, in the order in which the connections ended.
      steps: scheduler steps of the first round.
      seconds: virtual seconds that the run took.
      violations: the broken laws.
      timeline: what happened.
    """

    case: Case
    received: Sequence[Sequence[Received]]
    reports: Sequence[ConnectionReport]
    steps: int
    seconds: float
    violations: Sequence[Violation]
    timeline: Timeline


class HandlerFailure(AssertionError):  # noqa: N818 - the handler has failed
    """A handler broke a law.

    Attributes:
      law: the name of the law.
      how: how it was broken, in a sentence.
      case: the case in which that happened.
      run: the outcome of the case.
      again: the Python that runs the case again.
    """

    def __init__(self, law: Law, how: str, run: Run, setting: Setting) -> None:
        self.law = law
        self.how = how
        self.case = run.case
        self.run = run
        self.again = as_python(run.case, setting)
        super().__init__(
            f"law {law!r}: {how}\n\n"
            f"The law: {LAWS[law]}.\n\n"
            f"To run it again:\n\n{_indented(_brief(self.again))}\n\n"
            f"What happened:\n\n{run.timeline}"
        )


def _brief(text: str) -> str:
    """A case without most of its bytes, if it is too long to read."""
    if len(text) <= _MOST_TEXT:
        return text
    long = re.compile(r"b(['\"])(?:\\.|(?!\1).){200,}\1")
    brief = long.sub(lambda found: f"{found[0][:60]}…{found[1]}", text)
    return f"{brief}\n# … stands for bytes that are left out; see failure.again"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())

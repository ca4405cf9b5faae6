"""Results: what came of a case, and the failure that tells a person about it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from trioserve import ConnectionReport

from ._case import LAWS, Case, Law, Setting, as_python
from ._timeline import Timeline
from .network import Tail

#: Characters of a case from which on its bytes are abbreviated in a message.
_MOST_TEXT: Final = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """What a peer received.

    Attributes:
      data: all bytes that came.
      tail: what came after them: ``"eof"``, ``"reset"``, or ``"open"`` for neither.
      consumed: how many of these bytes its steps have waited for.
      mismatch: what its script did not expect, if there was such a thing.
    """

    data: bytes
    tail: Tail
    consumed: int
    mismatch: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A law that was broken.

    Attributes:
      law: its name.
      how: how, in a sentence.
      cause: the error that shows it, if there is one.
    """

    law: Law
    how: str
    cause: BaseException | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a case.

    Attributes:
      case: what was run.
      received: what each peer received, one list for each round; in a round, the
        peers of the first copy come first.
      reports: the server's, in the order in which the connections ended.
      steps: scheduler steps of the first round.
      seconds: virtual seconds that the run took.
      violations: laws that were broken.
      timeline: what happened.
    """

    case: Case
    received: Sequence[Sequence[Received]]
    reports: Sequence[ConnectionReport]
    steps: int
    seconds: float
    violations: Sequence[Violation]
    timeline: Timeline


class HandlerFailure(AssertionError):  # noqa: N818 - it is the handler's
    """A handler broke a law.

    Attributes:
      law: the name of the law.
      how: how, in a sentence.
      case: the case in which it did.
      run: what came of the case.
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

"""Explaining a failure: the smallest case, its law, and what it takes to see it again.

A case is tried again in a copy of the process that knows nothing of earlier runs, so
that what is printed fails in a fresh interpreter too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator
from typing import Final

from ._blame import Blame
from ._case import Case, Handler, Law, Setting
from ._contrast import nearest
from ._failure import HandlerFailure
from ._pristine import Pristine
from ._result import Run
from ._tls_client import OVERHEAD
from ._token import Tokens
from ._trial import Base, Question, Seen, Trial, try_case
from .runs import HangAlarm

#: If only earlier runs explain a failure, this many of them are played in a row.
_OFTEN: Final = (8, 40)

#: At most this many kinds of earlier runs are played.
_MOST_KINDS: Final = 12

_AGAIN: Final = (
    "this case passes when it runs again: earlier runs have left something behind, or"
    " the handler does something else each time"
)
_BEFORE: Final = (
    "this case passes in a fresh process: one of the {} runs before it has left"
    " something behind"
)


class Explainer:
    """Runs cases, and explains what they break.

    Args:
      handler: the handler.
      setting: what is the same in all runs.
      tokens: of the check.

    Attributes:
      base: what other runs are compared with; None to compare nothing.
    """

    def __init__(self, handler: Handler, setting: Setting, tokens: Tokens) -> None:
        self.base: Base | None = None
        self._handler = handler
        self._setting = setting
        self._tokens = tokens
        self._ran = list[Case]()
        self._alarm: HangAlarm | None = None
        self._pristine: Pristine[Question, Trial] | None = None

    @contextlib.contextmanager
    def from_here(self) -> Generator[None]:
        """Within the block, failures are tried again in the state of its begin."""
        self._pristine = Pristine(self._answer)
        try:
            with HangAlarm() as self._alarm:
                yield
        finally:
            self._pristine.close()
            self._pristine = self._alarm = None

    def run(self, case: Case) -> tuple[Run, Seen | None]:
        """Run a case. Return what it breaks, unless that law is switched off."""
        self._ran.append(case)
        return try_case(
            self._handler, case, self._setting, self.base, alarm=self._alarm
        )

    def name(self, run: Run, seen: Seen) -> HandlerFailure | None:
        """The failure of this case; None if its law is switched off."""
        blame, found = self._blame(), (run.case, seen)
        if seen.round < run.case.disturbed:  # before what it has left behind shows
            found = blame.smallest(*found)
        law, _ = blame.law(*found)
        return self._failure(law, seen.how, run, seen)

    def explain(self, run: Run, seen: Seen) -> HandlerFailure | None:
        """The failure of the smallest case; None if its law is switched off."""
        blame = self._blame()
        if seen.is_like(now := self._attempt(run.case).seen) and now is not None:
            found = blame.shortest(*blame.smallest(run.case, now))
            return self._played_again(blame, *found)
        again, seen_again = self.run(run.case)
        if seen_again is None or not seen.is_like(seen_again):
            return self._failure(seen.law, f"{seen.how} ({_AGAIN})", run, seen)
        if (often := self._often()) is not None:
            return self._played_again(blame, *blame.smallest(*often))
        how = f"{seen.how} ({_BEFORE.format(len(self._ran) - 1)})"
        return self._failure("nothing_left", how, again, seen_again)

    def _played_again(
        self, blame: Blame, case: Case, seen: Seen
    ) -> HandlerFailure | None:
        law, how = blame.law(case, seen)
        token = self._tokens.of(case, compares=seen.compares)
        run, now = self.run(case)
        if now is None or now.how != seen.how:
            # What earlier runs have left behind shows something else here.
            run = self._ask(case, with_run=True).run or run
        return self._failure(law, how, run, now or seen, token)

    def _often(self) -> tuple[Case, Seen] | None:
        """A case that is played many times in a row, and fails in the end."""
        kinds = {(case.disturbance, _kinds(case)): case for case in self._ran}
        for case in list(kinds.values())[-_MOST_KINDS:]:
            for often in _OFTEN:
                many = dataclasses.replace(case, disturbed=often, rounds=often + 1)
                if (seen := self._attempt(many).seen) is not None:
                    return many, seen
        return None

    def _blame(self) -> Blame:
        return Blame(self._attempt, overhead=OVERHEAD if self._setting.tls else 0)

    def _attempt(self, case: Case) -> Trial:
        return self._ask(case, with_run=False)

    def _ask(self, case: Case, *, with_run: bool) -> Trial:
        question = case, self.base, with_run
        if self._pristine is None:
            return self._answer(question)
        return self._pristine.ask(question) or Trial(None, 0)

    def _answer(self, question: Question) -> Trial:
        case, base, with_run = question
        run, seen = try_case(self._handler, case, self._setting, base, hurries=True)
        return Trial(seen, run.steps, run.without_errors() if with_run else None)

    def _failure(
        self, law: Law, how: str, run: Run, seen: Seen, token: str = ""
    ) -> HandlerFailure | None:
        if law in self._setting.without:
            return None
        run.timeline.passed = nearest(run, functools.partial(self._ask, with_run=True))
        return HandlerFailure(law, how, run, seen, self._setting, self._handler, token)


def _kinds(case: Case) -> str:
    """The faults of a case, without their numbers."""
    text = f"{case.faults}; {case.server_faults}"
    return "".join(letter for letter in text if not letter.isdigit())

"""The checker: runs the cases of a conversation and compares what peers receive.

It tries small cases first, so that the first failure is a small case.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from ._case import Case, Law, Setting
from ._harness import Handler, play
from ._result import HandlerFailure, Run
from ._variations import PEER_DISTURBANCES, Effort, Variations, sample

#: If one of these laws is broken only when something is varied, the failure names
#: the law about that variation instead, such as ``chunking``.
_VISIBLE: Final[tuple[Law, ...]] = ("answer", "ends", "errors")


class Checker:
    """A handler and its conversation.

    Methods raise :class:`HandlerFailure` if a law is broken.

    Args:
      handler: the handler to check.
      plain: the plain conversation.
      setting: what is the same in all runs.
    """

    def __init__(self, handler: Handler, plain: Case, setting: Setting) -> None:
        self.variations = Variations(
            plain,
            # The second round shows what the first has left behind.
            rounds=1 if "nothing_left" in setting.without else 2,
        )
        self._handler = handler
        self._plain = plain
        self._setting = setting
        self._is_repeatable = False

    def run(self, case: Case, law: Law | None = None) -> Run:
        """Run a case.

        Args:
          law: the law to name if a law that peers can see is broken.
        """
        __tracebackhide__ = True
        run = self._play(case)
        for violation in run.violations:
            broken = violation.law
            if law is not None and broken in _VISIBLE:
                broken = law
            if broken not in self._setting.without:
                how = violation.how
                if not self._play(case).violations:
                    how += " (this case passes when it runs again: earlier runs have"
                    how += " left something behind)"
                raise self._failure(broken, how, run) from violation.cause
        return run

    def plain(self) -> Run:
        """Run the plain conversation."""
        __tracebackhide__ = True
        return self.run(self._plain)

    def all_of(self, cases: Iterable[Case], law: Law | None = None) -> int:
        """Run these cases. Return how many there were."""
        __tracebackhide__ = True
        count = 0
        for case in cases:
            self.run(case, law)
            count += 1
        return count

    def everything(self, effort: Effort, draw: random.Random) -> None:
        """Check all laws in all kinds of cases."""
        __tracebackhide__ = True
        base = self._first(effort)
        left_behind = self._again()
        again = self.run(self._plain, "nothing_left")
        self._is_repeatable = _consumed(base) == _consumed(again)
        up, down = self.lengths(base)
        self.variations = self.variations.with_grain_for(up, down)
        effort = effort.for_runs_of(base.steps + (up + down) / 1000)
        self._same(base, "schedule", self.variations.schedules(effort))
        if left_behind is not None:
            raise left_behind
        self._same(base, "chunking", self.variations.chunkings(effort, draw))
        self._same(base, None, self.variations.slow())
        self.all_of(self.variations.crowd(), "alone")
        self._disturb(base, effort, draw)
        self.all_of(
            self.variations.broken(
                sample(range(up + 1), effort.offsets, draw),
                sample(range(down + 1), effort.offsets, draw),
            )
        )
        self.run(self.variations.flood())

    def lengths(self, base: Run) -> tuple[int, int]:
        """The most bytes that a peer sends, and that one receives."""
        up = max(len(peer.sends) for peer in self._plain.peers)
        return up, max(len(received.data) for received in base.received[0])

    def _play(self, case: Case) -> Run:
        return play(self._handler, case, self._setting)

    def _failure(self, law: Law, how: str, run: Run) -> HandlerFailure:
        return HandlerFailure(law, how, run, self._setting)

    def _first(self, effort: Effort) -> Run:
        """Run the plain conversation.

        If it fails, but passes in another order of tasks, the law ``schedule`` is
        broken.
        """
        __tracebackhide__ = True
        try:
            return self.plain()
        except HandlerFailure as failure:
            if failure.law != "ends" and "schedule" not in self._setting.without:
                for case in self.variations.schedules(effort):
                    if not self._play(case).violations:
                        how = f"in another order of tasks it passes: {failure.how}"
                        raise self._failure("schedule", how, failure.run) from None
            raise

    def _again(self) -> HandlerFailure | None:
        """Run the plain conversation twice in a row.

        If that fails, but one conversation alone passes, return the failure instead
        of raising it: the order of tasks may be the cause, and is tried next.
        """
        try:
            self.run(self.variations.again(), "nothing_left")
        except HandlerFailure as failure:
            if self._play(self._plain).violations:
                raise
            return failure
        return None

    def _same(self, base: Run, law: Law | None, cases: Iterable[Case]) -> None:
        """Check that peers receive the same as in the plain conversation.

        If two plain conversations already differ, check the other laws only.
        """
        __tracebackhide__ = True
        broken: Law = law or "answer"
        for case in cases:
            run = self.run(case, law)
            if broken in self._setting.without or not self._is_repeatable:
                continue
            for was, now in zip(_consumed(base), _consumed(run), strict=True):
                if was != now:
                    how = f"a peer received {now!r}, but {was!r} when nothing is varied"
                    raise self._failure(broken, how, run)

    def _disturb(self, base: Run, effort: Effort, draw: random.Random) -> None:
        __tracebackhide__ = True
        steps = sample(range(base.steps + 1), effort.steps, draw)
        self.all_of(self.variations.disturbed("cancel", steps))
        self.all_of(self.variations.disturbed("drain", steps))
        cut = self.run(self.variations.byte_by_byte(), "chunking")
        between = sample(range(cut.steps + 1), effort.offsets, draw)
        self.all_of(self.variations.drained_byte_by_byte(between))
        for what in PEER_DISTURBANCES:
            few = sample(steps, effort.offsets, draw)
            self.all_of(self.variations.disturbed(what, few))


def _consumed(run: Run) -> list[bytes]:
    """The bytes that each peer's steps have waited for."""
    return [each.data[: each.consumed] for each in run.received[0]]

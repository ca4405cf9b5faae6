"""The catalogue: all handlers that the kit is tried with, with and without mistakes.

``PYTHONPATH=tests python tests/testing/catalogue.py`` prints the tables of
docs/testing-evidence.md, as Markdown; with one of these words, only that one:

- ``mistakes``: the law that a quick check finds each mistake by, the CPU seconds of
  that, and whether the printed test breaks the same law in a fresh interpreter;
- ``thorough``: the mistakes that only ``explore="thorough"`` finds;
- ``correct``: how many correct handlers a quick check accuses, and the CPU seconds of
  that, by what is varied.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testing import dialing, hostile, natural, sized, zoo
from testing.zoo import Handler
from trioserve.testing import Case, Checked, HandlerFailure, Run, _checker

TESTS = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Item:
    """A handler of the catalogue.

    Args:
      make: returns the handler, with fresh state.
      title: what it does, in words.
      law: the law that it breaks; "" if it is correct.
      is_rare: whether only a thorough check is meant to find it.
      check: checks a handler with its conversation; it takes ``explore`` by name.
    """

    make: Callable[[], Handler]
    title: str
    law: str
    check: Callable[..., Checked]
    is_rare: bool = False

    def found(self, **options: Any) -> HandlerFailure | None:
        """The failure of a check, or None."""
        try:
            self.check(self.make(), **options)
        except HandlerFailure as failure:
            return failure
        return None


def _items() -> Iterator[Item]:
    for each in natural.MISTAKES + natural.CORRECT + zoo.MISTAKES + zoo.CORRECT:
        yield Item(each.make, each.title, each.law or "", each.check_of)
    for each in natural.RARE:
        yield Item(each.make, each.title, each.law or "", each.check_of, is_rare=True)
    for one in hostile.ENTRIES + sized.ENTRIES:
        is_rare = one.law == "growth"  # no run of a quick check repeats all messages
        yield Item(one.make, one.title, one.law or "", one.check_of, is_rare)
    for law, make in [*dialing.MISTAKES, *(("", make) for make in dialing.CORRECT)]:
        yield Item(make, f"database: {dialing.title(make)}", law, dialing.check)


CATALOGUE = {item.title: item for item in _items()}
MISTAKES = [item for item in CATALOGUE.values() if item.law]
CORRECT = [item for item in CATALOGUE.values() if not item.law]

_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from testing import catalogue, dialing
from trioserve.testing import HandlerFailure
made = catalogue.CATALOGUE[{title!r}].make()
forget = getattr(made, "forget", len)
scope = {{"database": dialing.database, forget.__name__: forget}}
exec({text!r}, scope)
scope[made.__name__] = made
test = next(value for name, value in scope.items() if name.startswith("test_"))
try:
    test()
except HandlerFailure as failure:
    print(failure.law)
"""


def law_when_fresh(title: str, failure: HandlerFailure) -> str:
    """The law that the printed test breaks in a fresh interpreter, or what it says."""
    text = failure.as_test()
    code = _PROGRAM.format(tests=str(TESTS), title=title, text=text)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return ran.stdout.strip() or ran.stderr.strip()[-300:]


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


@functools.cache
def found_quickly(title: str) -> HandlerFailure | None:
    """The failure of a quick check."""
    return CATALOGUE[title].found()


# -- the tables


def mistakes() -> Iterator[str]:
    """What a quick check says of each mistake."""
    yield "| mistake | law | lines | seconds | alike |"
    yield "|---|---|---|---|---|"
    taken, counted = list[float](), Counter[str]()
    items = [item for item in MISTAKES if not item.is_rare]
    for item in items:
        began = cpu()
        failure = found_quickly(item.title)
        taken.append(cpu() - began)
        if failure is None:
            yield f"| {item.title} | not found | | {taken[-1]:.1f} | |"
            continue
        fresh = law_when_fresh(item.title, failure)
        alike = "yes" if fresh == failure.law else f"no: {fresh!r}"
        law = f"`{failure.law}`" + ("" if failure.law == item.law else " (!)")
        lines = len(str(failure).splitlines())
        counted.update(
            found=1,
            right=failure.law == item.law,
            alike=fresh == failure.law,
            long=lines > 40,
        )
        yield f"| {item.title} | {law} | {lines} | {taken[-1]:.1f} | {alike} |"
    yield (
        f"\n{counted['found']} of {len(items)} found, {counted['right']} by their law;"
        f" {counted['alike']} fail alike in a fresh interpreter; {counted['long']} have"
        f" over 40 lines; median {statistics.median(taken):.2f} s"
    )


def thorough() -> Iterator[str]:
    """The mistakes that only a thorough check finds."""
    yield "| mistake | quick | thorough | seconds |"
    yield "|---|---|---|---|"
    for item in MISTAKES:
        quick = found_quickly(item.title)
        if quick is not None and not item.is_rare:
            continue
        began = cpu()
        failure = item.found(explore="thorough")
        told = [f"`{each.law}`" if each else "not found" for each in (quick, failure)]
        yield f"| {item.title} | {' | '.join(told)} | {cpu() - began:.1f} |"


def correct() -> Iterator[str]:
    """The CPU time of quick checks of correct handlers, by what their runs vary."""
    spent, runs = defaultdict[str, float](float), Counter[str]()
    each_one, accused = list[float](), 0
    one = _checker.Checker._one

    @functools.wraps(one)
    def timed(self: _checker.Checker, case: Case, kind: str) -> Run:
        began = time.process_time()
        try:
            return one(self, case, kind)
        finally:
            spent[kind] += time.process_time() - began
            runs[kind] += 1

    _checker.Checker._one = timed  # type: ignore[method-assign]
    try:
        for item in CORRECT:
            began = cpu()
            if (failure := item.found()) is not None:
                yield f"- {item.title}: {failure}"
                accused += 1
            each_one.append(cpu() - began)
    finally:
        _checker.Checker._one = one  # type: ignore[method-assign]
    checks = len(CORRECT)
    yield "| what is varied | runs | milliseconds a run | seconds a check |"
    yield "|---|---|---|---|"
    for kind, seconds in sorted(spent.items(), key=lambda pair: -pair[1]):
        a_run, a_check = 1000 * seconds / runs[kind], seconds / checks
        yield f"| {kind} | {runs[kind] / checks:.1f} | {a_run:.1f} | {a_check:.2f} |"
    least, *_, most = sorted(each_one)
    middle = statistics.median(each_one)
    yield (
        f"\n{checks} correct handlers, {accused} accused; {least:.1f} to {most:.1f} s,"
        f" median {middle:.2f} s"
    )


TABLES = {table.__name__: table for table in (mistakes, thorough, correct)}


if __name__ == "__main__":
    for word in sys.argv[1:] or TABLES:
        for line in TABLES[word]():
            print(line, flush=True)
        print()

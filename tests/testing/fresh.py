"""Runs the test that a failure prints in a fresh interpreter.

As a program, it prints the table of all mistakes: the law that finds each, the CPU
seconds that it takes, and whether the printed test fails alike in a fresh interpreter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from testing import natural, zoo
from testing.zoo import Entry
from trioserve.testing import HandlerFailure

TESTS = Path(__file__).parents[1]

_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from testing import natural, zoo
from trioserve.testing import HandlerFailure
names = {{entry.name: entry for entry in natural.MISTAKES + zoo.MISTAKES}}
made = names[{name!r}].make()
scope = {{made.__name__: made}}
exec({text!r}, scope)
scope[made.__name__] = made
test = next(value for name, value in scope.items() if name.startswith("test_"))
try:
    test()
except HandlerFailure as failure:
    print(failure.law)
"""


def law_when_fresh(entry: Entry, failure: HandlerFailure) -> str:
    """The law that the printed test breaks in a fresh interpreter, or ""."""
    text = failure.as_test()
    code = _PROGRAM.format(tests=str(TESTS), name=entry.name, text=text)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return ran.stdout.strip() or ran.stderr.strip()[-300:]


def table(entries: list[Entry]) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield "| mistake | law | lines | seconds | fails alike in a fresh interpreter |"
    yield "|---|---|---|---|---|"
    taken = list[float]()
    for entry in entries:
        began = time.process_time()
        failure = zoo.found(entry)
        taken.append(time.process_time() - began)
        if failure is None:
            yield f"| {entry.title} | not found | | {taken[-1]:.1f} | |"
            continue
        fresh = law_when_fresh(entry, failure)
        alike = "yes" if fresh == failure.law else f"no: {fresh!r}"
        law = f"`{failure.law}`" + ("" if failure.law == entry.law else " (!)")
        lines = len(str(failure).splitlines())
        yield f"| {entry.title} | {law} | {lines} | {taken[-1]:.1f} | {alike} |"
    yield f"\nMedian: {statistics.median(taken):.2f} s"


if __name__ == "__main__":
    for line in table(natural.MISTAKES + zoo.MISTAKES):
        print(line, flush=True)

"""The same check prints the same, in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing import natural

TESTS = Path(__file__).parents[1]

_PROGRAM = """
import sys
from testing.catalogue import CATALOGUE
from testing.natural import SHOUTS, counts_connections
from trioserve.testing import run_conversation
for title in sys.argv[1:]:
    print(CATALOGUE[title].found())
for order in ("shuffled", "held_back", "priorities"):
    run = run_conversation(counts_connections(), SHOUTS, copies=5, order=order)
    print(run.timeline)
"""


@pytest.mark.long("three processes")
@pytest.mark.parametrize(
    "titles",
    [
        ["news are sent to a client that has said goodbye"],
        pytest.param(
            list({entry.law: entry.title for entry in natural.MISTAKES}.values())[::4],
            marks=pytest.mark.nightly("several laws, three times"),
        ),
    ],
    ids=len,
)
def test_three_processes_with_other_hashes_print_the_same(titles: list[str]) -> None:
    """Sets and dictionaries have other orders there."""
    printed = set[str]()
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS)}
        program = [sys.executable, "-c", _PROGRAM, *titles]
        ran = subprocess.run(
            program, env=environment, capture_output=True, text=True, check=True
        )
        printed.add(ran.stdout)
    (text,) = printed
    assert text.count("breaks law") == len(titles)

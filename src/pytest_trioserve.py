"""A pytest plugin for trioserve.testing: its options, its reports, and kept failures.

pytest imports it at its start, so it imports nothing of trioserve. The checks of a test
ask :func:`running`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import pytest

__all__ = ["Checks", "running"]


class Checks:
    """What the checks of one test are to do, and what they have done.

    Attributes:
      explore, seed, budget: from the command line; None where nothing is said.
      passed: what each check that has passed has tried, as text.
    """

    def __init__(self, item: pytest.Item) -> None:
        option = item.config.getoption
        self.explore: Literal["quick", "thorough"] | None = option("trioserve_explore")
        self.seed: int | None = option("trioserve_seed")
        self.budget: float | None = option("trioserve_budget")
        self.passed: list[str] = []
        self._item = item
        self._folders: list[Path] = []

    def kept(self) -> Path | None:
        """The folder with the failures of this test; None if they are not kept.

        It may not exist yet.
        """
        folder = _folder_of(self._item)
        if folder is not None:
            self._folders.append(folder)
        return folder

    def forget(self) -> None:
        """Forget the failures of this test, if a check has asked for them."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


#: The last one is that of the test that runs. A test may run pytest itself.
_running: list[Checks] = []


def running() -> Checks | None:
    """What the checks of the running test are to do; None outside of a test."""
    return _running[-1] if _running else None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trioserve", "trioserve.testing")
    group.addoption(
        "--trioserve-explore",
        choices=["quick", "thorough"],
        help="how much each check tries, instead of what its test says",
    )
    group.addoption(
        "--trioserve-seed",
        type=int,
        metavar="N",
        help="which cases each check samples, instead of what its test says",
    )
    group.addoption(
        "--trioserve-budget",
        type=float,
        metavar="SECONDS",
        help="when each check begins no further case, instead of what its test says",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Report what its checks have tried. Forget the failures of a test that passes."""
    _running.append(checks := Checks(item))
    try:
        result = yield
    finally:
        _running.pop()
        for told in checks.passed:
            item.add_report_section("call", "trioserve.testing", told)
    checks.forget()
    return result


def _folder_of(item: pytest.Item) -> Path | None:
    """A folder of this test in pytest's cache; not in CI, which keeps no cache."""
    cache: pytest.Cache | None = getattr(item.config, "cache", None)
    if cache is None or os.environ.get("CI"):
        return None
    try:
        folder = cache.mkdir("trioserve")
    except OSError:
        return None
    name = hashlib.blake2b(item.nodeid.encode(), digest_size=8).hexdigest()
    return folder / name

"""The session: what pytest's command line says about checks, and where they report.

That is in the plugin ``pytest_trioserve``. Without pytest there is no session.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trioserve import Checks


def session() -> Checks | None:
    """What the running test's checks are to do; None without the plugin."""
    plugin = sys.modules.get("pytest_trioserve")
    return None if plugin is None else plugin.running()


def folder_of_failures() -> Path | None:
    """The folder with earlier failures of this test; None if they are not kept."""
    checks = session()
    return None if checks is None else checks.kept()


def report(told: str) -> None:
    """Let pytest show what a check has tried, with ``-rA``."""
    if (checks := session()) is not None:
        checks.passed.append(told)

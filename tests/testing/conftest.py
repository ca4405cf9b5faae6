from __future__ import annotations

import pytest

from trioserve.testing.runs import _watchdog


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog gives up after a fifth of the steps: same result, but quicker."""
    for name in ("_MOST_AT_ONCE", "_MOST_IN_ALL", "_LAST_STEPS"):
        monkeypatch.setattr(_watchdog, name, getattr(_watchdog, name) // 5)

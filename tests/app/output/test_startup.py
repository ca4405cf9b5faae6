"""What is logged at the start: that a limit is low for lack of open files."""

from __future__ import annotations

import pytest

from trioserve import Limits, Timeouts, echo
from trioserve.app._service import Service
from trioserve.app.output._log import Log
from trioserve.app.output._startup import log_low_default


@pytest.mark.parametrize(("most", "said"), [(1, 1), (99, 1), (100, 0)])
def test_a_limit_that_is_low_for_lack_of_files_is_said(most: int, said: int) -> None:
    lines: list[str] = []
    service = Service(
        name="echo",
        listen=(),
        handler=echo,
        limits=Limits(max_connections=most),
        timeouts=Timeouts(),
    )
    log_low_default(Log(lines.append, "logfmt"), service)
    assert len(lines) == said
    assert all(f"max_connections={most}" in line for line in lines)

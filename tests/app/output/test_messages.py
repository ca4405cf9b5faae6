"""Messages: what is short on this machine, in a line."""

from __future__ import annotations

import errno

import pytest

from trioserve import Limits, Timeouts, echo
from trioserve.app._job import Job
from trioserve.app.output._log import Log
from trioserve.app.output._messages import say_few_files, why_not


@pytest.mark.parametrize(("most", "said"), [(1, 1), (99, 1), (100, 0)])
def test_a_limit_that_is_low_for_lack_of_files_is_said(most: int, said: int) -> None:
    lines: list[str] = []
    job = Job(
        name="echo",
        listen=(),
        handler=echo,
        limits=Limits(max_connections=most),
        timeouts=Timeouts(),
    )
    say_few_files(Log(lines.append, "logfmt"), job)
    assert len(lines) == said
    assert all(f"max_connections={most}" in line for line in lines)


def test_a_name_that_no_thread_was_free_to_look_up() -> None:
    said = why_not(OSError(errno.EAGAIN, "no thread", "localhost:80"))
    assert said.startswith("can't look up the host of localhost:80: ")

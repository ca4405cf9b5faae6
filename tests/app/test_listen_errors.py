"""Why a server can't listen, in a line."""

from __future__ import annotations

import errno

from trioserve.app._listen_errors import why_not


def test_a_name_for_which_there_is_no_thread() -> None:
    said = why_not(OSError(errno.EAGAIN, "no thread", "localhost:80"))
    assert said.startswith("can't look up the host of localhost:80: ")

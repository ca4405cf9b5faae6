"""Why a server can't listen, in a line."""

from __future__ import annotations

import errno

from trioserve.app._listen_errors import why_not


def test_a_name_that_no_thread_was_free_to_look_up() -> None:
    said = why_not(OSError(errno.EAGAIN, "no thread", "localhost:80"))
    assert said.startswith("can't look up the host of localhost:80: ")

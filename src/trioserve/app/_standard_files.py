"""Standard files: stdin, stdout and stderr, which a parent may have left out.

Nothing here knows what is read or written.
"""

from __future__ import annotations

import fcntl
import os
import sys

STDIN, STDOUT, STDERR = range(3)


def fill_standard_files() -> None:
    """See that 0, 1 and 2 are in use, to be called before anything is opened.

    A process that was started with stderr closed would get a client's socket as
    file 2, and send it the log. What was closed stays without use: it reads as
    empty, and to write to it is an error.
    """
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= STDERR:
        pass
    os.close(fd)
    if sys.stdout is None:
        # Else what is printed would go nowhere without a word.
        sys.stdout = open(STDOUT, "w", closefd=False)  # noqa: SIM115


def is_writable(fd: int) -> bool:
    """Whether it was opened to be written to."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def give_up(fd: int) -> None:
    """Let go of what can't be written: from here on it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)

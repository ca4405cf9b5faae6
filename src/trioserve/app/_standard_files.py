"""Standard files: stdin, stdout and stderr, which a parent may have closed.

Nothing here knows what is read or written.
"""

from __future__ import annotations

import fcntl
import os
import sys

STDIN, STDOUT, STDERR = range(3)


def fill_standard_files() -> None:
    """Open descriptors 0, 1 and 2 if they are closed. Call it before any open(2).

    Otherwise, in a process that was started with stderr closed, a client's socket
    would become descriptor 2 and get the log. Reading from the new descriptors gives
    EOF, and writing to them is an error.
    """
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= STDERR:
        pass
    os.close(fd)
    if sys.stdout is None:
        # Otherwise print() would silently drop its text.
        sys.stdout = open(STDOUT, "w", closefd=False)  # noqa: SIM115


def is_writable(fd: int) -> bool:
    """Whether a descriptor was opened for writing."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def give_up(fd: int) -> None:
    """Discard what is written to a descriptor from here on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)

"""File operations of a writer, none of which waits for long.

Descriptors, paths and bytes in. Nothing here knows lines, threads or queues.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path
from typing import Final

#: Seconds that `write_some` waits for room.
_WAIT_FOR_ROOM: Final = 0.05

#: A flag of pwritev(2): write only what there is room for; 0 if Python lacks it.
_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)

#: The errors of kernels and files that don't support the flag.
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE}


def open_to_append(path: str) -> int:
    """Open a file for appending; create it if it does not exist.

    Never waits: a named pipe without a reader is an error (ENXIO).

    Raises:
      OSError: it can't be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)


def is_rotated(fd: int, path: str) -> bool:
    """Whether ``path`` no longer names the file behind ``fd``.

    Only regular files are rotated: for pipes and devices, this is False.
    """
    try:
        ours = os.fstat(fd)
    except OSError:  # the file system is gone: the next write will fail
        return False
    if not stat.S_ISREG(ours.st_mode):
        return False
    try:
        return not os.path.samestat(ours, Path(path).stat())
    except OSError:
        return True


def ends_torn(fd: int, path: str | None) -> bool:
    """Whether a regular file ends in half a line; False if it can't be read."""
    try:
        ours = os.fstat(fd)
        if not stat.S_ISREG(ours.st_mode) or not ours.st_size:
            return False
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        reader = os.open(path or f"/dev/fd/{fd}", flags)
        with os.fdopen(reader, "rb", buffering=0) as file:
            # Meanwhile, the name may have been given to another file.
            if not os.path.samestat(ours, os.fstat(reader)):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def write_some(fd: int, data: memoryview) -> int:
    """Write what there is room for; return how many bytes, 0 after 50 ms without room.

    Raises:
      OSError: it can't be written.
    """
    try:
        return _write_now(fd, data)
    except BlockingIOError:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.poll(_WAIT_FOR_ROOM * 1000)
        return 0


def _write_now(fd: int, data: memoryview) -> int:
    # An inherited pipe may be in blocking mode, and other processes that share it
    # may depend on that. While a blocking write waits, it is unknown how much of it
    # was written.
    mode = os.fstat(fd).st_mode
    if _NOWAIT and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        try:
            return os.pwritev(fd, [data], -1, _NOWAIT)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    return os.write(fd, data)

"""Errors: which end the program, and which are no peer's doing."""

from __future__ import annotations

import errno
from typing import Final

#: No layer may keep these to itself.
PROGRAM_ENDS: Final = (KeyboardInterrupt, SystemExit)


def only(
    error: BaseException, kinds: tuple[type[BaseException], ...]
) -> BaseException | None:
    """The part of ``error`` that is of these kinds."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kinds)
    return error if isinstance(error, kinds) else None


#: What this machine or this process has too little of: descriptors, memory, buffers,
#: epoll watches. Linux's manual pages of socket(2), connect(2) and epoll_ctl(2).
_SHORTAGES: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether ``error`` says that this machine lacks something, and no peer does.

    Of connect(2), EADDRNOTAVAIL is one too (no local port is free), which
    whoever connects has to know: of bind(2) it is not.
    """
    return isinstance(error, OSError) and error.errno in _SHORTAGES


#: What this machine does not let us do: a filter of system calls, a kernel without one
#: of them, a kind of file that can't, an epoll that won't. No network and no peer
#: brings these about.
_DENIALS: Final = frozenset(
    (
        *(errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EIO),
        *(errno.ESPIPE, errno.EEXIST, errno.ELOOP),
    )
)

#: A descriptor was closed behind our back: it is nobody's, or something else by now.
_CLOSED: Final = frozenset((errno.EBADF, errno.ENOTSOCK, errno.ENOENT))


def is_ours(error: BaseException | None) -> bool:
    """Whether this machine says no, to whatever is done with any socket."""
    denied = isinstance(error, OSError) and error.errno in _DENIALS
    return denied or is_shortage(error)


def is_closed(error: BaseException | None) -> bool:
    """Whether ``error`` says that a descriptor was closed by somebody else."""
    return isinstance(error, OSError) and error.errno in _CLOSED

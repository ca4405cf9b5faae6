"""Errors: which end the program, which say what this machine lacks."""

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

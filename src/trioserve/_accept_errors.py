"""Accept errors: what an errno of accept(2) says about the listener.

Numbers only; the acceptors decide what is done about them.
"""

from __future__ import annotations

import errno
from typing import Final


def _errnos(*names: str) -> frozenset[int]:
    """The numbers of these names, without names that this system lacks."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


#: Nothing to accept: another process or thread was faster.
NOTHING: Final = _errnos("EAGAIN", "EWOULDBLOCK")

#: One connection was gone before it was accepted; the next may be fine.
#: accept(2), "Error handling"; the same list as in Trio.
CONNECTION_GONE: Final = _errnos(
    "EINTR", "ECONNABORTED", "ECONNRESET", "EPERM", "EPROTO", "ENETDOWN",
    "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP",
    "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ETIMEDOUT",
)  # fmt: skip

#: Out of descriptors: closing the reserved one makes room to refuse a client.
NO_FDS: Final = _errnos("EMFILE", "ENFILE")

#: This listener will never accept again.
DEAD: Final = _errnos("EBADF", "ENOTSOCK")

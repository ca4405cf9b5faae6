"""Accept errors: what an errno of accept(2) says of the listener and the next client.

Numbers only; what is done about them is decided elsewhere.
"""

from __future__ import annotations

import errno
from typing import Final


def _errnos(*names: str) -> frozenset[int]:
    """The numbers of those that this system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


#: Nothing to accept: another process or thread was faster.
NOTHING: Final = _errnos("EAGAIN", "EWOULDBLOCK")

#: One connection is gone before it was accepted; the next may be fine.
#: accept(2), "Error handling"; the same list as Trio's.
ONE_IS_GONE: Final = _errnos(
    "EINTR", "ECONNABORTED", "ECONNRESET", "EPERM", "EPROTO", "ENETDOWN",
    "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP",
    "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ETIMEDOUT",
)  # fmt: skip

#: Out of descriptors: giving up a reserved one lets us tell the client.
NO_FDS: Final = _errnos("EMFILE", "ENFILE")

#: This listener is over.
DEAD: Final = _errnos("EBADF", "ENOTSOCK")

"""Why a server can't listen, in a line that says what else to try.

An `OSError` in, a text out. Nothing here binds a socket.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from pathlib import Path

from trioserve import UnixAddress, parse_address


def why_not(error: OSError) -> str:
    """Why a server can't listen on ``error.filename``, and what else to try."""
    where = error.filename
    if isinstance(error.__cause__, socket.gaierror):
        return f"can't find the host of {where}: {error.strerror}; is it spelt right?"
    if error.errno == errno.EAGAIN:
        return (
            f"can't look up the host of {where}: the limit of threads is reached"
            " (ulimit -u, TasksMax= in systemd, the pids limit of a container)"
        )
    if error.filename2 is not None:
        return (
            f"can't listen on both {where} and {error.filename2}: one of them is all"
            " interfaces, which includes the other; leave the other one out"
        )
    address = parse_address(where)
    if isinstance(address, UnixAddress):
        return _why_not_unix(address, error)
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{where} is already in use; stop what listens there, or use another"
                " port (0 picks a free one)"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"{where} is not an address of this machine; use 127.0.0.1 for this"
                " machine only, or no host for all interfaces"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"no permission to listen on {where}: ports below 1024 need root or"
                " CAP_NET_BIND_SERVICE, higher ones don't"
            )
        case _:
            return f"can't listen on {where}: {error.strerror or error}"


def _why_not_unix(address: UnixAddress, error: OSError) -> str:
    folder = Path(address.path).parent
    match error.errno:
        case errno.EADDRINUSE if _is_foreign(address):
            return (
                f"{address} belongs to user {_owner(address.path)}, and you may neither"
                " connect to it nor replace it; use another path"
            )
        case errno.EADDRINUSE if address.is_abstract or Path(address.path).is_socket():
            return f"{address} is already in use; stop what listens there"
        case errno.EADDRINUSE:
            return f"{address.path} exists and is not a socket; use another path"
        case errno.ENOENT:
            return f"can't listen on {address}: directory {folder} does not exist"
        case errno.EACCES | errno.EPERM if Path(address.path).is_socket():
            return (
                f"{address} was left behind by user {_owner(address.path)}, and you may"
                " not replace it; use another path"
            )
        case errno.EACCES | errno.EPERM:
            return f"no permission to listen on {address}: can you write to {folder}?"
        case _:
            return f"can't listen on {address}: {error.strerror or error}"


def _is_foreign(address: UnixAddress) -> bool:
    # Connecting to a Unix socket needs the permission to write to it.
    path = Path(address.path)
    if address.is_abstract or not path.is_socket():
        return False
    return not os.access(path, os.W_OK, effective_ids=True)


def _owner(path: str) -> str:
    number = Path(path).stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)

"""Dialing: from an address to a connected transport, under one deadline.

It knows names and addresses, and not who asks or what for.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

import trio

from ._address import Address, is_numeric
from ._transport import SocketTransport

#: Errors of a connection that was made, and reset before we could look: the
#: second if it was closed before. A target that doesn't accept is ECONNREFUSED.
_RESET_AFTER: Final = (errno.ECONNRESET, errno.EPIPE)


async def dial(address: Address, seconds: float) -> SocketTransport:
    """Connect to ``address``, trying each of a name's addresses in turn.

    Args:
      seconds: for all of it, the look-up of the name included.

    Raises:
      TimeoutError: it took longer.
      OSError: no address could be connected to; the error of the last.

    Cancelled, it leaves no socket behind; a look-up of a name goes on in its
    thread, and its answer is thrown away.
    """
    with trio.move_on_after(seconds):
        failed: OSError | None = None
        for family, kind, protocol, _, sockaddr in await _look_up(address):
            try:
                return await _connect(family, kind, protocol, sockaddr)
            except OSError as error:
                failed = error
        assert failed is not None
        raise failed
    raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s")


async def _look_up(address: Address) -> list[Any]:
    # Numbers need no thread: they must not wait for other people's names.
    flags = socket.AI_NUMERICHOST if is_numeric(address.host) else 0
    return await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=flags
    )


async def _connect(
    family: int, kind: int, protocol: int, sockaddr: Any
) -> SocketTransport:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        code = sock.connect_ex(sockaddr)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.checkpoint()
        # A free port of this machine may be given to our own end, which then
        # connects to itself (RFC 9293, section 3.5, simultaneous open).
        if not code and _is_to_itself(sock):
            code = errno.ECONNREFUSED
        if code and code not in _RESET_AFTER:
            raise OSError(code, os.strerror(code))
        transport = SocketTransport(sock)
        if code:
            # What it sent before is still to be received. The kernel has
            # forgotten the error by now, and would say EOF after that.
            transport.error = OSError(code, os.strerror(code))
        return transport
    except BaseException:
        sock.close()
        raise


def _is_to_itself(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False  # it was reset meanwhile; whoever receives will be told

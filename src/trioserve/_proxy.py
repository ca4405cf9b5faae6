"""Proxy: each connection is relayed to a target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ._address import Address
from ._connection import Connection
from ._dial import dial
from ._options import Timeouts
from ._relay import relay_transports
from ._report import Phase, Reason


def proxy(
    target: str | Address, *, timeouts: Timeouts | None = None
) -> Callable[[Connection], Awaitable[None]]:
    """A handler that dials ``target`` and relays.

    If the target can't be reached within ``Timeouts.connect``, the client is
    reset and the report says why. While it dials, nothing is read from the
    client.

    Args:
      target: what :meth:`Address.parse` reads, with a host.
      timeouts: for dialing and relaying; default: those of the server.

    Raises:
      ValueError: the target can't be read or has no host.
    """
    address = target if isinstance(target, Address) else Address.parse(target)
    if not address.host:
        raise ValueError(
            f"the target {str(address)!r} has no host;"
            f" did you mean 127.0.0.1:{address.port}?"
        )
    if not address.port:
        raise ValueError(f"the target {str(address)!r} has port 0: it can't be dialed")

    async def proxy_handler(conn: Connection) -> None:
        times = timeouts or conn._timeouts
        conn._target = str(address)
        conn._phase = Phase.CONNECT
        try:
            upstream = await dial(address, times.connect)
        except OSError as error:
            conn._conclude(_reason(error), exception=error)
            conn._transport.abort()
            return
        conn._phase = Phase.DATA
        conn._connected = trio.current_time() - conn._accepted_at
        try:
            await relay_transports(conn._transport, upstream, conn, timeouts=times)
        except BaseException:
            upstream.abort()
            raise
        upstream.close()

    return proxy_handler


def _reason(error: OSError) -> Reason:
    if isinstance(error, TimeoutError):
        return Reason.CONNECT_TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Reason.CONNECT_REFUSED
    return Reason.CONNECT_FAILED

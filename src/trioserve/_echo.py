"""Echo: a handler that sends every byte back."""

from __future__ import annotations

from ._arguments import check_type
from ._connection import Connection
from ._relay import relay


async def echo(conn: Connection) -> None:
    """Send back every byte, and answer EOF with EOF.

    While the server drains, it ends a connection that was idle for a second,
    or for ``Timeouts.drain_idle`` if that is less. A cancellation resets the connection
    if it holds bytes.

    Raises:
      TypeError: ``conn`` is not a Connection.
    """
    check_type("conn", conn, Connection, "a Connection")
    await relay(conn, conn, drain_idle=min(1.0, conn.timeouts.drain_idle))

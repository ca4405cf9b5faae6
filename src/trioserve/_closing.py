"""Closing: how a connection is closed so that its peer gets what was sent.

The kernel resets a socket that is closed with unread bytes in it, and the peer may then
lose what was sent to it. So unread bytes are discarded first, up to a bound. Whether a
connection is closed like this, and why, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from ._transport import FAILURES, Transport

#: Bytes that are discarded before a close does not wait any longer for EOF.
LINGER_BYTES: Final = 65536


def close_by_fin(transport: Transport, goodbye: bytes = b"") -> None:
    """Close without waiting, by FIN unless the peer has sent very much.

    Args:
      goodbye: sent before, as far as that goes without waiting.
    """
    if goodbye:
        transport.send_refusal(goodbye)
    transport.discard_readable(LINGER_BYTES)
    transport.close()


async def linger(transport: Transport, seconds: float) -> None:
    """Send EOF, and discard bytes until the peer's EOF; the transport stays open.

    Args:
      seconds: for how long at most.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    if transport.eof or transport.error is not None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return
    if not transport.can_half_close:
        return
    # Another task that uses the transport gets the error of the close, as with Trio's
    # streams; and the handler may have taken the socket away.
    with contextlib.suppress(*FAILURES):
        await transport.send_eof()
        await transport.discard(LINGER_BYTES, seconds)

"""Closing: close a connection so that its peer gets all that was sent.

If a socket is closed with unread bytes in it, the kernel sends a RST, and the peer may
lose bytes that were sent to it. So unread bytes are discarded first, up to a bound.
This module does not know when a connection is closed like this.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from ._transport import FAILURES, Transport

#: A close that waits for the peer's EOF discards at most this many bytes.
LINGER_BYTES: Final = 65536


def close_by_fin(transport: Transport, goodbye: bytes = b"") -> None:
    """Close without waiting, by FIN, or by RST if the peer has sent over 64 KiB.

    Args:
      goodbye: bytes to send first, as many as the kernel takes without waiting.
    """
    if goodbye:
        transport.send_refusal(goodbye)
    transport.discard_readable(LINGER_BYTES)
    transport.close()


async def linger(transport: Transport, seconds: float) -> None:
    """Send EOF, and discard bytes until the peer's EOF; the transport stays open.

    Args:
      seconds: the longest wait; bytes that the peer acknowledges extend it.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    if transport.eof or transport.error is not None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return
    if not transport.can_half_close:
        return
    # If another task uses the transport, that task gets ClosedResourceError from the
    # close, as with Trio's streams. The handler may also have closed the socket.
    with contextlib.suppress(*FAILURES):
        await transport.send_eof()
        await transport.discard(LINGER_BYTES, seconds)

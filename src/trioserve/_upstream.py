"""Upstream: what is sent to a target before the bytes of a relay.

First a PROXY header, then the handshake of TLS, as HAProxy does. This module does not
know why the target was chosen, or what is tried next.
"""

from __future__ import annotations

import contextlib

import trio

from ._describe import describe
from ._errors import copy_of
from ._socket_transport import SocketTransport
from ._tls_transport import TlsTransport
from ._transport import Transport
from .wire._tls_errors import TlsError
from .wire._tls_session import TlsSession


async def greet(
    transport: Transport,
    header: bytes,
    session: TlsSession | None = None,
    *,
    allow_truncation: bool = False,
) -> Transport:
    """Send a PROXY header, unless it is empty, and shake hands if there is a session.

    The header does not count as sent. If it can't be sent, the transport keeps the
    error.

    Args:
      allow_truncation: as for :class:`TlsTransport`.

    Returns:
      the transport for the relay.

    Raises:
      TlsError: the handshake has failed; the alert was sent.
      OSError: the connection broke in the handshake.

    If it fails or is cancelled, it closes the transport.
    """
    if header:
        await _send(transport, header)
    if session is None:
        return transport
    return await _begin_tls(
        TlsTransport(transport, session, allow_truncation=allow_truncation)
    )


async def _send(transport: Transport, header: bytes) -> None:
    if isinstance(transport, SocketTransport):
        transport.send_preface(header)
        return
    try:
        with contextlib.suppress(trio.BrokenResourceError):
            await transport.send(header)
            transport.sent -= len(header)
    except BaseException:
        transport.abort()
        raise


async def _begin_tls(secure: TlsTransport) -> TlsTransport:
    try:
        await secure.handshake()
    except TlsError:
        secure.close()
        raise
    except trio.BrokenResourceError:
        error = secure.error
        secure.abort()
        assert error is not None
        if isinstance(error, OSError):
            raise copy_of(error) from None
        raise TlsError(describe(error)) from None
    except BaseException:
        secure.abort()
        raise
    # The relay's timers, and the report's time of connecting, begin here.
    secure.moved_at = secure.clock.current_time()
    return secure

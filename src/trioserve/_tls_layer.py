"""The TLS layer: end a client's TLS, so that its handler gets plain bytes.

This module knows connections, and which clients may come. It does not know how bytes
are encrypted.
"""

from __future__ import annotations

import ssl
from typing import Any

import trio

from ._certificates import Certificates
from ._closing import linger
from ._describe import escape
from ._lifecycle import Lifecycle
from ._reason import Reason
from ._tls_options import TlsOptions
from ._tls_transport import TlsTransport
from .wire._proxy_tlvs import ALPN
from .wire._tls_errors import TlsError
from .wire._tls_session import TlsSession


class TlsLayer:
    """Shake hands with a client, and check the names in its certificate.

    Args:
      tls: certificates with their options, or a context of the caller's own.

    Attributes:
      certificates: the certificates; None with a context of the caller's own.
    """

    def __init__(self, tls: Certificates | ssl.SSLContext) -> None:
        self.certificates = tls if isinstance(tls, Certificates) else None
        self._tls = tls

    @property
    def _options(self) -> TlsOptions | None:
        return None if self.certificates is None else self.certificates.options

    def _session(self) -> TlsSession:
        """A new session. A reload during its handshake does not change it."""
        if not isinstance(self._tls, Certificates):
            return TlsSession(self._tls, server_side=True)
        self._tls.look()
        now = self._tls.in_use
        return TlsSession(now.default, server_side=True, context_for=now.context_for)

    def begin(self, life: Lifecycle, began_at: float) -> TlsTransport:
        """Put a new TLS transport over the one that a connection has.

        Args:
          began_at: since when it waits for the client's first bytes, on Trio's clock.
        """
        options = self._options
        transport = TlsTransport(
            life.transport,
            self._session(),
            began_at=began_at,
            allow_truncation=options is not None and options.allow_truncation,
            grace=life.timeouts.linger,
        )
        life.replace_transport(transport)
        return transport

    def check(self, life: Lifecycle, session: TlsSession) -> None:
        """Check the names in a client's certificate, after the handshake.

        Raises:
          TlsError: none of them is allowed.
        """
        life.server_name = session.server_name
        if (options := self._options) is not None:
            _check_names(session.object, options)

    async def __call__(self, life: Lifecycle) -> Reason | None:
        transport = life.transport
        if not isinstance(transport, TlsTransport):  # else the engine has begun
            # It may be closed or late already; then it needs no session.
            transport.check_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            transport = self.begin(life, trio.current_time())
        below = transport.below
        try:
            await transport.handshake()
            self.check(life, transport.session)
        except TlsError as error:
            if not below.received:
                return Reason.CLIENT_CLOSED  # a check that only connects
            transport.keep_error(error)
            life.close_as(Reason.TLS_FAILED, error=escape(str(error)))
            # With its bytes unread, a close would be a reset, and the alert lost.
            await linger(below, life.timeouts.linger)
            return Reason.TLS_FAILED
        return None


def agreed_alpn(life: Lifecycle) -> str | None:
    """The protocol that a client has agreed on by TLS; None if it has on none.

    If a load balancer has ended its TLS, that is what the PROXY header says.
    """
    declared = None if life.header is None else life.header.find(ALPN)
    if declared is not None:
        return declared.decode("latin-1")
    transport = life.transport
    if isinstance(transport, TlsTransport):
        return transport.session.object.selected_alpn_protocol()
    return None


def _check_names(session: ssl.SSLObject, options: TlsOptions) -> None:
    """Check that a client with this certificate may come.

    Raises:
      TlsError: it may not.
    """
    if not (options.allow_cn or options.allow_san or options.allow_uri):
        return
    certificate: Any = session.getpeercert() or {}
    found = [
        *(("CN", each) for each in _common_names(certificate)),
        *certificate.get("subjectAltName", ()),
    ]
    allowed = {"CN": options.allow_cn, "DNS": options.allow_san}
    allowed |= {"IP Address": options.allow_san, "URI": options.allow_uri}
    if not any(name in allowed.get(kind, ()) for kind, name in found):
        names = ", ".join(f"{kind}:{name}" for kind, name in found) or "none"
        raise TlsError(f"its certificate has no name that is allowed; it has {names}")


def _common_names(certificate: Any) -> list[str]:
    return [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    ]

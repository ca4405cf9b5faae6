"""TLS with one target: what each connection to it begins with.

Options in, sessions out. This module does not know connections.
"""

from __future__ import annotations

import ssl

from ._tls_options import TlsClientOptions, client_context
from .wire._tls_session import TlsSession


class TlsClient:
    """The client's end of TLS with one target.

    Args:
      tls: options, or a context of the caller's own.
      host: the target's host, as it is encoded for a resolver.

    Raises:
      ValueError: a file can't be used any more.

    Attributes:
      allow_truncation: whether the target's FIN is EOF, also without a close_notify.
    """

    def __init__(self, tls: TlsClientOptions | ssl.SSLContext, host: str) -> None:
        self._name = host.partition("%")[0].removesuffix(".")
        self.allow_truncation = False
        if isinstance(tls, ssl.SSLContext):
            self._context = tls
        else:
            self._context = client_context(tls)
            self._name = tls.sni or self._name
            self.allow_truncation = tls.allow_truncation

    def new_session(self) -> TlsSession:
        """A session for one connection."""
        return TlsSession(
            self._context, server_side=False, server_hostname=self._name
        )

"""TLS facts: what a handshake has agreed on, for the report of its connection.

This module asks OpenSSL. It does not know connections.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from ._describe import escape
from ._report import TlsFacts
from .wire._tls_errors import TlsError
from .wire._tls_session import TlsSession

#: The usual short names of the parts of a subject. RFC 4514, section 3
_SHORT: Final = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
}


def facts_of(session: TlsSession, seconds: float) -> Callable[..., TlsFacts]:
    """What a handshake of this many seconds has agreed on; the bytes are missing.

    Call it at the end of the handshake: after an error OpenSSL does not tell.

    Raises:
      TlsError: a name in the peer's certificate is not text.
    """
    tls = session.object
    try:
        certificate: Any = tls.getpeercert() or {}
    except UnicodeDecodeError:
        raise TlsError("its certificate has a name that is not valid UTF-8") from None
    subject = ",".join(
        f"{_SHORT.get(key, key)}={value}"
        for part in certificate.get("subject", ())
        for key, value in part
    )
    names = certificate.get("subjectAltName", ())
    alpn, cipher = tls.selected_alpn_protocol(), tls.cipher()
    assert cipher is not None
    return functools.partial(
        TlsFacts,
        version=tls.version() or "",
        cipher=cipher[0],
        sni=session.server_name,
        alpn=None if alpn is None else escape(alpn),
        subject=escape(subject) if certificate else None,
        names=tuple(escape(f"{kind}:{name}") for kind, name in names),
        resumed=bool(tls.session_reused),
        handshake=seconds,
    )

"""Proxy facts: what a PROXY header says of a client besides its addresses.

This module reads and makes the fields of a header. It does not know connections.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

from ._describe import escape
from ._report import ProxyFacts
from .wire._proxy_protocol import ProxyHeader
from .wire._proxy_tlvs import ALPN, AUTHORITY, SSL, UNIQUE_ID, ClientTls, Tlv


def facts_declared(header: ProxyHeader | None) -> ProxyFacts | None:
    """What a header says of its client; None if it says no more than addresses."""
    if header is None or not header.tlvs:
        return None
    tls = header.tls
    return ProxyFacts(
        alpn=_text(header.find(ALPN)),
        authority=_text(header.find(AUTHORITY)),
        unique_id=_text(header.find(UNIQUE_ID)),
        tls=None if tls is None else tls.is_tls,
        version=None if tls is None else _text(tls.version),
        cipher=None if tls is None else _text(tls.cipher),
        common_name=None if tls is None else _text(tls.common_name),
        verified=None if tls is None else tls.is_verified,
        tlvs=header.tlvs,
    )


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    return escape(value.decode("utf-8", "backslashreplace"))


def tlvs_for(
    header: ProxyHeader, tls: ssl.SSLObject | None, server_name: str | None
) -> Iterator[Tlv]:
    """The fields for a target, in HAProxy's order.

    A field of the client's own header comes before ours: the sender of that header has
    the connection to the client itself.

    Args:
      header: the client's own header, or an empty one.
      tls: the end of the client's TLS, if it was ended here.
      server_name: the name that the client has asked for by TLS.
    """
    ours = dict[int, bytes]()
    if server_name is not None:
        ours[AUTHORITY] = server_name.encode()
    if tls is not None:
        if (alpn := tls.selected_alpn_protocol()) is not None:
            ours[ALPN] = alpn.encode()
        ours |= [_client_tls(tls).tlv()]
    for kind in (ALPN, AUTHORITY, UNIQUE_ID, SSL):
        value = header.find(kind)
        if value is None:
            value = ours.get(kind)
        if value is not None:
            yield kind, value


def _client_tls(tls: ssl.SSLObject) -> ClientTls:
    certificate: Any = tls.getpeercert() or {}
    cipher = tls.cipher()
    assert cipher is not None
    names = (
        value.encode()
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    )
    return ClientTls(
        is_tls=True,
        shows_certificate=bool(certificate),
        shows_it_now=bool(certificate) and not tls.session_reused,
        error=0 if certificate else 1,
        version=(tls.version() or "").encode(),
        cipher=cipher[0].encode(),
        common_name=next(names, None),
    )

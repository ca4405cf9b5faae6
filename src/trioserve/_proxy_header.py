"""PROXY headers: read the one that declares a client, make the one for a target.

This module knows connections, and from which networks a header is accepted. The bytes
of a header are in :mod:`.wire`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import trio

from ._access import Access, AccessRule, parse_network
from ._address import Address, TcpAddress, address_in, sockaddr_text
from ._describe import escape
from ._lifecycle import Lifecycle
from ._proxy_facts import tlvs_for
from ._reason import Reason
from ._tls_transport import TlsTransport
from ._transport import Transport
from .wire._proxy_protocol import (
    LONGEST,
    Endpoint,
    ProxyHeader,
    ProxyHeaderError,
    build_v1,
    build_v2,
    parse_header,
)

Version = Literal["v1", "v2"]

_NO_HEADER: Final = ProxyHeader(0)


class ProxyHeaderLayer:
    """Take over the client that a PROXY header declares.

    Args:
      networks: those from which each connection has a header.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        rules = [AccessRule(True, parse_network(each)) for each in networks]
        self._senders = Access(rules)

    def expects_header(self, peer: Address | None) -> bool:
        """Whether a connection that comes from there must begin with a header."""
        return self._senders.allows(peer)

    async def __call__(self, life: Lifecycle) -> Reason | None:
        if not self.expects_header(address_in(life.peer)):
            return None
        try:
            header = await _receive_header(life.transport)
        except ProxyHeaderError as error:
            life.close_as(Reason.BAD_PROXY_HEADER, error=str(error))
            return Reason.BAD_PROXY_HEADER
        if header is None:
            return Reason.CLIENT_CLOSED
        life.header = header
        if header.source is None:
            return None
        # The path of a Unix socket may be any bytes.
        peer = escape(sockaddr_text(header.source))
        # If it is the balancer's own address and port, it is a check of version 1,
        # which has no LOCAL. Section 2.1
        if peer != life.peer:
            life.direct = life.peer, life.local
            life.peer, life.local = peer, escape(sockaddr_text(header.destination))
            task = trio.lowlevel.current_task()
            task.name = f"conn-{life.id} {life.peer}"
        return None


async def _receive_header(transport: Transport) -> ProxyHeader | None:
    """Receive a header, and give back what comes after it; None at EOF before it.

    The bytes of a header are not the client's, so they don't count as received. If
    there is no valid one, all bytes count as received, and as discarded.
    """
    data = b""
    try:
        while (header := parse_header(data)) is None:
            more = await transport.receive(LONGEST - len(data))
            if not more and data:
                raise ProxyHeaderError("it ended within its PROXY header")
            if not more:
                return None
            data += more
    except BaseException:
        transport.unread(data)
        raise
    transport.unread(data[header.size :])
    transport.forget_received(header.size)
    return header


def header_for(life: Lifecycle, version: Version) -> bytes:
    """Make the header that declares the client of a connection to a target.

    As in HAProxy, a client without an IP address is LOCAL or UNKNOWN. In version 2, it
    also says what is known of its TLS.
    """
    header = life.header or _NO_HEADER
    source, destination = header.source, header.destination
    if source is None:
        source, destination = _endpoint(life.peer), _endpoint(life.local)
    if version == "v1":
        return build_v1(source, destination)
    transport = life.transport
    tls = transport.session.object if isinstance(transport, TlsTransport) else None
    return build_v2(source, destination, tlvs_for(header, tls, life.server_name))


def header_for_check(version: Version) -> bytes:
    """Make the header that declares no client: UNKNOWN, or LOCAL. Section 2."""
    return build_v1(None, None) if version == "v1" else build_v2(None, None)


def _endpoint(text: str) -> Endpoint | None:
    address = address_in(text)
    return (address.host, address.port) if isinstance(address, TcpAddress) else None

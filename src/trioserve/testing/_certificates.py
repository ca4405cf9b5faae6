"""Certificates: an authority of a process, for TLS in memory. They need trustme."""

from __future__ import annotations

import functools
import itertools
import ssl
from typing import Final, NamedTuple

#: The name that clients ask for, and that the server's certificate has.
SERVER_NAME: Final = "localhost"

#: A serial number with fewer bits is shorter in the certificate.
_SERIAL_BITS: Final = 152


class Contexts(NamedTuple):
    """The contexts of the two ends of a TLS connection."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@functools.cache
def contexts() -> Contexts:
    """The contexts of this process. Each handshake has the same number of bytes.

    Raises:
      ImportError: trustme is not installed.
    """
    try:
        import trustme
        from cryptography import x509
    except ModuleNotFoundError:
        raise ImportError("tls=True needs trustme: pip install trustme") from None
    # Signatures of ECDSA differ in length; those of RSA don't.
    rsa = trustme.KeyType.RSA
    authority = trustme.CA(key_type=rsa)
    made = Contexts(
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    for context in made:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_ecdh_curve("prime256v1")
    issued = (
        authority.issue_cert(SERVER_NAME, key_type=rsa) for _ in itertools.count()
    )
    pems = ((each, each.cert_chain_pems[0].bytes()) for each in issued)
    certificate = next(
        each
        for each, pem in pems
        if x509.load_pem_x509_certificate(pem).serial_number.bit_length()
        >= _SERIAL_BITS
    )
    certificate.configure_cert(made.server)
    authority.configure_trust(made.client)
    # A session ticket has the time in it, and differs in length.
    made.server.num_tickets = 0
    return made

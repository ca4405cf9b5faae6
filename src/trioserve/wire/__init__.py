"""trioserve.wire: protocols as bytes and values.

The map, from the bottom up; a module imports only from rows above its own here:

    _certificate   _client_hello   _proxy_tlvs   _tls_errors   _tls_records
    _proxy_protocol   _tls_session

RULE: bytes in, values out. Nothing here does I/O, or knows Trio or a clock.
The names below are those that trioserve.testing uses.
"""

from ._tls_errors import TlsError
from ._tls_session import RECORD, TlsSession

__all__ = ["RECORD", "TlsError", "TlsSession"]

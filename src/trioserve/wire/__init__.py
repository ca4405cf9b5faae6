"""trioserve.wire: protocols as bytes and values.

The map, from the bottom up; a module imports only from rows above its own here:

    _certificate   _client_hello   _proxy_tlvs   _tls_errors
    _proxy_protocol   _tls_session

RULE: bytes in, values out. Nothing here does I/O, or knows Trio or a clock.
"""

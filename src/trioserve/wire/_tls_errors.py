"""TLS errors: what failed, in words for people.

OpenSSL's own texts name its source files, and call each alert by the version of SSL
that has introduced it. The names of alerts here are those of RFC 8446, section 6.
"""

from __future__ import annotations

import re
import ssl
from typing import Final

#: Of the record that has an alert, and of its body. RFC 8446, sections 5.1 and 6
_ALERT: Final = 21
_ALERT_SIZE: Final = 2

#: By their numbers: those that a handshake may end with.
_ALERTS: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}

#: OpenSSL's names of alerts that the peer has sent, such as TLSV1_ALERT_UNKNOWN_CA.
_RECEIVED: Final = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?(\w+)")

#: OpenSSL does not know what it is instead.
NO_TLS: Final = "it does not speak TLS"
_NO_VERSION: Final = "it offers no version of TLS that is allowed"
_SENTENCES: Final = {
    "HTTP_REQUEST": "it sent plain HTTP, without TLS",
    "HTTPS_PROXY_REQUEST": "it sent a plain HTTP CONNECT, without TLS",
    "WRONG_VERSION_NUMBER": NO_TLS,
    "UNKNOWN_PROTOCOL": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "VERSION_TOO_LOW": _NO_VERSION,
    "NO_PROTOCOLS_AVAILABLE": _NO_VERSION,
    "NO_SHARED_CIPHER": "it offers no cipher that is allowed",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it sent no certificate",
    "NO_APPLICATION_PROTOCOL": "it offers none of the protocols of ALPN",
}


class TlsError(OSError):
    """TLS has failed; the text says what the peer did or what was wrong with it."""


def tls_error(error: ssl.SSLError, output: bytes = b"") -> TlsError:
    """What failed, from OpenSSL's error.

    Args:
      output: what OpenSSL has written for the peer since; the alert, if it is not
        encrypted, is named in the text.
    """
    said = _said(error)
    alert = alert_in(output)
    failed = TlsError(said if alert is None else f"{said} (alert sent: {alert})")
    failed.__cause__ = error.with_traceback(None)
    return failed


def _said(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
    # Some errors of the record layer have no reason: error.reason is None then.
    reason = getattr(error, "reason", None) or "an unknown error"
    if (sentence := _SENTENCES.get(reason)) is not None:
        return sentence
    if (received := _RECEIVED.fullmatch(reason)) is not None:
        return f"it sent the alert {received[1].lower()}"
    return reason.lower().replace("_", " ")


def alert_in(data: bytes) -> str | None:
    """The alert in the last record of ``data``, if it is one that is not encrypted."""
    name = None
    while len(data) >= 5:
        size = int.from_bytes(data[3:5], "big")
        if data[0] == _ALERT and size == _ALERT_SIZE and len(data) >= 7:
            name = _ALERTS.get(data[6], f"number {data[6]}")
        data = data[5 + size :]
    return name

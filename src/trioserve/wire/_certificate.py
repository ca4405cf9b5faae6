"""X.509 certificates: until when one is valid, and for which host names. RFC 5280

A certificate is read as far as that needs it, in DER. This module does not verify
anything.
"""

from __future__ import annotations

import binascii
import dataclasses
import datetime as dt
import re
from typing import Final

#: Tags of DER: of the types, and of the fields of a certificate that have one of
#: their own. X.690, section 8; RFC 5280, sections 4.1 and 4.2.1.6
_OCTET_STRING: Final = 0x04
_OBJECT_IDENTIFIER: Final = 0x06
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82

#: The bits of a tag of which all are set if it goes on in the next byte.
_LONG_TAG: Final = 0x1F

#: The identifier of the extension with the names: 2.5.29.17
_SUBJECT_ALT_NAME: Final = b"\x55\x1d\x11"

#: OpenSSL takes the first one of these. RFC 7468, section 5
_PEM: Final = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL
)


@dataclasses.dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says of itself.

    Attributes:
      not_after: the end of its validity, in seconds since the epoch.
      dns_names: the host names that it is for, as they are written there; wildcards
        included.
    """

    not_after: float
    dns_names: tuple[str, ...]


def read_pem(text: bytes) -> CertificateFacts:
    """Read the first certificate in a text.

    Raises:
      ValueError: there is none, or it is not valid.
    """
    found = _PEM.search(text)
    if found is None:
        raise _not_valid()
    try:
        return read_der(binascii.a2b_base64(found[2]))
    except binascii.Error:
        raise _not_valid() from None


def read_der(data: bytes) -> CertificateFacts:
    """Read a certificate.

    Raises:
      ValueError: it is not valid.
    """
    certificate = _Fields(_Fields(data).take(_SEQUENCE))
    fields = _Fields(certificate.take(_SEQUENCE))
    kind, _ = fields.next()
    if kind == _VERSION:
        fields.next()  # serial number
    fields.take(_SEQUENCE)  # algorithm of the signature
    fields.take(_SEQUENCE)  # issuer
    validity = _Fields(fields.take(_SEQUENCE))
    validity.next()
    not_after = _seconds(*validity.next())
    fields.take(_SEQUENCE)  # subject
    fields.take(_SEQUENCE)  # public key
    names: tuple[str, ...] = ()
    while fields:
        kind, value = fields.next()
        if kind == _EXTENSIONS:
            names = _names_in(_Fields(_Fields(value).take(_SEQUENCE)))
    return CertificateFacts(not_after, names)


def _names_in(extensions: _Fields) -> tuple[str, ...]:
    names = list[str]()
    while extensions:
        extension = _Fields(extensions.take(_SEQUENCE))
        if extension.take(_OBJECT_IDENTIFIER) != _SUBJECT_ALT_NAME:
            continue
        kind, value = extension.next()
        if kind != _OCTET_STRING:  # whether it is critical
            value = extension.take(_OCTET_STRING)
        general = _Fields(_Fields(value).take(_SEQUENCE))
        while general:
            kind, name = general.next()
            if kind == _DNS_NAME:
                names.append(name.decode("latin-1"))
    return tuple(names)


def _seconds(kind: int, value: bytes) -> float:
    """A time, in seconds since the epoch. RFC 5280, section 4.1.2.5"""
    text = value.decode("latin-1")
    if kind == _UTC_TIME:  # 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise _not_valid()
    if not re.fullmatch(r"\d{14}Z", text, re.ASCII):
        raise _not_valid()
    try:
        time = dt.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    except ValueError:
        raise _not_valid() from None
    return time.replace(tzinfo=dt.UTC).timestamp()


class _Fields:
    """Values in DER that stand one after the other.

    The methods raise ValueError if there is none, or if it is too short.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is another one."""
        return self._at < len(self._data)

    def next(self) -> tuple[int, bytes]:
        """The tag of the next one, and its value."""
        tag, size = self._bytes(1)[0], self._bytes(1)[0]
        if tag & _LONG_TAG == _LONG_TAG:
            raise _not_valid()
        if size & 0x80:
            size = int.from_bytes(self._bytes(size & 0x7F), "big")
        return tag, self._bytes(size)

    def take(self, tag: int) -> bytes:
        """The value of the next one, which has this tag."""
        found, value = self.next()
        if found != tag:
            raise _not_valid()
        return value

    def _bytes(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _not_valid()
        data, self._at = self._data[self._at : end], end
        return data


def _not_valid() -> ValueError:
    return ValueError("it is not a valid certificate")

"""The further fields of a PROXY header of version 2: types, lengths and values (TLVs).

They say how the client speaks with the sender of the header. Sections are those of
HAProxy's ``doc/proxy-protocol.txt``.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable
from typing import Final, Self, TypeAlias

#: A type, and its value. Section 2.2
Tlv: TypeAlias = tuple[int, bytes]

#: The protocol that ALPN has chosen. Section 2.2.1
ALPN: Final = 0x01
#: The name that the client has asked for: of TLS, SNI. Section 2.2.2
AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
#: The sender's identification of the connection. Section 2.2.5
UNIQUE_ID: Final = 0x05
#: The client's TLS, with fields of its own. Section 2.2.6
SSL: Final = 0x20

_VERSION: Final = 0x21
_COMMON_NAME: Final = 0x22
_CIPHER: Final = 0x23

#: Bits of the client's TLS: it is there, and has a certificate, which was shown on this
#: connection, or at least in this session.
_IS_TLS: Final = 1
_SHOWN_NOW: Final = 2
_SHOWN: Final = 4

_LONGEST_PART: Final = 255

_HEAD: Final = struct.Struct("!BH")
_SSL_HEAD: Final = struct.Struct("!BI")


def split_tlvs(data: bytes, at: int = 0) -> list[tuple[int, bytes, int]] | None:
    """The type, value and place of each field from ``at`` on; None: a wrong length."""
    found = []
    while at < len(data):
        if at + _HEAD.size > len(data):
            return None
        kind, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        found.append((kind, data[at : at + length], at))
        at += length
    return found if at <= len(data) else None


def join_tlvs(tlvs: Iterable[Tlv]) -> bytes:
    """The bytes of fields, in their order."""
    return b"".join(_HEAD.pack(kind, len(value)) + value for kind, value in tlvs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """What an SSL field says of the client's TLS.

    Attributes:
      is_tls: whether the client speaks TLS.
      shows_certificate: whether it has shown a certificate, in this session.
      shows_it_now: whether that was on this connection.
      error: 0 if its certificate was verified; else a number of the sender.
      version, cipher, common_name: of TLS, and of the certificate; None if the field
        does not say.
    """

    is_tls: bool
    shows_certificate: bool = False
    shows_it_now: bool = False
    error: int = 1
    version: bytes | None = None
    cipher: bytes | None = None
    common_name: bytes | None = None

    @classmethod
    def read(cls, value: bytes) -> Self | None:
        """Read the value of an SSL field; None if a length is wrong."""
        if len(value) < _SSL_HEAD.size:
            return None
        bits, error = _SSL_HEAD.unpack_from(value)
        tlvs = split_tlvs(value, _SSL_HEAD.size)
        if tlvs is None:
            return None
        parts = {kind: part for kind, part, _ in reversed(tlvs)}  # the first one wins
        return cls(
            is_tls=bool(bits & _IS_TLS),
            shows_certificate=bool(bits & (_SHOWN | _SHOWN_NOW)),
            shows_it_now=bool(bits & _SHOWN_NOW),
            error=error,
            version=parts.get(_VERSION),
            cipher=parts.get(_CIPHER),
            common_name=parts.get(_COMMON_NAME),
        )

    @property
    def is_verified(self) -> bool:
        """Whether it has shown a certificate, and the sender has accepted that."""
        return self.is_tls and self.shows_certificate and not self.error

    def tlv(self) -> Tlv:
        """The SSL field, with its parts in HAProxy's order.

        A part of more than 255 bytes is left out: it is not what it should be, and the
        header would be too long for its reader.
        """
        bits = _IS_TLS * self.is_tls
        bits |= _SHOWN * self.shows_certificate | _SHOWN_NOW * self.shows_it_now
        parts = (
            (_VERSION, self.version),
            (_COMMON_NAME, self.common_name),
            (_CIPHER, self.cipher),
        )
        value = join_tlvs(
            (kind, part)
            for kind, part in parts
            if part is not None and len(part) <= _LONGEST_PART
        )
        return SSL, _SSL_HEAD.pack(bits, self.error) + value

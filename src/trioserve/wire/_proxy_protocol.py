"""The PROXY protocol: headers of versions 1 and 2, read and made.

A header comes before the first byte of a connection, and declares its client. The
specification is HAProxy's ``doc/proxy-protocol.txt``; sections are cited from there.
This module does not know who may send a header.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, TypeAlias

from ._proxy_tlvs import (
    CRC32C,
    SSL,
    UNIQUE_ID,
    ClientTls,
    Tlv,
    join_tlvs,
    split_tlvs,
)

#: An endpoint, as ``getpeername`` returns it: an IPv4 or IPv6 address with a port, or
#: the path (str) or abstract name (bytes) of a Unix socket.
Endpoint: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

#: The longest header, in bytes. The specification allows 65,551 with its TLVs, and has
#: 536 in mind; nginx takes 4,096, too.
LONGEST: Final = 4096

#: The longest line of version 1, with its CRLF. Section 2.1
_LONGEST_LINE: Final = 107

_PROXY: Final = b"PROXY "
#: What an UNKNOWN line begins with; the rest of it has no meaning.
_UNKNOWN: Final = b"PROXY UNKNOWN"

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
#: Version and command, family and transport, length of the rest.
_FIXED: Final = struct.Struct("!12sBBH")
_LOCAL: Final = 0x20
_PROXIED: Final = 0x21

_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX: Final = 0x31
#: The addresses and ports of each family that is read, with its transport.
_ADDRESSES: Final = {
    _TCP4: struct.Struct("!4s4sHH"),
    _TCP6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("!108s108s"),
}
#: The size of the addresses and ports of each family, from AF_UNSPEC on.
_SIZES: Final = (0, 12, 36, 216)
_LAST_TRANSPORT: Final = 2

_LONGEST_UNIQUE_ID: Final = 128

_PORT: Final = re.compile(rb"0|[1-9]\d{0,4}")
_MAPPED: Final = bytes(10) + b"\xff\xff"


class ProxyHeaderError(ValueError):
    """The bytes are no valid header. The text does not have any of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header.

    Attributes:
      size: its length in bytes.
      source, destination: the addresses of the client, and of what it has connected
        to; None if the header declares none (LOCAL, UNKNOWN, UNSPEC, UDP): then those
        of the connection itself hold.
      tlvs: its further fields, in their order.
    """

    size: int
    source: Endpoint | None = None
    destination: Endpoint | None = None
    tlvs: tuple[Tlv, ...] = ()

    def find(self, kind: int) -> bytes | None:
        """The value of the first field of a type; None without one."""
        return next((value for each, value in self.tlvs if each == kind), None)

    @property
    def tls(self) -> ClientTls | None:
        """The client's TLS; None if the header does not say."""
        value = self.find(SSL)
        return None if value is None else ClientTls.read(value)


# -- reading


def parse_header(data: bytes) -> ProxyHeader | None:
    """Read the header that ``data`` begins with.

    The bytes after it have no influence on the result. Nor has the number of bytes that
    have arrived: if a part is refused, so is the whole, with the same text.

    Returns:
      None if ``data`` is a part of a header, at most 4,095 bytes: call it again with
      more.

    Raises:
      ProxyHeaderError: it is not a header, or not a valid one; one line says why.
    """
    if data[: len(_PROXY)] == _PROXY[: len(data)]:
        return _parse_v1(data[:_LONGEST_LINE])
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _parse_v2(data)
    raise ProxyHeaderError("there is no PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, crlf, _ = data.partition(b"\r\n")
    if b"\n" in line and not line.startswith(_UNKNOWN):
        raise ProxyHeaderError("the line of its PROXY header ends without CR")
    if not crlf:
        if len(data) == _LONGEST_LINE:
            raise ProxyHeaderError(
                f"the first {_LONGEST_LINE} bytes of its PROXY header have no CRLF"
            )
        return None
    size = len(line) + len(crlf)
    match line.split(b" "):
        case [_, b"UNKNOWN", *_]:
            return ProxyHeader(size)
        case [_, b"TCP4" | b"TCP6" as family, source, destination, port, to_port]:
            return ProxyHeader(
                size,
                _read_endpoint(family, source, port),
                _read_endpoint(family, destination, to_port),
            )
        case _:
            raise ProxyHeaderError(
                "its PROXY header is neither UNKNOWN nor a family, two addresses and"
                " two ports with a space between them"
            )


def _read_endpoint(family: bytes, host: bytes, port: bytes) -> Endpoint:
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ProxyHeaderError("its PROXY header has an invalid port")
    kind = AF_INET if family == b"TCP4" else AF_INET6
    try:
        packed = inet_pton(kind, host.decode("ascii"))
    except (OSError, ValueError):
        raise ProxyHeaderError(
            f"its PROXY header has an invalid {family.decode()} address"
        ) from None
    return _endpoint(packed, int(port))


def _endpoint(packed: bytes, port: int) -> Endpoint:
    if len(packed) == 4:
        return inet_ntop(AF_INET, packed), port
    return inet_ntop(AF_INET6, packed), port, 0, 0


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED.size:
        return None
    _, command, kind, length = _FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXIED):
        raise ProxyHeaderError("its PROXY header has an unknown version or command")
    size = _FIXED.size + length
    if size > LONGEST:
        raise ProxyHeaderError(f"its PROXY header has more than {LONGEST} bytes")
    family, transport = kind >> 4, kind & 15
    is_known = family < len(_SIZES) and transport <= _LAST_TRANSPORT
    needed = _SIZES[family] if is_known else 0
    # The family and the addresses of LOCAL have no meaning, whatever they are.
    if command == _LOCAL:
        kind = 0
    elif not is_known:
        raise ProxyHeaderError("its PROXY header has an unknown family or transport")
    elif length < needed:
        raise ProxyHeaderError("its PROXY header is too short for its addresses")
    if len(data) < size:
        return None
    header = data[:size]
    tlvs = split_tlvs(header, _FIXED.size + needed)
    if tlvs is None:
        if kind >> 4:
            raise ProxyHeaderError("a TLV of its PROXY header has a wrong length")
        tlvs = []  # they are addresses, in a form that is not specified
    _check_tlvs(header, tlvs)
    source, destination = _read_addresses(header, kind)
    found = tuple((type_, value) for type_, value, _ in tlvs)
    return ProxyHeader(size, source, destination, found)


def _read_addresses(
    header: bytes, kind: int
) -> tuple[Endpoint, Endpoint] | tuple[None, None]:
    if kind not in _ADDRESSES:
        return None, None
    fields = _ADDRESSES[kind].unpack_from(header, _FIXED.size)
    if kind == _UNIX:
        source, destination = fields
        return _unix(source), _unix(destination)
    source, destination, port, to_port = fields
    return _endpoint(source, port), _endpoint(destination, to_port)


def _unix(field: bytes) -> Endpoint:
    """Read the path of a Unix socket, the abstract name, or "" if it has neither."""
    if field[0]:
        return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return field.rstrip(b"\0") or ""


def _check_tlvs(header: bytes, tlvs: Iterable[tuple[int, bytes, int]]) -> None:
    for kind, value, at in tlvs:
        if kind == UNIQUE_ID and len(value) > _LONGEST_UNIQUE_ID:
            raise ProxyHeaderError("the unique id of its PROXY header is too long")
        if kind == CRC32C:
            without = header[:at] + bytes(len(value)) + header[at + len(value) :]
            if value != crc32c(without).to_bytes(4, "big"):
                raise ProxyHeaderError("the checksum of its PROXY header is wrong")
        if kind == SSL and ClientTls.read(value) is None:
            raise ProxyHeaderError("the SSL field of its PROXY header is not valid")


def crc32c(data: bytes) -> int:
    """The CRC32c checksum. RFC 4960, appendix B"""
    crc, table = 0xFFFF_FFFF, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFF_FFFF


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F6_3B78 if crc & 1 else 0)
        table.append(crc)
    return table


# -- making


def build_v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """Make a header of version 1.

    It is UNKNOWN unless both endpoints are IP addresses. If only one of them is IPv6,
    the other is written as IPv6 too. HAProxy does the same.
    """
    packed = _packed(source, destination)
    if packed is None:
        return b"PROXY UNKNOWN\r\n"
    one, other, port, to_port = packed
    word, family = ("TCP4", AF_INET) if len(one) == 4 else ("TCP6", AF_INET6)
    hosts = f"{inet_ntop(family, one)} {inet_ntop(family, other)}"
    return f"PROXY {word} {hosts} {port} {to_port}\r\n".encode("ascii")


def build_v2(
    source: Endpoint | None, destination: Endpoint | None, tlvs: Iterable[Tlv] = ()
) -> bytes:
    """Make a header of version 2.

    It is LOCAL unless both endpoints are IP addresses, as HAProxy's is.

    Args:
      tlvs: further fields, in their order.
    """
    command, kind, block = _LOCAL, 0, b""
    if (packed := _packed(source, destination)) is not None:
        command, kind = _PROXIED, _TCP4 if len(packed[0]) == 4 else _TCP6
        block = _ADDRESSES[kind].pack(*packed)
    block += join_tlvs(tlvs)
    return _FIXED.pack(_SIGNATURE, command, kind, len(block)) + block


def _packed(
    source: Endpoint | None, destination: Endpoint | None
) -> tuple[bytes, bytes, int, int] | None:
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        return None
    one, other = _pack(source[0]), _pack(destination[0])
    if len(one) != len(other):
        one, other = _as_ipv6(one), _as_ipv6(other)
    return one, other, source[1], destination[1]


def _pack(host: str) -> bytes:
    number, _, _ = host.partition("%")  # a zone means nothing on another machine
    return inet_pton(AF_INET6 if ":" in number else AF_INET, number)


def _as_ipv6(packed: bytes) -> bytes:
    return packed if len(packed) == 16 else _MAPPED + packed

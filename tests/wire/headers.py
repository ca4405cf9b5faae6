"""PROXY headers for tests: made byte by byte, and mistakes in them."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

from trioserve.wire._proxy_protocol import Endpoint, ProxyHeader, crc32c

SIGNATURE = bytes.fromhex("0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a")


def v2(command: int, kind: int, *fields: bytes, length: int | None = None) -> bytes:
    """A header of version 2, with its length or another one."""
    rest = b"".join(fields)
    head = struct.pack("!BBH", command, kind, len(rest) if length is None else length)
    return SIGNATURE + head + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def tls_tlv(bits: int, verify: int, *parts: bytes) -> bytes:
    return tlv(0x20, struct.pack("!BI", bits, verify) + b"".join(parts))


def addresses(source: str, port: int, destination: str, to_port: int) -> bytes:
    packed = ip_address(source).packed + ip_address(destination).packed
    return packed + struct.pack("!HH", port, to_port)


def unix(source: bytes, destination: bytes) -> bytes:
    return struct.pack("!108s108s", source, destination)


def checked(header: bytes, at: int) -> bytes:
    """The header with the right checksum in the four bytes at ``at``."""
    assert header[at : at + 4] == bytes(4)
    return header[:at] + crc32c(header).to_bytes(4, "big") + header[at + 4 :]


TCP4 = addresses("192.0.2.1", 56324, "198.51.100.2", 443)
TCP6 = addresses("2001:db8::1", 56324, "2001:db8::2", 443)

#: A client with TLS 1.3, and a certificate that was verified.
TLS_PARTS = tls_tlv(7, 0, tlv(0x21, b"TLSv1.3"), tlv(0x22, b"web"), tlv(0x23, b"AES"))

FROM4: Endpoint = ("192.0.2.1", 56324)
TO4: Endpoint = ("198.51.100.2", 443)
FROM6: Endpoint = ("2001:db8::1", 56324, 0, 0)
TO6: Endpoint = ("2001:db8::2", 443, 0, 0)

#: Valid headers, and what they declare.
VALID: dict[bytes, ProxyHeader] = {
    data: ProxyHeader(len(data), *declared)  # type: ignore[arg-type]
    for data, declared in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", (FROM4, TO4)),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", (FROM6, TO6)),
        (b"PROXY TCP6 2001:0DB8::1 2001:db8:0:0::2 56324 443\r\n", (FROM6, TO6)),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            (2 * (("255.255.255.255", 65535),)),
        ),
        (
            b"PROXY TCP6 " + 2 * (7 * b"ffff:" + b"ffff ") + b"0 65535\r\n",
            (
                ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0, 0, 0),
                ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0),
            ),
        ),
        # HAProxy sends this if one side is IPv4.
        (
            b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n",
            (("::ffff:192.0.2.1", 56324, 0, 0), TO6),
        ),
        (b"PROXY UNKNOWN\r\n", ()),
        (b"PROXY UNKNOWN any\nthing \r but \0 CRLF\r\n", ()),
        (
            b"PROXY UNKNOWN " + 2 * (7 * b"ffff:" + b"ffff ") + b"65535 65535\r\n",
            (),
        ),
        (v2(0x21, 0x11, TCP4), (FROM4, TO4)),
        (v2(0x21, 0x21, TCP6), (FROM6, TO6)),
        (v2(0x21, 0x31, unix(b"/run/a", b"\0name")), ("/run/a", b"\0name")),
        (v2(0x21, 0x31, unix(b"", 108 * b"x")), ("", 108 * "x")),
        # LOCAL, whatever its family is, and whatever follows.
        (v2(0x20, 0x00), ()),
        (v2(0x20, 0x00, b"12"), ()),
        (v2(0x20, 0x11, b"x"), ()),
        (v2(0x20, 0xFF, TCP4), ()),
        (v2(0x20, 0x00, bytes(4080)), (None, None, 1360 * ((0, b""),))),
        # Addresses that are not used: no family, no transport, UDP.
        (v2(0x21, 0x00), ()),
        (v2(0x21, 0x00, b"12"), ()),
        (v2(0x21, 0x10, TCP4), ()),
        (v2(0x21, 0x12, TCP4), ()),
        (v2(0x21, 0x22, TCP6), ()),
        (v2(0x21, 0x32, unix(b"a", b"b")), ()),
        (
            v2(0x21, 0x11, TCP4, tlv(4, b""), tlv(5, b"id"), tlv(0xE1, b"x")),
            (FROM4, TO4, ((4, b""), (5, b"id"), (0xE1, b"x"))),
        ),
        (
            checked(v2(0x21, 0x11, TCP4, tlv(3, bytes(4)), tlv(4, b"abc")), 31),
            (FROM4, TO4, ((3, bytes.fromhex("18f066b2")), (4, b"abc"))),
        ),
        (v2(0x21, 0x11, TCP4, tlv(5, 128 * b"i")), (FROM4, TO4, ((5, 128 * b"i"),))),
        # The client's TLS: all that is known, no part, and parts that are not.
        (
            v2(0x21, 0x11, TCP4, tlv(1, b"h2"), tlv(2, b"a.example"), TLS_PARTS),
            (FROM4, TO4, ((1, b"h2"), (2, b"a.example"), (0x20, TLS_PARTS[3:]))),
        ),
        (
            v2(0x21, 0x21, TCP6, tls_tlv(0, 0)),
            (FROM6, TO6, ((0x20, bytes(5)),)),
        ),
        (
            v2(0x21, 0x00, tls_tlv(0xFF, 18, tlv(0x21, b""), tlv(0xFF, b"x"))),
            (None, None, ((0x20, bytes.fromhex("ff00000012 210000 ff000178")),)),
        ),
    ]
}

#: Invalid headers, and the end of the error.
INVALID = {
    b"GET / HTTP/1.1\r\n": "there is no PROXY header",
    b"\x16\x03\x01": "there is no PROXY header",
    b"\r\n\r\n\0\r\nQUIX": "there is no PROXY header",
    b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n": "there is no PROXY header",
    b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n": "there is no PROXY header",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n": "ends without CR",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2" + 73 * b" ": "have no CRLF",
    b"PROXY UNKNOWN" + 93 * b" " + b"\r\n": "have no CRLF",
    b"PROXY UNKNOWNS\r\n": "neither UNKNOWN nor a family",
    b"PROXY TCP4\r\n": "neither UNKNOWN nor a family",
    b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n": "neither UNKNOWN nor a family",
    b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n": "neither UNKNOWN nor a family",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n": "neither UNKNOWN nor a family",
    b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n": "neither UNKNOWN nor a family",
    b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n": "neither UNKNOWN nor a family",
    b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP4 \xd9\xa1.0.2.1 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP4 ::1 192.0.2.2 1 2\r\n": "an invalid TCP4 address",
    b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n": "an invalid TCP6 address",
    b"PROXY TCP6 fe80::1%1 ::1 1 2\r\n": "an invalid TCP6 address",
    b"PROXY TCP6 1::2::3 ::1 1 2\r\n": "an invalid TCP6 address",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 +2\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n": "an invalid port",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 \xd9\xa1 2\r\n": "an invalid port",
    v2(0x11, 0x11, TCP4): "an unknown version or command",
    v2(0x22, 0x11, TCP4): "an unknown version or command",
    v2(0x21, 0x41, TCP4): "an unknown family or transport",
    v2(0x21, 0x13, TCP4): "an unknown family or transport",
    v2(0x21, 0x11, TCP4[:11]): "too short for its addresses",
    v2(0x21, 0x12, TCP4[:11]): "too short for its addresses",
    v2(0x21, 0x21, TCP6[:35]): "too short for its addresses",
    v2(0x21, 0x31, unix(b"", b"")[:215]): "too short for its addresses",
    v2(0x21, 0x11, length=4081): "more than 4096 bytes",
    v2(0x20, 0x00, length=65535): "more than 4096 bytes",
    v2(0x21, 0x11, TCP4, b"\4\0"): "a wrong length",
    v2(0x21, 0x11, TCP4, b"\4\0\2x"): "a wrong length",
    v2(0x21, 0x12, TCP4, tlv(4, b"x"), b"y"): "a wrong length",
    v2(0x21, 0x11, TCP4, tlv(5, 129 * b"i")): "unique id of its PROXY header is too",
    v2(0x21, 0x11, TCP4, tlv(3, bytes(4))): "checksum of its PROXY header is wrong",
    v2(0x21, 0x11, TCP4, tlv(3, bytes(3))): "checksum of its PROXY header is wrong",
    v2(0x21, 0x00, tlv(3, bytes(4))): "checksum of its PROXY header is wrong",
    v2(0x20, 0x00, tlv(3, bytes(4))): "checksum of its PROXY header is wrong",
    v2(0x21, 0x11, TCP4, tlv(0x20, b"")): "the SSL field of its PROXY header is not",
    v2(0x21, 0x11, TCP4, tlv(0x20, bytes(4))): "the SSL field of its PROXY header is",
    v2(0x21, 0x11, TCP4, tls_tlv(1, 0, b"\x21\0")): "the SSL field of its PROXY heade",
    v2(0x21, 0x11, TCP4, tls_tlv(1, 0, b"\x21\0\2x")): "the SSL field of its PROXY he",
    v2(0x21, 0x11, TCP4, tls_tlv(1, 0) + b"x"): "a TLV of its PROXY header has a wron",
}

_SEEDS = [*VALID, *INVALID]
#: Bytes that mean something.
_PIECES = [
    b"\r\n", b"\r", b"\n", b" ", b"\0", b"0", b":", b".", b"-", b"\xff", b"PROXY ",
    b"TCP4", b"TCP6", b"UNKNOWN", SIGNATURE, b"\x20", b"\x21", b"\x11", b"\x31",
    b"\x20\0\5", b"\x20\0\x0c",
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A header with one to four mistakes, most of which are near its beginning."""
    data = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice((18, 60, 5000))) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at : at + rng.randint(0, 3)] = rng.choice(_PIECES)
            case 2:
                del data[at : at + rng.randint(1, 4)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 20)]
            case 4 if len(data) >= 16:
                data[12 + rng.randrange(4)] = rng.choice((0, 1, 2, 16, 17, 33, 255))
            case _:
                data += rng.randbytes(rng.randint(1, 8))
    return bytes(data)

"""The ClientHello of TLS: which server name a client asks for.

It is the first message of a TLS connection, and it is not encrypted. RFC 8446,
section 4.1.2; RFC 5246, section 7.4.1.2. This module does not know what a name is for.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Final

#: The longest ClientHello, in bytes, with the headers of its records. A browser sends
#: 2 KiB with a post-quantum key share. HAProxy and nginx take 16 KiB, too.
LONGEST: Final = 16_384

#: Types of a record. RFC 8446, section 5.1
_ALERT: Final = 21
_HANDSHAKE: Final = 22
_FIRST_BYTE: Final = bytes([_HANDSHAKE])
#: A record's type, version and length; and the longest of its fragments.
_RECORD_HEADER: Final = 5
_LONGEST_FRAGMENT: Final = 16_384

#: A type of a message, and the size of its type and length. RFC 8446, section 4
_CLIENT_HELLO: Final = 1
_MESSAGE_HEADER: Final = 4

#: Where the version and the random bytes of a ClientHello end; and at the latest, the
#: number of the session.
_RANDOM_ENDS: Final = 34
_LAST_SESSION_ENDS: Final = 67

#: The first byte of all versions: SSL 3.0 is 3.0, TLS 1.0 is 3.1, TLS 1.3 is 3.4.
_MAJOR: Final = 3

#: The type of an extension, and its length. RFC 8446, section 4.2
_EXTENSION: Final = struct.Struct("!HH")

#: A type of an extension, and of the one name that it has. RFC 6066, section 3
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0

#: Alerts, and the level of those that end a connection. RFC 8446, section 6
UNEXPECTED_MESSAGE: Final = 10
ILLEGAL_PARAMETER: Final = 47
DECODE_ERROR: Final = 50
PROTOCOL_VERSION: Final = 70
MISSING_EXTENSION: Final = 109
UNRECOGNIZED_NAME: Final = 112
_FATAL: Final = 2

#: Of a host name and its labels, in bytes. RFC 1035, section 2.3.4
_LONGEST_NAME: Final = 253
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_IP_ADDRESS: Final = re.compile(r"\d+(\.\d+){3}|[0-9a-f.]*:[0-9a-f:.]*", re.ASCII)

#: First bytes of other protocols, for the error message.
_OTHERS: Final = {
    **{
        f"{method} ".encode(): "HTTP without TLS"
        for method in (
            "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PRI",
            "PUT", "TRACE",
        )
    },
    b"SSH-": "SSH",
    b"PROXY ": "a PROXY header",
    b"\r\n\r\n\0\r\nQUIT\n": "a PROXY header",
    # SSLRequest and GSSENCRequest; direct TLS comes with libpq 17.
    b"\0\0\0\x08\x04\xd2\x16": "PostgreSQL's request for encryption",
}  # fmt: skip


class ClientHelloError(ValueError):
    """The bytes are no valid ClientHello. The text does not have any of them.

    Attributes:
      alert: the number of the alert for the client; None if it does not speak TLS.
    """

    def __init__(self, text: str, alert: int | None = DECODE_ERROR) -> None:
        super().__init__(text)
        self.alert = alert


@dataclasses.dataclass(frozen=True, slots=True)
class ClientHello:
    """A ClientHello.

    Attributes:
      server_name: the name that the client asks for, in lower case; None if it asks for
        none. If it is encrypted (ECH), this is the public name of that server.
    """

    server_name: str | None = None


class ClientHelloReader:
    """Reads the ClientHello at the beginning of a connection, in pieces of any size.

    The bytes after it have no influence on the result. Nor has the size of the pieces:
    if some of the bytes are refused, so are all, with the same text. The time that it
    takes grows with the number of bytes, whatever they are.

    Attributes:
      data: all bytes that were fed; at most :data:`LONGEST` if no piece is longer than
        :attr:`room`.
    """

    __slots__ = ("_at", "_left", "_message", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._message = bytearray()
        #: The place of the next byte, and how many are left of the fragment there.
        self._at = 0
        self._left = 0

    @property
    def room(self) -> int:
        """How many bytes it may still need."""
        return LONGEST - len(self.data)

    def feed(self, piece: bytes) -> ClientHello | None:
        """Read the next bytes.

        Returns:
          None if more are needed.

        Raises:
          ClientHelloError: they are no valid ClientHello; one line says why.
        """
        self.data += piece
        if not self.data.startswith(_FIRST_BYTE):
            _refuse_other(bytes(self.data[:16]))
            return None
        while self._left or self._begin_record():
            end = min(self._at + self._left, LONGEST)
            fragment = self.data[self._at : end]
            if not fragment:
                break
            self._at += len(fragment)
            self._left -= len(fragment)
            self._message += fragment
            size = _size_of(self._message)
            if size is not None and len(self._message) >= size:
                return _read_hello(bytes(self._message[_MESSAGE_HEADER:size]))
        if self.room <= 0:
            raise _too_long()
        return None

    def _begin_record(self) -> bool:
        """Read the header of the next record; False if it has not arrived."""
        header = self.data[self._at : min(self._at + _RECORD_HEADER, LONGEST)]
        if len(header) < _RECORD_HEADER:
            return False
        kind, major, _, high, low = header
        length = high << 8 | low
        if kind != _HANDSHAKE:
            text = "another record comes before the end of its ClientHello"
            raise ClientHelloError(text, UNEXPECTED_MESSAGE)
        if major != _MAJOR:
            raise _unknown_version()
        if not 0 < length <= _LONGEST_FRAGMENT:
            raise ClientHelloError("a record of its ClientHello has a wrong length")
        self._at += _RECORD_HEADER
        self._left = length
        return True


def _size_of(message: bytearray) -> int | None:
    """The size of the message that begins like this; None if that is not known yet."""
    if message[0] != _CLIENT_HELLO:
        text = "its first message is not a ClientHello"
        raise ClientHelloError(text, UNEXPECTED_MESSAGE)
    if len(message) < _MESSAGE_HEADER:
        return None
    size = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
    if _RECORD_HEADER + size > LONGEST:
        raise _too_long()
    return size


def _unknown_version() -> ClientHelloError:
    text = "its ClientHello has an unknown version"
    return ClientHelloError(text, PROTOCOL_VERSION)


def _too_long() -> ClientHelloError:
    return ClientHelloError(f"its ClientHello has more than {LONGEST} bytes")


def _refuse_other(start: bytes) -> None:
    """Refuse a protocol that is not TLS, unless more bytes are needed to name it.

    Raises:
      ClientHelloError: the text names it.
    """
    for prefix, name in _OTHERS.items():
        if start.startswith(prefix):
            raise ClientHelloError(f"it began with {name}", None)
        if prefix.startswith(start):
            return
    if start[0] & 0x80:
        # SSL 2.0: a length with this bit, type 1, and the version 0.2 or 3.x.
        if len(start) < 5:
            return
        if start[2] == _CLIENT_HELLO and (start[3] == _MAJOR or start[3:5] == b"\0\2"):
            text = "it began with a ClientHello of SSL 2.0"
            raise ClientHelloError(text, PROTOCOL_VERSION)
    raise ClientHelloError("its first bytes are not TLS", None)


def _wrong_length() -> ClientHelloError:
    return ClientHelloError("a length in its ClientHello is wrong")


def _end_of(data: bytes, at: int, width: int) -> int:
    """Where a field ends that begins with its length, a number of ``width`` bytes.

    Raises:
      ClientHelloError: the data end before.
    """
    begin = at + width
    end = begin + int.from_bytes(data[at:begin], "big")
    if end > len(data):
        raise _wrong_length()
    return end


def _read_hello(body: bytes) -> ClientHello:
    """Read the message without its header.

    By positions: with an object for the fields, a ClientHello took 20 us more.
    """
    if len(body) < 2:
        raise _wrong_length()
    if body[0] != _MAJOR:
        raise _unknown_version()
    session = _end_of(body, _RANDOM_ENDS, 1)
    suites = _end_of(body, session, 2)
    compression = _end_of(body, suites, 1)
    of_suites, of_compression = suites - session - 2, compression - suites - 1
    has_suites = of_suites and not of_suites % 2
    if session > _LAST_SESSION_ENDS or not (has_suites and of_compression):
        raise _wrong_length()
    if compression == len(body):  # before TLS 1.3 it may have no extensions
        return ClientHello()
    if _end_of(body, compression, 2) != len(body):
        raise _wrong_length()
    extension = _find_server_name(body, compression + 2)
    return ClientHello(None if extension is None else _read_server_name(extension))


def _find_server_name(body: bytes, at: int) -> bytes | None:
    """Check the lengths and types of all extensions; return that with the name."""
    found, kinds, end = None, list[int](), len(body)
    try:
        while at < end:
            kind, size = _EXTENSION.unpack_from(body, at)
            at += _EXTENSION.size + size
            kinds.append(kind)
            if kind == _SERVER_NAME:
                found = body[at - size : at]
    except struct.error:  # the rest is too short for a type and a length
        raise _wrong_length() from None
    if at > end:
        raise _wrong_length()
    if len(set(kinds)) < len(kinds):
        text = "its ClientHello has an extension twice"
        raise ClientHelloError(text, ILLEGAL_PARAMETER)
    return found


def _read_server_name(extension: bytes) -> str:
    """Read the list of names, which has one. RFC 6066, section 3

    Other types than host names were never defined, and OpenSSL refuses them, too.
    """
    if not 2 < _end_of(extension, 0, 2) == len(extension):
        raise _wrong_length()
    end = _end_of(extension, 3, 2)
    if extension[2] != _HOST_NAME or end != len(extension):
        text = "it asks for more than one host name, or for another kind of name"
        raise ClientHelloError(text, ILLEGAL_PARAMETER)
    name = extension[5:]  # after two lengths, and its kind between them
    text = name.decode("latin-1").lower()
    if _IP_ADDRESS.fullmatch(text):
        what = "an IP address"
    elif text.endswith("."):
        what = "a name with a dot at its end"
    elif len(text) > _LONGEST_NAME or not _NAME.fullmatch(text):
        what = "no host name"
    else:
        return text
    raise ClientHelloError(
        f"the server name that it asks for is {what}", ILLEGAL_PARAMETER
    )


def build_alert(alert: int) -> bytes:
    """Make the record of an alert that ends the connection. RFC 8446, section 6.2"""
    return bytes([_ALERT, _MAJOR, 3, 0, 2, _FATAL, alert])

"""Addresses: one grammar for listening and dialing.

Values and their parser. Nothing is opened or looked up here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from typing import Any, Final, TypeAlias

import idna

from ._arguments import check_type

_FORMS: Final = "use HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: sockaddr_un has 108 bytes; the last of a path, the first of an abstract name
#: is NUL. unix(7)
_LONGEST_PATH: Final = 107

#: Of a host name and of a label, in bytes. RFC 1035, section 2.3.4
_LONGEST_NAME: Final = 253
_LONGEST_LABEL: Final = 63

#: Of an interface's name: IFNAMSIZ is 16, with a NUL. netdevice(7)
_LONGEST_ZONE: Final = 15

#: The prefix of an IPv4-mapped IPv6 address. RFC 4291, section 2.5.5.2
_MAPPED: Final = "::ffff:"


@dataclasses.dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address: a host (a name or a number) and a port.

    ``str(address)`` is the text that :func:`parse_address` reads.

    Args:
      host: a host name, an IPv4 or IPv6 address without brackets (a zone such
        as ``fe80::1%eth0`` is kept), or ``""`` for all interfaces.
      port: 0 to 65535; 0 asks the system for a free port when listening.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the port is out of range, or the host is neither an address nor a
        valid name: a name has labels of 1 to 63 bytes, none of them just ``xn--``, at
        most 253 bytes, and letters that IDNA 2008 allows.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        check_type("host", self.host, str, "a str")
        check_type("port", self.port, int, "an int")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is out of range: 0 to 65535")
        bad = re.search(r"[\s/\[\]@?#*,\x00-\x1f\x7f]", self.host)
        if bad:
            raise ValueError(
                f"host {self.host!r} has a {bad.group()!r} in it; {_FORMS}"
            )
        if re.fullmatch(r"\d+(\.\d+){3}", self.host) and not is_numeric(self.host):
            raise ValueError(f"host {self.host!r} is not an IPv4 address")
        if ":" in self.host and not is_ipv6(self.host):
            raise ValueError(f"host {_short(self.host)} is not an IPv6 address")
        _encode(self.host)

    @property
    def host_bytes(self) -> bytes:
        """The host for a resolver: a name that is not ASCII is encoded by IDNA 2008."""
        return _encode(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket: a path, or a name in Linux's abstract namespace.

    ``str(address)`` is the text that :func:`parse_address` reads.

    Args:
      path: of the socket's file; ``"@name"`` is the abstract name ``name``, which has
        no file. Clients without a name have an address whose path is ``""``.
      mode: for listening, the permissions of the file, such as ``0o660``; None
        (default) leaves them to the process's umask.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the path is empty, longer than the system allows (107 bytes), or
        can't be written in the grammar of :func:`parse_address`; or the mode is out of
        range, or given for an abstract name.
    """

    path: str
    mode: int | None = None

    def __post_init__(self) -> None:
        check_type("path", self.path, str, "a str")
        if self.mode is not None:
            check_type("mode", self.mode, int, "an int or None")
        path = self.path
        if path in ("", "@"):
            raise ValueError("a Unix socket needs a path: unix:PATH, or unix:@NAME")
        if path != path.strip() or path[:2] == "//" or re.search(r"[?\x00-\x1f]", path):
            raise ValueError(
                f"path {path!r} is not valid for a Unix socket: it may not have a"
                " '?', a control character, or a space around it"
            )
        length = len(os.fsencode(path))
        if length > _LONGEST_PATH:
            raise ValueError(
                f"path {path!r} is too long for a Unix socket: {length} bytes, of"
                f" {_LONGEST_PATH} that the system allows"
            )
        if self.mode is not None and not 0 <= self.mode <= 0o777:
            raise ValueError(f"mode {self.mode:o} is out of range: 0 to 777")
        if self.mode is not None and self.is_abstract:
            raise ValueError(f"an abstract socket has no mode: write unix:{path}")

    @property
    def is_abstract(self) -> bool:
        """Whether it is a name that has no file."""
        return self.path.startswith("@")

    @property
    def sockaddr(self) -> str | bytes:
        """The argument of ``bind`` and ``connect``."""
        if self.is_abstract:
            return b"\0" + os.fsencode(self.path[1:])
        return self.path

    def __str__(self) -> str:
        mode = "" if self.mode is None else f"?mode={self.mode:04o}"
        return f"unix:{self.path}{mode}"


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Parse the text of an address.

    The forms are ``HOST:PORT``, ``[IPV6]:PORT`` and ``:PORT`` (all interfaces),
    each with or without ``tcp://`` before it; ``unix:PATH``,
    ``unix:PATH?mode=0660`` and ``unix:@NAME`` (Linux's abstract namespace). A
    path that begins with ``/`` may have ``unix://`` before it.

    Raises:
      TypeError: ``text`` is not a str.
      ValueError: it is not an address; one line says what is wrong and what to write
        instead.
    """
    check_type("text", text, str, "a str")
    rest = text.strip()
    if rest[:5].lower() == "unix:":
        return _parse_unix(rest[5:], text)
    if scheme := _SCHEME.match(rest):
        if scheme[1].lower() != "tcp":
            raise ValueError(
                f"unknown scheme {scheme[1]!r} in {text!r}; {_FORMS}"
                " (tcp:// may stand before HOST)"
            )
        rest = rest[scheme.end() :]
    return _parse_tcp(rest, text)


def _parse_unix(path: str, text: str) -> UnixAddress:
    if path[:2] == "//":
        path = path[2:]
        if path[:1] != "/":
            raise ValueError(
                f"{text!r} has no absolute path after unix://; did you mean"
                f" unix:{path or 'PATH'}?"
            )
    path, question, option = path.partition("?")
    if not question:
        return UnixAddress(path)
    mode = re.fullmatch(r"mode=([0-7]{1,4})", option, re.ASCII)
    if not mode:
        raise ValueError(
            f"{option!r} in {text!r} is not an option of a Unix socket; the only one"
            " is mode, in octal: ?mode=0660"
        )
    return UnixAddress(path, int(mode[1], 8))


def _parse_tcp(rest: str, text: str) -> TcpAddress:
    if not rest:
        raise ValueError(f"empty address; {_FORMS}")
    if re.fullmatch(r"\d+", rest, re.ASCII):
        raise ValueError(
            f"{text!r} is a bare port; did you mean 127.0.0.1:{rest}"
            f" (this machine only) or :{rest} (all interfaces)?"
        )
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket:
            raise ValueError(f"{text!r} has a '[' without a ']'; {_FORMS}")
        if not is_ipv6(host):
            raise ValueError(f"{host!r} in {text!r} is not an IPv6 address")
        colon, port = tail[:1], tail[1:]
    else:
        host, colon, port = rest.rpartition(":")
        if not colon:
            if "/" in rest or rest.endswith((".sock", ".socket")):
                raise ValueError(f"{text!r} has no port; did you mean unix:{rest}?")
            raise ValueError(
                f"{text!r} has no port; did you mean {TcpAddress(rest, 80)}?"
            )
        if re.search(r",|^[^:]*\.[^:]*:", host):
            raise ValueError(
                f"{text!r} is more than one address; write a space between them"
            )
        if ":" in host:
            raise ValueError(
                f"{text!r} is ambiguous: write an IPv6 address in brackets,"
                " like [::1]:80"
            )
    if colon != ":" or not port:
        raise ValueError(f"{text!r} has no port; {_FORMS}")
    if not re.fullmatch(r"\d+", port, re.ASCII):
        raise ValueError(f"port {port!r} in {text!r} is not a number")
    if len(port.lstrip("0")) > 5 or int(port) > 65535:
        raise ValueError(f"port {port} in {text!r} is out of range: 0 to 65535")
    return TcpAddress(host, int(port))


def _encode(host: str) -> bytes:
    if is_ipv6(host):
        return _encode_ipv6(host)
    try:
        # ASCII names are taken as they are: IDNA forbids some that are in use, such as
        # names with an underscore.
        name = host.encode("ascii")
    except UnicodeEncodeError:
        try:
            name = idna.encode(host, uts46=True)
        except UnicodeError as error:
            raise ValueError(f"{_short(host)} is not a host name: {error}") from None
    length = len(name.removesuffix(b"."))
    parts = name.removesuffix(b".").split(b".")
    labels = [len(label) for label in parts]
    if name and min(labels) == 0:
        wrong = "nothing before or between two dots"
    elif max(labels) > _LONGEST_LABEL:
        wrong = f"a label of {max(labels)} bytes, of {_LONGEST_LABEL} allowed"
    elif length > _LONGEST_NAME:
        wrong = f"{length} bytes, of {_LONGEST_NAME} allowed"
    elif any(label.lower() == b"xn--" for label in parts):
        wrong = "a label is just xn--, the prefix of an encoded label"
    else:
        return name
    raise ValueError(f"{_short(host)} is not a host name: {wrong}")


def _encode_ipv6(host: str) -> bytes:
    number, percent, zone = host.partition("%")
    name = os.fsencode(zone)
    if percent and not 0 < len(name) <= _LONGEST_ZONE:
        raise ValueError(
            f"host {_short(host)} has no zone after its %: write the name of a"
            f" network interface, of {_LONGEST_ZONE} bytes at most, like fe80::1%eth0"
        )
    return number.encode("ascii") + percent.encode("ascii") + name


def _short(host: str) -> str:
    return repr(host) if len(host) <= 70 else repr(host[:67] + "...")


def is_ipv6(host: str) -> bool:
    """Whether ``host`` is an IPv6 address, with or without a zone."""
    number, _, _ = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, number)
    except (OSError, ValueError):
        return False
    return True


def is_numeric(host: str) -> bool:
    """Whether ``host`` is an IP address, which needs no look-up."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return is_ipv6(host)
    return True


def sockaddr_text(sockaddr: object) -> str:
    """The text of an address from ``getpeername`` or ``getsockname``.

    A link-local address has its zone. An IPv4-mapped address (``::ffff:192.0.2.1``) is
    written as IPv4.
    """
    if isinstance(sockaddr, tuple):  # a pattern would cost as much as accept(2)
        host, port = sockaddr[:2]
        if ":" in host:
            host = host_text(sockaddr)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match sockaddr:
        case bytes(path):
            return "unix:@" + path.lstrip(b"\0").decode("utf-8", "backslashreplace")
        case str(path) if path:
            return "unix:" + path
        case _:
            return "unix:"


def address_in(text: str) -> Address | None:
    """Parse the text of :func:`sockaddr_text`; None if it is not an address.

    Most clients of a Unix socket have no name, so their path is ``""``. A path is not
    checked, because nothing is bound or dialed by it.
    """
    if text.startswith("unix:"):
        address = object.__new__(UnixAddress)
        object.__setattr__(address, "path", text.removeprefix("unix:"))
        object.__setattr__(address, "mode", None)
        return address
    try:
        return parse_address(text)
    except ValueError:
        return None


def host_text(sockaddr: Any) -> str:
    """The host in an IPv4 or IPv6 sockaddr, with its zone if it has one."""
    host = unmapped(sockaddr[0])
    if len(sockaddr) == 4 and sockaddr[3]:
        return f"{host}%{zone_name(sockaddr[3])}"
    return host


def unmapped(host: str) -> str:
    """Convert an IPv4-mapped IPv6 address to IPv4; leave others as they are."""
    return host.removeprefix(_MAPPED) if "." in host else host


def zone_name(number: int) -> str:
    """The name of an interface; its number if it has none that can be written.

    Not cached: an interface may be renamed, or its number given to another one.
    """
    try:
        name = socket.if_indextoname(number)
    except OSError:
        return str(number)
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else str(number)

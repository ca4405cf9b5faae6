"""Addresses: one grammar for where to listen and where to dial.

A value and its parser. Nothing is opened or looked up here, and nothing here
knows which side of a connection it is talking about.
"""

from __future__ import annotations

import dataclasses
import re
import socket

_FORMS = "use HOST:PORT, [IPV6]:PORT or :PORT"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A TCP address: a host (a name or a number) and a port.

    Args:
      host: a host name, an IPv4 or IPv6 address without brackets (a zone such
        as ``fe80::1%eth0`` is kept), or ``""`` for all interfaces.
      port: 0 to 65535; 0 asks the system for a free port when listening.

    Raises:
      ValueError: if the port is out of range or the host can't be written
        back in the grammar of :meth:`parse`.

    ``str(address)`` is the text that :meth:`parse` reads.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is out of range: 0 to 65535")
        bad = re.search(r"[\s/\[\]@?#\x00-\x1f\x7f]", self.host)
        if bad:
            raise ValueError(
                f"host {self.host!r} has a {bad.group()!r} in it; {_FORMS}"
            )

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        The forms are ``HOST:PORT``, ``[IPV6]:PORT`` and ``:PORT`` (all
        interfaces), each with or without ``tcp://`` before it.

        Raises:
          ValueError: with one line that says what is wrong and what to write
            instead.
        """
        rest = text.strip()
        if scheme := _SCHEME.match(rest):
            if scheme[1].lower() != "tcp":
                raise ValueError(
                    f"unknown scheme {scheme[1]!r} in {text!r}; {_FORMS}"
                    " (tcp:// may stand before it)"
                )
            rest = rest[scheme.end() :]
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
                raise ValueError(f"{text!r} has no port; did you mean {cls(rest, 80)}?")
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
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_ipv6(host: str) -> bool:
    """Whether ``host`` is an IPv6 address, with or without a zone."""
    number, _, _ = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, number)
    except (OSError, ValueError):
        return False
    return True


def is_numeric(host: str) -> bool:
    """Whether ``host`` is an IP address, so that no look-up is needed."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return is_ipv6(host)
    return True


def sockaddr_text(sockaddr: object) -> str:
    """Write what ``getpeername`` or ``getsockname`` returned as a person reads it."""
    match sockaddr:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case bytes(path):
            return "unix:@" + path.lstrip(b"\0").decode("utf-8", "backslashreplace")
        case str(path) if path:
            return "unix:" + path
        case _:
            return "unix:"

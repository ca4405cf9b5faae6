"""Server names: a table of names, with wildcards, as in certificates.

Values only. This module does not know what is found under a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from ._address import TcpAddress, is_numeric

Value = TypeVar("Value")

#: The beginning of a wildcard.
_ANY_LABEL: Final = "*."


class ServerNames(Generic[Value]):
    """What is found under each server name.

    Args:
      values: by name: a host name, or a wildcard like ``*.example.org``, which stands
        for names with exactly one label in place of the asterisk (RFC 9525, section
        6.3). A name itself goes before a wildcard.

    Raises:
      ValueError: a name is not valid, or is there twice.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values: dict[str, Value] = {}
        for text, value in values.items():
            name = parse_server_name(text)
            if name in self._values:
                raise ValueError(f"the server name {name!r} is there twice")
            self._values[name] = value

    def find(self, name: str) -> Value | None:
        """The value for a name in lower case; None if there is none."""
        if (value := self._values.get(name)) is not None:
            return value
        _, _, parent = name.partition(".")
        return self._values.get(_ANY_LABEL + parent)


def parse_server_name(text: str) -> str:
    """Read a server name or a wildcard; in lower case, and ASCII (IDNA 2008).

    Raises:
      ValueError: it is not a name that a client can ask for.
    """
    label = _ANY_LABEL if text.startswith(_ANY_LABEL) else ""
    host = text[len(label) :]
    if not host or "*" in host:
        raise ValueError(
            f"{text!r} is not a server name; use a host name, or a wildcard like"
            " *.example.org"
        )
    if host.endswith("."):
        raise ValueError(f"{text!r} has a dot at its end; leave it out")
    if is_numeric(host) or ":" in host:
        raise ValueError(
            f"{text!r} is not a server name: clients ask for host names, not for"
            " addresses"
        )
    name = label + TcpAddress(host, 0).host_bytes.decode("ascii").lower()
    # IDNA makes a digit or a dot of some characters: so it is checked again.
    return name if name == text else parse_server_name(name)

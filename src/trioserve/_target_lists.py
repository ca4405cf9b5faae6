"""Target lists: what a proxy may be given in place of a target, and the text of both.

Values; a file is read, and name servers are asked, when one asks for the targets. This
module does not know what happens when a list changes.
"""

from __future__ import annotations

import dataclasses
import re
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

from ._address import TcpAddress, is_numeric, parse_address
from ._arguments import check_type
from ._name_servers import SrvRecord, ask_addresses, ask_srv, check_installed
from ._targets import MOST_WEIGHT, Target, is_name, parse_address_with_options

_FILE: Final = "file:"
_SRV: Final = "srv://"
_DNS: Final = "dns://"

#: A file may have this many bytes: some ten thousand targets.
_MOST_BYTES: Final = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class TargetFile:
    """A file that lists targets, one per line, as :func:`parse_target` reads them.

    Empty lines are skipped, and what follows a ``#`` at the beginning of a line or
    after a space. ``str(file)`` is the text that :func:`parse_target` reads.

    Args:
      path: of the file.

    Raises:
      TypeError, ValueError: the path is not one.
    """

    path: str

    def __post_init__(self) -> None:
        check_type("path", self.path, str, "a str")
        if not self.path or re.search(r"[\x00-\x1f]", self.path):
            raise ValueError(f"{self.path!r} is not the path of a file: use file:PATH")
        if "?" in self.path:
            raise ValueError(
                f"the path of {str(self)!r} has a '?': a file has no options, its"
                " targets have"
            )

    def __str__(self) -> str:
        return f"{_FILE}{self.path}"

    def read(self) -> tuple[Target, ...]:
        """Read the targets; at least one.

        Raises:
          ValueError: the file can't be used; one line says why, and in which line.
        """
        targets = list[Target]()
        for number, line in enumerate(self._text().splitlines(), 1):
            text = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
            if not text:
                continue
            try:
                targets.append(parse_address_with_options(text))
            except ValueError as error:
                raise ValueError(f"{self}: line {number}: {error}") from None
        if not targets:
            raise ValueError(f"{self}: it has no target in it; write one per line")
        return tuple(targets)

    def _text(self) -> str:
        file = Path(self.path)
        try:
            # Opening a pipe would wait for its writer.
            mode = file.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError("it is not a file")
            with file.open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError("it has more than 1 MiB")
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise ValueError(f"{self}: can't read it: {said}") from None
        return data.decode("utf-8-sig", "surrogateescape")


@dataclasses.dataclass(frozen=True, slots=True)
class SrvRecords:
    """A service in the DNS, whose SRV records list the targets (RFC 2782).

    A target with a lower priority comes first, and weights are as there: with the
    balance ``random``, each gets its share. The name of each target is looked up as
    that of any :class:`Target`. It needs the extra ``dns`` (dnspython).
    ``str(records)`` is the text that :func:`parse_target` reads.

    Args:
      name: of the service, like ``_postgresql._tcp.example.org``; without search
        domains.

    Raises:
      TypeError, ValueError: it is not a name, or dnspython is not installed.
    """

    name: str

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a str")
        try:
            TcpAddress(self.name, 0)
            is_name = self.name and not is_numeric(self.name)
        except ValueError:
            is_name = False
        if not is_name:
            raise ValueError(
                f"{str(self)!r} is not the name of a service; use one like"
                f" {_SRV}_postgresql._tcp.example.org, without options"
            )
        check_installed(str(self))

    def __str__(self) -> str:
        return f"{_SRV}{self.name}"

    async def look_up(self) -> tuple[Sequence[Target], float]:
        """Ask the name servers of this system for the targets.

        Returns:
          the targets, at least one, and for how many seconds they hold.

        Raises:
          OSError: there are none, one of them can't be dialed, or there is no answer.
        """
        records, seconds = await ask_srv(TcpAddress(self.name, 0).host_bytes.decode())
        try:
            return targets_of(records), seconds
        except ValueError as error:
            raise socket.gaierror(socket.EAI_FAIL, str(error)) from None


def targets_of(records: Sequence[SrvRecord]) -> Sequence[Target]:
    """The targets that records list.

    Raises:
      ValueError: one of them can't be dialed.
    """
    ranks = sorted({each.priority for each in records})
    most = max(each.weight for each in records)
    # So that one of weight 0 has "a very small chance of being selected".
    has_spare = any(not each.weight for each in records)
    scale = MOST_WEIGHT / most if most > MOST_WEIGHT or (has_spare and most) else 1
    return [
        Target(
            TcpAddress(each.host, each.port),
            weight=max(1, round(each.weight * scale)),
            priority=ranks.index(each.priority),
        )
        for each in records
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class AddressRecords:
    """A DNS name; each of its A and AAAA records is a target.

    Unlike a :class:`Target` with ``each_address``, it asks the name servers instead of
    the system's resolver, and asks again when the TTL of an answer is over. It needs
    the extra ``dns`` (dnspython). ``str(records)`` is the text that
    :func:`parse_target` reads.

    Args:
      host: the name, without search domains.
      port: of all targets.

    Raises:
      TypeError, ValueError: an argument is invalid, or dnspython is not installed.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not is_name(TcpAddress(self.host, self.port)) or not self.host:
            raise ValueError(f"host {self.host!r} is not a name; leave {_DNS} out")
        Target(TcpAddress(self.host, self.port))  # the port can be dialed
        check_installed(str(self))

    def __str__(self) -> str:
        return f"{_DNS}{self.host}:{self.port}"

    async def look_up(self) -> tuple[Sequence[Target], float]:
        """Ask the name servers of this system for the targets.

        Returns:
          the targets, at least one, and for how many seconds they hold.

        Raises:
          OSError: there are none, or there is no answer.
        """
        host = TcpAddress(self.host, self.port).host_bytes.decode()
        addresses, seconds = await ask_addresses(host)
        return [Target(TcpAddress(each, self.port)) for each in addresses], seconds


#: What lists targets for a proxy, and may change.
TargetList: TypeAlias = TargetFile | SrvRecords | AddressRecords

#: What a proxy may be given.
Given: TypeAlias = Target | TargetList


def parse_target(text: str) -> Given:
    """Parse the text of a target, or of a list of targets.

    A target is an address, as for :func:`parse_address`, or ``tls://HOST:PORT`` to
    speak TLS to it; then ``?`` and the options, with ``&`` between them:
    ``weight=N``, ``priority=N``, ``backup`` and ``each-address``, and for TLS the
    arguments of :class:`TlsClientOptions`: ``ca=FILE``, ``sni=NAME``, ``cert=FILE``,
    ``key=FILE``, ``alpn=NAME,NAME``, ``verify=no`` and ``allow-truncation``. For
    example ``db1:5432?weight=3``, ``tls://db2:5432?ca=/etc/db.pem``. In a value,
    ``%26`` is
    ``&``, ``%25`` is ``%``, ``%20`` is a space.

    ``file:PATH`` is a :class:`TargetFile`, which is not read here, ``srv://NAME`` is
    :class:`SrvRecords`, and ``dns://HOST:PORT`` is :class:`AddressRecords`.

    Raises:
      TypeError: ``text`` is not a str.
      ValueError: it is neither, or a file of TLS can't be used; one line says what is
        wrong and what to write instead.
    """
    check_type("text", text, str, "a str")
    place = text.strip()
    if place[: len(_SRV)].lower() == _SRV:
        return SrvRecords(place[len(_SRV) :])
    if place[: len(_DNS)].lower() == _DNS:
        return _parse_dns(place)
    if place[: len(_FILE)].lower() == _FILE:
        return TargetFile(re.sub("^//(?=/)", "", place[len(_FILE) :]))
    return parse_address_with_options(text)


def _parse_dns(text: str) -> AddressRecords:
    address = parse_address(text[len(_DNS) :])
    if not isinstance(address, TcpAddress):
        raise ValueError(f"{text!r} has no name; use {_DNS}HOST:PORT")
    return AddressRecords(address.host, address.port)

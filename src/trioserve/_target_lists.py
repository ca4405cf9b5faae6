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
from typing import Any, Final, TypeAlias

from ._address import TcpAddress, is_numeric, parse_address
from ._arguments import check_type
from ._name_servers import SrvRecord, ask_addresses, ask_srv, check_installed
from ._targets import (
    MOST_WEIGHT,
    TLS_WORDS,
    Target,
    is_name,
    parse_address_with_options,
    tls_argument,
    tls_for,
    tls_words,
)
from ._tls_options import TlsClientOptions

_FILE: Final = "file:"
_SRV: Final = "srv"
_DNS: Final = "dns"
_TLS: Final = "+tls"

#: The text of records: which, whether for TLS, and the rest.
_RECORDS: Final = re.compile(
    rf"({_SRV}|{_DNS})({re.escape(_TLS)})?://(.*)", re.IGNORECASE | re.DOTALL
)

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
      tls: begin TLS with each target. Its certificate must be for ``sni``, or for the
        host that the record names. Whoever can forge the answer of a name server
        chooses that host, so without ``sni`` it takes a ``ca`` of your own. RFC 9525,
        section 6.1. Default None: plain bytes.

    Raises:
      TypeError, ValueError: it is not a name, ``tls`` is invalid, or dnspython is not
        installed.
    """

    name: str
    tls: TlsClientOptions | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a str")
        _check_tls(self.tls)
        try:
            TcpAddress(self.name, 0)
            is_name = self.name and not is_numeric(self.name)
        except ValueError:
            is_name = False
        if not is_name:
            raise ValueError(
                f"{str(self)!r} is not the name of a service; use one like"
                f" {_SRV}://_postgresql._tcp.example.org"
            )
        if (tls := self.tls) is not None and tls.verify and not (tls.sni or tls.ca):
            raise ValueError(
                f"{str(self)!r} would trust any host that a forged answer of a name"
                " server names; add sni=NAME, or ca=FILE of an authority of your own"
            )
        check_installed(str(self))

    def __str__(self) -> str:
        return _text(_SRV, self.name, self.tls)

    async def look_up(self) -> tuple[Sequence[Target], float]:
        """Ask the name servers of this system for the targets.

        Returns:
          the targets, at least one, and for how many seconds they hold.

        Raises:
          OSError: there are none, one of them can't be dialed, or there is no answer.
        """
        records, seconds = await ask_srv(TcpAddress(self.name, 0).host_bytes.decode())
        try:
            return targets_of(records, self.tls), seconds
        except ValueError as error:
            raise socket.gaierror(socket.EAI_FAIL, str(error)) from None


def targets_of(
    records: Sequence[SrvRecord], tls: TlsClientOptions | None = None
) -> Sequence[Target]:
    """The targets that records list.

    Args:
      tls: of each of them.

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
            tls=tls,
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
      tls: begin TLS with each target. Its certificate must be for the name, or for
        ``sni``. Default None: plain bytes.

    Raises:
      TypeError, ValueError: an argument is invalid, or dnspython is not installed.
    """

    host: str
    port: int
    tls: TlsClientOptions | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        address = TcpAddress(self.host, self.port)
        if not is_name(address) or not self.host:
            raise ValueError(f"host {self.host!r} is not a name; leave {_DNS}:// out")
        Target(address)  # the port can be dialed
        _check_tls(self.tls)
        if self.tls is not None:
            tls_for(address, self.tls)  # the host may be in a certificate
        check_installed(str(self))

    def __str__(self) -> str:
        return _text(_DNS, str(TcpAddress(self.host, self.port)), self.tls)

    async def look_up(self) -> tuple[Sequence[Target], float]:
        """Ask the name servers of this system for the targets.

        Returns:
          the targets, at least one, and for how many seconds they hold.

        Raises:
          OSError: there are none, there is no answer, or a file of TLS can't be used
            any more.
        """
        name, tls = TcpAddress(self.host, self.port), self.tls
        addresses, seconds = await ask_addresses(name.host_bytes.decode())
        try:
            tls = None if tls is None else tls_for(name, tls)
        except ValueError as error:
            raise socket.gaierror(socket.EAI_FAIL, str(error)) from None
        places = [TcpAddress(each, self.port) for each in addresses]
        return [Target(each, tls=tls) for each in places], seconds


def _check_tls(tls: object) -> None:
    check_type("tls", tls, (TlsClientOptions, type(None)), "a TlsClientOptions or None")


def _text(kind: str, place: str, tls: TlsClientOptions | None) -> str:
    if tls is None:
        return f"{kind}://{place}"
    words = tls_words(tls)
    return f"{kind}{_TLS}://{place}" + (f"?{'&'.join(words)}" if words else "")


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
    :class:`SrvRecords`, and ``dns://HOST:PORT`` is :class:`AddressRecords`. To begin
    TLS with their targets, write ``srv+tls://NAME`` and ``dns+tls://HOST:PORT``, which
    have the same options of TLS.

    Raises:
      TypeError: ``text`` is not a str.
      ValueError: it is neither, or a file of TLS can't be used; one line says what is
        wrong and what to write instead.
    """
    check_type("text", text, str, "a str")
    place = text.strip()
    if (found := _RECORDS.fullmatch(place)) is not None:
        kind, tls, rest = found.groups()
        return _parse_records(place, kind.lower(), rest, is_tls=tls is not None)
    if place[: len(_FILE)].lower() == _FILE:
        return TargetFile(re.sub("^//(?=/)", "", place[len(_FILE) :]))
    return parse_address_with_options(text)


def _parse_records(
    text: str, kind: str, rest: str, *, is_tls: bool
) -> SrvRecords | AddressRecords:
    place, has_options, options = rest.partition("?")
    arguments: dict[str, Any] = {}
    for option in options.split("&") if has_options else ():
        argument = tls_argument(option)
        if not argument:
            raise ValueError(
                f"{option!r} in {text!r} is not an option of records; use {TLS_WORDS},"
                f" after {kind}{_TLS}://, with & between two of them"
            )
        if not is_tls:
            raise ValueError(
                f"{option.partition('=')[0]} in {text!r} is for TLS; did you mean"
                f" {kind}{_TLS}://{rest}?"
            )
        arguments |= argument
    try:
        tls = TlsClientOptions(**arguments) if is_tls else None
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if kind == _SRV:
        return SrvRecords(place, tls=tls)
    address = parse_address(place)
    if not isinstance(address, TcpAddress):
        raise ValueError(f"{text!r} has no name; use {kind}://HOST:PORT")
    return AddressRecords(address.host, address.port, tls=tls)

"""Targets: what a proxy dials, its share of the connections, and when it is down.

Values, and the text of a target. Nothing is dialed or looked up here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import ssl
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import quote, unquote

from ._address import Address, TcpAddress, UnixAddress, is_numeric, parse_address
from ._arguments import check_count, check_seconds, check_type
from ._tls_options import TlsClientOptions
from .wire._tls_session import TlsSession

#: How the target of a connection is chosen; see :func:`proxy`.
Balance: TypeAlias = Literal[
    "first", "round-robin", "least-connections", "random", "source"
]

MOST_WEIGHT: Final = 1000

#: As in SRV records. RFC 2782
_MOST_PRIORITY: Final = 65_535

_TLS: Final = "tls://"
_TLS_TEXTS: Final = ("ca", "sni", "cert", "key")
_TRUNCATED: Final = "allow-truncation"

#: The options of TLS, for messages.
TLS_WORDS: Final = (
    "ca=FILE, sni=NAME, cert=FILE, key=FILE, alpn=NAME,NAME, verify=no or"
    " allow-truncation"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """An address that a proxy dials, and its part in the balancing.

    ``str(target)`` is the text that :func:`proxy` reads: the address, then ``?`` and
    the options, with ``&`` between them, like ``db1:5432?weight=3``. Of an
    ``ssl.SSLContext`` it says nothing but ``tls://``.

    Args:
      address: a host and a port, or the path of a Unix socket.
      weight: its share of the connections, beside the weights of the other targets;
        1 to 1000, default 1. The balance ``first`` does not use it.
      backup: whether it gets a connection only if all targets that are no backups are
        down, or have failed for this connection. Default False.
      priority: it gets a connection only if all targets with a lower number are down,
        or have failed for this connection; 0 to 65535, default 0. Backups come after
        all others.
      each_address: whether each address of its name is a target of its own, with its
        own state and the same weight; they are looked up again as the answers age.
        Default False: the name is one target, at the address that answers first.
      tls: speak TLS to it: :class:`TlsClientOptions`, or an ``ssl.SSLContext`` of
        your own, which is used as it is, with the address's host as the name. Default
        None: plain bytes.

    Raises:
      TypeError, ValueError: an argument is invalid, or the address can't be dialed; the
        message names it.
    """

    address: Address
    weight: int = 1
    backup: bool = False
    tls: TlsClientOptions | ssl.SSLContext | None = None
    each_address: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        check_type("address", self.address, (TcpAddress, UnixAddress), "an address")
        check_count("weight", self.weight, least=1)
        if self.weight > MOST_WEIGHT:
            raise ValueError(f"weight must be 1 to {MOST_WEIGHT}, not {self.weight}")
        check_type("backup", self.backup, bool, "a bool")
        check_count("priority", self.priority, least=0)
        if self.priority > _MOST_PRIORITY:
            raise ValueError(
                f"priority must be 0 to {_MOST_PRIORITY}, not {self.priority}"
            )
        kinds = (TlsClientOptions, ssl.SSLContext, type(None))
        check_type("tls", self.tls, kinds, "a TlsClientOptions or an SSLContext")
        check_type("each_address", self.each_address, bool, "a bool")
        _check_dialable(self.address)
        self._check_each_address()
        if self.tls is None:
            return
        if isinstance(self.address, UnixAddress):
            raise ValueError(
                f"the target {str(self.address)!r} can't have TLS: a certificate names"
                " no Unix socket; use a host and a port"
            )
        if isinstance(self.tls, ssl.SSLContext):
            try:
                TlsSession(self.tls, server_side=False, server_hostname="localhost")
            except ssl.SSLError:
                raise ValueError(
                    "tls is a context for servers; use ssl.PROTOCOL_TLS_CLIENT"
                ) from None

    def _check_each_address(self) -> None:
        if not self.each_address:
            return
        if not is_name(self.address):
            raise ValueError(
                f"the target {str(self.address)!r} is one address; each-address is for"
                " names, which may have several"
            )
        if isinstance(self.tls, ssl.SSLContext):
            raise ValueError(
                "each_address needs TlsClientOptions in place of an SSLContext, for the"
                " name that certificates have to be for"
            )

    def __str__(self) -> str:
        scheme = "" if self.tls is None else _TLS
        options = [f"weight={self.weight}"] if self.weight != 1 else []
        options += [f"priority={self.priority}"] if self.priority else []
        options += ["backup"] if self.backup else []
        options += ["each-address"] if self.each_address else []
        if isinstance(self.tls, TlsClientOptions):
            options += tls_words(self.tls)
        text = f"{scheme}{self.address}"
        return f"{text}?{'&'.join(options)}" if options else text


def is_name(address: Address) -> bool:
    """Whether it has a host that has to be looked up."""
    return isinstance(address, TcpAddress) and not is_numeric(address.host)


def target_at(address: Address, name: Target) -> Target:
    """The target at one of the addresses of a name.

    Raises:
      ValueError: a file of TLS can no longer be used.
    """
    tls = name.tls
    if isinstance(tls, TlsClientOptions):
        assert isinstance(name.address, TcpAddress)
        tls = tls_for(name.address, tls)
    return dataclasses.replace(name, address=address, tls=tls, each_address=False)


def tls_for(name: TcpAddress, tls: TlsClientOptions) -> TlsClientOptions:
    """The options for the addresses of a name: their certificates are for the name.

    Raises:
      ValueError: a file can no longer be used, or no certificate can have this name.
    """
    if tls.sni is not None:
        return tls
    host = name.host_bytes.decode().removesuffix(".")
    return dataclasses.replace(tls, sni=host)


def tls_words(tls: TlsClientOptions) -> list[str]:
    """The options of TLS in the text of a target."""
    words = [
        f"{name}={quote(value, safe='/:', errors='surrogateescape')}"
        for name in _TLS_TEXTS
        if (value := getattr(tls, name)) is not None
    ]
    words += [] if tls.verify else ["verify=no"]
    alpn = ",".join(quote(each, safe="/:") for each in tls.alpn)
    words += [f"alpn={alpn}"] if alpn else []
    return words + ([_TRUNCATED] if tls.allow_truncation else [])


def tls_argument(option: str) -> dict[str, Any]:
    """What an option in a text says to :class:`TlsClientOptions`; {}: it is none."""
    name, _, value = option.partition("=")
    if option == "verify=no":
        return {"verify": False}
    if option == _TRUNCATED:
        return {"allow_truncation": True}
    if name == "alpn" and value:
        return {"alpn": [unquote(each) for each in value.split(",")]}
    if name in _TLS_TEXTS and value:
        return {name: unquote(value, errors="surrogateescape")}
    return {}


def parse_address_with_options(text: str) -> Target:
    """Parse the text of one target; see :func:`parse_target`.

    Raises:
      ValueError: it is not a target, or a file can't be used.
    """
    place, _, options = text.strip().partition("?")
    is_tls = place[: len(_TLS)].lower() == _TLS
    if not is_tls and (not options or options.startswith("mode=")):
        return Target(parse_address(text))
    numbers = {"weight": 1, "priority": 0}
    words = {"backup": False, "each-address": False}
    tls: dict[str, Any] = {}
    for option in options.split("&") if options else ():
        name = option.partition("=")[0]
        if name in numbers:
            numbers[name] = _number(option, text)
        elif option in words:
            words[option] = True
        elif found := tls_argument(option):
            tls |= found
        else:
            raise ValueError(
                f"{option!r} in {text!r} is not an option of a target; use"
                f" weight=N, priority=N, backup or each-address, or after {_TLS}"
                f" {TLS_WORDS}, with & between two of them"
            )
    made = functools.partial(
        Target,
        weight=numbers["weight"],
        priority=numbers["priority"],
        backup=words["backup"],
        each_address=words["each-address"],
    )
    if not is_tls:
        if tls:
            raise ValueError(
                f"{next(iter(tls)).replace('_', '-')} in {text!r} is for TLS; did you"
                f" mean {_TLS}{place}?"
            )
        return made(parse_address(place))
    place = place[len(_TLS) :]
    try:
        return made(parse_address(place), tls=TlsClientOptions(**tls))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _number(option: str, text: str) -> int:
    name, _, value = option.partition("=")
    least, most = (1, MOST_WEIGHT) if name == "weight" else (0, _MOST_PRIORITY)
    if re.fullmatch(r"\d{1,5}", value, re.ASCII) and least <= int(value) <= most:
        return int(value)
    raise ValueError(
        f"{option!r} in {text!r} is not a {name}; use {name}={least} to {name}={most}"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When a target counts as down, and when it is tried again. Times are in seconds.

    A target is down after ``fall`` attempts in a row have failed. Then it gets no
    connection for ``pause``; after that one connection tries it. If that fails, the
    next pause is twice as long, up to ``max_pause``; if it connects, the target is up.
    An attempt that fails late does not count if another one has connected meanwhile.
    Each pause is made longer by up to a tenth, at random, so that several proxies don't
    try at the same time.

    With ``check``, the proxy itself connects to each target as well, without a client.
    Then a target is also down after ``fall`` checks in a row have failed; one is enough
    if none has passed yet. And it is up again only when ``rise`` checks in a row have
    passed: no client tries it, unless all are down. A check has the time between two,
    and at most 5 seconds. It looks up a name, sends a PROXY header that declares no
    client, and shakes hands with a target that has TLS, as a connection does.

    Args:
      fall: attempts in a row that fail; 1 or more. Default 3.
      pause: the first pause. Default 1. 0: failed connections don't take a target out.
      max_pause: the longest pause. Default 30.
      check: the time between two checks of a target, which is made longer or shorter by
        up to a tenth, at random. Default None: no checks.
      rise: checks in a row that pass; 1 or more. Default 2.
      slow_start: the time in which the weight of a target that has come up grows from
        almost nothing to all of it. It has no effect on the balance ``first``, nor when
        serving begins. Default 0.
      check_send: bytes that a check sends. Default: none.
      check_expect: what the target's answer must begin with. Default: a target that
        connects has passed.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    fall: int = 3
    pause: float = 1.0
    max_pause: float = 30.0
    check: float | None = None
    rise: int = 2
    slow_start: float = 0.0
    check_send: bytes = b""
    check_expect: bytes = b""

    def __post_init__(self) -> None:
        check_count("fall", self.fall, least=1)
        check_count("rise", self.rise, least=1)
        if self.check is not None:
            check_seconds("check", self.check)
            if not 0 < self.check < math.inf:
                raise ValueError(
                    f"check must be more than 0, and finite, not {self.check!r}"
                )
        check_seconds("slow_start", self.slow_start)
        if self.slow_start == math.inf:
            raise ValueError("slow_start must be finite")
        for name in ("check_send", "check_expect"):
            check_type(name, getattr(self, name), bytes, "bytes")
            if getattr(self, name) and self.check is None:
                raise ValueError(f"{name} is for checks; set check, too")
        if self.check_send and not self.check_expect:
            raise ValueError("check_send needs check_expect: an answer to wait for")
        for name in ("pause", "max_pause"):
            check_seconds(name, getattr(self, name))
            if getattr(self, name) == math.inf:
                raise ValueError(f"{name} must be finite: a target has to be tried")
        if self.max_pause < self.pause:
            raise ValueError(
                f"max_pause must be at least pause, {self.pause:g}, not"
                f" {self.max_pause:g}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TargetState:
    """What a proxy knows of a target. Times are in seconds.

    Attributes:
      target: the target.
      up: whether it counts as up.
      drained: whether it gets no new connections, after :meth:`Proxy.drain`.
      gone: whether its list no longer has it; then it gets no new connections.
      seconds: for how long it has been up or down; None if it has been up from the
        start. One that a list has added later is up from then on.
      open: connections that it has, those that are being dialed included.
      connected: attempts that have connected; an attempt is the whole dialing of the
        target, with a look-up and all addresses of its name.
      failed: attempts that have failed.
      connect: how long an attempt that connects usually takes, a moving average; None
        before the first one.
      connect_p50, connect_p99: how long half of the last 1000 attempts that have
        connected took at most, and 99 % of them (by nearest rank); None before the
        first one.
      error: why it failed last, in one line of printable ASCII; None if it has not
        failed since it last connected, and since a check last passed.
      retry: until its pause is over; 0 if it is over; None if the target is up, or if
        checks say when it is.
      checks: checks so far.
      checks_failed: those of them that have failed.
    """

    target: Target
    up: bool
    drained: bool
    gone: bool
    seconds: float | None
    open: int
    connected: int
    failed: int
    connect: float | None
    connect_p50: float | None
    connect_p99: float | None
    error: str | None
    retry: float | None
    checks: int
    checks_failed: int


def check_balance(balance: object) -> None:
    """Check that ``balance`` is the name of one.

    Raises:
      ValueError: it is not; the message lists them.
    """
    known = get_args(Balance)
    if balance not in known:
        words = ", ".join(map(repr, known[:-1]))
        raise ValueError(f"balance must be {words} or {known[-1]!r}, not {balance!r}")


def _check_dialable(address: Address) -> None:
    match address:
        case TcpAddress(host="", port=port):
            raise ValueError(
                f"the target {str(address)!r} has no host;"
                f" did you mean 127.0.0.1:{port}?"
            )
        case TcpAddress(port=0):
            raise ValueError(
                f"the target {str(address)!r} has port 0: it can't be dialed"
            )
        case UnixAddress(mode=int()):
            raise ValueError(
                f"the target {str(address)!r} has a mode, which is for listening;"
                f" did you mean unix:{address.path}?"
            )
        case _:
            pass

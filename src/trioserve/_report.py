"""Reports: the record of one connection.

This module does not know what makes a report or what reads it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from ._describe import escape, plain_text, plain_value
from ._reason import Outcome, Phase, Reason, Side, termination_state

#: The errors of an attempt that was cancelled: its result was no longer needed.
LOST_RACE: Final = "another address was faster"
GIVEN_UP: Final = "given up"
#: The error of an attempt that took too long.
NO_ANSWER: Final = "no answer"

#: This many fields of a PROXY header are in JSON: it may have more than a thousand.
_MOST_TLVS: Final = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to connect to a target.

    Attributes:
      address: the address that was tried; the target, if it is a name that
        could not be looked up.
      seconds: how long it took, with its TLS handshake.
      error: why it failed, in one line of printable ASCII; None if it succeeded.
      ours: whether this machine made it fail, for example without descriptors or
        local ports. Such a failure does not count against the target.
    """

    address: str
    seconds: float
    error: str | None = None
    ours: bool = False

    @property
    def failed(self) -> bool:
        """Whether the target failed.

        False for an attempt that was cancelled, or that this machine could not make
        (:attr:`ours`): it says nothing about the target.
        """
        return not self.ours and self.error not in (None, LOST_RACE, GIVEN_UP)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsFacts:
    """What a TLS handshake has agreed on, with texts of the peer escaped.

    Attributes:
      version: ``"TLSv1.3"`` or ``"TLSv1.2"``.
      cipher: OpenSSL's name of it, like ``TLS_AES_256_GCM_SHA384``.
      sni: the name that the client, or the proxy of a target, has asked for; None if it
        has not, or with a name that is not valid.
      alpn: the protocol that ALPN has chosen; None without one.
      subject: of the peer's certificate, if that was verified, like
        ``CN=web,O=Example``; else None.
      names: its subject alternative names, like ``DNS:web.example.org`` and
        ``URI:spiffe://example.org/web``.
      resumed: whether a session from before was resumed.
      handshake: how many seconds the handshake took.
      bytes_received, bytes_sent: encrypted bytes, handshake included.
    """

    version: str
    cipher: str
    sni: str | None
    alpn: str | None
    subject: str | None
    names: Sequence[str]
    resumed: bool
    handshake: float
    bytes_received: int
    bytes_sent: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict for JSON; the order of its keys is stable."""
        fields = {name: getattr(self, name) for name in _TLS_FIELDS}
        return fields | {
            "names": list(self.names),
            "handshake": round(self.handshake, 6),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProxyFacts:
    """What a PROXY header of version 2 says of a client, besides its addresses.

    The load balancer vouches for it, not the client; texts are escaped. The
    specification is HAProxy's ``proxy-protocol.txt``, section 2.2.

    Attributes:
      alpn: the protocol that ALPN has chosen; None if the header does not say.
      authority: the name that the client has asked for (SNI); None as above.
      unique_id: the sender's identification of the connection; None as above.
      tls: whether the client speaks TLS with the sender; None if the header does not
        say. Then so are the following four.
      version, cipher: of this TLS, in OpenSSL's words; None as above.
      common_name: of the client's certificate; None without one, or as above.
      verified: whether the client has shown a certificate that the sender has accepted.
      tlvs: all fields, each with its type and its bytes, in their order: also those of
        clouds, such as 0xEA in AWS, with the endpoint of a VPC.
    """

    alpn: str | None
    authority: str | None
    unique_id: str | None
    tls: bool | None
    version: str | None
    cipher: str | None
    common_name: str | None
    verified: bool | None
    tlvs: Sequence[tuple[int, bytes]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict for JSON; the order of its keys is stable.

        Of ``tlvs`` it has the first 16, each with its type and with its bytes as
        escaped text, up to 256 characters.
        """
        fields = {name: getattr(self, name) for name in _PROXY_FIELDS}
        fields["tlvs"] = [
            [kind, escape(value.decode("latin-1"))]
            for kind, value in self.tlvs[:_MOST_TLVS]
        ]
        return fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The target's side of a connection that was relayed.

    Attributes:
      bytes_received: taken from the target's socket.
      bytes_sent: written to the target's socket.
      bytes_discarded: received from the target, and not sent on to the client.
      unacknowledged: sent, and not acknowledged by the target when it was reset; None
        if it was not reset, or if the system doesn't tell.
      tls: what its TLS handshake has agreed on; None without TLS.
    """

    bytes_received: int
    bytes_sent: int
    bytes_discarded: int
    unacknowledged: int | None = None
    tls: TlsFacts | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReport:
    """The record of one connection, made once, when its last socket is closed.

    Durations are seconds since accept, on Trio's clock; ``None`` means that
    the phase was not reached. If a handler only relays, as :func:`proxy` does, the
    byte counts balance:
    ``bytes_received == upstream.bytes_sent + bytes_discarded`` and
    ``upstream.bytes_received == bytes_sent + upstream.bytes_discarded``. Bytes that a
    handler itself receives or sends are counted too; PROXY headers, received and sent,
    are not.

    Attributes:
      id: the connection's number; a server counts from 1, in the order of accept.
      listener, peer, local: addresses as text: of the listener, of the client, and the
        one that the client connected to. A PROXY header replaces the last two.
      direct_peer: the load balancer's address, if a PROXY header has declared another
        peer; else None.
      declared: what its PROXY header says besides addresses; None without a header, or
        if it has only addresses.
      server_name: the name that the client has asked for by TLS (SNI), if
        :func:`by_server_name` has read it; else None.
      target: the target that it was relayed to or was meant for; None without one.
      attempts: the attempts to connect to a target, in the order in which they
        ended.
      accepted_at: seconds since the epoch, on the wall clock.
      queued: seconds that it waited for a token after accept. The time in the kernel's
        queue before that is not known.
      connect: seconds until it was connected to the target.
      first_byte: seconds until the client's first byte.
      tls: what the client's TLS handshake has agreed on; None without TLS. All byte
        counts are of plain bytes.
      duration: seconds until the last close.
      bytes_received: read from the client's socket.
      bytes_sent: written to the client's socket.
      bytes_discarded: received, and neither read by a handler nor sent on to the
        target.
      unacknowledged: sent, and not acknowledged by the client when the connection
        was reset; None if it was not reset, or if the system doesn't tell.
      upstream: the same on the target's side; None without one. :meth:`as_dict` has
        its fields beside the others, like ``upstream_bytes_sent``.
      outcome, reason, phase: how, why and in which phase it ended.
      waited_for: if the outcome is ``timeout``, the side that the timer waited for,
        ``"client"`` or ``"target"``; else None.
      limit: the value of the timer (seconds) or of the limit (connections) that
        ended it; None if neither did. With the reason ``cut``, the seconds of the
        drain, or None if the drain was cut short.
      error: what went wrong, in one line of printable ASCII; None if nothing did.
      exception: the exception; not part of :meth:`as_dict`.
      faults: the faults that a proxy applied to it, in the grammar of
        :func:`trioserve.faults.parse_faults`, like ``up:reset@4096``.
      draining: whether the server was draining when it ended.
      open_at_close: other connections that the server had open when it ended.
      result: the return value of the handler; None if it has handed over a relay; not
        part of :meth:`as_dict`.
      notes: the fields that the handler has added by ``Connection.note``.
    """

    id: int
    listener: str
    peer: str
    local: str
    accepted_at: float
    duration: float
    reason: Reason
    phase: Phase
    direct_peer: str | None = None
    declared: ProxyFacts | None = None
    server_name: str | None = None
    target: str | None = None
    attempts: Sequence[Attempt] = ()
    queued: float | None = None
    connect: float | None = None
    first_byte: float | None = None
    tls: TlsFacts | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_discarded: int = 0
    unacknowledged: int | None = None
    upstream: Upstream | None = None
    waited_for: Side | None = None
    limit: float | None = None
    error: str | None = None
    exception: BaseException | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    faults: Sequence[str] = ()
    draining: bool = False
    open_at_close: int = 0
    result: object = dataclasses.field(default=None, repr=False, compare=False)
    notes: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        return self.reason.outcome

    @property
    def termination_state(self) -> str:
        """HAProxy's two-letter termination state, like ``--`` or ``sC``.

        In the same case HAProxy 2.6 logs the same letters (configuration.txt,
        section 8.5).
        """
        return termination_state(self.reason, self.phase, self.waited_for)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict for JSON; the order of its keys is stable."""
        fields: dict[str, Any] = dict.fromkeys(_KEYS)
        fields.update(zip(_PLAIN, _plain_values(self), strict=True))
        for name in _SECONDS:
            if (value := fields[name]) is not None:
                fields[name] = round(value, 6)
        for name in _WORDS:
            fields[name] = getattr(self, name).value
        if (far := self.upstream) is not None:
            fields.update(zip(_UPSTREAM_KEYS, _upstream_values(far), strict=True))
            if far.tls is not None:
                fields["upstream_tls"] = far.tls.as_dict()
        if self.tls is not None:
            fields["tls"] = self.tls.as_dict()
        if self.declared is not None:
            fields["declared"] = self.declared.as_dict()
        fields["attempts"] = [
            {
                "address": a.address,
                "seconds": round(a.seconds, 6),
                "error": a.error,
                "ours": a.ours,
            }
            for a in self.attempts
        ]
        fields["faults"] = list(self.faults)
        notes = self.notes.items()
        fields["notes"] = {plain_text(k): plain_value(v) for k, v in notes}
        fields["state"] = self.termination_state
        return fields


_Record = TypeVar("_Record", ConnectionReport, Upstream, Attempt)


class Unfinished(Generic[_Record]):
    """Makes the records of a connection, field by field.

    To construct a frozen dataclass takes a call per field. For the three records of a
    connection that is 8 us, more than accept(2); to set the fields one by one is 4 us.
    """

    def __init__(self, kind: type[_Record]) -> None:
        self._kind: type[_Record] = kind
        body = {"__slots__": (), "__setattr__": object.__setattr__}
        self._open: type[Any] = type(f"_Unfinished{kind.__name__}", (kind,), body)

    def new(self) -> Any:
        """A record without fields, for :meth:`finish` when all are set."""
        return object.__new__(self._open)

    def finish(self, record: Any) -> _Record:
        """The same object as a record that can't be changed."""
        record.__class__ = self._kind
        finished: _Record = record
        return finished


unfinished_report: Final = Unfinished(ConnectionReport)
unfinished_upstream: Final = Unfinished(Upstream)
unfinished_attempt: Final = Unfinished(Attempt)


def _fields_of(kind: type[Any]) -> dict[str, str]:
    """The type of each field, as it is written."""
    return {field.name: str(field.type) for field in dataclasses.fields(kind)}


# What as_dict() does, worked out once: field by field it would take twice as long.
_FIELDS: Final = _fields_of(ConnectionReport)
_SECONDS: Final = tuple(name for name, kind in _FIELDS.items() if "float" in kind)
_WORDS: Final = ("outcome", "reason", "phase")
_UPSTREAM: Final = tuple(_fields_of(Upstream))
_UPSTREAM_KEYS: Final = tuple(f"upstream_{name}" for name in _UPSTREAM)
_upstream_values: Final = operator.attrgetter(*_UPSTREAM)
#: The fields that are given as they are.
_PLAIN: Final = tuple(
    name for name in _FIELDS if name not in (*_WORDS, "upstream", "exception", "result")
)
_plain_values: Final = operator.attrgetter(*_PLAIN)


def _keys() -> Iterator[str]:
    """The keys of as_dict(), in their order."""
    for name in _FIELDS:
        if name == "upstream":
            yield from _UPSTREAM_KEYS
        elif name not in ("exception", "result"):
            yield name
        if name == "id":
            yield "outcome"


_KEYS: Final = tuple(_keys())

_TLS_FIELDS: Final = tuple(_fields_of(TlsFacts))
_PROXY_FIELDS: Final = tuple(_fields_of(ProxyFacts))

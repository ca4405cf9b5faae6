"""Reasons: how a connection ended, why, and in which phase; closed sets of words.

Values only. This module does not know what ends a connection.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, NamedTuple

Side = Literal["client", "target"]


class Outcome(enum.StrEnum):
    """How a connection ended, in one word; its :class:`Reason` says why."""

    OK = "ok"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    PEER_ERROR = "peer_error"
    TARGET_ERROR = "target_error"
    HANDLER_ERROR = "handler_error"
    ABORTED = "aborted"
    CUT = "cut"
    RESOURCE = "resource"


class Phase(enum.StrEnum):
    """The phase in which a connection ended.

    The value is the word that is printed; :attr:`letter` is HAProxy's letter for it
    (``configuration.txt``, section 8.5).
    """

    QUEUE = "queue"
    HANDSHAKE = "handshake"
    CONNECT = "connect"
    DATA = "data"
    CLOSING = "closing"

    @property
    def letter(self) -> str:
        return _LETTERS[self]


_LETTERS: Final = {
    Phase.QUEUE: "Q",
    Phase.HANDSHAKE: "R",
    Phase.CONNECT: "C",
    Phase.DATA: "D",
    Phase.CLOSING: "L",
}


class Reason(enum.StrEnum):
    """Why a connection ended. New releases may add reasons.

    :attr:`outcome` is the group of a reason; :attr:`sentence` is its text for people.
    """

    CLIENT_CLOSED = "client_closed"
    SERVER_CLOSED = "server_closed"
    DRAINED = "drained"
    CLIENT_RESET = "client_reset"
    CLIENT_GONE = "client_gone"
    SERVER_RESET = "server_reset"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    TARGET_FULL = "target_full"
    LOOP = "loop"
    LIMIT = "limit"
    PEER_LIMIT = "peer_limit"
    RATE = "rate"
    DENIED = "denied"
    BAD_PROXY_HEADER = "bad_proxy_header"
    BAD_CLIENT_HELLO = "bad_client_hello"
    NO_ROUTE = "no_route"
    TLS_FAILED = "tls_failed"
    NO_FDS = "no_fds"
    RESOURCE = "resource"
    STOPPING = "stopping"
    HANDSHAKE = "handshake"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    HALF_CLOSED = "half_closed"
    WRITE_STALL = "write_stall"
    LIFETIME = "lifetime"
    ABORTED = "aborted"
    FAULT = "fault"
    HANDLER_ERROR = "handler_error"
    CUT = "cut"
    CANCELLED = "cancelled"

    @property
    def outcome(self) -> Outcome:
        return _TABLE[self].outcome

    @property
    def sentence(self) -> str:
        return _TABLE[self].sentence


class _Row(NamedTuple):
    """The properties of a reason.

    ``state`` is HAProxy's termination state, or its first letter, to which the letter
    of the phase is added. The letter ``t`` stands for a timer: it is printed as ``c``
    if the timer waited for the client, and as ``s`` if it waited for the target.
    """

    outcome: Outcome
    state: str
    sentence: str


_TABLE: Final[dict[Reason, _Row]] = {
    Reason.CLIENT_CLOSED: _Row(Outcome.OK, "--", "the client closed first"),
    Reason.SERVER_CLOSED: _Row(
        Outcome.OK, "--", "the handler or the target closed first"
    ),
    Reason.DRAINED: _Row(Outcome.OK, "--", "it was idle when the server drained"),
    Reason.CLIENT_RESET: _Row(Outcome.PEER_ERROR, "C", "the client reset it"),
    Reason.CLIENT_GONE: _Row(
        Outcome.PEER_ERROR,
        "C",
        "the client sent nothing and left before the target answered",
    ),
    Reason.SERVER_RESET: _Row(Outcome.TARGET_ERROR, "S", "the target reset it"),
    Reason.CONNECT_REFUSED: _Row(Outcome.TARGET_ERROR, "S", "the target refused"),
    Reason.CONNECT_FAILED: _Row(
        Outcome.TARGET_ERROR, "S", "the target can't be reached"
    ),
    Reason.CONNECT_TIMEOUT: _Row(
        Outcome.TARGET_ERROR,
        "s",
        "the target did not answer within the connect timeout",
    ),
    Reason.TARGET_FULL: _Row(
        Outcome.TARGET_ERROR,
        "sQ",
        "all targets were full or drained, and none had room in time",
    ),
    Reason.LOOP: _Row(Outcome.TARGET_ERROR, "P", "the target led back to the proxy"),
    Reason.LIMIT: _Row(Outcome.REFUSED, "PR", "the limit was reached"),
    Reason.PEER_LIMIT: _Row(
        Outcome.REFUSED,
        "PR",
        "its peer had reached the limit per peer",
    ),
    Reason.RATE: _Row(Outcome.REFUSED, "PR", "its peer had connected too often"),
    Reason.DENIED: _Row(Outcome.REFUSED, "PR", "an access rule denied its address"),
    Reason.BAD_PROXY_HEADER: _Row(
        Outcome.PEER_ERROR, "PR", "its PROXY header was missing or invalid"
    ),
    Reason.BAD_CLIENT_HELLO: _Row(
        Outcome.PEER_ERROR, "PR", "it did not begin with a valid TLS ClientHello"
    ),
    Reason.NO_ROUTE: _Row(
        Outcome.PEER_ERROR, "PR", "nothing is served under the name that it asked for"
    ),
    Reason.TLS_FAILED: _Row(Outcome.PEER_ERROR, "PR", "its TLS handshake failed"),
    Reason.NO_FDS: _Row(Outcome.REFUSED, "R", "no file descriptor was free"),
    Reason.RESOURCE: _Row(
        Outcome.RESOURCE,
        "R",
        "this machine lacked a resource, or refused a system call",
    ),
    Reason.STOPPING: _Row(Outcome.REFUSED, "K", "the server was stopping"),
    Reason.HANDSHAKE: _Row(
        Outcome.TIMEOUT, "t", "it was not ready for its handler in time"
    ),
    Reason.FIRST_BYTE: _Row(
        Outcome.TIMEOUT, "t", "no byte came from either side in time"
    ),
    Reason.IDLE: _Row(Outcome.TIMEOUT, "t", "no byte moved within the idle timeout"),
    Reason.HALF_CLOSED: _Row(
        Outcome.TIMEOUT,
        "t",
        "one direction had ended and no byte moved in the other",
    ),
    Reason.WRITE_STALL: _Row(Outcome.TIMEOUT, "t", "the receiver took no bytes"),
    Reason.LIFETIME: _Row(Outcome.TIMEOUT, "K", "it reached its maximum lifetime"),
    Reason.ABORTED: _Row(Outcome.ABORTED, "P", "the handler aborted it"),
    Reason.FAULT: _Row(Outcome.ABORTED, "P", "an injected fault ended it"),
    Reason.HANDLER_ERROR: _Row(Outcome.HANDLER_ERROR, "I", "the handler raised"),
    Reason.CUT: _Row(Outcome.CUT, "K", "it was still open when the drain ended"),
    Reason.CANCELLED: _Row(Outcome.CUT, "K", "the server was cancelled"),
}


def termination_state(reason: Reason, phase: Phase, waited_for: Side | None) -> str:
    """HAProxy's two-letter termination state of a connection."""
    state = _TABLE[reason].state
    if state == "t":
        state = "s" if waited_for == "target" else "c"
    elif state == "K" and phase in (Phase.DATA, Phase.CLOSING):
        state = "K-"  # what HAProxy logs for a session that is killed
    return state if len(state) == 2 else state + phase.letter

"""The state of a TLS transport, which is that of the transport below and some more.

This module moves no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import trio

from ._report import TlsFacts
from ._tcp import Setting
from ._transport import (
    CloseObserver,
    EngineTransport,
    PollableTransport,
    Transport,
)
from .wire._tls_session import TlsSession


class KeepingErrors:
    """Keeps an error of the transport below, and raises it as that of the one above.

    A class: it is entered for each message, and a generator would take three times as
    long, a microsecond.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: TlsState) -> None:
        self._transport = transport

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, trio.BrokenResourceError):
            transport = self._transport
            assert transport.below.error is not None
            transport.keep_error(transport.below.error)
            raise transport.broken() from transport.error
        if isinstance(error, trio.ClosedResourceError):
            self._transport.mark_closed()


class TlsState(EngineTransport):
    """The half of a TLS transport that tells how it stands.

    Args:
      below: the transport below.
      session: the end of the TLS connection, new or after its handshake.
    """

    __slots__ = (
        "_below_for_engine", "_encrypted", "_facts", "_is_flushing", "_is_unreadable",
        "below", "held", "holds_received", "session",
    )  # fmt: skip

    can_half_close = True

    def __init__(self, below: Transport, session: TlsSession) -> None:
        super().__init__()
        self.below = below
        self.session = session
        #: The same; asked for once, because each message needs it.
        self._below_for_engine = below.for_engine()
        self.held: bytes = b""
        self.holds_received = False
        #: How many plain bytes are in what is held, and not yet counted as sent.
        self._encrypted = 0
        self._is_flushing = False
        self._is_unreadable = False
        # As it was at the end of the handshake: after an error OpenSSL does not tell.
        self._facts: Callable[..., TlsFacts] | None = None
        below.on_wait = self._waits

    def _waits(self) -> None:
        waits = min(self.receiving_since, self.sending_since) < math.inf
        if waits and self.on_wait is not None:
            self.on_wait()

    # -- its abilities

    @property
    def closes_at_once(self) -> bool:  # type: ignore[override]
        """If the transport below does, and nothing has to be sent before."""
        if self.held or (self._is_unreadable and not self._has_ended_below()):
            return False  # an alert may be on its way
        sends_nothing = self.sent_eof or self.error is not None
        return sends_nothing and self.below.closes_at_once

    @property
    def can_reset(self) -> bool:
        return self.below.can_reset

    def trio_socket(self) -> trio.socket.SocketType | None:
        return self.below.trio_socket()

    def options(self) -> Any:
        return self.below.options()

    def apply(self, settings: Iterable[Setting]) -> None:
        self.below.apply(settings)

    def for_engine(self) -> EngineTransport | None:
        return None if self._below_for_engine is None else self

    @property
    def carrier(self) -> PollableTransport:
        return self._engine_below().carrier

    @property
    def is_relayed(self) -> bool:
        return self._engine_below().is_relayed

    def notify_on_close(self, observer: CloseObserver | None) -> None:
        self._engine_below().notify_on_close(observer)

    def tell_closing(self) -> None:
        if self._below_for_engine is not None:
            self._below_for_engine.tell_closing()

    def _engine_below(self) -> EngineTransport:
        assert self._below_for_engine is not None
        return self._below_for_engine

    def wraps(self, thing: object) -> bool:
        return thing is self or self.below.wraps(thing)

    def tls_facts(self) -> TlsFacts | None:
        if self._facts is None:
            return None
        received, sent = self.below.received, self.below.sent
        return self._facts(bytes_received=received, bytes_sent=sent)

    def _has_ended_below(self) -> bool:
        """Whether a direction below has ended: no close waits for an alert any more."""
        below = self.below
        return below.eof or below.sent_eof or below.closed or below.error is not None

    # -- its errors and its end

    def check_open(self) -> None:
        super().check_open()
        try:
            self.below.check_open()
        except trio.ClosedResourceError:
            self.mark_closed()
            raise

    def mark_closed(self) -> None:
        super().mark_closed()
        self.below.on_wait = None  # it refers to this transport: a cycle

    def readable(self) -> bool:
        return (
            self.closed
            or self._is_unreadable
            or bool(self.unread_bytes)
            or self.session.holds_bytes
            or self.below.readable()
        )

    def writable(self) -> bool:
        return self.below.writable()

    def unsent(self) -> int | None:
        unsent = self.below.unsent()
        return None if unsent is None else unsent + len(self.held)

    def observe_acks(self, now: float) -> bool:
        below = self.below
        holds = below.observe_acks(now)
        self.acked_at = below.acked_at
        # A part of a record is progress, although no plain bytes come of it yet.
        self.moved_at = max(self.moved_at, below.moved_at)
        if self.sending_since < math.inf > below.sending_since:
            self.sending_since = max(self.sending_since, below.sending_since)
        return holds

    def is_reset(self) -> bool:
        if self.error is None and self.below.is_reset():
            assert self.below.error is not None
            self.keep_error(self.below.error)
        return self.error is not None

    def end_is_receivable(self) -> bool:
        return self._is_unreadable or self.below.end_is_receivable()

    async def wait_peer_gone(self, patience: float) -> None:
        # If bytes are here, the peer has sent something, and its FIN ends nothing.
        has_bytes = self.unread_bytes or self.session.holds_bytes
        await self.below.wait_peer_gone(math.inf if has_bytes else patience)

    async def check_no_receiver(self) -> None:
        await self.below.check_no_receiver()

"""The state of a connection: who it is, its phase, its timers' times, why it ends.

It keeps the first reason for which the connection ends, and the relay that its handler
hands over. This module does not know when a connection is closed, or how.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Mapping
from typing import Protocol

import trio

from ._admission import Token
from ._attachments import (
    ActiveFaults,
    Dialer,
    EngineHandshake,
    HandedOver,
    RelaySide,
)
from ._handshakes import Handshakes
from ._idle import Idle
from ._options import Timeouts
from ._reason import Phase, Reason, Side
from ._results import CloseReason
from ._tasks import whereabouts
from ._timers import Timers
from ._transport import Transport
from .wire._proxy_protocol import ProxyHeader


class RelayHost(Protocol):
    """The server, as far as a relay without a task needs it."""

    def relay_over(self, number: int) -> None:
        """Called when the relay of this connection has ended.

        It must not be finished in this call; see :class:`RelayOwner`.
        """


class LifecycleState(abc.ABC):
    """The state of one accepted connection.

    Args:
      token: its token of the connection limit; None if it has none yet.
      peer_key: its peer in the count for ``Limits.max_per_peer``; None if that does
        not apply.

    Attributes:
      peer, local: the addresses of its client, and of what that has connected to.
      direct: the addresses of the socket, if a PROXY header has declared others.
      header: its PROXY header, if it had one.
      server_name: the name that its client asks for by TLS, if that is known.
      handshakes: those under way in its server.
      handshake: its own, if the engine runs it, until what follows has begun.
      phase: its phase, as in the report.
      scope: around its task, while it has one; the server cancels it.
      stopped: the reason that ``stop()`` was given, if it was called; a task that
        begins later is cancelled for it.
      task: its task, while it has one.
      dialer, connected_at: the dialer of its target, and when that connected.
      active_faults: the faults that are applied to it, if any.
      handed_over: the relay that its handler has handed over to the server.
      relay: the relay that it is a side of now.
      upstream: the other side of the last relay; None for an echo.
      close_reason: why it ends, as soon as that is known.
      exception: the error that ends it, if it is one.
      result: the return value of its handler.
      notes: the fields that its handler has noted.
      goodbye: bytes that are sent before the FIN of a timer or a drain.
    """

    __slots__ = (
        "_drained", "_eof_first", "_idle", "_is_moving", "_is_quiet", "_lingers",
        "_relay_closed", "_sends_fin", "_upstream_discarded", "accepted_at",
        "active_faults", "close_reason", "connected_at", "dialer", "direct", "draining",
        "exception", "goodbye", "handed_over", "handshake", "handshakes", "header",
        "id", "listener", "local", "notes", "peer", "peer_key", "phase", "queued",
        "relay", "relay_host", "result", "scope", "server_name", "stopped", "task",
        "timeouts", "timer_due", "timers", "token", "transport", "upstream",
        "wall_clock",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        *,
        token: Token | None,
        id: int,
        peer: str,
        peer_key: str | None,
        local: str,
        listener: str,
        timeouts: Timeouts,
        timers: Timers,
        draining: trio.Event,
        handshakes: Handshakes,
    ) -> None:
        self.id = id
        self.peer = peer
        self.peer_key = peer_key
        self.local = local
        self.listener = listener
        self.direct: tuple[str, str] | None = None
        self.header: ProxyHeader | None = None
        self.server_name: str | None = None
        self.handshakes = handshakes
        self.handshake: EngineHandshake | None = None
        self.draining = draining
        self.transport = transport
        self.token = token
        self.timeouts = timeouts
        self.timers = timers
        self.accepted_at = transport.moved_at  # the transport is new: this is now
        self.queued: float | None = None
        self.connected_at: float | None = None
        self.dialer: Dialer | None = None
        self.active_faults: ActiveFaults | None = None
        self.phase = Phase.QUEUE
        self.scope: trio.CancelScope | None = None
        self.stopped: Reason | None = None
        self.task: trio.lowlevel.Task | None = None
        self.relay_host: RelayHost | None = None
        self.handed_over: HandedOver | None = None
        self.relay: RelaySide | None = None
        self.close_reason: CloseReason | None = None
        self.result: object = None
        self.notes: Mapping[str, object] | None = None
        self.goodbye = b""
        self.wall_clock = time.time()
        self._idle: Idle | None = None
        self.upstream: Transport | None = None
        self._upstream_discarded = 0
        self._relay_closed: CloseReason | None = None
        self.exception: BaseException | None = None
        self._drained = False
        self._sends_fin = False
        self._eof_first = False
        self._lingers = False
        self._is_moving = False
        self.timer_due = math.inf
        self._is_quiet = False
        transport.on_wait = self._on_wait

    def replace_transport(self, transport: Transport) -> None:
        """Go on over a transport that is over the one so far."""
        self.transport = transport
        transport.on_wait = self._on_wait

    @abc.abstractmethod
    def _on_wait(self) -> None:
        """Called when the transport begins to wait."""

    def start_serving(self, token: Token) -> None:
        """Give it the token that it has waited for since it was accepted."""
        self.token = token
        self.queued = trio.current_time() - self.accepted_at

    @property
    def handshake_ends_at(self) -> float:
        """The deadline of ``Timeouts.handshake``, on Trio's clock."""
        return self.accepted_at + (self.queued or 0) + self.timeouts.handshake

    def begin_task(self, *, shield: bool) -> trio.CancelScope:
        """The scope for its next task; it is cancelled already if it was stopped."""
        self.scope = trio.CancelScope(shield=shield)
        if self.stopped is not None:
            self.scope.cancel(reason=str(self.stopped))
        return self.scope

    def close_as(
        self,
        reason: Reason,
        *,
        waited_for: Side | None = None,
        limit: float | None = None,
        error: str | None = None,
        exception: BaseException | None = None,
    ) -> None:
        """Keep why it ends. The first reason wins."""
        if self.close_reason is None:
            self.close_reason = CloseReason(reason, waited_for, limit, error)
        if self.exception is None:
            self.exception = exception

    # -- the relay that its handler hands over

    def hand_over(self, relay: HandedOver) -> None:
        """Let the server run a relay when the handler has returned.

        Raises:
          trio.BusyResourceError: one is handed over already.
        """
        self.check_not_handed_over()
        self.handed_over = relay

    def check_not_handed_over(self) -> None:
        """Check that no relay is handed over.

        Raises:
          trio.BusyResourceError: one is.
        """
        if self.handed_over is not None:
            raise trio.BusyResourceError("a relay is handed over already")

    # -- for the report

    @property
    def discarded(self) -> int:
        """Bytes received that neither the handler nor the target got."""
        of_relay = self.relay.discarded()[0] if self.relay is not None else 0
        return self.transport.discarded + of_relay

    @property
    def upstream_discarded(self) -> int:
        """Bytes received from the target that the client did not get."""
        of_relay = self.relay.discarded()[1] if self.relay is not None else 0
        return self._upstream_discarded + of_relay

    def stands_at(self) -> str:
        """The connection, and the lines of code at which its tasks wait."""
        where = "; ".join(whereabouts(self.task)) or "nothing that runs"
        return f"conn-{self.id} {self.peer} in {where}"

    def release(self) -> None:
        """Give its target back, and break reference cycles, so that it is freed without
        a garbage collection.

        The frames in an exception's traceback refer to the connection.
        """
        if self.dialer is not None:
            self.dialer.release()
        self.task = self.transport.on_wait = self.exception = self.result = None

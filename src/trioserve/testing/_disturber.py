"""The disturber: what happens to a conversation after one of its scheduler steps."""

from __future__ import annotations

from collections.abc import Callable

from trioserve import Server

from ._case import Setting
from ._judge import CANCEL_REASON
from ._liveness import Bounds
from ._state import RunState
from .network import MemoryStream


class Disturber:
    """Makes the disturbance of a case, in one round.

    Args:
      state: the state of the run.
      setting: what is the same in all runs.
      server: the server under test.
      bounds: of the round.
    """

    def __init__(
        self, state: RunState, setting: Setting, server: Server, bounds: Bounds
    ) -> None:
        self._state = state
        self._setting = setting
        self._server = server
        self._bounds = bounds

    def disturb(self) -> None:
        match self._state.case.disturbance:
            case "cancel":
                self._cancel_handlers()
            case "drain":
                self._drain()
            case "eof":
                self._disturb_peers("sends EOF", MemoryStream.send_eof_now)
            case "reset":
                self._disturb_peers("resets", MemoryStream.reset)
            case "stall":
                self._disturb_peers("stalls: what it sends is lost", MemoryStream.stall)
            case "vanish":
                self._disturb_peers("vanishes", MemoryStream.vanish)
            case None:  # pragma: no cover
                raise AssertionError

    def _cancel_handlers(self) -> None:
        state = self._state
        what = "cancels the handler; nothing more arrives from its peer"
        state.record("test", what)
        state.cancels_handlers = True
        for handler in state.handlers.values():
            handler.scope.cancel(reason=CANCEL_REASON)
        for player in state.players:
            player.stream.stall()
            player.pause_reading()
        self._bounds.require_ended(self._setting.cleanup, "after it was cancelled")

    def _drain(self) -> None:
        self._state.record("test", "drains the server")
        self._server.start_draining(reason="the test drains")
        timeouts = self._server.timeouts
        deadline = timeouts.lame_duck + timeouts.drain
        self._bounds.require_ended(
            self._setting.cleanup, "after the deadline of a drain", late=deadline
        )

    def _disturb_peers(
        self, what: str, disturb: Callable[[MemoryStream], None]
    ) -> None:
        for player in self._state.players:
            self._state.record(player.name, what)
            disturb(player.stream)

"""Watched dial: connect to a target for a client, as long as that client is there.

The dialer connects; this module stops it when the client is gone, and notes in the
connection why no target was reached. It does not know what the transport is for.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from ._connect import is_local_shortage
from ._dial import DialCancelledError, Dialer, NoRoomError
from ._errors import isolated
from ._lifecycle import Lifecycle
from ._reason import Reason
from ._transport import Transport

#: Dialing ends this many seconds after the EOF of a client that has sent no byte. It
#: may have closed only its own direction; HAProxy ends such a session at once.
_PATIENCE: Final = 1.0

#: Don't watch the client for this long at first: most targets answer within it,
#: and watching costs as much as connecting.
_UNWATCHED: Final = 0.05


class _ClientWatch:
    """Ends the dialing when the client is gone."""

    __slots__ = ("_dialer", "_life", "_scope", "timer_due")

    def __init__(self, life: Lifecycle, dialer: Dialer) -> None:
        self.timer_due = math.inf
        self._life = life
        self._dialer = dialer
        self._scope: trio.CancelScope | None = None

    def begin(self) -> None:
        """Start the watch after :data:`_UNWATCHED` seconds."""
        self._life.timers.watch(self, trio.current_time() + _UNWATCHED)

    def end(self) -> None:
        self._life.timers.forget(self)
        if self._scope is not None:
            self._scope.cancel(reason="dialed")

    def on_timer(self, now: float) -> None:
        if self._scope is None:
            self._scope = trio.CancelScope()
            name = f"trioserve watch of conn-{self._life.id} {self._life.peer}"
            trio.lowlevel.spawn_system_task(self._run, self._scope, name=name)

    async def _run(self, scope: trio.CancelScope) -> None:
        # Without descriptors or memory for the watch, dialing goes on unwatched.
        with scope, isolated():
            await self._life.transport.wait_peer_gone(_PATIENCE)
            self._dialer.cancel()


async def dial_for(life: Lifecycle, dialer: Dialer, seconds: float) -> Transport | None:
    """Connect to a target for a connection, name look-ups included.

    Returns:
      None if that has failed, or if the client is gone; the connection has the reason.

    Raises:
      BaseException: the error of a callback.
    """
    watch = _ClientWatch(life, dialer)
    dialer.on_wait = watch.begin
    try:
        return await dialer.dial(seconds)
    except OSError as failed:
        reason = _reason(failed)
        limit: float | None = None
        if reason is Reason.CONNECT_TIMEOUT:
            limit = seconds
        elif reason is Reason.TARGET_FULL:
            limit = dialer.max_open
        life.close_as(reason, limit=limit, exception=failed)
    except DialCancelledError:
        pass
    finally:
        dialer.on_wait = None
        watch.end()
    dialer.raise_callback_error()
    if life.close_reason is None:
        reset = life.transport.error
        life.close_as(
            Reason.CLIENT_GONE if reset is None else Reason.CLIENT_RESET,
            exception=reset,
        )
    return None


def _reason(error: OSError) -> Reason:
    if is_local_shortage(error):
        return Reason.RESOURCE
    if isinstance(error, NoRoomError):
        return Reason.TARGET_FULL
    if isinstance(error, TimeoutError):
        return Reason.CONNECT_TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Reason.CONNECT_REFUSED
    return Reason.CONNECT_FAILED

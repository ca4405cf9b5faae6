"""Run the pumps of one relay at the engine.

This module does not know how bytes move, or why a relay ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._engine import Engine
from ._polled_pump import PolledPump, RelayCallbacks


def start_pumps(
    engine: Engine, relay: RelayCallbacks, pumps: Sequence[PolledPump[Any]]
) -> None:
    """Let the engine move bytes, until :func:`stop_pumps`.

    It may call ``relay`` before it returns.

    Raises:
      trio.BusyResourceError: another task or relay uses a side.
      trio.ClosedResourceError: a side was closed.
      OSError: out of descriptors or epoll watches.
    """
    engine.acquire()
    started = 0
    try:
        for pump, back in zip(pumps, reversed(pumps), strict=True):
            pump.start(engine, relay, back)
            started += 1
    except BaseException:
        for pump in pumps[:started]:
            pump.stop()
        engine.release()
        raise
    for pump in pumps:
        pump.source.notify_on_close(relay)
    for pump in pumps:
        pump.send_first()


def stop_pumps(engine: Engine, pumps: Sequence[PolledPump[Any]]) -> None:
    """Stop moving bytes."""
    for pump in pumps:
        pump.source.notify_on_close(None)
        pump.stop()
    engine.release()

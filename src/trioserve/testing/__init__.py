"""trioserve.testing: property-test any connection handler.

The map, from the bottom up; it uses public names of trioserve only, and
imports Hypothesis only when a strategy or a machine is asked for:

    _arguments   _coroutine   _operation   _schedule   _timeline   _wire
    _endpoint   _guest   _peer   _serve_failure   _watchdog
    _case   _lines   _stream   _strategies
    _driver   _network   _player   _traffic
    _client   _handler_run   _result
    _served   _state   _variations
    _judge   _liveness   _observer   _serve_laws
    _harness   _machine
    _checker
    _check
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from ._case import LAWS, Case, Disturbance, Law
from ._check import (
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)
from ._client import Client
from ._driver import Driver, StuckError
from ._network import MemoryListener, MemoryNetwork
from ._peer import Peer, Step
from ._result import HandlerFailure, Received, Run, Violation
from ._serve_failure import SERVE_LAWS, ServeFailure, ServeLaw
from ._stream import Event, MemoryStream, stream_pair
from ._timeline import Row, Timeline
from ._variations import Explore

if TYPE_CHECKING:
    from ._machine import ServeMachine
    from ._strategies import chunkings, faults, schedules, scripts

__all__ = [
    "LAWS",
    "SERVE_LAWS",
    "Case",
    "Client",
    "Disturbance",
    "Driver",
    "Event",
    "Explore",
    "HandlerFailure",
    "Law",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryStream",
    "Peer",
    "Received",
    "Row",
    "Run",
    "ServeFailure",
    "ServeLaw",
    "ServeMachine",
    "Step",
    "StuckError",
    "Timeline",
    "Violation",
    "check_handler",
    "chunkings",
    "faults",
    "run_conversation",
    "schedules",
    "scripts",
    "stream_pair",
    "sweep_cancellations",
    "sweep_faults",
]

#: What needs Hypothesis, and where it is.
_WITH_HYPOTHESIS: Final = {
    "ServeMachine": "_machine",
    "chunkings": "_strategies",
    "faults": "_strategies",
    "schedules": "_strategies",
    "scripts": "_strategies",
}


def __getattr__(name: str) -> Any:
    """Import Hypothesis, and what needs it, when it is asked for."""
    if name not in _WITH_HYPOTHESIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_WITH_HYPOTHESIS[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f'{__name__}.{name} needs Hypothesis: pip install "trioserve[testing]"'
        ) from None
    return getattr(module, name)

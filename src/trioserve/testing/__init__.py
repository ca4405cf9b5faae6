"""trioserve.testing: a test kit for connection handlers.

It plays a conversation with a handler in many variations, over TCP in memory, and
checks laws after each of them.

The map, from the bottom up; a module imports only from rows above its own here:

    _arguments   _certificates   _kept   _pristine   _progress   _session   _timeline
    network   runs
    _peer   _tls_client   _traffic
    _case   _player   _strategies
    _handler_run   _plays   _result   _token   serving
    _code_player   _derived   _settings   _state   _variations
    _hostile   _invariants   _judge   _liveness   _observer   _servers
    _disturber   _handling   _talks
    _harness
    _regression   _trial
    _blame   _failure
    _contrast
    _explain
    _checker
    _check

RULE: the kit uses public names of trioserve only. It imports Hypothesis only when a
strategy or the state machine is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from ._case import LAWS, Case, Disturbance, Law
from ._check import (
    check_client,
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)
from ._failure import HandlerFailure
from ._peer import Peer, Step
from ._result import Checked, Opened, Received, Run, Violation
from ._timeline import Row, Timeline
from ._variations import Explore
from .network import Event, MemoryListener, MemoryNetwork, MemoryStream, stream_pair
from .runs import Driver, StuckError
from .serving import SERVE_LAWS, Client, ServeFailure, ServeLaw

if TYPE_CHECKING:
    from ._strategies import chunkings, faults, schedules, scripts
    from .serving._machine import ServeMachine

__all__ = [
    "LAWS",
    "SERVE_LAWS",
    "Case",
    "Checked",
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
    "Opened",
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
    "check_client",
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

#: The names that need Hypothesis, and the modules that define them.
_WITH_HYPOTHESIS: Final = {
    "ServeMachine": "serving._machine",
    "chunkings": "_strategies",
    "faults": "_strategies",
    "schedules": "_strategies",
    "scripts": "_strategies",
}


def __getattr__(name: str) -> Any:
    """Import the modules that need Hypothesis on first use."""
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

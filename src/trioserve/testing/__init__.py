"""trioserve.testing: property-test any connection handler.

The map, from the bottom up; it uses public names of trioserve only, and
imports Hypothesis only when a strategy or a machine is asked for:

    _network   _schedule   _driven   _watch
    _peer   _timeline
    _case
    _run
    _check
"""

from ._case import LAWS, Act, Case, HandlerFailure, Heard, Law, Run, Violation
from ._check import (
    Explore,
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)
from ._network import Event, MemoryListener, MemoryNetwork, MemoryStream, stream_pair
from ._peer import Peer, Step
from ._timeline import Row, Timeline

__all__ = [
    "LAWS",
    "Act",
    "Case",
    "Event",
    "Explore",
    "HandlerFailure",
    "Heard",
    "Law",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryStream",
    "Peer",
    "Row",
    "Run",
    "Step",
    "Timeline",
    "Violation",
    "check_handler",
    "run_conversation",
    "stream_pair",
    "sweep_cancellations",
    "sweep_faults",
]

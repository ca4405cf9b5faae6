"""trioserve.faults: latency, bandwidth, resets and other faults, as values and text.

The map, from the bottom up; a module imports only from rows above its own here:

    _units
    _values
    _grammar   _schedule
    _delay_line
    _relay

RULE: everything above ``_delay_line`` does no I/O and knows neither Trio nor a
clock. The public names come from there. The proxy uses ``_relay`` to apply faults to
a connection.
"""

from ._grammar import parse_faults
from ._schedule import Schedule, Segment
from ._units import parse_duration
from ._values import Faults, Impairment, Termination

__all__ = [
    "Faults",
    "Impairment",
    "Schedule",
    "Segment",
    "Termination",
    "parse_duration",
    "parse_faults",
]

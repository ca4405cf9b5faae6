"""A network in memory: TCP as Linux does it, without a kernel.

The map, from the bottom up; a module imports only from rows above its own here:

    _operation   _wire
    _endpoint
    _stream
    _network   _socket
    _internet

RULE: nothing here knows a handler, a server or a test.
"""

from ._endpoint import EventKind
from ._internet import MemoryInternet
from ._network import MemoryListener, MemoryNetwork
from ._operation import Operation
from ._stream import Event, MemoryStream, Tail, stream_pair

__all__ = [
    "Event",
    "EventKind",
    "MemoryInternet",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryStream",
    "Operation",
    "Tail",
    "stream_pair",
]

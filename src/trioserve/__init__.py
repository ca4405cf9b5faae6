"""trioserve: the serving layer for Trio.

The map, from the bottom up; a module imports only from rows below its own:

                _arguments   _errors
    words       _address   _options   _report   _tasks   _tcp
    mechanisms  _transport   _pipes
                _socket_transport   _stream_transport   _timers   _admission
                _collector   _names
                _listeners   _pump
                _connection   _dial   _engine
                _gates
    engines     faults
                _relay   _serve
    handlers    _echo   _proxy

``app`` is the command and uses only the names below. ``faults`` has names of its
own, and a map inside.
"""

from . import faults
from ._address import Address, TcpAddress, UnixAddress, parse_address
from ._collector import log_reports
from ._connection import Connection, current_connection
from ._echo import echo
from ._listeners import UnixListener, open_listeners
from ._options import Limits, Timeouts
from ._proxy import proxy
from ._relay import relay
from ._report import (
    Attempt,
    ConnectionReport,
    DrainSummary,
    Flow,
    Outcome,
    Phase,
    Reason,
    RelayResult,
    Statistics,
)
from ._serve import Server, serve, serve_tcp

__all__ = [
    "Address",
    "Attempt",
    "Connection",
    "ConnectionReport",
    "DrainSummary",
    "Flow",
    "Limits",
    "Outcome",
    "Phase",
    "Reason",
    "RelayResult",
    "Server",
    "Statistics",
    "TcpAddress",
    "Timeouts",
    "UnixAddress",
    "UnixListener",
    "current_connection",
    "echo",
    "faults",
    "log_reports",
    "open_listeners",
    "parse_address",
    "proxy",
    "relay",
    "serve",
    "serve_tcp",
]

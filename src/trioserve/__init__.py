"""trioserve: a serving layer for Trio.

``serve_tcp`` takes the place of ``trio.serve_tcp``, with the same handler::

    server = await nursery.start(trioserve.serve_tcp, trioserve.echo, 7000)
    ...
    summary = await server.drain(within=25)

The names to begin with are ``serve_tcp``, ``Server``, ``Connection``, ``Limits``,
``Timeouts`` and ``ConnectionReport``; ``proxy`` makes a handler that relays.

The modules, from the bottom up; each imports only from rows below its own:

                _errors
                _arguments   _describe   _reason   wire
    words       _address   _complaints   _options   _rates   _report   _results   _tasks
                _tcp   _handshakes   _task_set
                _server_names   _tls_options   _proxy_facts   _file_state
                _name_servers
                _transport_state   _access   _targets   _certificates   _tls_client
                _transport   _layers   _pipes   _accept_errors   _handlers   _names
                _endpoint   _tls_facts   _target_lists
                _socket_state   _attachments   _balance   _tls_state
                _socket_transport   _origins   _endpoints   _tls_transport
                _admission   _idle   _shared_socket   _stream_transport   _timers
                _collector   _drain   _connect   _discovery
    mechanisms  _lifecycle_state   _blame   _closing   _deadlines   _listeners
                _pump   _race   _factory
                _attempts   _upstream
                _lifecycle   _engine   _dial
                _checks   _proxy_header   _tls_layer   _polled_pump   _watched_dial
    connections _connection   _handshake   _record   _refusals   _relay_options
                _relay_mirror   _engine_pump
                _acceptor   _ledger   _relay_deadlines   _layered_pump
                _socket_acceptor   _stream_acceptor   _dispatch   _relay_rules
                _engine_run
                _accept_loops
    engines     _serving   _relay_engine   _relay_tasks
    public      _serve   _relay
                faults
                _proxy_handler
    handlers    _echo   _proxy   _by_server_name

``app`` is the command and uses only the names below. ``faults`` has public names and
a map of its own. ``wire`` has protocols as bytes and values, and no I/O.
"""

from . import faults
from ._address import Address, TcpAddress, UnixAddress, parse_address
from ._by_server_name import by_server_name
from ._certificates import Certificate
from ._collector import Collector, log_reports
from ._connection import Connection, current_connection
from ._echo import echo
from ._layers import Layers
from ._listeners import Listener, UnixListener, open_listeners
from ._options import Limits, SocketOptions, Timeouts
from ._proxy import Proxy, proxy
from ._reason import Outcome, Phase, Reason
from ._relay import Relay, hand_over, relay
from ._report import Attempt, ConnectionReport, ProxyFacts, TlsFacts, Upstream
from ._results import DrainSummary, Flow, RelayResult, Statistics
from ._serve import Handler, Server, serve, serve_tcp
from ._target_lists import (
    AddressRecords,
    SrvRecords,
    TargetFile,
    TargetList,
    parse_target,
)
from ._targets import Health, Target, TargetState
from ._tls_options import TlsClientOptions, TlsOptions

__all__ = [
    "Address",
    "AddressRecords",
    "Attempt",
    "Certificate",
    "Collector",
    "Connection",
    "ConnectionReport",
    "DrainSummary",
    "Flow",
    "Handler",
    "Health",
    "Layers",
    "Limits",
    "Listener",
    "Outcome",
    "Phase",
    "Proxy",
    "ProxyFacts",
    "Reason",
    "Relay",
    "RelayResult",
    "Server",
    "SocketOptions",
    "SrvRecords",
    "Statistics",
    "Target",
    "TargetFile",
    "TargetList",
    "TargetState",
    "TcpAddress",
    "Timeouts",
    "TlsClientOptions",
    "TlsFacts",
    "TlsOptions",
    "UnixAddress",
    "UnixListener",
    "Upstream",
    "by_server_name",
    "current_connection",
    "echo",
    "faults",
    "hand_over",
    "log_reports",
    "open_listeners",
    "parse_address",
    "parse_target",
    "proxy",
    "relay",
    "serve",
    "serve_tcp",
]

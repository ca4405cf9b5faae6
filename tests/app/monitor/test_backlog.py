from __future__ import annotations

import socket
from pathlib import Path

from support import serving
from trioserve import Limits, TcpAddress, echo
from trioserve.app.monitor._backlog import backlog_length, has_backlog


async def test_clients_that_are_not_accepted_are_counted(tmp_path: Path) -> None:
    addresses = ("127.0.0.1:0", f"unix:{tmp_path}/socket", "127.0.0.1:0")
    none = Limits(max_connections=0)
    clients: list[socket.socket] = []
    async with serving(echo, addresses=addresses, limits=none) as running:
        assert backlog_length(running.server) == 0
        assert not has_backlog(running.server)
        for address in running.server.addresses:
            if isinstance(address, TcpAddress):
                name = (address.host, address.port)
                clients += [socket.create_connection(name, 10) for _ in range(3)]
        assert backlog_length(running.server) == 6
        assert has_backlog(running.server)
        for client in clients:
            client.close()
    # Its listeners are closed.
    assert backlog_length(running.server) is None
    assert not has_backlog(running.server)


async def test_a_unix_socket_does_not_tell_how_many_wait(tmp_path: Path) -> None:
    async with serving(echo, addresses=(f"unix:{tmp_path}/socket",)) as running:
        assert backlog_length(running.server) is None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/socket")
            assert has_backlog(running.server)

"""Behind a load balancer, as the page says: its configurations, on other ports.

Two proxies are behind each. When one of them is stopped, no client may notice: neither
one that is connected nor one that comes then.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from real.balancers import start_haproxy, start_nginx, stream_module
from real.tools import (
    Process,
    Record,
    Serve,
    Start,
    Target,
    Trioserve,
    all_of,
    connect,
    needs,
    receive,
    reset,
    send,
    total,
)
from shell import free_port
from test_deployment import FILES

#: A client's socket, and the target's end of the same connection.
Pair = tuple[socket.socket, socket.socket]


def _is_listened_on(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [line.split()[1:4] for line in lines]
    return any(
        local.endswith(f":{port:04X}") and state == "0A" for local, _, state in states
    )


class Balancer:
    """A load balancer that runs, and two proxies behind it.

    Args:
      name: of the file on the page that is its configuration.
      begin: starts it.
    """

    def __init__(
        self, name: str, begin: Callable[[str], Process], proxies: list[Trioserve]
    ) -> None:
        self.proxies = proxies
        self._port = free_port()
        text = FILES[name].text
        for number, proxy in enumerate(proxies, 11):
            text = text.replace(
                f"10.0.0.{number}:5432 port 5432", f"{proxy.address} port {proxy.port}"
            )
            text = text.replace(f"10.0.0.{number}:5432", proxy.address)
        ours = rf"\g<1>127.0.0.1:{self._port}"
        text, count = re.subn(r"((?:bind|listen) ):?5432\b", ours, text)
        assert count == 1
        assert "10.0.0." not in text
        self.process = begin(text)

    def client(self) -> socket.socket:
        """A client that is connected to it, as soon as it listens."""
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return connect(self._port)
            self.process.during(0.05)

    def stop(self) -> list[Record]:
        """Drain both proxies; their reports."""
        return [report for proxy in self.proxies for report in proxy.stop()]


@pytest.fixture(
    params=[
        pytest.param("haproxy.cfg", marks=needs("haproxy")),
        pytest.param("nginx.conf", marks=needs("nginx")),
    ]
)
def balancer(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    target: Target,
    start: Start,
    serve: Serve,
) -> Balancer:
    starts = {"haproxy.cfg": start_haproxy, "nginx.conf": start_nginx}
    if request.param == "nginx.conf" and stream_module() is None:
        pytest.skip("nginx has no stream module")
    options = ("--accept-proxy", "127.0.0.1")
    proxies = [serve("proxy", target.address, *options) for _ in range(2)]
    return Balancer(
        request.param,
        lambda text: starts[request.param](text, tmp_path, start),
        proxies,
    )


@pytest.fixture
def pairs(balancer: Balancer, target: Target) -> Iterator[Callable[[], Pair]]:
    """Connect through the load balancer: the client's end, and the target's."""
    with contextlib.ExitStack() as stack:

        def pair() -> Pair:
            client = stack.enter_context(balancer.client())
            return client, stack.enter_context(target.accept())

        yield pair


def test_a_half_closed_client_gets_its_answer(
    balancer: Balancer, pairs: Callable[[], Pair], threads: ThreadPoolExecutor
) -> None:
    client, server = pairs()
    send(client, b"question")
    assert receive(server) == all_of(b"question")
    answer = threads.submit(receive, client)
    send(server, b"answer")
    assert answer.result() == all_of(b"answer")
    client.close()
    server.close()
    reports = balancer.stop()
    assert [report["reason"] for report in reports] == ["client_closed"]


def test_no_client_notices_that_one_of_two_stops(
    balancer: Balancer, pairs: Callable[[], Pair]
) -> None:
    first, second = pairs(), pairs()  # with least connections, one for each proxy
    balancer.proxies[0].terminate()
    # A client that connects in the moment in which the listening socket is closed is
    # reset, and a load balancer that is connected does not try another server.
    while _is_listened_on(balancer.proxies[0].port):
        balancer.proxies[0].during(0.01)
    later = [pairs() for _ in range(4)]
    for client, server in (first, second, *later):
        send(client, b"question")
        assert receive(server) == all_of(b"question")
        send(server, b"answer")
        assert receive(client) == all_of(b"answer")
        client.close()
        server.close()
    assert balancer.proxies[0].wait() == 0
    reports = balancer.proxies[0].reports() + balancer.proxies[1].stop()
    assert [report["outcome"] for report in reports] == 6 * ["ok"]
    assert total(reports, "bytes_received") == 6 * len(b"question")


def test_a_reset_comes_out_as_fin(
    balancer: Balancer, pairs: Callable[[], Pair]
) -> None:
    client, server = pairs()
    server.sendall(b"first half")
    assert client.recv(10, socket.MSG_WAITALL) == b"first half"
    reset(server)
    assert receive(client) == all_of(b"")
    client.close()
    (report,) = balancer.stop()
    assert report["reason"] == "server_reset"


@pytest.mark.parametrize("balancer", ["haproxy.cfg"], indirect=True)
@needs("haproxy")
def test_haproxy_logs_what_is_the_peer_and_its_checks_leave_no_report(
    balancer: Balancer, pairs: Callable[[], Pair]
) -> None:
    client, server = pairs()
    balancer.process.during(2.5)  # each server is checked meanwhile
    where = "{}:{}".format(*client.getsockname())
    send(client, b"question")
    assert receive(server) == all_of(b"question")
    client.close()
    server.close()
    line = balancer.process.until(where)
    (report,) = balancer.stop()
    assert report["peer"] == where
    assert f" {report['direct_peer']} " in line

"""Behind a load balancer, as the page says: its configurations, on other ports.

Two proxies are behind each. When one of them is stopped, no client may notice: neither
one that is connected nor one that comes then. With TLS there is one proxy, and limits
are about clients that only the load balancer sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certificates import Authority
from real.balancers import start_haproxy, start_nginx, stream_module
from real.tools import (
    PATIENCE,
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

pytestmark = pytest.mark.long("other programs")

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


# -- with TLS


@dataclasses.dataclass
class Secured:
    """HAProxy with the configuration for TLS, and a server behind it."""

    authority: Authority
    process: Process
    echo: Trioserve
    ports: dict[str, int]

    def connect(self, way: str, source: str) -> ssl.SSLSocket:
        """A client's end of TLS, after the handshake."""
        where = ("127.0.0.1", self.ports[way])
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                raw = socket.create_connection(where, PATIENCE, (source, 0))
                break
            self.process.during(0.05)
        context = self.authority.client_context()
        return context.wrap_socket(raw, server_hostname="proxy.example.org")


@pytest.fixture
def secured(tmp_path: Path, start: Start, serve: Serve) -> Secured:
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority = Authority(folder)
    cert = authority.issue("proxy.example.org")
    echo = serve(
        *("echo", "--accept-proxy", "127.0.0.1", "--tls-cert", cert),
        *("--per-peer", "2", "--deny", "127.0.0.8"),
    )
    ports = {"passed-on": free_port(), "ended": free_port()}
    text = FILES["haproxy-tls.cfg"].text
    for ours, theirs in (
        (f"127.0.0.1:{ports['passed-on']}\n", ":6443\n"),
        (f"127.0.0.1:{ports['ended']} ssl", ":7443 ssl"),
        (echo.address, "10.0.0.11:6443"),
        (cert, "/etc/haproxy/site.pem"),
        (authority.path, "/etc/haproxy/ca.pem"),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    process = start_haproxy(text, tmp_path, start)
    return Secured(authority, process, echo, ports)


@pytest.mark.parametrize("way", ["passed-on", "ended"])
@pytest.mark.long("HAProxy with TLS, and clients that hold connections")
@needs("haproxy")
def test_limits_count_the_clients_of_haproxy_over_tls(
    way: str, secured: Secured
) -> None:
    """Law 2: by the client's address, wherever TLS ends; refused ones get none."""

    with contextlib.ExitStack() as stack:

        def connected(source: str) -> bool:
            try:
                client = stack.enter_context(secured.connect(way, source))
                client.sendall(b"hello")
                if client.recv(5) != b"hello":
                    return False
            except OSError:
                return False
            stack.callback(client.unwrap)
            return True

        sources = ("127.0.0.5", "127.0.0.6", "127.0.0.8")
        found = [[connected(source) for _ in range(3)] for source in sources]
    assert found == [[True, True, False], [True, True, False], [False] * 3]
    reports = secured.echo.stop()
    seen = sorted(
        (str(report["peer"]).partition(":")[0], str(report["reason"]))
        for report in reports
    )
    served = [(source, "client_closed") for source in sources[:2]]
    limited = [(source, "peer_limit") for source in sources[:2]]
    expected = [*served, *served, *limited, *3 * [(sources[2], "denied")]]
    assert seen == sorted(expected)
    for report in reports:
        assert report["local"] == f"127.0.0.1:{secured.ports[way]}"
        assert report["direct_peer"].startswith("127.0.0.1:")
        if report["reason"] == "client_closed":
            assert report["tls"]["sni"] == "proxy.example.org"
            assert report["bytes_received"] == 5

"""The PROXY protocol with HAProxy and nginx: they and trioserve know the same client.

Headers that trioserve sends are compared byte by byte with those that the others send
for the same connection.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Generator
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
    needs,
    receive_exactly,
)
from shell import free_port
from support import one_of_each
from trioserve.wire._proxy_protocol import build_v1, build_v2, parse_header
from wire.headers import FROM4, FROM6, TCP4, TO4, TO6, VALID, tlv, v2

pytestmark = pytest.mark.long("other programs")

_TIMES = "timeout connect 60s\n timeout client 60s\n timeout server 60s"


def haproxy(bind: str, server: str, folder: Path, start: Start) -> Process:
    return start_haproxy(
        f"""
        defaults
            mode tcp
            {_TIMES}
            log stdout format raw local0
            log-format "client=%ci:%cp frontend=%fi:%fp"
        listen all
            bind {bind}
            server one {server}
\n""",
        folder,
        start,
    )


def nginx(
    listen: str, options: str, upstream: str, folder: Path, start: Start
) -> Process:
    return start_nginx(
        f"""
        error_log stderr;
        events {{}}
        stream {{
            log_format peer 'client=$proxy_protocol_addr:$proxy_protocol_port '
                'frontend=$proxy_protocol_server_addr:$proxy_protocol_server_port';
            access_log /dev/stdout peer;
            server {{
                listen {listen};
                {options}
                proxy_pass {upstream};
            }}
        }}
        """,
        folder,
        start,
    )


@contextlib.contextmanager
def connected(
    process: Process,
    where: str | tuple[str, int],
    source: tuple[str, int] | None = None,
) -> Generator[socket.socket]:
    """A client, as soon as the program listens; its end is a reset."""
    while True:
        family = socket.AF_UNIX
        if not isinstance(where, str):
            family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        with socket.socket(family) as client:
            client.settimeout(PATIENCE)
            # Leaves no TIME_WAIT, so that the next program gets the same connection.
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            if source is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(source)
            try:
                client.connect(where)
            except (ConnectionRefusedError, FileNotFoundError):
                process.during(0.05)
            else:
                yield client
                return


def header_at(target: Target, client: socket.socket, first: bytes = b"") -> bytes:
    """What the target gets before the client's own bytes."""
    client.sendall(first + b"hello")
    with target.accept() as server:
        data = b""
        while not data.endswith(b"hello"):
            data += receive_exactly(server, 1)
        return data.removesuffix(b"hello")


# -- from them to trioserve


@pytest.mark.parametrize(
    ("server", "reads"),
    [
        ("send-proxy", "v1"),
        ("send-proxy-v2", "v2"),
        ("send-proxy-v2 proxy-v2-options crc32c,unique-id", "v2"),
    ],
)
@needs("haproxy")
def test_clients_of_haproxy_are_known(
    server: str, reads: str, tmp_path: Path, start: Start, serve: Serve
) -> None:
    echo = serve("echo", "--accept-proxy", "127.0.0.1", "--log-connections", "all")
    where = ("127.0.0.1", free_port())
    bind = "{}:{}".format(*where)
    balancer = haproxy(bind, f"{echo.address} {server}", tmp_path, start)
    with connected(balancer, where) as client:
        peer = "{}:{}".format(*client.getsockname())
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    (report,) = _served(echo.stop())
    assert (report["peer"], report["local"]) == (peer, bind)
    assert report["direct_peer"].startswith("127.0.0.1:")
    assert report["bytes_received"] == report["bytes_sent"] == 5


def _served(reports: list[Record]) -> list[Record]:
    """Without those of connections that only looked whether it listens."""
    return [report for report in reports if report["bytes_received"]]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.usefixtures("_has_nginx")
def test_clients_of_nginx_are_known(
    host: str, tmp_path: Path, start: Start, serve: Serve
) -> None:
    echo = serve("echo", "--accept-proxy", "127.0.0.1")
    where = (host, free_port())
    listen = f"[{host}]:{where[1]}" if ":" in host else f"{host}:{where[1]}"
    balancer = nginx(listen, "proxy_protocol on;", echo.address, tmp_path, start)
    with connected(balancer, where) as client:
        port = client.getsockname()[1]
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    (report,) = _served(echo.stop())
    assert report["peer"] == listen.replace(str(where[1]), str(port))
    assert report["local"] == listen


@pytest.fixture
def _has_nginx() -> None:
    if stream_module() is None:
        pytest.skip("nginx has no stream module")


@pytest.mark.parametrize("words", ["check-send-proxy send-proxy", "send-proxy-v2"])
@needs("haproxy")
def test_haproxys_checks_are_welcome(
    words: str, tmp_path: Path, start: Start, serve: Serve
) -> None:
    """They succeed, are logged by nobody, and are in the reports."""
    options = ("--accept-proxy", "127.0.0.1", "--allow", "127.0.0.1")
    echo = serve("echo", *options, "--per-peer", "1", "--rate", "1/1h")
    server = f"{echo.address} check inter 100 {words}"
    balancer = haproxy(f"127.0.0.1:{free_port()}", server, tmp_path, start)
    balancer.during(1)
    assert not any("DOWN" in line for line in balancer.lines)
    # A check that still waits when the server stops is refused, header and all.
    balancer.kill()
    reports = echo.stop()
    assert len(reports) > 2
    assert {(r["reason"], r["bytes_received"]) for r in reports} <= {
        ("client_closed", 0), ("client_reset", 0)
    }  # fmt: skip
    assert not [event for event in echo.events() if event["event"] == "connection"]


# -- from trioserve to them


@pytest.mark.parametrize("version", ["v1", "v2"])
@needs("haproxy")
def test_haproxy_knows_our_clients(
    version: str, tmp_path: Path, target: Target, start: Start, serve: Serve
) -> None:
    port = free_port()
    server = haproxy(f"127.0.0.1:{port} accept-proxy", target.address, tmp_path, start)
    proxy = serve("proxy", f"127.0.0.1:{port}", "--send-proxy", version)
    with connected(server, ("127.0.0.1", port)):
        pass  # it listens
    with connected(proxy, ("127.0.0.1", proxy.port)) as client:
        peer = "{}:{}".format(*client.getsockname())
        client.sendall(b"hello")
        with target.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
    server.until(f"client={peer} frontend={proxy.address}")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.usefixtures("_has_nginx")
def test_nginx_knows_our_clients(
    version: str, tmp_path: Path, target: Target, start: Start, serve: Serve
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    server = nginx(f"{listen} proxy_protocol", "", target.address, tmp_path, start)
    with connected(server, ("127.0.0.1", int(listen.partition(":")[2]))):
        pass  # it listens
    proxy = serve("proxy", listen, "--send-proxy", version)
    with connected(proxy, ("127.0.0.1", proxy.port)) as client:
        peer = "{}:{}".format(*client.getsockname())
        client.sendall(b"hello")
        with target.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
    server.until(f"client={peer} frontend={proxy.address}")


# -- the same bytes for the same connection

OF_HAPROXY = {"v1": "send-proxy", "v2": "send-proxy-v2"}


@pytest.fixture
def ours(serve: Serve, target: Target) -> Callable[..., Process]:
    def make(version: str, place: str, *words: str) -> Process:
        options = ("--send-proxy", version, "--listen", place, *words)
        return serve("proxy", target.address, *options)

    return make


@pytest.mark.parametrize("kind", ["127.0.0.1", "::1", "unix"])
@pytest.mark.parametrize(
    ("other", "version"), [("haproxy", "v1"), ("haproxy", "v2"), ("nginx", "v1")]
)
def test_headers_for_the_same_connection_are_equal(
    kind: str,
    other: str,
    version: str,
    tmp_path: Path,
    target: Target,
    start: Start,
    ours: Callable[..., Process],
    request: pytest.FixtureRequest,
) -> None:
    """Clients of Unix sockets included: the one after the other, from the same port."""
    where: str | tuple[str, int] = str(tmp_path / "socket")
    source = None
    place = f"unix:{where}"
    if kind != "unix":
        where, source = (kind, free_port()), (kind, free_port())
        place = f"[{kind}]:{where[1]}" if ":" in kind else f"{kind}:{where[1]}"
    if other == "nginx":
        request.getfixturevalue("_has_nginx")
        on = "proxy_protocol on;"
        theirs = nginx(place, on, target.address, tmp_path, start)
    else:
        server = f"{target.address} {OF_HAPROXY[version]}"
        bind = place.replace("unix:", "unix@")
        theirs = haproxy(bind, server, tmp_path, start)
    with connected(theirs, where, source) as client:
        header = header_at(target, client)
    theirs.kill()
    Path(tmp_path / "socket").unlink(missing_ok=True)
    mine = ours(version, place)
    with connected(mine, where, source) as client:
        assert header_at(target, client) == header
    assert parse_header(header)
    assert len(header) > 14


DECLARED = [
    build_v1(FROM4, TO4),
    build_v2(FROM6, TO6),
    b"PROXY TCP6 2001:0DB8::1 2001:db8:0:0::2 56324 443\r\n",
    b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 56324 443\r\n",
    b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n",
    b"PROXY TCP6 ::192.0.2.1 :: 0 65535\r\n",
    v2(0x21, 0x11, TCP4, tlv(5, b"id"), tlv(0xE1, b"x")),
]


@pytest.mark.parametrize(
    ("version", "header"),
    one_of_each([(v, header) for v in OF_HAPROXY for header in DECLARED[::-1]], by=0),
)
@needs("haproxy")
def test_headers_of_declared_clients_are_equal(
    header: bytes,
    version: str,
    tmp_path: Path,
    target: Target,
    start: Start,
    serve: Serve,
) -> None:
    where = ("127.0.0.1", free_port())
    bind = "{}:{} accept-proxy".format(*where)
    server = f"{target.address} {OF_HAPROXY[version]}"
    if b"id" in header and version == "v2":
        bind += "\n unique-id-format %[fc_pp_unique_id]"
        server += " proxy-v2-options unique-id"
    theirs = haproxy(bind, server, tmp_path, start)
    with connected(theirs, where) as client:
        expected = header_at(target, client, header)
    proxy = serve(
        *("proxy", target.address, "--send-proxy", version, "--accept-proxy", "all")
    )
    with connected(proxy, ("127.0.0.1", proxy.port)) as client:
        assert header_at(target, client, header) == expected


@needs("haproxy")
def test_haproxy_and_trioserve_take_the_same_headers(
    tmp_path: Path, target: Target, start: Start, serve: Serve
) -> None:
    """All valid ones of our tests, and HAProxy those that it understands."""
    where = ("127.0.0.1", free_port())
    bind = "{}:{} accept-proxy".format(*where)
    theirs = haproxy(bind, target.address, tmp_path, start)
    proxy = serve("proxy", target.address, "--accept-proxy", "127.0.0.1")
    for header in VALID:
        with connected(proxy, ("127.0.0.1", proxy.port)) as client:
            assert header_at(target, client, header) == b""
        if b"UNKNOWN " in header or header in _ONLY_OURS:
            continue
        with connected(theirs, where) as client:
            assert header_at(target, client, header) == b""


# -- what is said of the client's TLS

FIELDS = "send-proxy-v2-ssl-cn proxy-v2-options ssl-cipher,authority"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


def ends_tls(
    where: tuple[str, int], server: str, cert: str, authority: Authority, start: Start
) -> Process:
    """HAProxy, which asks for a certificate, and takes any protocol."""
    tls = f"ssl crt {cert} ca-file {authority.path} verify optional alpn h2,http/1.1"
    bind = "{}:{} ".format(*where) + tls
    return haproxy(bind, server, authority.folder.parent, start)


def client_context(
    authority: Authority, version: str, shown: str | None
) -> ssl.SSLContext:
    context = authority.client_context(shown)
    context.minimum_version = context.maximum_version = {
        "1.2": ssl.TLSVersion.TLSv1_2,
        "1.3": ssl.TLSVersion.TLSv1_3,
    }[version]
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("is_shown", [True, False])
@pytest.mark.long("HAProxy and the command, one after the other")
@needs("haproxy")
def test_what_is_said_of_tls_is_equal(
    is_shown: bool,
    version: str,
    authority: Authority,
    target: Target,
    start: Start,
    ours: Callable[..., Process],
) -> None:
    """ALPN, the name, and TLS with its certificate, for the same connection."""
    cert = authority.issue("localhost")
    shown = authority.issue("w.example", common_name="wéb") if is_shown else None
    context = client_context(authority, version, shown)
    where, source = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())

    def header_by(process: Process) -> bytes:
        with connected(process, where, source) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                return header_at(target, client)

    theirs = ends_tls(where, f"{target.address} {FIELDS}", cert, authority, start)
    expected = header_by(theirs)
    theirs.kill()
    options = ["--tls-cert", cert, "--tls-alpn", "h2", "--tls-alpn", "http/1.1"]
    options += ["--tls-client-ca", authority.path] if is_shown else []
    found = header_by(ours("v2", "{}:{}".format(*where), *options))
    if not is_shown:
        # Without a certificate HAProxy sends 0, which in section 2.2.6 is one that was
        # verified. A target that reads no more than that would be misled.
        expected = expected.replace(b"\1\0\0\0\0\x21", b"\1\0\0\0\1\x21")
    assert found == expected
    header = parse_header(found)
    assert header is not None
    assert header.tls is not None
    assert header.tls.is_verified is is_shown


@pytest.mark.parametrize("is_shown", [True, False])
@pytest.mark.long("as the other way round")
@needs("haproxy")
def test_what_haproxy_says_of_tls_is_in_the_report(
    is_shown: bool, authority: Authority, start: Start, serve: Serve
) -> None:
    cert = authority.issue("localhost")
    shown = authority.issue("w.example", common_name="w") if is_shown else None
    echo = serve("echo", "--accept-proxy", "127.0.0.1")
    where = ("127.0.0.1", free_port())
    theirs = ends_tls(where, f"{echo.address} {FIELDS}", cert, authority, start)
    context = client_context(authority, "1.3", shown)
    with connected(theirs, where) as plain:
        peer = "{}:{}".format(*plain.getsockname())
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
    (report,) = _served(echo.stop())
    assert (report["peer"], report["tls"]) == (peer, None)
    declared = report["declared"]
    assert (declared["alpn"], declared["authority"]) == ("http/1.1", "localhost")
    assert (declared["tls"], declared["version"]) == (True, "TLSv1.3")
    assert (declared["verified"], declared["common_name"]) == (
        is_shown,
        "w" if is_shown else None,
    )
    assert declared["cipher"].startswith("TLS_")


#: HAProxy 2.6 takes what follows addresses that it does not use for TLVs.
_ONLY_OURS = {
    header
    for header, declared in VALID.items()
    if header[:1] == b"\r" and (declared.source is None or header[13] == 0x31)
}

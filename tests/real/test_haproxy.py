"""The same through HAProxy and through ours: the same bytes, the same two letters.

HAProxy is asked what it does and says; no answer of it is written down here but
for the reader. How a connection ends is compared too, and the table says where
it differs on purpose: HAProxy often says FIN where something is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

from real.tools import (
    PATIENCE,
    Process,
    connect,
    is_silent,
    needs,
    program,
    receive_exactly,
    reset,
)

pytestmark = needs("haproxy")

#: configuration.txt, section 8.2.2.
_TCPLOG = re.compile(
    r"127\.0\.0\.1:\d+ \[\d\d/[A-Z][a-z]{2}/\d{4}(:\d\d){3}\.\d{3}\]"
    r" (?P<frontend>\S+) (?P<backend>\S+)/(?P<server>\S+)"
    r" (?P<waited>-1|\d+)/(?P<connect>-1|\d+)/\d+ (?P<bytes>\d+) (?P<state>\S\S)"
    r" \d+/(?P<open>\d+/\d+/\d+/\d+) 0/0"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a scenario needs of a forwarder; seconds."""

    connect: int = 20
    idle: int = 20
    half_closed: int = 20
    most: int = 100
    when_full: str = "backlog"


@dataclasses.dataclass(frozen=True)
class Logged:
    """What a forwarder says of a connection that ended, as far as it is the same.

    Names, dates and milliseconds differ; whether it came to something does not.
    """

    state: str
    bytes_to_client: int
    had_server: bool
    backend_is_frontend: bool
    waited: bool
    connected: bool
    #: feconn/beconn/srv_conn/retries
    open: str


def read_logged(process: Process) -> Logged:
    """The next line of a connection that ended, in HAProxy's format."""
    line = process.until(" 0/0")
    found = _TCPLOG.fullmatch(line)
    assert found, line
    return Logged(
        state=found["state"],
        bytes_to_client=int(found["bytes"]),
        had_server=found["server"] != "<NOSRV>",
        backend_is_frontend=found["backend"] == found["frontend"],
        waited=found["waited"] != "-1",
        connected=found["connect"] != "-1",
        open=found["open"],
    )


class Forwarder(Protocol):
    port: int
    process: Process

    def cut(self) -> None:
        """End all connections now."""
        ...


class HAProxy:
    """HAProxy in front of one server, listening on a socket that it inherits."""

    def __init__(self, folder: Path, target: int, settings: Settings) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._admin = folder / "admin"
        full = ""
        if settings.when_full == "refuse":
            full = f"tcp-request content reject if {{ fe_conn gt {settings.most} }}"
        elif settings.most < 100:
            full = f"maxconn {settings.most}"
        config = folder / "haproxy.cfg"
        config.write_text(f"""
global
    log stdout format raw local0
    stats socket {self._admin} level admin
defaults
    mode tcp
    log global
    option tcplog
    retries 0
    timeout connect {settings.connect}s
    timeout client {settings.idle}s
    timeout server {settings.idle}s
    timeout client-fin {settings.half_closed}s
    timeout server-fin {settings.half_closed}s
frontend front
    bind fd@{self._listener.fileno()}
    {full}
    default_backend back
backend back
    server target 127.0.0.1:{target}
""")
        self.process = Process(
            *(program("haproxy"), "-db", "-f", str(config)),
            pass_fds=(self._listener.fileno(),),
        )

    def cut(self) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._admin))
            admin.sendall(b"shutdown sessions server back/target\n")
            admin.recv(100)

    def close(self) -> None:
        self.process.kill()
        self._listener.close()


class Ours:
    """``trioserve proxy`` in front of the same."""

    def __init__(self, target: int, settings: Settings) -> None:
        self.process = Process(
            *(sys.executable, "-m", "trioserve", "proxy", "127.0.0.1:0"),
            *(f"127.0.0.1:{target}", "--log", "haproxy", "--drain", "0"),
            *("--connect", f"{settings.connect}s", "--idle", f"{settings.idle}s"),
            *("--half-closed", f"{settings.half_closed}s"),
            *("--max-connections", f"{settings.most}"),
            *("--when-full", settings.when_full),
        )
        self.port = int(self.process.until("try:").split()[-1])

    def cut(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        self.process.kill()


class Scene:
    """A target behind a forwarder, and sockets that last as long as the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._bound = stack.enter_context(socket.socket())
        self._bound.bind(("127.0.0.1", 0))
        self._bound.settimeout(PATIENCE)
        self.target: int = self._bound.getsockname()[1]
        self.forwarder: Forwarder

    def listen(self) -> None:
        self._bound.listen(100)

    def fall_silent(self) -> None:
        """From now on whoever dials the target has no answer."""
        self._bound.listen(0)
        for _ in range(3):
            client = self._stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(self._bound.getsockname())

    def client(self) -> socket.socket:
        return self._stack.enter_context(connect(self.forwarder.port))

    def server(self) -> socket.socket:
        server, _ = self._bound.accept()
        server.settimeout(PATIENCE)
        return self._stack.enter_context(server)

    def both(self) -> tuple[socket.socket, socket.socket]:
        return self.client(), self.server()


def until_end(sock: socket.socket) -> tuple[bytes, str]:
    """What arrives, and how it ends."""
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except ConnectionResetError:
        return data, "RST"
    return data, "FIN"


# -- the scenarios: what each end saw, the client's first


Seen = list[tuple[bytes, str]]


def _normal(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"question")
    assert receive_exactly(server, 8) == b"question"
    server.sendall(b"answer")
    server.close()
    seen = [until_end(client)]
    client.close()
    return seen


def _refused(scene: Scene) -> Seen:
    try:
        return [until_end(scene.client())]
    except ConnectionResetError:
        # It was reset before it knew that it was connected.
        return [(b"", "RST")]


def _connect_time_out(scene: Scene) -> Seen:
    scene.fall_silent()
    return [until_end(scene.client())]


def _client_gone_while_connecting(scene: Scene) -> Seen:
    scene.fall_silent()
    client = scene.client()
    assert is_silent(client, 0.2)
    client.close()
    return []


def _idle_on_both_sides(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    return [until_end(client), until_end(server)]


def _idle_after_an_exchange(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"?")
    assert receive_exactly(server, 1) == b"?"
    server.sendall(b"!")
    return [until_end(client), until_end(server)]


def _half_closed_and_answered(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    question = until_end(server)
    assert is_silent(client, 1.0)
    server.sendall(b"late answer")
    server.close()
    return [until_end(client), question]


def _half_closed_by_the_target(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    server.sendall(b"greeting")
    server.shutdown(socket.SHUT_WR)
    greeting = until_end(client)
    assert is_silent(server, 1.0)
    client.sendall(b"late answer")
    client.close()
    return [greeting, until_end(server)]


def _half_closed_and_never_answered(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    question = until_end(server)
    return [until_end(client), question]


def _half_closed_by_the_target_and_never_answered(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    server.sendall(b"greeting")
    server.shutdown(socket.SHUT_WR)
    greeting = until_end(client)
    return [greeting, until_end(server)]


def _reset_by_the_client(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"quest")
    assert receive_exactly(server, 5) == b"quest"
    reset(client)
    return [until_end(server)]


def _reset_by_the_target(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"?")
    server.sendall(b"answ")
    assert receive_exactly(server, 1) == b"?"
    assert receive_exactly(client, 4) == b"answ"
    reset(server)
    return [until_end(client)]


def _cut(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"?")
    assert receive_exactly(server, 1) == b"?"
    scene.forwarder.cut()
    return [until_end(client), until_end(server)]


def _no_slot(scene: Scene) -> Seen:
    scene.listen()
    first, server = scene.both()
    second = scene.client()
    second.sendall(b"second")
    assert is_silent(second, 0.3)
    first.close()
    assert until_end(server) == (b"", "FIN")
    server.close()
    other = scene.server()
    assert receive_exactly(other, 6) == b"second"
    other.sendall(b"served")
    other.close()
    seen = [until_end(second)]
    second.close()
    return seen


def _refused_for_lack_of_a_slot(scene: Scene) -> Seen:
    scene.listen()
    scene.both()
    return [until_end(scene.client())]


@dataclasses.dataclass(frozen=True)
class Case:
    """A scenario; the states in it are what HAProxy 2.6 says, to read."""

    play: Callable[[Scene], Seen]
    states: str
    settings: Settings = Settings()
    #: Where HAProxy says FIN at the client's end and ours says RST on purpose.
    visibly: bool = False

    def __str__(self) -> str:
        return self.play.__name__.strip("_").replace("_", " ")


CASES = [
    Case(_normal, "--"),
    Case(_refused, "SC", visibly=True),
    Case(_connect_time_out, "sC", Settings(connect=1), visibly=True),
    Case(_client_gone_while_connecting, "CC"),
    Case(_idle_on_both_sides, "cD", Settings(idle=1)),
    Case(_idle_after_an_exchange, "cD", Settings(idle=1)),
    Case(_half_closed_and_answered, "--"),
    Case(_half_closed_by_the_target, "--"),
    Case(_half_closed_and_never_answered, "sD", Settings(half_closed=1), visibly=True),
    Case(
        _half_closed_by_the_target_and_never_answered,
        "cD",
        Settings(half_closed=1),
        visibly=True,
    ),
    Case(_reset_by_the_client, "CD"),
    Case(_reset_by_the_target, "SD", visibly=True),
    Case(_cut, "K-", visibly=True),
    Case(_no_slot, "-- --", Settings(most=1)),
    Case(_refused_for_lack_of_a_slot, "PR", Settings(most=1, when_full="refuse")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_same_as_through_haproxy(
    case: Case,
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
    tmp_path: Path,
) -> None:
    count = len(case.states.split())

    def play(scene: Scene) -> tuple[Seen, list[Logged]]:
        seen = case.play(scene)
        return seen, [read_logged(scene.forwarder.process) for _ in range(count)]

    theirs, ours = Scene(closing), Scene(closing)
    haproxy = HAProxy(tmp_path, theirs.target, case.settings)
    closing.callback(haproxy.close)
    theirs.forwarder = haproxy
    trioserve = Ours(ours.target, case.settings)
    closing.callback(trioserve.close)
    ours.forwarder = trioserve
    # Both at the same time: half of it is waiting for timers.
    (seen_there, logged_there), (seen, logged) = threads.map(play, (theirs, ours))
    assert [data for data, _ in seen] == [data for data, _ in seen_there]
    assert logged == logged_there
    assert " ".join(each.state for each in logged) == case.states
    ends, ends_there = [end for _, end in seen], [end for _, end in seen_there]
    if case.visibly:
        assert set(ends_there) == {"FIN"}
        assert "RST" in ends
    else:
        assert ends == ends_there

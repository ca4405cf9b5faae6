"""HAProxy and trioserve side by side: the same bytes, the same two letters.

Each scenario runs through both, and what they do and log is compared: bytes, fields
and how connections end. The letters in the table are for the reader. It marks where
we differ on purpose: HAProxy often sends FIN although something is missing, and
sometimes logs other letters than its manual says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
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
    is_silent,
    needs,
    program,
    receive_exactly,
    reset,
)

pytestmark = [needs("haproxy"), pytest.mark.long]

#: configuration.txt, section 8.2.2.
_TCPLOG = re.compile(
    r"(?P<client>\S+):\d+ \[\d\d/[A-Z][a-z]{2}/\d{4}(:\d\d){3}\.\d{3}\]"
    r" (?P<frontend>\S+) (?P<backend>\S+)/(?P<server>\S+)"
    r" (?P<waited>-1|\d+)/(?P<connect>-1|\d+)/\d+ (?P<bytes>\d+) (?P<state>\S\S)"
    r" \d+/(?P<open>\d+/\d+/\d+/\d+) 0/0"
)


#: In /proc/net/tcp.
_SYN_SENT = "02"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a forwarder for a scenario; times in seconds."""

    host: str = "127.0.0.1"
    connect: int = 20
    idle: int = 20
    half_closed: int = 20
    drain: int = 0
    most: int = 100
    when_full: str = "wait"


@dataclasses.dataclass(frozen=True)
class Logged:
    """What a forwarder logs of a connection that ended, as far as it is comparable.

    Names, dates and milliseconds differ; whether a phase was reached does not. The
    state is compared with the table.
    """

    state: str = dataclasses.field(compare=False)
    client: str
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
        client=found["client"],
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

    def drain(self) -> None:
        """Let them go on for as long as the settings say, then end them."""
        ...


class HAProxy:
    """HAProxy in front of one server, listening on sockets that it inherits.

    It has a timer for each side. The client's is shorter here; otherwise either one
    could run out first. It has one thread, because a second one that accepts would
    count a connection too early.
    """

    def __init__(self, folder: Path, target: int, settings: Settings) -> None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._listener = socket.create_server((settings.host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._admin = socket.socket(socket.AF_UNIX)
        self._admin.bind(str(folder / "admin"))
        self._admin.listen()
        full = ""
        if settings.when_full == "refuse":
            full = f"tcp-request content reject if {{ fe_conn gt {settings.most} }}"
        elif settings.most < 100:
            full = f"maxconn {settings.most}"
        config = folder / "haproxy.cfg"
        config.write_text(f"""
global
    nbthread 1
    log stdout format raw local0
    stats socket fd@{self._admin.fileno()} level admin
    hard-stop-after {settings.drain or 20}s
defaults
    mode tcp
    log global
    option tcplog
    retries 0
    timeout connect {settings.connect}s
    timeout client {settings.idle}s
    timeout server {settings.idle * 1000 + 500}ms
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
            pass_fds=(self._listener.fileno(), self._admin.fileno()),
        )
        self._ask("show info")  # it answers once it runs

    def cut(self) -> None:
        self._ask("shutdown sessions server back/target")

    def drain(self) -> None:
        os.kill(self.process.pid, signal.SIGUSR1)

    def close(self) -> None:
        self.process.kill()
        self._listener.close()
        self._admin.close()

    def _ask(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(self._admin.getsockname())
            admin.sendall(f"{command}\n".encode())
            while admin.recv(65536):
                pass


class Ours:
    """``trioserve proxy`` in front of a server, with the same settings."""

    def __init__(self, target: int, settings: Settings) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.process = Process(
            *(sys.executable, "-m", "trioserve", "proxy", f"{host}:0"),
            *(f"127.0.0.1:{target}", "--log", "haproxy"),
            *("--log-connections", "all"),
            *("--drain", f"{settings.drain}s"),
            *("--connect", f"{settings.connect}s", "--idle", f"{settings.idle}s"),
            *("--half-closed", f"{settings.half_closed}s"),
            *("--max-connections", f"{settings.most}"),
            *("--when-full", settings.when_full),
        )
        self.port = int(self.process.until("try:").split()[-1])

    def cut(self) -> None:
        self.process.terminate()

    def drain(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        self.process.kill()


class Scene:
    """A target behind a forwarder, and sockets that last as long as the test."""

    def __init__(self, stack: contextlib.ExitStack, settings: Settings) -> None:
        self._stack = stack
        self._host = settings.host
        self._bound = stack.enter_context(socket.socket())
        self._bound.bind(("127.0.0.1", 0))
        self._bound.settimeout(PATIENCE)
        self._in_the_way: list[tuple[str, int]] = []
        self.target: int = self._bound.getsockname()[1]
        self.forwarder: Forwarder

    def listen(self) -> None:
        self._bound.listen(100)

    def fall_silent(self) -> None:
        """From now on the target does not answer connects, until it listens."""
        self._bound.listen(0)
        for _ in range(3):
            client = self._stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(self._bound.getsockname())
            self._in_the_way.append(client.getsockname())

    def client(self) -> socket.socket:
        where = self._host, self.forwarder.port
        return self._stack.enter_context(socket.create_connection(where, PATIENCE))

    def server(self) -> socket.socket:
        while True:
            server, peer = self._bound.accept()
            self._stack.enter_context(server)
            if peer not in self._in_the_way:
                server.settimeout(PATIENCE)
                return server

    def both(self) -> tuple[socket.socket, socket.socket]:
        return self.client(), self.server()

    def client_while_connecting(self, data: bytes = b"") -> socket.socket:
        """A client that has sent ``data``, and waits for a target that is silent."""
        self.fall_silent()
        client = self.client()
        client.sendall(data)
        while not self._is_dialed():
            assert is_silent(client, 0.01)
        assert is_silent(client, 0.3)
        return client

    def _is_dialed(self) -> bool:
        """Whether a SYN of the forwarder waits for the silent target."""
        waits = f":{self.target:04X} {_SYN_SENT} "
        ours = [f":{port:04X} " for _, port in self._in_the_way]
        return any(
            waits in line and not any(port in line for port in ours)
            for line in Path("/proc/net/tcp").read_text().splitlines()
        )


def until_end(sock: socket.socket) -> tuple[bytes, str]:
    """What arrives, and how it ends."""
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except ConnectionResetError:
        return data, "RST"
    return data, "FIN"


# -- the scenarios: each returns what the ends saw, the client's first


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
    return [_until_refused(scene)]


def _connect_time_out(scene: Scene) -> Seen:
    scene.fall_silent()
    return [until_end(scene.client())]


def _client_closes_while_connecting(scene: Scene) -> Seen:
    scene.client_while_connecting().close()
    return []


def _client_shuts_down_while_connecting(scene: Scene) -> Seen:
    client = scene.client_while_connecting()
    client.shutdown(socket.SHUT_WR)
    return [until_end(client)]


def _client_resets_while_connecting(scene: Scene) -> Seen:
    reset(scene.client_while_connecting())
    return []


def _client_sends_and_resets_while_connecting(scene: Scene) -> Seen:
    reset(scene.client_while_connecting(b"question"))
    return []


def _client_sends_and_closes_while_connecting(scene: Scene) -> Seen:
    scene.client_while_connecting(b"question").close()
    return []


def _client_sends_and_shuts_down_while_connecting(scene: Scene) -> Seen:
    client = scene.client_while_connecting(b"question")
    client.shutdown(socket.SHUT_WR)
    return [until_end(client)]


def _client_sends_and_shuts_down_and_the_target_answers(scene: Scene) -> Seen:
    client = scene.client_while_connecting(b"question")
    client.shutdown(socket.SHUT_WR)
    scene.listen()
    # The kernel sends its SYN again after a second.
    server = scene.server()
    question = until_end(server)
    server.sendall(b"answer")
    server.close()
    return [until_end(client), question]


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


def _client_takes_nothing(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    _fill(server)
    ends = [until_end(server), until_end(client)]
    # How many bytes were in flight is up to the kernel.
    return [(b"", end) for _, end in ends]


def _target_takes_nothing(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    _fill(client)
    ends = [until_end(client), until_end(server)]
    return [(b"", end) for _, end in ends]


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


def _reset_by_the_client_once_half_closed(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    server.sendall(b"greeting")
    server.shutdown(socket.SHUT_WR)
    assert until_end(client) == (b"greeting", "FIN")
    client.sendall(b"quest")
    assert receive_exactly(server, 5) == b"quest"
    reset(client)
    return [until_end(server)]


def _reset_by_the_target_once_half_closed(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert until_end(server) == (b"question", "FIN")
    server.sendall(b"answ")
    assert receive_exactly(client, 4) == b"answ"
    reset(server)
    return [until_end(client)]


def _answered_by_a_target_that_has_not_read_all(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"question")
    assert not is_silent(server, PATIENCE)
    server.sendall(b"no")
    assert receive_exactly(client, 2) == b"no"
    server.close()
    return [until_end(client)]


def _cut(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"?")
    assert receive_exactly(server, 1) == b"?"
    scene.forwarder.cut()
    return [until_end(client), until_end(server)]


def _cut_while_connecting(scene: Scene) -> Seen:
    client = scene.client_while_connecting()
    scene.forwarder.cut()
    return [until_end(client)]


def _cut_when_it_has_drained_for_long_enough(scene: Scene) -> Seen:
    scene.listen()
    client, server = scene.both()
    client.sendall(b"?")
    assert receive_exactly(server, 1) == b"?"
    scene.forwarder.drain()
    assert is_silent(client, 0.3)
    server.sendall(b"!")
    return [until_end(client), until_end(server)]


def _waits_for_a_token(scene: Scene) -> Seen:
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


def _gone_before_there_was_a_token(scene: Scene) -> Seen:
    scene.listen()
    first, server = scene.both()
    first.sendall(b"?")
    assert receive_exactly(server, 1) == b"?"
    second = scene.client()
    second.sendall(b"second")
    second.close()
    first.close()
    assert until_end(server) == (b"", "FIN")
    server.close()
    other = scene.server()
    seen = [until_end(other)]
    other.close()
    return seen


def _refused_at_the_limit(scene: Scene) -> Seen:
    scene.listen()
    scene.both()
    return [_until_refused(scene)]


def _refused_at_the_limit_after_sending(scene: Scene) -> Seen:
    scene.listen()
    scene.both()
    return [_until_refused(scene, b"question")]


def _until_refused(scene: Scene, data: bytes = b"") -> tuple[bytes, str]:
    """How a client ends, perhaps before it knows that it is connected."""
    try:
        client = scene.client()
        client.sendall(data)
        return until_end(client)
    except ConnectionError:
        return b"", "RST"


def _fill(sock: socket.socket) -> None:
    """Send until the buffers on the way are full."""
    sock.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(bytes(1 << 16))
    sock.settimeout(PATIENCE)


@dataclasses.dataclass(frozen=True)
class Case:
    """A scenario, and the states in which it ends.

    Attributes:
      visibly: HAProxy sends FIN at an end, or at both, where ours sends RST on
        purpose, because something is missing.
      states_there: what HAProxy 2.6 logs where it contradicts its manual, which
        we follow (configuration.txt, section 8.5).
      lost: HAProxy counts what came from the target, we what the client took.
    """

    play: Callable[[Scene], Seen]
    states: str
    settings: Settings = Settings()
    visibly: bool = False
    states_there: str = ""
    lost: bool = False

    def __str__(self) -> str:
        name = self.play.__name__.strip("_").replace("_", " ")
        return name if self.settings.host == "127.0.0.1" else f"{name} by IPv6"


CASES = [
    Case(_normal, "--"),
    Case(_normal, "--", Settings(host="::1")),
    Case(_refused, "SC", visibly=True),
    Case(_connect_time_out, "sC", Settings(connect=1), visibly=True),
    Case(_client_closes_while_connecting, "CC"),
    Case(_client_shuts_down_while_connecting, "CC", visibly=True),
    Case(_client_resets_while_connecting, "CC", states_there="CD"),
    Case(_client_sends_and_resets_while_connecting, "CC", states_there="CD"),
    Case(_client_sends_and_closes_while_connecting, "sC", Settings(connect=2)),
    Case(
        _client_sends_and_shuts_down_while_connecting,
        "sC",
        Settings(connect=2),
        visibly=True,
    ),
    Case(_client_sends_and_shuts_down_and_the_target_answers, "--"),
    Case(_idle_on_both_sides, "cD", Settings(idle=1, half_closed=1)),
    Case(_idle_after_an_exchange, "cD", Settings(idle=1, half_closed=1)),
    Case(
        _client_takes_nothing,
        "cD",
        Settings(idle=1, half_closed=1),
        visibly=True,
        lost=True,
    ),
    Case(_target_takes_nothing, "sD", Settings(idle=1, half_closed=1), visibly=True),
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
    Case(_reset_by_the_client_once_half_closed, "CD", visibly=True),
    Case(_reset_by_the_target, "SD", visibly=True),
    Case(_reset_by_the_target_once_half_closed, "SD", visibly=True),
    Case(_answered_by_a_target_that_has_not_read_all, "SD", visibly=True),
    Case(_cut, "K-", visibly=True),
    Case(_cut_while_connecting, "KC", visibly=True),
    Case(
        _cut_when_it_has_drained_for_long_enough,
        "K-",
        Settings(drain=2),
        visibly=True,
    ),
    Case(_waits_for_a_token, "-- --", Settings(most=1)),
    Case(_gone_before_there_was_a_token, "-- --", Settings(most=1)),
    Case(_refused_at_the_limit, "PR", Settings(most=1, when_full="refuse")),
    Case(
        _refused_at_the_limit_after_sending,
        "PR",
        Settings(most=1, when_full="refuse"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ends_see_the_same_as_through_haproxy(
    case: Case,
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
    tmp_path: Path,
) -> None:
    if case.settings.host == "::1" and not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    count = len(case.states.split())

    def play(scene: Scene) -> tuple[Seen, list[Logged]]:
        seen = case.play(scene)
        return seen, [read_logged(scene.forwarder.process) for _ in range(count)]

    theirs, ours = Scene(closing, case.settings), Scene(closing, case.settings)
    haproxy = HAProxy(tmp_path, theirs.target, case.settings)
    closing.callback(haproxy.close)
    theirs.forwarder = haproxy
    trioserve = Ours(ours.target, case.settings)
    closing.callback(trioserve.close)
    ours.forwarder = trioserve
    # Both at the same time, because half of the time is waiting for timers.
    (seen_there, logged_there), (seen, logged) = threads.map(play, (theirs, ours))
    assert _states(logged_there) == (case.states_there or case.states)
    assert _states(logged) == case.states
    assert [data for data, _ in seen] == [data for data, _ in seen_there]
    if case.lost:
        logged, logged_there = _uncounted(logged), _uncounted(logged_there)
    assert logged == logged_there
    ends = zip(seen_there, seen, strict=True)
    differ = {(there[1], here[1]) for there, here in ends if there[1] != here[1]}
    assert differ == ({("FIN", "RST")} if case.visibly else set())


def _has_ipv6() -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_server(("::1", 0), family=socket.AF_INET6),
    ):
        return True
    return False


def _states(logged: list[Logged]) -> str:
    return " ".join(each.state for each in logged)


def _uncounted(logged: list[Logged]) -> list[Logged]:
    return [dataclasses.replace(each, bytes_to_client=0) for each in logged]

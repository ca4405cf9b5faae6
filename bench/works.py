"""The works: what each peer has to do, and what is measured.

A peer in, figures out. Nothing here knows rounds, or what the figures are used for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Literal

from .certificate import certificate
from .load import (
    BLAST,
    CHURN,
    Figures,
    blast,
    churn,
    connections,
    crowd,
    flows,
    handshakes,
    ping_beside,
    round_trips,
)
from .measure import memory
from .peers import Peer
from .programs import (
    LOAD_CORES,
    PROXY_CORES,
    find,
    free_port,
    pinned,
    raise_open_files_limit,
    running,
)

#: Connections through one proxy, each of which takes two of its descriptors.
MOST = min(10_000, (raise_open_files_limit() - 500) // 2)

#: Takes the port that the load connects to, the process whose cost is measured or
#: None, and seconds.
Task = Callable[[int, int | None, float], Figures]


@dataclasses.dataclass(frozen=True)
class Work:
    """Something that is measured.

    Args:
      name: a word for the command line.
      title: what it is, for the reader.
      task: takes a port, the server's process id and about how many seconds.
      clients: connections at once.
      target: what a proxy relays to.
      serves: the kind of peer that does it.
      is_long: whether it takes much longer than what is measured.
    """

    name: str
    title: str
    task: Task
    clients: int
    target: Literal["redis", "iperf3", "blast", "churn"] = "redis"
    serves: Literal["proxy", "echo", "tls"] = "proxy"
    is_long: bool = False

    @property
    def tools(self) -> tuple[str, ...]:
        """The programs that it needs."""
        tools = ("openssl",) if self.serves == "tls" else ()
        if self.target == "iperf3":
            return (*tools, "iperf3")
        if self.target != "redis":
            return tools
        return (*tools, "redis-benchmark", "redis-server")

    def suits(self, peer: Peer) -> bool:
        """Whether the peer can do it."""
        if peer.serves != self.serves or self.clients > peer.most:
            return False
        return peer.command is not None or not self.is_long


def measure(work: Work, peer: Peer, seconds: float) -> Figures:
    """Start a target and the peer, let it do the work, and end them.

    The target is a new one each time, on a new port: with pairs of ports that were
    in use a moment ago, each connect would cost more than the last.

    Raises:
      ProgramError: a program failed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned(LOAD_CORES))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = target = free_port()
        pid = None
        if work.serves != "echo":
            relayed = _target(work.target, target)
            stack.enter_context(running(relayed, target, LOAD_CORES, folder))
        if peer.command is not None:
            port = free_port()
            command = peer.command(port, target, folder)
            pid = stack.enter_context(running(command, port, PROXY_CORES, folder))
        figures = dict(work.task(port, pid, seconds))
        if work.target in ("iperf3", "blast") and peer.needs == "haproxy":
            figures["spliced %"] = _spliced(folder / "admin")
        return figures


def _target(name: str, port: int) -> list[str]:
    if name == "iperf3":
        return ["iperf3", "-s", "-1", "-p", str(port)]
    if name == "blast":
        return [sys.executable, str(BLAST), "target", str(port)]
    if name == "churn":
        return [sys.executable, str(CHURN), "target", str(port)]
    command = [find("redis-server") or "", "--port", str(port), "--save", ""]
    command += ["--bind", "127.0.0.1", "--tcp-backlog", "4096"]
    return [*command, "--maxclients", "20000", "--appendonly", "no"]


def _round_trips(clients: int, port: int, pid: int | None, seconds: float) -> Figures:
    few = min(clients, 64)
    rate = _rate(round_trips(port, pid, few, 10 * few + 200))
    return round_trips(port, pid, clients, max(int(rate * seconds), 3 * clients))


def _connections(beside: int, port: int, pid: int | None, seconds: float) -> Figures:
    # The kernel has 28,000 ports to connect from, and finds half of them quickly.
    # With more, this would measure the search for a free port.
    most = 11_000 - beside
    with crowd(port, beside):
        rate = _rate(connections(port, pid, 64, 500))
        return connections(port, pid, 64, min(int(rate * seconds), most))


def _churn(how: str, port: int, pid: int | None, seconds: float) -> Figures:
    # After a FIN a port is in use for a minute; see _connections() for the number.
    rate = _rate(churn(port, pid, 64, 500, how))
    return churn(port, pid, 64, min(int(rate * seconds), 11_000), how)


def _rate(figures: Figures) -> float:
    return next(iter(figures.values()))


def _idle(number: int, port: int, pid: int | None, seconds: float) -> Figures:
    return _memory(number, port, pid)


def _memory(number: int, port: int, pid: int | None, ca: Path | None = None) -> Figures:
    assert pid is not None
    with crowd(port, 1, ca):
        none = memory(pid)
    with crowd(port, number, ca):
        full = memory(pid)
    return {
        "PSS kB per connection": (full.pss - none.pss) / number,
        "RSS kB per connection": (full.rss - none.rss) / number,
        "RSS MB without": none.rss / 1024,
    }


def _tls_round_trips(
    clients: int, port: int, pid: int | None, seconds: float
) -> Figures:
    """Round trips, and what one costs without a share of the handshakes before."""
    ca = certificate()
    rate = _rate(round_trips(port, pid, clients, 50 * clients, ca))
    count = max(int(rate * seconds / 2), 3 * clients)
    few = round_trips(port, pid, clients, count, ca)
    many = round_trips(port, pid, clients, 3 * count, ca)
    figures = dict(many)
    for name in many:
        if name.startswith("CPU"):
            # Per round trip: that of the two thirds that it has more.
            figures[name] = (3 * many[name] - few[name]) / 2
    return figures


def _tls_down(number: int, port: int, pid: int | None, seconds: float) -> Figures:
    return blast(port, pid, number, seconds, down=True, ca=certificate())


def _handshakes(how: str, port: int, pid: int | None, seconds: float) -> Figures:
    rate = _rate(handshakes(port, pid, 8, 80, how, certificate()))
    count = min(max(int(rate * seconds), 80), 11_000)
    return handshakes(port, pid, 8, count, how, certificate())


def _tls_idle(number: int, port: int, pid: int | None, seconds: float) -> Figures:
    return _memory(number, port, pid, certificate())


def _blast(
    number: int, down: bool, port: int, pid: int | None, seconds: float
) -> Figures:
    return blast(port, pid, number, seconds, down=down)


def _ping(number: int, port: int, pid: int | None, seconds: float) -> Figures:
    return ping_beside(port, pid, number, seconds)


def _flow(
    number: int, down: bool, port: int, pid: int | None, seconds: float
) -> Figures:
    return flows(port, pid, number, seconds, down=down)


def _spliced(admin: Path) -> float:
    # By HAProxy's own count, the share of the bytes it sent that went through a pipe.
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(admin))
        sock.sendall(b"show info\n")
        said = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    # HAProxy spells it like this.
    spliced = re.search(r"^TotalSplic\w*BytesOut: (\d+)$", said, re.MULTILINE)
    sent = re.search(r"^TotalBytesOut: (\d+)$", said, re.MULTILINE)
    return 100 * int(spliced[1]) / int(sent[1]) if spliced and sent else 0.0


def _all() -> Generator[Work]:
    for clients in (1, 64, 512, 1000, MOST):
        yield Work(
            name=f"messages-{clients}",
            title=f"Round trips of 14 and 7 bytes, {clients} at a time",
            task=partial(_round_trips, clients),
            clients=clients,
            is_long=clients >= 1000,
        )
    yield Work(
        name="connections",
        title="Connect, one round trip, close; 64 at a time",
        task=partial(_connections, 0),
        clients=64,
    )
    for how in ("fin", "rst"):
        yield Work(
            name=f"connections-{how}",
            title=f"Connect, 64 bytes and back, close by {how.upper()}; 64 at a time",
            task=partial(_churn, how),
            clients=64,
            target="churn",
        )
    for number in (100, MOST * 9 // 10):
        yield Work(
            name=f"connections-beside-{number}",
            title=f"The same beside {number} open, silent connections",
            task=partial(_connections, number),
            clients=number + 64,
            is_long=True,
        )
    for number in (1, 8, 32, 128):
        for down in (False, True):
            way = "down" if down else "up"
            yield Work(
                name=f"blast-{way}-{number}",
                title=f"Bytes {way} in blocks of 256 KiB, flows at a time: {number}",
                task=partial(_blast, number, down),
                clients=number,
                target="blast",
            )
            yield Work(
                name=f"bytes-{way}-{number}",
                title=f"Bytes {way} the stream, flows at a time: {number}",
                task=partial(_flow, number, down),
                clients=number,
                target="iperf3",
            )
    for number in (4, 200):
        yield Work(
            name=f"ping-beside-{number}",
            title=f"Round trips of 64 bytes beside {number} flows at full speed",
            task=partial(_ping, number),
            clients=number + 1,
            target="blast",
        )
    for number in (2000, MOST):
        yield Work(
            name=f"idle-{number}",
            title=f"Memory for {number} open, silent connections",
            task=partial(_idle, number),
            clients=number,
            is_long=True,
        )
    for clients in (1, 64):
        yield Work(
            name=f"handler-messages-{clients}",
            title=f"Round trips to a user's handler, {clients} at a time",
            task=partial(_round_trips, clients),
            clients=clients,
            serves="echo",
        )
    yield Work(
        name="handler-connections",
        title="Connect to a user's handler, one round trip, close; 64 at a time",
        task=partial(_connections, 0),
        clients=64,
        serves="echo",
    )
    yield from _with_tls()


def _with_tls() -> Generator[Work]:
    """Clients speak TLS, and what is relayed to does not."""
    yield Work(
        name="tls-messages-64",
        title="Round trips of 14 and 7 bytes over TLS, once it is there, 64 at a time",
        task=partial(_tls_round_trips, 64),
        clients=64,
        serves="tls",
    )
    yield Work(
        name="tls-down-8",
        title="Bytes down over TLS in blocks of 256 KiB, flows at a time: 8",
        task=partial(_tls_down, 8),
        clients=8,
        target="blast",
        serves="tls",
    )
    for how in ("full", "resumed"):
        yield Work(
            name=f"tls-{how}",
            title=f"A {how} TLS handshake, 64 bytes and back, close; 8 at a time",
            task=partial(_handshakes, how),
            clients=8,
            target="churn",
            serves="tls",
        )
    number = min(MOST, 1000)
    yield Work(
        name=f"tls-idle-{number}",
        title=f"Memory for {number} open, silent TLS connections",
        task=partial(_tls_idle, number),
        clients=number,
        serves="tls",
        is_long=True,
    )


WORKS = list(_all())

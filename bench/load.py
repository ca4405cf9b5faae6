"""The load: real tools, watched until they end, and idle connections.

A port and an amount of work in, figures out. Nothing here knows the server.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from .measure import Moment, cpu_between, moment
from .programs import ProgramError, end, last_line

#: Seconds that a tool may take.
_PATIENCE = 60.0

#: The program that sends as fast as it can.
BLAST = Path(__file__).with_name("blast.py")

#: The program whose connections end in a known way.
CHURN = Path(__file__).with_name("churn.py")

_HANDSHAKES = Path(__file__).with_name("handshakes.py")

#: What was measured, by its name and unit.
Figures = Mapping[str, float]


def round_trips(
    port: int, pid: int | None, clients: int, requests: int, ca: Path | None = None
) -> Figures:
    """Requests by a number of clients, each of which waits for its answer.

    Args:
      ca: the authority of the server's certificate; without one, there is no TLS.
    """
    tls = () if ca is None else ("--tls", "--cacert", str(ca), "--sni", "localhost")
    return _redis_benchmark("round trip", port, pid, clients, requests, *tls)


def connections(port: int, pid: int | None, clients: int, requests: int) -> Figures:
    """The same with a connection for each request."""
    return _redis_benchmark("connection", port, pid, clients, requests, "-k", "0")


def flows(
    port: int, pid: int | None, number: int, seconds: float, *, down: bool
) -> Figures:
    """Bytes in a number of flows for some time, from the client or ``down`` to it.

    It takes whole seconds, at least one: iperf3 reads 0.5 as 0, which means forever.
    The port has to lead to ``iperf3 -s``.
    """
    command = ["iperf3", "-J", "-c", "127.0.0.1", "-p", str(port)]
    command += [
        "-t",
        str(max(1, round(seconds))),
        "-P",
        str(number),
        *(["-R"] if down else []),
    ]
    output, moments = _watch(command, pid)
    try:
        ended = json.loads(output)["end"]
        received = ended["sum_received"]
        ends = ended["cpu_utilization_percent"]
        percent = ends["host_total"] + ends["remote_total"]
    except (ValueError, KeyError):
        raise ProgramError(f"iperf3 says {last_line(output.encode())}") from None
    gigabytes = received["bytes"] / 1e9
    used = moments[-1].cpu - moments[0].cpu
    figures = {"Gbit/s": received["bits_per_second"] / 1e9}
    if pid is not None:
        figures["CPU ms per GB"] = used * 1e3 / gigabytes
    # On one machine the kernel does a part of each end's work in the process that
    # happens to run: what one proxy does itself, another leaves to the ends.
    used += percent / 100 * received["seconds"]
    figures["all CPU ms per GB"] = used * 1e3 / gigabytes
    return figures


def blast(
    port: int,
    pid: int | None,
    number: int,
    seconds: float,
    *,
    down: bool,
    ca: Path | None = None,
) -> Figures:
    """Bytes in a number of flows as fast as possible; twice, as a process warms up.

    The port has to lead to ``blast.py target``.
    """
    figures: dict[str, float] = {}
    command = [sys.executable, str(BLAST), "down" if down else "up"]
    command += [
        str(port),
        str(number),
        str(seconds),
        *([] if ca is None else [str(ca)]),
    ]
    for when in ("", "again: "):
        output, moments = _watch(command, pid)
        total, took = _numbers(output)
        figures[f"{when}Gbit/s"] = total * 8 / took / 1e9
        if pid is not None:
            used = moments[-1].cpu - moments[0].cpu
            figures[f"{when}CPU ms per GB"] = used * 1e12 / total
    return figures


def ping_beside(port: int, pid: int | None, number: int, seconds: float) -> Figures:
    """Round trips of one client beside a number of flows as fast as possible.

    The port has to lead to ``blast.py target``.
    """
    command = [sys.executable, str(BLAST), "ping"]
    output, _ = _watch([*command, str(port), str(number), str(3 * seconds)], pid)
    count, middle, most = _numbers(output)
    return {
        "messages": count,
        "p50 ms": middle * 1e3,
        "p99 ms": most * 1e3,
    }


def churn(port: int, pid: int | None, at_once: int, count: int, how: str) -> Figures:
    """Connections, each with one exchange, that clients close by ``fin`` or ``rst``.

    The port has to lead to ``churn.py target``.
    """
    command = [sys.executable, str(CHURN), how, str(port), str(at_once), str(count)]
    output, moments = _watch(command, pid)
    made, took = _numbers(output)
    figures = {"connections/s": made / took}
    if pid is not None:
        # Its clock starts when it begins to connect.
        used = cpu_between(moments, moments[-1].time - took)
        figures["CPU us per connection"] = used * 1e6 / made
    return figures


def handshakes(
    port: int, pid: int | None, at_once: int, count: int, how: str, ca: Path
) -> Figures:
    """TLS connections with one exchange, whose handshakes are ``full`` or ``resumed``.

    The port has to lead to ``churn.py target``.
    """
    command = [sys.executable, str(_HANDSHAKES), how, str(port), str(at_once)]
    output, moments = _watch([*command, str(count), str(ca)], pid)
    made, took = _numbers(output)
    figures = {"connections/s": made / took}
    if pid is not None:
        used = cpu_between(moments, moments[-1].time - took)
        figures["CPU us per connection"] = used * 1e6 / made
    return figures


def _numbers(output: str) -> list[float]:
    try:
        return [float(word) for word in output.split()]
    except ValueError:
        raise ProgramError(f"the load says {last_line(output.encode())}") from None


@contextlib.contextmanager
def crowd(port: int, number: int, ca: Path | None = None) -> Generator[None]:
    """A number of connections that got one answer each, and are then idle.

    Raises:
      ProgramError: one of them got no answer.
    """
    context = None if ca is None else ssl.create_default_context(cafile=ca)
    with contextlib.ExitStack() as stack:
        for count in range(number):
            try:
                address = ("127.0.0.1", port)
                sock = socket.create_connection(address, timeout=_PATIENCE)
                if context is not None:
                    sock = context.wrap_socket(sock, server_hostname="localhost")
                stack.enter_context(sock)
                sock.sendall(b"PING\r\n")
                answer = sock.recv(64)
            except OSError as error:
                raise ProgramError(f"connection {count + 1}: {error}") from None
            if not answer:
                raise ProgramError(f"connection {count + 1} was closed")
        yield


def _redis_benchmark(
    unit: str, port: int, pid: int | None, clients: int, requests: int, *options: str
) -> Figures:
    # Line by line, because its last line marks the end of its work, before it exits.
    command = ["stdbuf", "-oL", "redis-benchmark", "-p", str(port), "--csv"]
    command += ["-t", "ping_mbulk", "-c", str(clients), "-n", str(requests), *options]
    output, moments = _watch(command, pid)
    # Before that, it may have warned that the server does not tell its configuration.
    rows = list(csv.DictReader(output[output.find('"test"') :].splitlines()))
    if len(rows) != 1 or rows[0].get("p99_latency_ms") is None:
        raise ProgramError(f"redis-benchmark says {last_line(output.encode())}")
    rate = float(rows[0]["rps"])
    figures = {f"{unit}s/s": rate}
    if pid is not None:
        # Its clock starts when all clients have begun to connect.
        used = cpu_between(moments, moments[-1].time - requests / rate)
        figures[f"CPU us per {unit}"] = used * 1e6 / requests
    figures["p50 ms"] = float(rows[0]["p50_latency_ms"])
    figures["p99 ms"] = float(rows[0]["p99_latency_ms"])
    return figures


def _watch(command: Sequence[str], pid: int | None) -> tuple[str, list[Moment]]:
    """Run a tool to its end; return its output, and moments until its last output."""
    moments = [moment(pid)]
    until_output = 1
    output = b""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as tool:
        try:
            assert tool.stdout is not None
            poll = select.poll()
            poll.register(tool.stdout)
            while moments[-1].time < moments[0].time + _PATIENCE:
                ready = poll.poll(10)
                moments.append(moment(pid))
                if ready:
                    chunk = os.read(tool.stdout.fileno(), 65536)
                    if not chunk:
                        break
                    output += chunk
                    until_output = len(moments)
            else:
                raise ProgramError(f"{command[0]} is not done after {_PATIENCE:g} s")
        except ProcessLookupError as error:
            raise ProgramError(str(error)) from None
        finally:
            end(tool)
    return output.decode(errors="replace"), moments[:until_output]

"""Serving until a signal says stop, in this process, with signals from a channel."""

from __future__ import annotations

import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import click
import pytest
import trio
import trio.testing

from app.scene import Scene, service, stuck_until, until_eof
from support import DeadNames, serving
from trioserve import (
    DrainSummary,
    Limits,
    Target,
    TcpAddress,
    Timeouts,
    UnixAddress,
    echo,
)
from trioserve.app import _run
from trioserve.app._service import Service
from trioserve.app._signals import Signals
from trioserve.app.output._log import Log
from trioserve.app.output._messages import log_drained
from trioserve.app.output._output import Output
from trioserve.app.output._writer import LineWriter


async def test_it_logs_where_it_listens_how_to_stop_it_and_what_to_try(
    scene: Scene,
) -> None:
    async with trio.open_nursery() as nursery:
        targets = (Target(TcpAddress("10.0.0.1", 80)),)
        nursery.start_soon(scene.run, service(targets=targets))
        await scene.lines.until("nc 127.0.0.1 ")
        scene.signal(signal.SIGTERM)
    where, limits, stop, try_, *_ = scene.lines.seen
    port = try_.split()[-1]
    assert where == f"trioserve echo: 127.0.0.1:{port} -> 10.0.0.1:80"
    assert limits.startswith("limits: 3 connections, others wait; idle 1h, half closed")
    assert stop == "stop:   Ctrl-C drains, up to 25s; a second one cuts"


@pytest.mark.parametrize("listen", ["", "0.0.0.0"])
async def test_it_warns_when_it_listens_on_all_interfaces(
    scene: Scene, listen: str
) -> None:
    limits = Limits(max_connections=2, max_per_peer=1, when_full="refuse")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            scene.run,
            service(listen=(TcpAddress(listen, 0),), limits=limits, name="proxy"),
        )
        await scene.lines.until("nc 127.0.0.1 ")
        assert "all interfaces: everybody" in await scene.lines.until("warning:")
        scene.signal(signal.SIGTERM)
    refused = "others are refused"
    expected = f"limits: 2 connections, {refused}; 1 from one peer, {refused}; "
    assert scene.lines.seen[1].startswith(expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
async def test_a_signal_drains_and_open_connections_end_well(
    scene: Scene, number: signal.Signals
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(until_eof))
        client = await scene.connect()
        await client.send_all(b"x")
        assert await client.receive_some() == b"hello"
        scene.signal(number)
        assert await scene.lines.until("draining") == (
            "draining: 1 connection, up to 25s; a second signal cuts"
        )
        scene.signal(signal.SIGHUP)
        await scene.lines.until(
            "SIGHUP: no reports to reopen, and no certificates or targets"
        )
        await client.send_eof()
        assert await client.receive_some() == b""
    assert scene.code == 0
    assert not scene.left
    assert "ok/client_closed 1 B in, 5 B out" in scene.lines.seen[-3]
    assert scene.lines.seen[-2].startswith("drained in ")
    assert scene.lines.seen[-2].endswith(": 1 finished, 0 cut, 0 refused")
    assert scene.lines.seen[-1] == "served 1 connection: 1 B in, 5 B out"


async def test_with_live_it_logs_a_view_every_second(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(live=True))
        await scene.lines.until("up 0s: 0 open of 3")
        await scene.lines.until("up 1s: 0 open of 3")
        scene.signal(signal.SIGTERM)
    assert any("draining: 0 open" in line for line in scene.lines.seen)
    assert scene.code == 0


async def test_it_logs_when_the_limit_is_reached_and_cleared(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(limits=Limits(max_connections=1)))
        client = await scene.connect()
        await client.send_all(b"x")
        await client.receive_some()
        name = client.socket.getpeername()
        waiting = [socket.create_connection(name, 10) for _ in range(2)]
        said = await scene.lines.until("limit reached: ")
        assert said == "warning: limit reached: 1 connection, 2 clients waiting"
        for each in waiting:
            each.close()
        client.socket.close()
        said = await scene.lines.until("limit cleared after ")
        assert said.endswith("s: 0 of 1 connection, no clients waiting")
        scene.signal(signal.SIGTERM)
    assert sum("limit " in line for line in scene.lines.seen) == 2


async def test_it_logs_what_to_try_for_a_unix_socket(
    scene: Scene, tmp_path: Path
) -> None:
    address = UnixAddress(f"{tmp_path}/socket")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(listen=(address, TcpAddress("", 0))))
        await scene.lines.until(f"try:    nc -U {address.path}")
        assert ":0 " not in await scene.lines.until("all interfaces")
        scene.signal(signal.SIGTERM)
    assert scene.lines.seen[0].startswith(f"trioserve echo: {address}, ")


class _UnknownNames(trio.abc.HostnameResolver):
    """A resolver that finds no host, for the Trio run in which it is made."""

    def __init__(self) -> None:
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *_: int, **__: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_target_with_an_unknown_host_is_logged(scene: Scene) -> None:
    _UnknownNames()
    addresses = (
        TcpAddress("nobody.invalid", 80),
        UnixAddress("/nowhere"),
        TcpAddress("127.0.0.1", 1),
    )
    targets = tuple(Target(address) for address in addresses)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(targets=targets))
        said = await scene.lines.until("can't look up nobody.invalid now")
        assert said.startswith("warning: ")
        scene.signal(signal.SIGTERM)


async def test_a_name_server_that_does_not_answer_does_not_block_serving(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    DeadNames()
    async with trio.open_nursery() as nursery:
        targets = (Target(TcpAddress("dead.test", 80)),)
        nursery.start_soon(scene.run, service(targets=targets))
        client = await scene.connect()
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        await trio.sleep(10)
        scene.signal(signal.SIGTERM)
    assert not any("dead.test now" in line for line in scene.lines.seen)


async def test_it_warns_if_the_limit_needs_more_open_files_than_allowed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getrlimit(_: int) -> tuple[int, int]:
        return 64, 64

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    limits = Limits(max_connections=33)
    async with trio.open_nursery() as nursery:
        targets = (Target(TcpAddress("127.0.0.1", 1)),)
        nursery.start_soon(scene.run, service(limits=limits, targets=targets))
        assert await scene.lines.until("open files") == (
            "warning: 33 connections would need 66 open files, but only 64 are allowed"
            " (ulimit -Hn); when they are used up, clients are refused"
        )
        scene.signal(signal.SIGTERM)


async def test_stuck_tasks_are_named_and_left_behind(scene: Scene) -> None:
    release = trio.Event()
    scene.when_left = release.set
    timeouts = Timeouts(drain=0.0, cleanup=0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(stuck_until(release), timeouts=timeouts))
        client = await scene.connect()
        await client.receive_some()
        scene.signal(signal.SIGTERM)
        stuck = await scene.lines.until("stuck: ")
    assert "scene.py" in stuck
    assert scene.left == [3]


async def test_of_many_stuck_tasks_a_few_are_named(scene: Scene) -> None:
    summary = DrainSummary(
        reason="SIGTERM",
        seconds=30.0,
        open_at_start=60,
        backlog_drained=0,
        finished=0,
        refused=0,
        cut=60,
        stuck=tuple(f"conn-{number}" for number in range(60)),
        reports_lost=0,
    )
    async with serving(echo) as running:
        log = Log(scene.lines.write, "text")
        log_drained(log, summary, running.server, 0)
    stuck = [line for line in scene.lines.seen if "stuck" in line]
    assert len(stuck) == 51
    assert stuck[-1] == "error: stuck: 10 others"


async def test_logfmt_has_the_same_events(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service(), "logfmt")
        ready = await scene.lines.until("event=listening")
        assert " command=echo addresses=127.0.0.1:" in ready
        assert " target=null balance=null max_connections=3 max_per_peer=null " in ready
        assert " accept_proxy=null tls=null timeouts.connect=5.0 " in ready
        scene.signal(signal.SIGTERM)
        draining = await scene.lines.until("event=draining")
        assert draining.endswith(" reason=SIGTERM open=0 seconds=25.0")
        drained = await scene.lines.until("event=drained")
        assert " reason=SIGTERM " in drained


async def test_reports_that_were_not_collected_are_counted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def collect(self: Output, reports: object) -> None:
        raise RuntimeError("this collector is broken")

    monkeypatch.setattr(Output, "collect", collect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.run, service())
        client = await scene.connect()
        await client.send_eof()
        assert await client.receive_some() == b""
        scene.signal(signal.SIGTERM)
    assert "warning: reports lost: 1" in scene.lines.seen
    assert scene.lines.seen[-1] == "served 1 connection: 0 B in, 0 B out, 1 report lost"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(9, "Bad file descriptor"), click.ClickException),
        (RuntimeError("a bug"), ExceptionGroup),
    ],
)
async def test_when_serving_fails_an_error_of_the_system_is_one_line(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(
        service: Service, listeners: list[trio.SocketListener], *_: object, **__: object
    ) -> int:
        for listener in listeners:
            await listener.aclose()
        raise ExceptionGroup("", [error])

    monkeypatch.setattr(_run, "run", failing)
    writer = LineWriter(os.open(os.devnull, os.O_WRONLY), close_fd=True)
    output = Output(Log(writer.write, "text"), writer)
    with pytest.raises(expected) as caught:
        await _run.main(service(), output, Signals())
    output.flush()
    if expected is click.ClickException:
        text = "can't accept any more: [Errno 9] Bad file descriptor"
        assert str(caught.value) == text

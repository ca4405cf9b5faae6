"""A command that serves, in this process, with signals from a channel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import trio

from app.process import without_time
from trioserve import (
    Connection,
    Limits,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
)
from trioserve.app._run import run
from trioserve.app._service import Service
from trioserve.app.output._log import Format, Log
from trioserve.app.output._output import Output
from trioserve.app.output._writer import LineWriter


class Lines:
    """The lines of a log, which a test can wait for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._send, self._receive = trio.open_memory_channel[str](1000)

    def write(self, line: str) -> None:
        line = without_time(line)
        self.seen.append(line)
        self._send.send_nowait(line)

    async def until(self, part: str) -> str:
        async for line in self._receive:
            if part in line:
                return line
        raise AssertionError  # pragma: no cover - the channel is never closed


class Scene:
    """A run under way: its lines, its signals, how it ended."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.code: int | None = None
        self.left: list[int] = []
        self.when_left: Callable[[], None] = lambda: None
        self.clients: list[trio.SocketStream] = []
        self._signals, self._received = trio.open_memory_channel[int](10)

    def signal(self, number: signal.Signals) -> None:
        self._signals.send_nowait(number)

    async def connect(self) -> trio.SocketStream:
        line = await self.lines.until("nc 127.0.0.1 ")
        client = await trio.open_tcp_stream("127.0.0.1", int(line.split()[-1]))
        self.clients.append(client)
        return client

    async def run(self, service: Service, form: Format = "text") -> None:
        writer = LineWriter(os.open(os.devnull, os.O_WRONLY), close_fd=True)
        output = Output(Log(self.lines.write, form), writer)
        listeners = await open_listeners(*service.listen)
        self.code = await run(
            service, listeners, output, self._received, leave=self._leave
        )
        output.flush()

    def _leave(self, code: int) -> None:
        self.left.append(code)
        self.when_left()


def service(handler: Callable[[Connection], Any] = echo, **changes: Any) -> Service:
    defaults: dict[str, Any] = {
        "name": "echo",
        "listen": (TcpAddress("127.0.0.1", 0),),
        "limits": Limits(max_connections=3),
        "timeouts": Timeouts(),
    }
    return Service(handler=handler, **(defaults | changes))


async def until_eof(conn: Connection) -> None:
    await conn.receive_some()
    await conn.send_all(b"hello")
    while await conn.receive_some():
        pass


def stuck_until(release: trio.Event) -> Callable[[Connection], Any]:
    async def handler(conn: Connection) -> None:
        await conn.send_all(b"hello")
        with trio.CancelScope(shield=True):
            await release.wait()

    return handler

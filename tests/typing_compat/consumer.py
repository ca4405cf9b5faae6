"""A user's program, type-checked and run where trio-typing is installed.

Its stubs replace Trio's own types with older ones, so this uses only what a
user who needs them can: our names, and those of Trio that both know.
"""

from __future__ import annotations

from functools import partial

import trio
import trio_typing

import trioserve


async def shout(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


async def count(stream: trioserve.Connection) -> int:
    size = 0
    with stream.idle():
        size = len(await stream.receive_some())
    stream.note(size=size)
    return size


async def show(reports: trio.MemoryReceiveChannel[trioserve.ConnectionReport]) -> None:
    async for report in reports:
        print(report.reason, report.outcome is trioserve.Outcome.OK, report.bytes_sent)


async def serve(
    port: int, *, task_status: trio_typing.TaskStatus[trioserve.Server]
) -> None:
    """What Trio passes is one of theirs, and one of theirs can be passed on."""
    assert isinstance(task_status, trio_typing.TaskStatus)  # type: ignore[misc]
    summary = await trioserve.serve_tcp(
        shout,
        port,
        host="127.0.0.1",
        limits=trioserve.Limits(max_connections=10),
        timeouts=trioserve.Timeouts(idle=60),
        collector=show,
        task_status=task_status,
    )
    print(summary.clean, summary.stuck)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server: trioserve.Server = await nursery.start(serve, 0)
        listeners = await trioserve.open_listeners("127.0.0.1:0")
        handler = trioserve.proxy(server.addresses[0])
        nursery.start_soon(partial(trioserve.serve, handler, listeners))
        client = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
        await client.send_all(b"hello")
        print(await client.receive_some())
        await client.aclose()
        await server.drain(within=1)
        nursery.cancel_scope.cancel()


trio.run(main)

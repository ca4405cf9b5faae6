"""The proxy that one writes with Trio in ten minutes.

A peer of the benchmark: python naive_trio.py PORT TARGET-PORT
"""

from __future__ import annotations

import sys

import trio


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for data in source:
        await sink.send_all(data)
    await sink.send_eof()


async def relay(client: trio.SocketStream) -> None:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", int(sys.argv[2])) as target:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, client, target)
                nursery.start_soon(pump, target, client)
    except* (OSError, trio.BrokenResourceError):
        pass  # otherwise one client that resets would end the proxy


trio.run(trio.serve_tcp, relay, int(sys.argv[1]))

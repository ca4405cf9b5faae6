"""A proxy in front of an echo server; its report says how many bytes it relayed."""

from functools import partial

import trio
from trio.testing import open_stream_to_socket_listener as connect

import trioserve


async def show(reports: trio.MemoryReceiveChannel[trioserve.ConnectionReport]) -> None:
    async for r in reports:
        if r.upstream is not None:
            print(f"{r.reason}: {r.bytes_received} in, {r.upstream.bytes_sent} on")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trioserve.open_listeners("127.0.0.1:0")
        target = await nursery.start(trioserve.serve, trioserve.echo, listeners)
        handler = trioserve.proxy(target.addresses[0])
        serve = partial(trioserve.serve_tcp, handler, 0, collector=show)
        proxy = await nursery.start(serve)
        async with await connect(proxy[0]) as client:
            await client.send_all(b"through and back")
            print(await client.receive_some())
        await proxy.drain(within=1)
        await target.drain(within=1)


trio.run(main)

"""A Trio program that serves beside its other tasks, and counts its clients."""

import trio
from trio.testing import open_stream_to_socket_listener as connect

import trioserve


async def main() -> None:
    visitors = 0

    async def greet(stream: trioserve.Connection) -> None:
        nonlocal visitors
        visitors += 1
        await stream.send_all(b"you are number %d\n" % visitors)

    async def visit() -> None:
        async with await connect(server[0]) as client:
            print((await client.receive_some()).decode(), end="")

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioserve.serve_tcp, greet, 0)
        await visit()
        await visit()
        await server.drain(within=1)  # serve_tcp returns, and the nursery ends


trio.run(main)

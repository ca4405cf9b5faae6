"""An echo server, and a client that tries it."""

import trio
from trio.testing import open_stream_to_socket_listener as connect

import trioserve


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioserve.serve_tcp, trioserve.echo, 0)
        async with await connect(server[0]) as client:
            await client.send_all(b"hello\n")
            print((await client.receive_some()).decode(), end="")
        print(await server.drain(within=1))


trio.run(main)

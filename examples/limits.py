"""One connection at a time: the second client is refused, the third is served."""

from functools import partial

import trio
from trio.testing import open_stream_to_socket_listener as connect

import trioserve


async def greet(stream: trioserve.Connection) -> None:
    await stream.send_all(b"welcome\n")
    await stream.receive_some()


async def main() -> None:
    limits = trioserve.Limits(max_connections=1, when_full="refuse", refusal=b"busy\n")
    async with trio.open_nursery() as nursery:
        serve = partial(trioserve.serve_tcp, greet, 0, limits=limits)
        server = await nursery.start(serve)
        async with await connect(server[0]) as one, await connect(server[0]) as two:
            print(await one.receive_some(), await two.receive_some())
        async with await connect(server[0]) as three:
            print(await three.receive_some())
        await server.drain(within=1)


trio.run(main)

"""A drain: it closes the idle connection; the busy one finishes its answer."""

import trio
from trio.testing import open_stream_to_socket_listener as connect

import trioserve


async def answer_slowly(stream: trioserve.Connection) -> None:
    question = b""
    with stream.idle():  # a drain may end this wait, but no other
        question = await stream.receive_some()
    if question:
        await stream.send_all(b"thinking... ")
        await stream.draining.wait()
        await stream.send_all(b"42")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioserve.serve_tcp, answer_slowly, 0)
        async with await connect(server[0]) as busy, await connect(server[0]) as idle:
            await busy.send_all(b"the answer?")
            print(await busy.receive_some())
            server.start_draining(within=5)
            print(await busy.receive_some(), await idle.receive_some())
        print(await server.drain())


trio.run(main)

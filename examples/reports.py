"""A report has the reason of the end, the handler's result and its notes."""

from functools import partial

import trio
from trio.testing import open_stream_to_socket_listener as connect

from trioserve import Connection, ConnectionReport, serve_tcp


async def words(stream: Connection) -> int:
    text = b"".join([chunk async for chunk in stream])
    stream.note(letters=len(text))
    return len(text.split())


async def show(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
    async for report in reports:
        print(report.reason, report.result, dict(report.notes))


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_tcp, words, 0, collector=show))
        async with await connect(server[0]) as client:
            await client.send_all(b"to be or not to be")
        await server.drain(within=1)


trio.run(main)

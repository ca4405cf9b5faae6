"""A chat: each line goes to all clients; a client that reads too slowly is aborted."""

import trio

from trioserve import Connection
from trioserve.testing import Peer, run_conversation

room: dict[Connection, trio.MemorySendChannel[bytes]] = {}


async def handler(stream: Connection) -> None:
    to_me, queue = trio.open_memory_channel[bytes](16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, stream, to_me)
        async for lines in queue:
            await stream.send_all(lines)


async def listen(stream: Connection, to_me: trio.MemorySendChannel[bytes]) -> None:
    room[stream] = to_me
    try:
        await to_me.send(b"welcome\n")
        text = b""
        while len(text) < 1000 and (data := await stream.receive_some()):
            lines, end, text = (text + data).rpartition(b"\n")
            for other, to_other in room.items():
                try:
                    if other is not stream:
                        to_other.send_nowait(lines + end)
                except trio.WouldBlock:
                    other.abort()
            await to_me.send(lines + end)  # waits for a client that does not read
    finally:
        del room[stream]
        to_me.close()  # lines that are already in the queue are still sent


HELLO = Peer().expect(b"welcome\n").meet("the room")
PEERS = [HELLO.send(b"hi\n").expect(b"hi\n"), HELLO.expect(b"hi\n")]
print(run_conversation(handler, *PEERS).timeline)

"""A chat: all hear all, and who reads too slowly is let go, not waited for."""

import trio

from trioserve import Connection
from trioserve.testing import Peer, run_conversation

room: dict[Connection, trio.MemorySendChannel[bytes]] = {}


async def handler(stream: Connection) -> None:
    to_me, heard = trio.open_memory_channel[bytes](16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, stream, to_me)
        async for words in heard:
            await stream.send_all(words)


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
            await to_me.send(lines + end)  # who talks faster than they hear waits
    finally:
        del room[stream]
        to_me.close()  # what was heard until now is still sent


HELLO = Peer().expect(b"welcome\n").meet("the room")
PEERS = [HELLO.send(b"hi\n").expect(b"hi\n"), HELLO.expect(b"hi\n")]
print(run_conversation(handler, *PEERS).timeline)

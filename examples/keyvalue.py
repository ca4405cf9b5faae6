"""A key-value store: each line is a command, and is answered with a line."""

from trioserve import Connection
from trioserve.testing import Peer, run_conversation

store: dict[bytes, bytes] = {}


def answer(line: bytes) -> bytes:
    match line.split():
        case [b"SET", key, value]:
            store[key] = value
            return b"OK\n"
        case [b"GET", key]:
            return store.get(key, b"nothing") + b"\n"
        case _:
            return b"SET key value, or GET key\n"


async def handler(stream: Connection) -> None:
    text = b""  # the beginning of a line; a line may have 1000 bytes
    while len(text) < 1000 and (data := await stream.receive_some()):
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            await stream.send_all(answer(line))


PEERS = [Peer().send(b"SET k v\nGET k\n").expect(b"OK\nv\n").half_close().expect_eof()]
print(run_conversation(handler, *PEERS).timeline)

"""Remote calls: JSON in both directions, with a length prefix of two bytes."""

import json

from trioserve import Connection
from trioserve.testing import Peer, run_conversation


def framed(value: object) -> bytes:
    body = json.dumps(value).encode()
    return len(body).to_bytes(2) + body


def call(function: str, *numbers: int) -> int:
    return {"sum": sum(numbers), "most": max(numbers), "least": min(numbers)}[function]


async def handler(stream: Connection) -> None:
    data = b""
    async for more in stream:
        data += more  # at most a message of 64 KiB, and a receive
        while len(data) >= (end := 2 + int.from_bytes(data[:2])):
            body, data = data[2:end], data[end:]
            await stream.send_all(framed(call(*json.loads(body))))


PEERS = [Peer().send(framed(["sum", 2, 3])).expect(framed(5)).half_close().expect_eof()]
print(run_conversation(handler, *PEERS).timeline)

"""Lines are sent back in capitals; after the line RAW, bytes are sent back as is."""

from trioserve import Connection
from trioserve.testing import Peer, run_conversation


async def handler(stream: Connection) -> None:
    text, is_raw = b"", False
    while len(text) < 1000 and (data := await stream.receive_some()):
        text += data
        while not is_raw and b"\n" in text:
            line, _, text = text.partition(b"\n")
            is_raw = line == b"RAW"
            await stream.send_all(b"OK\n" if is_raw else line.upper() + b"\n")
        if is_raw:  # bytes that came with the line RAW are sent back, too
            await stream.send_all(text)
            text = b""


PEERS = [Peer().send(b"hi\nRAW\nbye").expect(b"HI\nOK\nbye").half_close().expect_eof()]
print(run_conversation(handler, *PEERS).timeline)

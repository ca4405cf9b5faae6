"""A proxy with asyncio's streams, on asyncio's own loop or on uvloop.

A peer of the benchmark: python streams.py asyncio|uvloop PORT TARGET-PORT [CERTIFICATE]
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()  # TLS can't end one direction only here


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(OSError):
        other_reader, other_writer = await asyncio.open_connection(
            "127.0.0.1", int(sys.argv[3])
        )
        with contextlib.closing(other_writer):
            await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))


async def main() -> None:
    port, tls = int(sys.argv[2]), None
    if sys.argv[4:]:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(sys.argv[4])
    server = await asyncio.start_server(relay, "127.0.0.1", port, backlog=4096, ssl=tls)
    await server.serve_forever()


if sys.argv[1] == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())

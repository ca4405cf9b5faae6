"""The proxy that one writes with Trio in ten minutes, with TLS for its clients.

A peer of the benchmark: python secure_trio.py CERTIFICATE PORT TARGET-PORT
"""

from __future__ import annotations

import ssl
import sys

import trio

Client = trio.SSLStream[trio.SocketStream]


async def upload(client: Client, target: trio.SocketStream) -> None:
    async for data in client:
        await target.send_all(data)
    await target.send_eof()


async def download(target: trio.SocketStream, client: Client) -> None:
    async for data in target:
        await client.send_all(data)
    await client.aclose()  # it can't end one direction only


async def relay(client: Client) -> None:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", int(sys.argv[3])) as target:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upload, client, target)
                nursery.start_soon(download, target, client)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # otherwise one client that resets would end the proxy


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[1])
trio.run(trio.serve_ssl_over_tcp, relay, int(sys.argv[2]), context)

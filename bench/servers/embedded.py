"""A user's handler, served by Trio and by trioserve, and trioserve's echo.

A peer of the benchmark: python embedded.py trio|trioserve|echo PORT
"""

from __future__ import annotations

import sys

import trio

import trioserve


async def answer(stream: trio.abc.Stream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # otherwise one client that resets would end Trio's server


port = int(sys.argv[2])
match sys.argv[1]:
    case "trio":
        trio.run(trio.serve_tcp, answer, port)
    case "trioserve":
        trio.run(trioserve.serve_tcp, answer, port)
    case _:
        trio.run(trioserve.serve_tcp, trioserve.echo, port)

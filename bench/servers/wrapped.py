"""trioserve's proxy in a program, alone or inside another handler.

A peer of the benchmark: python wrapped.py plain|wrapped PORT TARGET-PORT
"""

from __future__ import annotations

import logging
import sys

import trio

import trioserve

inner = trioserve.proxy(f"127.0.0.1:{sys.argv[3]}")


async def wrapped(conn: trioserve.Connection) -> object:
    return await inner(conn)


async def main() -> None:
    logging.getLogger("trioserve").setLevel(logging.ERROR)
    await trioserve.serve_tcp(
        wrapped if sys.argv[1] == "wrapped" else inner,
        int(sys.argv[2]),
        host="127.0.0.1",
        limits=trioserve.Limits(max_connections=10_000),
    )


trio.run(main)

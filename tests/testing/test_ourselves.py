"""The package's own handlers, checked with the package's test kit."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio

import trioserve
from links import trio_stream
from support import one_in
from trioserve import Connection, relay
from trioserve.testing import Law, Peer, check_handler

Handler = Callable[[Connection], Coroutine[Any, Any, object]]

TALK = Peer().send(b"hello").expect(b"hello").half_close().expect_eof()
ONE_WAY = Peer().send(b"to be or not to be").half_close().expect(b"to be or not to be")


async def relay_with_itself(stream: Connection) -> None:
    await relay(stream, stream)


def between(a: socket.socket, b: socket.socket) -> tuple[trio.SocketStream, ...]:
    return trio_stream(a), trio_stream(b)


async def by_sockets(stream: Connection) -> None:
    """To an echo over sockets, through both data paths.

    The portable path relays from memory to a socket, the engine between sockets.
    """
    here, there = between(*socket.socketpair())
    onward, end = between(*socket.socketpair())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, there, onward)
            nursery.start_soon(relay, end, end)
            await relay(stream, here)
            nursery.cancel_scope.cancel(reason="the client is done")
    finally:
        for one in (here, there, onward, end):
            one.socket.close()


KERNEL: dict[Law, str] = {"memory": "the kernel's buffers hold more"}


@pytest.mark.parametrize(
    ("handler", "without", "peer"),
    one_in(
        2,
        [
            (trioserve.echo, {}, TALK),
            (trioserve.echo, {}, ONE_WAY),
            (by_sockets, KERNEL, TALK),
            (by_sockets, KERNEL, ONE_WAY),
            (relay_with_itself, {}, ONE_WAY),
            (relay_with_itself, {}, TALK),
        ],
    ),
)
def test_the_packages_own_handlers_keep_all_laws(
    handler: Handler, without: dict[Law, str], peer: Peer
) -> None:
    """Laws 4, 7, 8, 9, 10, 12 and 13, for each data path."""
    check_handler(handler, peer, without=without)

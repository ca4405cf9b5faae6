"""A transport over another owner's socket, which may be closed at any time."""

from __future__ import annotations

import contextlib
import os

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import over, sockets
from support import receive_exactly, run
from trioserve._shared_socket import SharedSocketTransport


async def test_its_owner_closes_the_socket_below() -> None:
    """Law 13: waiting tasks get an error, and the descriptor is not used again."""
    with over(sockets) as (transport, link):
        link.ours.socket.close()
        assert transport.readable()
        assert transport.unsent() is None
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        transport.abort()
        transport.close()


async def test_a_sender_whose_descriptor_was_reused_writes_nothing() -> None:
    """Law 1: closed while it waits in the middle of a send."""
    with over(sockets) as (transport, link), sockets() as stranger:
        number = link.ours.socket.fileno()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send(bytes(30_000_000))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                link.ours.socket.close()
                os.dup2(stranger.ours.socket.fileno(), number)
            await stranger.ours.send_all(b"hello")
            assert await receive_exactly(stranger.peer, 5) == b"hello"
        finally:
            os.close(number)


async def test_a_receiver_whose_descriptor_was_reused_takes_nothing() -> None:
    """Law 1: closed right after a send, before a receive that need not wait."""
    with over(sockets) as (transport, link), sockets() as stranger:
        number = link.ours.socket.fileno()
        await transport.send(b"bye")
        link.ours.socket.close()
        os.dup2(stranger.ours.socket.fileno(), number)
        try:
            await stranger.peer.send_all(b"hello")
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()
            assert await receive_exactly(stranger.ours, 5) == b"hello"
        finally:
            os.close(number)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_sender_woken_after_its_descriptor_was_reused(
    schedule: object,
) -> None:
    """Law 1: woken for the old socket, it does not write to the new one."""

    async def main() -> None:
        with (
            over(sockets) as (transport, link),
            sockets() as stranger,
            sockets() as bell,
        ):
            ours, number = link.ours.socket, link.ours.socket.fileno()

            async def change_hands() -> None:
                await bell.ours.receive_some()
                ours.close()
                os.dup2(stranger.ours.socket.fileno(), number)

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await transport.send(bytes(30_000_000))

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    nursery.start_soon(change_hands)
                    await trio.testing.wait_all_tasks_blocked()
                    # In one step, so that both wake up in the same turn.
                    os.read(link.peer.socket.fileno(), 30_000_000)
                    os.write(bell.peer.socket.fileno(), b"!")
                await stranger.ours.send_all(b"hello")
                assert await receive_exactly(stranger.peer, 5) == b"hello"
            finally:
                os.close(number)

    run(main)


@given(schedule=st.random_module())
@settings(deadline=None)
def test_a_receiver_woken_after_its_descriptor_was_reused(
    schedule: object,
) -> None:
    """Law 1: woken for the old socket, it does not read from the new one."""

    async def main() -> None:
        with (
            over(sockets) as (transport, link),
            sockets() as stranger,
            sockets() as bell,
        ):
            ours, number = link.ours.socket, link.ours.socket.fileno()
            await stranger.peer.send_all(b"not yours")

            async def change_hands() -> None:
                await bell.ours.receive_some()
                ours.close()
                os.dup2(stranger.ours.socket.fileno(), number)

            async def receive() -> None:
                # The receive may have been faster.
                with contextlib.suppress(trio.ClosedResourceError):
                    assert await transport.receive() == b"yours"

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    nursery.start_soon(change_hands)
                    await trio.testing.wait_all_tasks_blocked()
                    # In one step, so that both wake up in the same turn.
                    os.write(link.peer.socket.fileno(), b"yours")
                    os.write(bell.peer.socket.fileno(), b"!")
                assert await stranger.ours.receive_some() == b"not yours"
            finally:
                os.close(number)

    run(main)


async def test_a_closed_stream_cannot_be_shared() -> None:
    """It has no descriptor."""
    with sockets() as link:
        await link.ours.aclose()
        with pytest.raises(trio.ClosedResourceError):
            SharedSocketTransport(link.ours)

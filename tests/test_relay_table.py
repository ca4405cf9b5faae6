"""How a relay ends: each row of the table in docs/design.md is made to happen.

A client, a proxy and a target on loopback. Each side reads to its end, FIN or RST, and
then closes; only the side that the event is about does something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from support import Running, is_reset, receive_exactly, reset, serving
from test_docs import ROOT, table
from trioserve import Timeouts, proxy

LONG = 1000.0


@dataclasses.dataclass
class Scene:
    """A relayed connection: its server, and both of its ends."""

    running: Running
    client: trio.SocketStream
    target: trio.SocketStream


Event = Callable[[Scene], Awaitable[object]]


async def nothing(scene: Scene) -> None:
    pass


async def client_eof(scene: Scene) -> None:
    await scene.client.send_eof()


async def target_eof(scene: Scene) -> None:
    await scene.target.send_eof()


async def client_resets(scene: Scene) -> None:
    reset(scene.client)


async def target_resets(scene: Scene) -> None:
    reset(scene.target)


async def client_sends_what_nobody_reads(scene: Scene) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await scene.client.send_all(bytes(30_000_000))


async def drain(scene: Scene) -> None:
    scene.running.server.start_draining()


async def cancel(scene: Scene) -> None:
    scene.running.scope.cancel()


#: What happens, the timers that matter, and whether bytes move at first.
EVENTS: dict[str, tuple[Event, dict[str, float], bool]] = {
    "the client sends FIN": (client_eof, {}, True),
    "the target sends FIN": (target_eof, {}, True),
    "the client resets": (client_resets, {}, True),
    "the target resets": (target_resets, {}, True),
    "`idle` seconds without a byte": (nothing, {"idle": 5}, True),
    "`idle`, and one side has not taken all bytes": (
        client_sends_what_nobody_reads,
        {"idle": 5},
        True,
    ),
    "`first_byte` seconds, and no byte yet": (nothing, {"first_byte": 5}, False),
    "`half_closed` seconds without a byte after a FIN": (
        client_eof,
        {"half_closed": 5},
        True,
    ),
    "`write_stall` seconds in which one side takes no byte": (
        client_sends_what_nobody_reads,
        {"write_stall": 5},
        True,
    ),
    "`lifetime` seconds": (nothing, {"lifetime": 5}, True),
    "a drain, and `drain_idle` seconds without a byte": (
        drain,
        {"drain_idle": 5, "drain": LONG},
        True,
    ),
    "a drain, and its deadline": (drain, {"drain": 5}, True),
    "the server is cancelled": (cancel, {}, True),
}

ROWS = table(ROOT / "docs" / "design.md", "event")


async def seen_at(stream: trio.SocketStream, *, answers: bool) -> str:
    """How the relay ends for this side; it closes then, if it answers."""
    seen = "RST" if await is_reset(stream) else "FIN"
    if answers:
        await stream.aclose()
    return seen


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
async def test_a_relay_ends_as_the_table_says(
    row: tuple[str, ...], autojump_clock: MockClock
) -> None:
    """Law 8: FIN says that all was sent, RST that something may be missing."""
    name, at_client, at_target, reason = row
    event, seconds, is_used = EVENTS[name]
    timeouts = Timeouts(**{"idle": LONG, "half_closed": LONG, **seconds})
    blocks = event is client_sends_what_nobody_reads
    half = "half_closed" in seconds
    seen: dict[str, str] = {"client": "", "target": ""}

    async def watch(side: str, stream: trio.SocketStream) -> None:
        seen[side] = await seen_at(stream, answers=not half)
        if half and seen[side] == "FIN":  # of one direction; sending shows the rest
            await trio.sleep(10)
            try:
                await stream.send_all(b"?")
            except trio.BrokenResourceError:
                seen[side] = "RST"

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        handler = proxy(f"127.0.0.1:{listener.socket.getsockname()[1]}")
        async with serving(handler, timeouts=timeouts) as running:
            client = await running.connect()
            async with await listener.accept() as target:
                if is_used:
                    await client.send_all(b"x")
                    assert await receive_exactly(target, 1) == b"x"
                scene = Scene(running, client, target)
                async with trio.open_nursery() as nursery:
                    if at_client and not blocks:
                        nursery.start_soon(watch, "client", client)
                    if at_target and not blocks:
                        nursery.start_soon(watch, "target", target)
                    await event(scene)
                    if blocks:
                        seen["client"] = "RST"
                        seen["target"] = await seen_at(target, answers=True)
    [report] = running.reports
    assert f"`{report.reason}`" == reason
    assert seen == {
        "client": at_client.partition(",")[0],
        "target": at_target.partition(",")[0],
    }


def test_the_table_has_every_event() -> None:
    assert [row[0] for row in ROWS] == list(EVENTS)

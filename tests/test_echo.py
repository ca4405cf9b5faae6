"""Echo: every byte comes back, and an idle client does not delay a drain."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import some_bytes
from support import is_reset, receive_all, receive_exactly, run, serving
from trioserve import Phase, Reason, Timeouts, echo


@given(
    pieces=st.lists(st.tuples(st.integers(1, 200_000), st.booleans()), max_size=5),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_an_echo_returns_every_byte_in_any_chunks(
    pieces: list[tuple[int, bool]], schedule: object
) -> None:
    """Laws 4, 7 and 10: and answers EOF with EOF."""
    data = some_bytes(0, sum(count for count, _ in pieces))

    async def talk(client: trio.SocketStream) -> None:
        start = 0
        for count, pauses in pieces:
            await client.send_all(data[start : start + count])
            start += count
            if pauses:
                await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()

    async def main() -> None:
        async with serving(echo) as running:
            client = await running.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, client)
                assert await receive_all(client) == data
            await client.aclose()
        (report,) = running.reports
        assert (report.reason, report.phase) == (Reason.CLIENT_CLOSED, Phase.CLOSING)
        assert report.bytes_received == report.bytes_sent == len(data)
        assert report.target is None
        assert report.upstream is None

    run(main)


@pytest.mark.parametrize(("drain_idle", "seconds"), [(float("inf"), 1), (0.25, 0.25)])
async def test_a_drain_ends_an_idle_echo(
    drain_idle: float, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Laws 5 and 12: after a second, or ``drain_idle`` if that is less, by FIN."""
    async with serving(echo, timeouts=Timeouts(drain_idle=drain_idle)) as running:
        client = await running.connect()
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await trio.sleep(7)
        running.server.start_draining()
        assert await receive_all(client) == b""
        assert trio.current_time() == 7 + seconds
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.draining) == (Reason.DRAINED, True)


async def test_a_client_that_talks_on_is_served_until_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Laws 5 and 12: every byte restarts the second, and the drain is a total."""
    async with serving(echo, timeouts=Timeouts(drain=10)) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        for _ in range(19):
            await client.send_all(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            await trio.sleep(0.5)
        assert await is_reset(client)
        assert trio.current_time() == 10
        await client.aclose()
    assert running.reports[0].reason is Reason.CUT


async def test_a_slow_client_cannot_extend_its_lifetime(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 12: lifetime is a total; single bytes do not move it."""
    async with serving(echo, timeouts=Timeouts(lifetime=10, idle=2)) as running:
        client = await running.connect()
        for _ in range(10):
            await client.send_all(b"x")
            await receive_exactly(client, 1)
            await trio.sleep(0.9375)
        assert await is_reset(client)
        assert trio.current_time() == 10
        await client.aclose()
    (report,) = running.reports
    assert (report.reason, report.duration) == (Reason.LIFETIME, 10)
    assert report.bytes_received == report.bytes_sent == 10

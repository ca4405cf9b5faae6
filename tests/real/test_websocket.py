"""A WebSocket server of trio-websocket, whose connections trioserve accepts.

``wrap_server_stream`` is its public way to take a stream from elsewhere.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from support import Running, receive_all, reset, serving
from trioserve import Connection, Limits, Reason, Timeouts

pytestmark = pytest.mark.long

try:
    import trio_websocket
    import wsproto
    from wsproto import events
except ImportError:
    pytest.skip("not installed: trio-websocket", allow_module_level=True)


async def next_message(
    conn: Connection, socket: trio_websocket.WebSocketConnection
) -> str | bytes | None:
    """The next message; None if a drain comes before any part of it."""
    with conn.idle():
        return await socket.get_message()
    return None


async def echo(conn: Connection) -> int:
    """Send back each message; return how many. A drain ends it between two messages."""
    answered = 0
    async with trio.open_nursery() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, conn)
        # trio-websocket knows no address for streams that are not Trio's own.
        assert request.remote == repr(conn)
        socket = await request.accept()
        try:
            while (message := await next_message(conn, socket)) is not None:
                await socket.send_message(message)
                answered += 1
            await socket.aclose(1001, "the server stops")
        except trio_websocket.ConnectionClosed as error:
            assert error.reason is not None
            conn.note(code=error.reason.code)
    return answered


class Client:
    """A client that sends what it is told to, frame by frame."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def send(self, event: events.Event) -> None:
        await self.stream.send_all(self._protocol.send(event))

    async def receive(self) -> events.Event:
        while True:
            for event in self._protocol.events():
                return event
            self._protocol.receive_data(await self.stream.receive_some() or None)

    async def send_fragment(self, data: str) -> None:
        """Send a part of a message, and wait until the server has it."""
        await self.send(text(data, finished=False))
        await self.send(events.Ping(payload=b"?"))
        assert await self.receive() == events.Pong(payload=b"?")

    async def close(self) -> None:
        """Close by the protocol: a close frame each, then the server closes TCP."""
        await self.send(events.CloseConnection(code=1000))
        assert await self.receive() == events.CloseConnection(code=1000, reason="")
        assert await receive_all(self.stream) == b""
        await self.stream.aclose()


async def connect(running: Running) -> Client:
    client = Client(await running.connect())
    await client.send(events.Request(host="localhost", target="/"))
    assert isinstance(await client.receive(), events.AcceptConnection)
    return client


def text(data: str, *, finished: bool = True) -> events.TextMessage:
    return events.TextMessage(data=data, message_finished=finished)


async def test_fragments_come_back_as_one_message_and_both_sides_close() -> None:
    async with serving(echo) as running:
        client = await connect(running)
        await client.send_fragment("to be")
        await client.send_fragment(" or not")
        await client.send(text(" to be"))
        assert await client.receive() == text("to be or not to be")
        await client.send(events.BytesMessage(data=bytes(100_000)))
        size = 0
        while size < 100_000:
            part = await client.receive()
            assert isinstance(part, events.BytesMessage)
            size += len(part.data)
        await client.close()
    (report,) = running.reports
    assert report.reason is Reason.SERVER_CLOSED
    assert (report.result, report.notes) == (2, {"code": 1000})


async def test_the_client_of_trio_websocket_works() -> None:
    async with serving(echo) as running:
        url = f"ws://{running.address}/"
        async with trio_websocket.open_websocket_url(url) as socket:
            await socket.send_message("hello")
            assert await socket.get_message() == "hello"
    assert running.reports[0].notes == {"code": 1000}


async def test_more_clients_than_the_limit_are_refused() -> None:
    limits = Limits(max_connections=1, when_full="refuse")
    async with serving(echo, limits=limits) as running:
        first = await connect(running)
        second = await running.connect()
        assert await receive_all(second) == b""
        await first.send(text("still there?"))
        assert await first.receive() == text("still there?")
        await first.close()
    assert running.reports[0].reason is Reason.LIMIT


async def test_a_drain_ends_idle_connections_at_once_and_waits_for_half_a_message(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as running:
        busy, idle = await connect(running), await connect(running)
        await busy.send_fragment("to be")
        running.server.start_draining()
        goodbye = events.CloseConnection(code=1001, reason="the server stops")
        assert await idle.receive() == goodbye
        await idle.send(goodbye.response())
        assert await receive_all(idle.stream) == b""
        await busy.send(text(" or not to be"))
        assert await busy.receive() == text("to be or not to be")
        assert await busy.receive() == goodbye
        await busy.send(goodbye.response())
        assert await receive_all(busy.stream) == b""
        assert (await running.server.drain()).clean
    assert sorted((r.id, r.result, r.reason) for r in running.reports) == [
        (1, 1, Reason.DRAINED),
        (2, 0, Reason.DRAINED),
    ]


async def test_a_client_that_resets_affects_no_other() -> None:
    async with serving(echo) as running:
        gone, other = await connect(running), await connect(running)
        await gone.send_fragment("to be")
        reset(gone.stream)
        await other.send(text("still there?"))
        assert await other.receive() == text("still there?")
        await other.close()
    reports = {report.id: report for report in running.reports}
    assert reports[1].reason is Reason.CLIENT_RESET
    assert reports[1].notes == {"code": 1006}
    assert reports[2].result == 1


async def test_a_client_that_does_not_read_is_ended(autojump_clock: MockClock) -> None:
    async with serving(echo, timeouts=Timeouts(write_stall=5)) as running:
        slow, other = await connect(running), await connect(running)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await slow.send(events.BytesMessage(data=bytes(500_000)))
        await other.send(text("still there?"))
        assert await other.receive() == text("still there?")
        await other.close()
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.WRITE_STALL

"""Clients and servers that use real protocol code: h11, and h2."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import trio

from testing.zoo import Stream

BODIES = (b"hello", b"how are you?")

#: More than the window of a stream, so that a sender waits for its peer.
MUCH = b"much" * 20_000


# -- HTTP/1.1


async def next_event(conn: h11.Connection, stream: Stream) -> Any:
    while (event := conn.next_event()) is h11.NEED_DATA:
        conn.receive_data(bytes(await stream.receive_some()))
    return event


async def body_of(conn: h11.Connection, stream: Stream) -> bytes:
    body = b""
    while not isinstance(event := await next_event(conn, stream), h11.EndOfMessage):
        body += event.data
    return body


async def http_server(stream: Stream) -> None:
    """Answers each request with its body in capital letters."""
    conn = h11.Connection(h11.SERVER)
    try:
        while isinstance(await next_event(conn, stream), h11.Request):
            body = await body_of(conn, stream)
            length = ("content-length", str(len(body)))
            await send(conn, stream, h11.Response(status_code=200, headers=[length]))
            await send(conn, stream, h11.Data(data=body.upper()))
            await send(conn, stream, h11.EndOfMessage())
            conn.start_next_cycle()
    except h11.RemoteProtocolError:
        pass  # the client has left in the middle


async def http_client(stream: Stream) -> None:
    conn = h11.Connection(h11.CLIENT)
    for body in BODIES:
        length = ("content-length", str(len(body)))
        headers = [("host", "example.com"), length]
        request = h11.Request(method="POST", target="/", headers=headers)
        await send(conn, stream, request)
        await send(conn, stream, h11.Data(data=body))
        await send(conn, stream, h11.EndOfMessage())
        response = await next_event(conn, stream)
        assert response.status_code == 200
        assert await body_of(conn, stream) == body.upper()
        conn.start_next_cycle()


async def send(conn: h11.Connection, stream: Stream, event: h11.Event) -> None:
    await stream.send_all(conn.send(event) or b"")


# -- HTTP/2


class Http2:
    """One end of a connection, which can be used by several tasks."""

    def __init__(self, stream: Stream, *, is_client: bool) -> None:
        config = h2.config.H2Configuration(client_side=is_client)
        self.conn = h2.connection.H2Connection(config)
        self.conn.initiate_connection()
        self._stream = stream
        self._turn = trio.Lock()
        self._room = trio.Event()

    async def flush(self) -> None:
        async with self._turn:
            if data := self.conn.data_to_send():
                await self._stream.send_all(data)

    async def events(self) -> list[h2.events.Event]:
        """The next events; none at EOF."""
        while data := await self._stream.receive_some():
            if events := self.conn.receive_data(bytes(data)):
                for event in events:
                    if isinstance(event, h2.events.DataReceived):
                        size = event.flow_controlled_length
                        self.conn.acknowledge_received_data(size, event.stream_id)
                self._room.set()
                self._room = trio.Event()
                await self.flush()
                return events
            await self.flush()
        return []

    async def send_body(self, number: int, body: bytes) -> None:
        while body:
            if not (room := self.conn.local_flow_control_window(number)):
                await self._room.wait()
                continue
            part = body[: min(room, self.conn.max_outbound_frame_size)]
            body = body[len(part) :]
            self.conn.send_data(number, part)
            await self.flush()
        self.conn.end_stream(number)
        await self.flush()


async def http2_server(stream: Stream) -> None:
    """Answers each request with its body in capital letters, side by side."""
    http = Http2(stream, is_client=False)
    bodies = dict[int, bytes]()

    async def answer(number: int) -> None:
        http.conn.send_headers(number, [(":status", "200")])
        await http.send_body(number, bodies.pop(number).upper())

    async with trio.open_nursery() as nursery:
        while events := await http.events():
            for event in events:
                match event:
                    case h2.events.RequestReceived(stream_id=number):
                        bodies[number] = b""
                    case h2.events.DataReceived(stream_id=number, data=data):
                        bodies[number] += data
                    case h2.events.StreamEnded(stream_id=number):
                        nursery.start_soon(answer, number)
                    case _:
                        pass
        nursery.cancel_scope.cancel()


async def http2_client(stream: Stream) -> None:
    http = Http2(stream, is_client=True)
    bodies = {1: MUCH, 3: BODIES[0]}
    got = dict.fromkeys(bodies, b"")
    headers = [
        (":method", "POST"),
        (":path", "/"),
        (":scheme", "https"),
        (":authority", "example.com"),
    ]
    async with trio.open_nursery() as nursery:
        for number, body in bodies.items():
            http.conn.send_headers(number, headers)
            nursery.start_soon(http.send_body, number, body)
        ended = set[int]()
        while len(ended) < len(bodies):
            events = await http.events()
            assert events, "the server has closed"
            for event in events:
                match event:
                    case h2.events.DataReceived(stream_id=number, data=data):
                        got[number] += data
                    case h2.events.StreamEnded(stream_id=number):
                        ended.add(number)
                    case _:
                        pass
    assert got == {number: body.upper() for number, body in bodies.items()}

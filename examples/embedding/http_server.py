"""An HTTP/1.1 server with h11: keep-alive, pipelining, chunked bodies, a clean drain.

``python http_server.py 8080`` serves until SIGTERM or SIGINT. A request that has
begun when the server drains is read to its end and answered, and so are requests
pipelined behind it; the last response has ``Connection: close``.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterable
from functools import partial
from typing import Final

import h11
import trio

from trioserve import Connection, Server, Timeouts, serve_tcp

MAX_BODY: Final = 1024 * 1024  # bytes; h11 limits the head to 16 KiB
REQUEST_SECONDS: Final = 10.0  # for a whole request, from its first byte


class Client:
    """The requests of one connection, one after the other, and their responses."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.http = h11.Connection(h11.SERVER)
        self.deadline = math.inf

    async def request(self) -> tuple[h11.Request, bytes] | None:
        """The next request and its body, or None if there are no more."""
        self.deadline = trio.current_time() + REQUEST_SECONDS
        request = await self._next_event()
        if not isinstance(request, h11.Request):
            return None
        length = int(dict(request.headers).get(b"content-length", 0))
        body = bytearray()
        while length <= MAX_BODY and len(body) <= MAX_BODY:
            part = await self._next_event()
            if not isinstance(part, h11.Data):
                return request, bytes(body)
            body += part.data
        raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)

    async def respond(self, status: int, body: Iterable[bytes]) -> None:
        """Send a response; chunked, unless the client speaks HTTP/1.0."""
        drained = self.conn.draining.is_set() and not self.http.trailing_data[0]
        unread = self.http.their_state in (h11.IDLE, h11.SEND_BODY, h11.ERROR)
        headers = [("Connection", "close")] if drained or unread else []
        response = h11.Response(status_code=status, headers=headers)
        await self.conn.send_all(self.http.send(response))
        for data in body:
            await self.conn.send_all(self.http.send(h11.Data(data=data)))
        await self.conn.send_all(self.http.send(h11.EndOfMessage()))

    async def _next_event(self) -> object:
        """h11's next event; a drain that ends the wait counts as the client's EOF."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self.conn.send_all(self.http.send(go_on))
            buffer, state, data = self.http.trailing_data[0], self.http.their_state, b""
            has_begun = bool(buffer) or state is not h11.IDLE
            with trio.move_on_at(self.deadline if has_begun else math.inf) as in_time:
                with self.conn.idle(held=has_begun):
                    data = await self.conn.receive_some()
            if in_time.cancelled_caught:
                raise h11.RemoteProtocolError("it took too long", error_status_hint=408)
            if not has_begun:
                self.deadline = trio.current_time() + REQUEST_SECONDS
            self.http.receive_data(data)
        return event


def answer(request: h11.Request, body: bytes) -> tuple[int, Iterable[bytes]]:
    """The application: it counts to ten, or sends the body back."""
    match request.method, request.target:
        case b"HEAD", _:
            return 200, []
        case b"GET", b"/count":
            return 200, (b"%d\n" % number for number in range(10))
        case ((b"GET" | b"POST"), b"/"):
            return 200, [body or b"hello\n"]
        case _:
            return 404, [b"not found\n"]


async def handler(conn: Connection) -> int:
    """Serve one connection; return how many requests were answered."""
    client, answered = Client(conn), 0
    try:
        while (request := await client.request()) is not None:
            await client.respond(*answer(*request))
            answered += 1
            if client.http.our_state is not h11.DONE:
                break
            client.http.start_next_cycle()
    except h11.RemoteProtocolError as error:
        conn.note(error=str(error))
        await client.respond(error.error_status_hint, [])
    return answered


async def main(port: int) -> None:
    serve = partial(serve_tcp, timeouts=Timeouts(idle=75))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, handler, port)
            print("listening on", *server.addresses, flush=True)
            await anext(signals)
            print(await server.drain(within=20, reason="signal"))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))

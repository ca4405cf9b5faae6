"""The Trio worker of hypercorn, whose connections trioserve accepts.

``hypercorn.trio.serve`` opens sockets of its own and ends in ``trio.serve_listeners``
with a ``TCPServer`` as the handler. Here the same parts end in ``trioserve.serve``.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from support import Running, receive_all, receive_exactly, reset, serving
from trioserve import Connection, Limits, Reason, Timeouts

pytestmark = pytest.mark.long

try:
    import h2.config
    import h2.connection
    import h2.events
    from hypercorn.config import Config
    from hypercorn.trio.lifespan import Lifespan
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState, LifespanState
    from hypercorn.utils import wrap_app
except ImportError:
    pytest.skip("not installed: hypercorn", allow_module_level=True)


class App:
    """An ASGI application that sends back the body of a request.

    Attributes:
      seen: the lifespan events it got.
      clients: the addresses of the clients that have asked for something.
      asked: an event: a request has begun since :meth:`pause`.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.clients: set[tuple[str, int]] = set()
        self.asked, self._goes_on = trio.Event(), trio.Event()
        self._goes_on.set()

    def pause(self) -> None:
        """Answer no further request until :meth:`go_on`."""
        self.asked, self._goes_on = trio.Event(), trio.Event()

    def go_on(self) -> None:
        self._goes_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                event = (await receive())["type"]
                self.seen.append(event)
                await send({"type": f"{event}.complete"})
            return
        self.clients.add(scope["client"])
        self.asked.set()
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await self._goes_on.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def hypercorn(
    app: App, *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncGenerator[Running, None]:
    """What ``hypercorn.trio.serve`` does, with `trioserve.serve` in the middle."""
    config, context, state = Config(), WorkerContext(None), LifespanState()
    config.include_date_header = config.include_server_header = False
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan = Lifespan(wrapped, config, state)

    async def handler(conn: Connection) -> None:
        stream: Any = conn
        if tls is not None:
            stream = trio.SSLStream(conn, tls, server_side=True, https_compatible=True)
        await TCPServer(wrapped, config, context, ConnectionState(state), stream)

    async def terminate(running: Running) -> None:
        await running.server.draining.wait()
        await context.terminated.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with serving(handler, **options) as running:
            async with trio.open_nursery() as inner:
                inner.start_soon(terminate, running)
                yield running
                running.server.start_draining(reason="the test is over")
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


def post(body: bytes, *, until: int | None = None) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body[:until]


async def answered(client: trio.SocketStream, body: bytes) -> None:
    head = b"HTTP/1.1 200 \r\ncontent-length: %d\r\n\r\n" % len(body)
    assert await receive_exactly(client, len(head + body)) == head + body


async def test_a_connection_is_kept_and_the_lifespan_is_around_it(
    autojump_clock: MockClock,
) -> None:
    app = App()
    async with hypercorn(app) as running:
        assert app.seen == ["lifespan.startup"]
        client = await running.connect()
        for body in (b"one", b"two"):
            await client.send_all(post(body))
            await answered(client, body)
        assert app.clients == {client.socket.getsockname()}
        await client.send_all(post(b"three") + post(b"four"))  # pipelined
        await answered(client, b"three")
        await answered(client, b"four")
        await client.send_eof()
        assert await receive_all(client) == b""
    assert app.seen == ["lifespan.startup", "lifespan.shutdown"]
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_CLOSED


class Http2:
    """A client with prior knowledge that the server speaks HTTP/2."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(client_side=True, header_encoding="ascii")
        self.protocol = h2.connection.H2Connection(config)
        self.protocol.initiate_connection()

    async def flush(self) -> None:
        await self.stream.send_all(self.protocol.data_to_send())

    def ask(self, body: bytes, *, all: bool = True) -> int:
        stream = self.protocol.get_next_available_stream_id()
        names = {":method": "POST", ":path": "/", ":scheme": "http", ":authority": "x"}
        self.protocol.send_headers(stream, list(names.items()))
        self.protocol.send_data(stream, body, end_stream=all)
        return stream

    async def answers(self, count: int) -> dict[int, bytes]:
        """This many answers, by the number of their streams."""
        bodies, ended = dict[int, bytes](), set[int]()
        while len(ended) < count:
            data = await self.stream.receive_some()
            assert data, f"EOF after {len(ended)} answers"
            for event in self.protocol.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    assert event.stream_id is not None
                    body = bodies.get(event.stream_id, b"") + (event.data or b"")
                    bodies[event.stream_id] = body
                elif isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    ended.add(event.stream_id)
        return bodies


async def test_http_2_with_prior_knowledge(autojump_clock: MockClock) -> None:
    app = App()
    async with hypercorn(app) as running:
        client = Http2(await running.connect())
        bodies = [b"one", b"two" * 1000, b"three"]
        asked = {client.ask(body): body for body in bodies}
        await client.flush()
        assert await client.answers(3) == asked
        client.protocol.close_connection()
        await client.flush()
        assert await receive_all(client.stream) == b""
        assert len(app.clients) == 1
    assert running.reports[0].reason is Reason.SERVER_CLOSED


def anonymous_tls(protocol: int) -> ssl.SSLContext:
    """TLS without a certificate, with HTTP/2."""
    # Before TLS 1.3 there are ciphers without a certificate.
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    return context


async def test_http_2_over_a_tls_stream_of_trio(autojump_clock: MockClock) -> None:
    app = App()
    async with hypercorn(app, tls=anonymous_tls(ssl.PROTOCOL_TLS_SERVER)) as running:
        tcp = await running.connect()
        stream = trio.SSLStream(tcp, anonymous_tls(ssl.PROTOCOL_TLS_CLIENT))
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
        client = Http2(stream)
        number = client.ask(b"hello")
        await client.flush()
        assert await client.answers(1) == {number: b"hello"}
        assert app.clients == {tcp.socket.getsockname()}


async def test_more_clients_than_the_limit_wait(autojump_clock: MockClock) -> None:
    async with hypercorn(App(), limits=Limits(max_connections=1)) as running:
        first, second = await running.connect(), await running.connect()
        await second.send_all(post(b"second"))
        for body in (b"one", b"two"):
            await first.send_all(post(body))
            await answered(first, body)
        assert running.server.statistics().accepted == 1
        await first.aclose()
        await answered(second, b"second")


@pytest.mark.parametrize("part", ["body", "answer"])
async def test_a_drain_ends_idle_connections_at_once_and_waits_for_a_request(
    part: str, autojump_clock: MockClock
) -> None:
    app = App()
    async with hypercorn(app) as running:
        busy, idle = await running.connect(), await running.connect()
        for client in (busy, idle):
            await client.send_all(post(b"before"))
            await answered(client, b"before")
        app.pause()
        await busy.send_all(post(b"asked", until=3 if part == "body" else None))
        await app.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        assert await receive_all(idle) == b""
        if part == "body":
            await busy.send_all(b"ed")
        app.go_on()
        await answered(busy, b"asked")
        assert await receive_all(busy) == b""
        assert (await running.server.drain()).clean
    assert app.seen == ["lifespan.startup", "lifespan.shutdown"]
    assert {report.reason for report in running.reports} == {Reason.SERVER_CLOSED}


async def test_a_drain_waits_for_a_stream_of_http_2_that_has_begun(
    autojump_clock: MockClock,
) -> None:
    app = App()
    async with hypercorn(app) as running:
        client = Http2(await running.connect())
        app.pause()
        stream = client.ask(b"as", all=False)
        await client.flush()
        await app.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining()
        client.protocol.send_data(stream, b"ked", end_stream=True)
        await client.flush()
        app.go_on()
        # The head of the answer. hypercorn may close before its task has sent the
        # body, also when Trio accepts its connections.
        answer = client.protocol.receive_data(await receive_all(client.stream))
        heads = [e for e in answer if isinstance(e, h2.events.ResponseReceived)]
        assert [head.stream_id for head in heads] == [stream]
        assert (await running.server.drain()).clean


async def test_a_client_that_resets_affects_no_other(
    autojump_clock: MockClock,
) -> None:
    app = App()
    async with hypercorn(app) as running:
        gone, other = await running.connect(), await running.connect()
        app.pause()
        await gone.send_all(post(b"asked", until=3))
        await app.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        reset(gone)
        app.go_on()
        await other.send_all(post(b"still there?"))
        await answered(other, b"still there?")
        await other.aclose()
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons == {1: Reason.CLIENT_RESET, 2: Reason.CLIENT_CLOSED}


async def test_a_client_that_does_not_read_is_ended(autojump_clock: MockClock) -> None:
    async with hypercorn(App(), timeouts=Timeouts(write_stall=5)) as running:
        slow = await running.connect()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await slow.send_all(post(bytes(1_000_000)))
        other = await running.connect()
        await other.send_all(post(b"still there?"))
        await answered(other, b"still there?")
    reasons = {report.id: report.reason for report in running.reports}
    assert reasons[1] is Reason.WRITE_STALL


async def test_an_answer_that_is_not_read_is_cut_even_if_it_is_shielded(
    autojump_clock: MockClock,
) -> None:
    async with hypercorn(App()) as running:
        client = await running.connect()
        with trio.move_on_after(1):
            while True:
                await client.send_all(post(bytes(1_000_000)))
        summary = await running.server.drain(within=10)
        assert (summary.cut, summary.stuck) == (1, ())
    assert running.reports[0].reason is Reason.CUT


async def test_a_request_that_outlives_the_drain_is_cut(
    autojump_clock: MockClock,
) -> None:
    app = App()
    async with hypercorn(app) as running:
        client = await running.connect()
        app.pause()
        await client.send_all(post(b"asked"))
        await app.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        summary = await running.server.drain(within=10)
        assert (summary.cut, summary.stuck) == (1, ())
    (report,) = running.reports
    assert (report.reason, report.limit) == (Reason.CUT, 10)

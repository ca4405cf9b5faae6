"""TLS by name: the ClientHello is read, and all bytes go to the handler of its name."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from support import (
    Running,
    is_reset,
    is_reset_by,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
    serving,
)
from sweep import Begin, sweep
from trioserve import (
    Connection,
    Outcome,
    Phase,
    Reason,
    Timeouts,
    by_server_name,
    echo,
    open_listeners,
    proxy,
)
from trioserve._connection import lifecycle_of
from trioserve.testing import Peer, check_handler, run_conversation
from trioserve.wire._client_hello import LONGEST
from wire.hellos import INVALID, VALID, from_python, hello, named

#: Serves all names, and echoes what it gets.
ECHO = by_server_name({}, default=echo)
HELLO = hello(named())

UNRECOGNIZED_NAME = b"\x15\3\3\0\2\2\x70"
MISSING_EXTENSION = b"\x15\3\3\0\2\2\x6d"


async def send(client: trio.SocketStream, *chunks: bytes) -> None:
    """Send chunks, each for itself."""
    for chunk in filter(None, chunks):
        await client.send_all(chunk)
        await trio.testing.wait_all_tasks_blocked()


async def answer(running: Running, *chunks: bytes) -> bytes:
    """Send chunks, each for itself, and EOF; what comes back."""
    client = await running.connect()
    await send(client, *chunks)
    await client.send_eof()
    return await receive_all(client)


# -- real TLS, through a proxy

AUTHORITY = trustme.CA()


def server_context(name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def says(text: str) -> Callable[[Any], Awaitable[None]]:
    """A handler that answers each request with this text before it."""

    async def handler(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(text.encode() + data)

    return handler


@contextlib.asynccontextmanager
async def tls_server(name: str) -> AsyncGenerator[Running]:
    """A server with a certificate of this name, which ends TLS itself."""
    (listener,) = await open_listeners("127.0.0.1:0")
    assert isinstance(listener, trio.SocketListener)
    secure = trio.SSLListener(listener, server_context(name), https_compatible=True)
    async with serving(says(f"{name}: "), listeners=[secure]) as running:
        yield running


async def asked(running: Running, name: str | None) -> bytes:
    """What a server answers to a client that verifies that it has this name."""
    context = client_context()
    if name is None:
        context = ssl.create_default_context()
        context.check_hostname = False
        AUTHORITY.configure_trust(context)
    client = trio.SSLStream(
        await running.connect(),
        context,
        server_hostname=name,
        https_compatible=True,
    )
    await client.send_all(b"hello")
    return bytes(await client.receive_some())


async def test_each_name_reaches_the_server_that_has_its_certificate(
    autojump_clock: object,
) -> None:
    """TLS is between the client and the target."""
    async with (
        tls_server("git.example.org") as git,
        tls_server("*.apps.example.org") as apps,
        tls_server("other.example.org") as other,
    ):
        handler = by_server_name(
            {
                "git.example.org": proxy(git.address),
                "*.apps.example.org": proxy(apps.address),
            },
            default=proxy(other.address),
        )
        async with serving(handler) as running:
            assert await asked(running, "Git.Example.org") == b"git.example.org: hello"
            for name in ("a.apps.example.org", "b.apps.example.org"):
                assert await asked(running, name) == b"*.apps.example.org: hello"
            for other_name in ("other.example.org", None):
                answered = await asked(running, other_name)
                assert answered == b"other.example.org: hello"
            with pytest.raises(trio.BrokenResourceError) as caught:
                await asked(running, "apps.example.org")
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    by_id = {report.id: report for report in running.reports}
    assert [(by_id[n].server_name, by_id[n].target) for n in sorted(by_id)] == [
        ("git.example.org", git.address),
        ("a.apps.example.org", apps.address),
        ("b.apps.example.org", apps.address),
        ("other.example.org", other.address),
        (None, other.address),
        ("apps.example.org", other.address),
    ]
    assert by_id[1].as_dict()["server_name"] == "git.example.org"


@pytest.mark.parametrize(
    ("name", "error", "alert"),
    [
        ("b.example.org", "unrecognized name", UNRECOGNIZED_NAME),
        (None, "missing extension", MISSING_EXTENSION),
    ],
)
async def test_a_client_learns_that_its_name_is_unknown(
    name: str | None, error: str, alert: bytes, autojump_clock: object
) -> None:
    handler = by_server_name({"a.example.org": echo})
    async with serving(handler) as running:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await asked(running, name)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert error in str(caught.value.__cause__).lower()
        assert await answer(running, from_python(name), b"more") == alert
    for report in running.reports:
        assert report.reason is Reason.NO_ROUTE
        assert report.outcome is Outcome.PEER_ERROR
        assert report.server_name == name
        assert report.bytes_sent == len(alert)
        assert report.bytes_received == report.bytes_discarded
        assert (report.phase, report.termination_state) == (Phase.HANDSHAKE, "PR")
        assert report.error == (None if name else "it asked for no server name")


# -- the bytes


@given(
    data=st.sampled_from(list(VALID)),
    payload=st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 700), max_size=4),
    is_relayed=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_hello_is_passed_on_as_it_is_wherever_it_is_cut(
    data: bytes, payload: bytes, cuts: list[int], is_relayed: bool
) -> None:
    """Laws 3, 4, 10 and 16: with all bytes after it, also in the same packet."""
    run(_is_passed_on, data, payload, sorted(cuts), is_relayed)


async def _is_passed_on(
    data: bytes, payload: bytes, cuts: list[int], is_relayed: bool
) -> None:
    whole = data + payload
    chunks = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    async with serving(echo) as there:
        handler = proxy(there.address) if is_relayed else echo
        async with serving(by_server_name({}, default=handler)) as running:
            assert await answer(running, *chunks) == whole
    for report in running.reports + there.reports:
        assert report.bytes_received == report.bytes_sent == len(whole)
        assert report.bytes_discarded == 0
        assert report.reason is Reason.CLIENT_CLOSED
    assert running.reports[0].server_name == VALID[data]


async def test_one_byte_at_a_time(autojump_clock: object) -> None:
    """Law 12: as long as it takes no more than ``handshake`` in all."""
    payload = b"and more"
    timeouts = Timeouts(handshake=10)
    async with serving(echo) as there:
        handler = by_server_name({"git.example.org": proxy(there.address)})
        async with serving(handler, timeouts=timeouts) as running:
            client, slow = await running.connect(), await running.connect()
            for byte in HELLO:
                await client.send_all(bytes([byte]))
                await trio.sleep(9.9 / len(HELLO))
            await client.send_all(payload)
            whole = HELLO + payload
            assert await receive_exactly(client, len(whole)) == whole
            with pytest.raises(trio.BrokenResourceError):
                for byte in HELLO:
                    await slow.send_all(bytes([byte]))
                    await trio.sleep(0.2)
            await client.aclose()
    (late, well) = sorted(running.reports, key=lambda report: -report.id)
    assert well.reason is Reason.CLIENT_CLOSED
    assert (late.reason, late.limit) == (Reason.HANDSHAKE, 10)
    assert (late.waited_for, late.termination_state) == ("client", "cR")


async def test_a_silent_client_is_reset_at_the_deadline(
    autojump_clock: object,
) -> None:
    """Law 12: others are served meanwhile."""
    async with serving(ECHO, timeouts=Timeouts(handshake=3)) as running:
        silent, half = await running.connect(), await running.connect()
        await half.send_all(HELLO[:-1])
        assert await answer(running, HELLO) == HELLO
        assert await is_reset(silent)
        assert await is_reset(half)
    _, *late = running.reports
    for report in late:
        assert report.reason is Reason.HANDSHAKE
        assert report.duration == pytest.approx(3, abs=0.1)
        assert report.bytes_received == report.bytes_discarded


async def test_after_the_hello_a_relay_has_no_task(autojump_clock: object) -> None:
    """The engine moves its bytes."""
    conns: list[Connection] = []
    async with serving(echo) as there:
        relays = proxy(there.address)

        async def noted(conn: Connection) -> object:
            conns.append(conn)
            return await relays(conn)

        async with serving(by_server_name({"git.example.org": noted})) as running:
            client = await running.connect()
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            (conn,) = conns
            assert conn.server_name == "git.example.org"
            assert conn.phase is Phase.DATA
            assert lifecycle_of(conn).task is None
            await client.aclose()


# -- what is not a ClientHello


@given(data=st.sampled_from(list(INVALID)), cut=st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_what_is_not_a_hello_is_refused(data: bytes, cut: int) -> None:
    """Law 3: all bytes count as received and discarded."""
    run(_is_refused, data, cut)


async def _is_refused(data: bytes, cut: int) -> None:
    error, alert = INVALID[data]
    async with serving(ECHO) as running:
        client = await running.connect()
        if alert is None:
            assert await is_reset_by(client, data[:cut], data[cut:])
        else:
            await send(client, data[:cut], data[cut:])
            await client.send_eof()
            assert await receive_all(client) == bytes([21, 3, 3, 0, 2, 2, alert])
    (report,) = running.reports
    assert (report.reason, report.outcome) == (
        Reason.BAD_CLIENT_HELLO,
        Outcome.PEER_ERROR,
    )
    assert (report.error, report.server_name) == (error, None)
    assert report.termination_state == "PR"
    assert report.bytes_received == report.bytes_discarded


async def test_a_client_that_only_connects_ends_well(autojump_clock: object) -> None:
    async with serving(ECHO) as running:
        assert await answer(running) == b""
    (report,) = running.reports
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.bytes_received == 0


async def test_a_hello_that_ends_early(autojump_clock: object) -> None:
    async with serving(ECHO) as running:
        client = await running.connect()
        await client.send_all(HELLO[:-1])
        await client.send_eof()
        assert await is_reset(client)
        client = await running.connect()
        await send(client, HELLO[:-1])
        reset(client)
    first, second = running.reports
    assert first.reason is Reason.BAD_CLIENT_HELLO
    assert first.error == "it ended within its ClientHello"
    assert second.reason is Reason.CLIENT_RESET
    for report in running.reports:
        assert report.bytes_received == report.bytes_discarded == len(HELLO) - 1


async def test_a_client_that_is_gone_gets_no_alert(autojump_clock: object) -> None:
    """The reason stays, although the alert can't be sent."""
    async with serving(by_server_name({})) as running:
        client = await running.connect()
        await client.send_all(HELLO)
        reset(client)
    (report,) = running.reports
    assert report.reason in (Reason.NO_ROUTE, Reason.CLIENT_RESET)


async def test_no_more_is_received_than_a_hello_may_have(
    autojump_clock: object,
) -> None:
    """Law 9: the rest stays in the kernel until a handler wants it."""
    received: list[int] = []

    async def handler(conn: Connection) -> None:
        received.append(conn.bytes_received)
        await echo(conn)

    data = HELLO + bytes(3 * LONGEST)
    async with serving(by_server_name({}, default=handler)) as running:
        client = await running.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            assert await receive_exactly(client, len(data)) == data
        await client.aclose()
    assert received[0] <= LONGEST


def test_an_alert_that_nobody_reads_holds_no_connection() -> None:
    """Law 12: it waits no longer than for the hello, whatever ``write_stall`` is."""
    refusing = by_server_name({})
    peer = Peer().send(HELLO + b"?").expect(UNRECOGNIZED_NAME).expect_eof()
    run_conversation(refusing, peer, faults=f"up:vanish@{len(HELLO)}", buffer=2)


@pytest.mark.nightly("some hundred conversations")
@pytest.mark.parametrize(
    ("name", "answer"),
    [("git.example.org", HELLO + b"?"), ("other.example.org", UNRECOGNIZED_NAME)],
)
def test_conversations_with_cuts_cancels_and_faults(name: str, answer: bytes) -> None:
    handler = by_server_name({name: echo})
    check_handler(handler, Peer().send(HELLO + b"?").expect(answer))


# -- drains and cancellation


async def test_a_drain_and_a_cancel_end_the_wait_for_a_hello(
    autojump_clock: object,
) -> None:
    async with serving(ECHO) as running:
        client = await running.connect()
        await send(client, HELLO[:5])
        running.server.start_draining(2)
        await trio.sleep(3)
        assert await is_reset(client)
    async with serving(ECHO) as cancelled:
        await send(await cancelled.connect(), HELLO[:5])
        cancelled.scope.cancel()
    for report in running.reports + cancelled.reports:
        assert report.outcome is Outcome.CUT
        assert report.bytes_received == report.bytes_discarded == 5


@pytest.mark.parametrize("is_known", [True, False])
def test_stopped_at_any_step_nothing_is_left(is_known: bool) -> None:
    """Laws 2, 3 and 13: while a hello arrives, and is passed on or refused."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as there:
            names = {"git.example.org": proxy(there.address)} if is_known else {}
            async with serving(by_server_name(names)) as running:
                client = await running.connect()
                begin(running.scope.cancel)
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send_all(HELLO[:20])
                    await trio.lowlevel.checkpoint()
                    await client.send_all(HELLO[20:] + b"hello")
                    await client.send_eof()
                    await receive_all(client)
                await client.aclose()
                await trio.testing.wait_all_tasks_blocked()
            for report in running.reports:
                assert report.outcome in ("ok", "cut", "peer_error")
        assert open_fds() == before

    assert sweep(scenario) > 15


# -- the handlers


async def test_a_handler_may_choose_by_the_name_itself(autojump_clock: object) -> None:
    async def handler(conn: Connection) -> None:
        await conn.send_all(str(conn.server_name).encode())

    async with serving(by_server_name({}, default=handler)) as running:
        assert await answer(running, HELLO) == b"git.example.org"
        assert await answer(running, hello()) == b"None"


async def test_tables_may_be_nested(autojump_clock: object) -> None:
    inner = by_server_name({"git.example.org": echo})
    outer = by_server_name({"*.example.org": inner})
    async with serving(outer) as running:
        assert await answer(running, HELLO, b"more") == HELLO + b"more"
        other = hello(named(b"a.example.org"))
        assert await answer(running, other) == UNRECOGNIZED_NAME


async def test_over_other_streams_than_sockets(autojump_clock: object) -> None:
    """There the hello is read in the same way, and relayed by tasks."""
    (listener,) = await open_listeners("127.0.0.1:0")

    class Stapled(trio.abc.Listener[trio.abc.Stream]):
        async def accept(self) -> trio.abc.Stream:
            stream = await listener.accept()
            return trio.StapledStream(stream, stream)

        async def aclose(self) -> None:
            await listener.aclose()

    async with serving(echo) as there:
        handler = by_server_name({"git.example.org": proxy(there.address)})
        async with serving(handler, listeners=[Stapled()]) as running:
            for sent, expected in (
                (HELLO + b"?", HELLO + b"?"),
                (hello(), MISSING_EXTENSION),
            ):
                sock = trio.socket.socket()
                await sock.connect(listener.socket.getsockname())
                client = trio.SocketStream(sock)
                running.clients.append(client)
                await client.send_all(sent)
                assert await receive_exactly(client, len(expected)) == expected


async def test_a_handler_that_is_not_async(autojump_clock: object) -> None:
    def handler(conn: Connection) -> None:
        pass

    names = by_server_name({}, default=handler)  # type: ignore[arg-type]
    async with serving(names) as running:
        client = await running.connect()
        await client.send_all(HELLO)
        assert await is_reset(client)
    (report,) = running.reports
    assert report.reason is Reason.HANDLER_ERROR
    assert "must be an async function" in str(report.error)


@pytest.mark.parametrize(
    ("handlers", "kind", "error"),
    [
        ([("a", echo)], TypeError, "handlers must be a dict of handlers by server"),
        ({1: echo}, TypeError, "handlers must be a dict of handlers by server"),
        ({"a": 5}, TypeError, r"handlers\['a'\] must be an async function of one"),
        ({"*": echo}, ValueError, r"handlers: '\*' is not a server name"),
        ({"a": echo, "A": echo}, ValueError, "handlers: the server name 'a' is there"),
    ],
)
def test_invalid_arguments(handlers: Any, kind: type[Exception], error: str) -> None:
    with pytest.raises(kind, match=error):
        by_server_name(handlers)


def test_an_invalid_default() -> None:
    with pytest.raises(TypeError, match="default must be an async function"):
        by_server_name({}, default=5)  # type: ignore[arg-type]


async def test_it_serves_connections_only() -> None:
    one, _ = socket.socketpair()
    with one, _, pytest.raises(TypeError, match="conn must be a Connection"):
        await ECHO(one)  # type: ignore[arg-type]

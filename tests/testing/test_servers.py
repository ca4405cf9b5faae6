"""Connections that handlers open reach servers in memory, with faults on them."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

import trioserve
from support import one_in, one_of_each
from test_docs import ROOT, table
from testing import dialing
from testing.dialing import ASKS, connects_each_time, database, look_up
from testing.zoo import Lines
from trioserve import Connection, Reason
from trioserve.faults import parse_faults
from trioserve.testing import (
    HandlerFailure,
    Opened,
    Peer,
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)

ASK = Peer().send(b"one\n").expect(b"row one\n")
DATABASE: dict[str, Any] = {"db:5432": database}

shop = connects_each_time()


async def shout(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


# -- handlers and their mistakes


@pytest.mark.parametrize(("law", "make"), one_of_each(dialing.MISTAKES, then_one_in=9))
def test_a_mistake_is_found_by_its_law(law: str, make: Callable[[], Any]) -> None:
    with pytest.raises(HandlerFailure) as failed:
        dialing.check(make())
    assert failed.value.law == law, failed.value
    assert len(str(failed.value).splitlines()) <= 40


def test_the_page_has_the_table_of_these_mistakes() -> None:
    """Its seconds may differ."""
    page = table(ROOT / "docs" / "testing-evidence.md", "a handler with a database")
    mistakes = [(dialing.title(make), f"`{law}`") for law, make in dialing.MISTAKES]
    assert [cells[:2] for cells in page] == mistakes


def test_a_handler_may_send_all_before_it_receives_from_a_server() -> None:
    """In a small network, only what the handler sends waits for room."""
    line = b"a line that is longer than a small network holds\n"

    async def asks(stream: Connection) -> None:
        async for each in Lines(stream):
            async with await trio.open_tcp_stream("shout", 7) as server:
                await server.send_all(each + b"\n")
                await stream.send_all(await anext(aiter(Lines(server))) + b"\n")

    peer = Peer().send(line).expect(line.upper())
    run_conversation(asks, peer, servers={"shout:7": shout}, buffer=2)


def test_a_connection_that_is_left_open_and_not_used_again_is_found() -> None:
    handler = dialing.closes_only_if_all_is_well()
    how = "handler 1 has left its connection to db:5432 open"
    with pytest.raises(HandlerFailure, match=how) as failed:
        sweep_cancellations(handler, ASK, servers=DATABASE)
    assert failed.value.law == "nothing_left"


async def reads_on(stream: Connection) -> None:
    """It takes EOF for nothing."""
    while True:
        if line := await stream.receive_some():
            await stream.send_all(b"row " + line)


async def reads_on_whatever_happens(stream: Connection) -> None:
    while True:
        with contextlib.suppress(BaseException):
            await reads_on(stream)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("server", [reads_on, reads_on_whatever_happens])
def test_no_handler_is_accused_if_a_server_never_ends(server: Any) -> None:
    """It used to be the handler that broke ``ends``; or the check did not end."""
    complaint = r"^the server db:5432 never ends, at test_servers.py:\d+ in reads_on"
    with pytest.raises(ValueError, match=complaint):
        run_conversation(shop, ASK, servers={"db:5432": server})


@pytest.mark.parametrize("faults", ["", "down:reset@1"])
def test_an_interrupt_in_a_server_is_raised(faults: str) -> None:
    """It used to be a broken law, or nothing at all if its connection was disturbed."""

    async def interrupted(stream: Connection) -> None:
        raise KeyboardInterrupt

    servers = {"db:5432": interrupted}
    with pytest.raises(BaseExceptionGroup) as raised:
        run_conversation(shop, ASK, servers=servers, server_faults=faults)
    assert raised.group_contains(KeyboardInterrupt)


def test_pieces_of_an_answer_of_a_server_are_chunks() -> None:
    options: dict[str, Any] = {"servers": DATABASE, "server_faults": "down:slice=1..2"}
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(dialing.receives_once(), ASK, **options)
    assert failed.value.law == "chunking"


@pytest.mark.nightly("whole checks")
@pytest.mark.parametrize("make", dialing.CORRECT)
def test_a_correct_handler_is_not_accused(make: Callable[[], Any]) -> None:
    checked = dialing.check(make())
    assert checked.runs["chunks of servers"] > 5
    assert checked.runs["servers that are not there"] == 4
    assert checked.runs["a broken connection to a server"] > 10
    assert not checked.notes


@pytest.mark.parametrize(
    ("handler", "servers"),
    one_in(
        6,
        [
            (trioserve.proxy("app:80"), {"app:80": shout}),
            (trioserve.proxy("192.0.2.7:80"), {"192.0.2.7:80": shout}),
            (trioserve.proxy("[2001:db8::7]:80"), {"[2001:db8::7]:80": shout}),
            (trioserve.proxy("unix:/run/app"), {"unix:/run/app": shout}),
            (trioserve.proxy("no:1", "app:80"), {"no:1": None, "app:80": shout}),
            (trioserve.proxy("app:80", faults="latency=1ms"), {"app:80": shout}),
        ],
    ),
)
def test_our_own_proxy_keeps_all_laws(handler: Any, servers: dict[str, Any]) -> None:
    hello = Peer().send(b"hello\n").expect(b"HELLO\n").send(b"you\n").expect(b"YOU\n")
    check_handler(handler, hello, servers=servers)


# -- what a handler reaches


def test_a_run_has_what_was_sent_to_servers() -> None:
    run = run_conversation(shop, ASKS, servers=DATABASE)
    assert run.opened == (
        Opened("db:5432", b"one\n", b"row one\n"),
        Opened("db:5432", b"two\n", b"row two\n"),
    )
    said = str(run.timeline)
    assert "handler 1   connects to db:5432" in said
    assert r"handler 1   sends 4 bytes: b'two\n' to db:5432" in said


@pytest.mark.parametrize("seed", range(3))
def test_the_same_case_runs_the_same_way(seed: int) -> None:
    first, again = (
        run_conversation(
            shop, ASKS, ASKS, seed=seed, server_faults="slice=1..3", servers=DATABASE
        )
        for _ in "ab"
    )
    assert str(first.timeline) == str(again.timeline)
    assert first.opened == again.opened


def test_what_is_not_named_is_said_and_not_dialed() -> None:
    with pytest.raises(ValueError, match=r"^handle connects to db:5432, which is not"):
        run_conversation(shop, ASK)
    with pytest.raises(ValueError, match=r"add servers=\{'db:5432': server\}"):
        check_handler(shop, ASK, servers={"db:5433": database})
    with pytest.raises(ValueError, match=r"^the handler connects to 127.0.0.1:1,"):
        run_conversation(trioserve.proxy("127.0.0.1:1"), ASK)


def test_a_shielded_connect_is_refused_if_it_is_not_named() -> None:
    async def shielded(stream: Connection) -> None:
        with trio.CancelScope(shield=True):
            with pytest.raises(OSError, match="failed"):
                await trio.open_tcp_stream("db", 5432)

    with pytest.raises(ValueError, match="connects to db:5432"):
        run_conversation(shielded, ASK)


def test_servers_that_are_not_used_are_noted() -> None:
    checked = check_handler(shout, Peer().close(), servers=DATABASE, budget=0)
    assert "the plain conversation connects to none of the servers" in checked.notes


def test_a_proxy_tells_its_attempts() -> None:
    servers = {"down:1": None, "app:80": shout}
    peer = Peer().send(b"a").expect(b"A")
    run = run_conversation(trioserve.proxy("down:1", "app:80"), peer, servers=servers)
    refused, connected = run.reports[0].attempts
    assert "refused" in str(refused.error)
    assert connected.error is None
    assert run.opened == (Opened("app:80", b"a", b"A"),)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_proxy_declares_its_client_first(version: Any) -> None:
    seen = list[bytes]()

    async def app(stream: Connection) -> None:
        seen.append(await stream.receive_some())

    handler = trioserve.proxy("app:80", send_proxy=version, source="192.0.2.1")
    run = run_conversation(handler, Peer().expect_eof(), servers={"app:80": app})
    assert seen[0].startswith(b"PROXY UNKNOWN" if version == "v1" else b"\r\n\r\n\0")
    assert run.reports[0].bytes_sent == 0


def test_a_proxy_whose_target_resets_at_once_says_so() -> None:
    handler = trioserve.proxy("app:80", send_proxy="v1")
    run = run_conversation(
        handler,
        Peer().send(b"a").expect(b"A"),
        servers={"app:80": shout},
        server_faults="up:reset@3",
    )
    assert run.reports[0].reason is Reason.SERVER_RESET


def test_relays_reach_servers_too() -> None:
    async def relays(stream: Connection) -> None:
        async with await trio.open_tcp_stream("app", 80) as app:
            await trioserve.relay(stream, app)

    async def hands_over(stream: Connection) -> object:
        upstream = await trio.open_tcp_stream("app", 80)
        return trioserve.hand_over(stream, upstream)

    for handler in (relays, hands_over):
        peer = Peer().send(b"a").expect(b"A").half_close().expect_eof()
        run = run_conversation(handler, peer, servers={"app:80": shout})
        assert run.opened == (Opened("app:80", b"a", b"A"),)


# -- what judges it


def test_an_error_of_a_server_is_a_broken_expectation() -> None:
    """So it may assert what it receives."""
    asks = Peer().send(b"1\n").expect_eof()
    with pytest.raises(HandlerFailure, match="the server db:5432 raised Assert") as one:
        run_conversation(shop, asks, servers=DATABASE)
    assert one.value.law == "answer"
    assert isinstance(one.value.cause, AssertionError)


def test_an_error_of_a_server_does_not_count_if_its_connection_breaks() -> None:
    async def strict(stream: Connection) -> None:
        async for line in Lines(stream):
            await stream.send_all(b"row " + line + b"\n")
        raise ZeroDivisionError

    with pytest.raises(HandlerFailure, match="raised ZeroDivisionError"):
        run_conversation(shop, ASK, servers={"db:5432": strict})
    run_conversation(
        shop, ASK, servers={"db:5432": strict}, server_faults="up:eof@4; down:eof@5"
    )


def test_errors_of_servers_may_be_raised_only_if_servers_break() -> None:
    with pytest.raises(HandlerFailure, match="it raised OSError") as failed:
        run_conversation(shop, ASK, servers={"db:5432": None})
    assert failed.value.law == "errors"
    run_conversation(shop, Peer(), servers={"db:5432": None})
    for text in ("refuse", "vanish@0s", "down:stall@3"):
        run_conversation(shop, ASK, servers=DATABASE, server_faults=text)


def test_a_server_that_does_not_answer_is_given_up_as_linux_does() -> None:
    async def connects(stream: Connection) -> None:
        async for _ in stream:
            await trio.open_tcp_stream("db", 5432)

    peer = Peer().send(b"a").expect_reset()
    run = run_conversation(
        connects, peer, servers=DATABASE, server_faults="down:stall@0s"
    )
    assert run.seconds == 127


def test_a_failure_prints_the_servers_and_their_imports() -> None:
    broken: dict[str, Any] = {"down:1": None, **DATABASE}
    faults = "down:stall@3; down:latency=1ms"
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(
            dialing.waits_without_bound(),
            ASK,
            servers=broken,
            server_faults=faults,
        )
    text = failed.value.as_test()
    assert failed.value.law == "ends"
    assert f"server_faults='{parse_faults(faults)}'," in text
    assert "servers={'down:1': None, 'db:5432': database}," in text
    assert "from testing.dialing import database" in text


def test_a_sweep_breaks_connections_to_servers_at_every_byte() -> None:
    async def connects_and_leaves(stream: Connection) -> None:
        db = await trio.open_tcp_stream("db", 5432)
        await trio.aclose_forcefully(db)

    peer = Peer().expect_eof()
    steps = run_conversation(connects_and_leaves, peer, servers=DATABASE).steps
    runs = sweep_faults(connects_and_leaves, peer, servers=DATABASE)
    # As without a server, and 2 kinds at byte 0 up, and 4 at byte 0 down.
    assert runs == 4 * (steps + 1) + 4 + 3 + 2 + 4


@pytest.mark.parametrize(
    ("servers", "complaint"),
    [
        (["db:5432"], "servers must be a dict of names and functions"),
        ({5432: database}, "servers must be a dict with names such as"),
        ({"db": database}, "db"),
        ({"db:0": database}, "servers needs a host and a port, not 'db:0'"),
        ({":5432": database}, "servers needs a host and a port, not ':5432'"),
        ({"db:5432": b"row"}, "servers must map 'db:5432' to an async function or N"),
    ],
)
def test_wrong_servers_are_explained(servers: Any, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        run_conversation(shop, ASK, servers=servers)


# -- sockets


def in_memory(function: Callable[[], Any]) -> None:
    """Run an async function as a handler that may connect to the database."""

    async def handle(stream: Connection) -> None:
        await function()

    run_conversation(handle, Peer().expect_eof(), servers=DATABASE)


def test_a_socket_does_what_a_client_needs() -> None:
    async def use() -> None:
        [(*args, _, sockaddr)] = await trio.socket.getaddrinfo("DB", 5432)
        address = str(sockaddr[0])
        assert await trio.socket.getnameinfo((address, 5432), 0) == ("db", "5432")
        assert await trio.socket.getnameinfo(("192.0.2.9", 1), 0) == ("192.0.2.9", "1")
        with trio.socket.socket(*args) as sock:
            assert (sock.family, sock.type, sock.proto) == tuple(args)
            assert "None" in repr(sock)
            with pytest.raises(OSError, match="not connected") as failed:
                sock.getpeername()
            assert failed.value.errno == errno.ENOTCONN
            await sock.bind(("192.0.2.1", 7))
            await sock.connect(sockaddr)
            assert sock.getpeername() == sockaddr
            assert sock.getsockname() == ("192.0.2.1", 7)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not sock.is_readable()
            await sock.wait_writable()
            assert await sock.send(b"one\n") == 4
            buffer = bytearray(20)
            assert await sock.recv_into(buffer) == 8
            assert buffer.startswith(b"row one\n")
            sock.shutdown(socket.SHUT_RD)
            assert not sock.did_shutdown_SHUT_WR
            sock.shutdown(socket.SHUT_WR)
            assert sock.did_shutdown_SHUT_WR
            assert await sock.recv(1) == b""
            assert sock.is_readable()
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="Bad file"):
            await sock.recv(1)
        with pytest.raises(OSError, match="Bad file"):
            await sock.connect(sockaddr)
        with pytest.raises(socket.gaierror):
            await trio.socket.getaddrinfo("db", 5432, family=socket.AF_INET6)

    in_memory(use)


def test_a_stream_over_it_is_a_trio_stream() -> None:
    async def use() -> None:
        db = await trio.open_tcp_stream("db", 5432)
        await db.send_all(b"")
        await db.wait_send_all_might_not_block()
        assert await look_up(db, b"one") == b"row one"
        await db.send_eof()
        await db.send_eof()
        assert await db.receive_some() == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closes, db)
            other = await trio.open_tcp_stream("db", 5432)
            nursery.start_soon(other.aclose)
            with pytest.raises(trio.ClosedResourceError):
                await other.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await db.receive_some()

    async def closes(db: trio.SocketStream) -> None:
        await db.aclose()

    in_memory(use)


def test_a_connection_that_was_reset_is_broken() -> None:
    async def breaks(stream: Connection) -> None:
        db = await trio.open_tcp_stream("db", 5432)
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
                await look_up(db, b"one")
        await db.aclose()

    run_conversation(
        breaks, Peer().expect_eof(), servers=DATABASE, server_faults="down:reset@3"
    )


def test_a_unix_socket_may_have_a_path_of_bytes() -> None:
    async def asks(stream: Connection) -> None:
        for path in ("/run/db", b"/run/db"):
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                await sock.connect(path)

    run = run_conversation(
        asks, Peer().expect_eof(), servers={"unix:/run/db": database}
    )
    assert [each.server for each in run.opened] == ["unix:/run/db"] * 2


def test_many_names_have_addresses_of_their_own() -> None:
    async def use() -> None:
        found = set[str]()
        for number in range(600):
            [info] = await trio.socket.getaddrinfo(f"host{number}", 1)
            found.add(str(info[4][0]))
        assert len(found) == 600

    in_memory(use)

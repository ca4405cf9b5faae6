"""Accept loops: listeners are added and closed while others serve."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from support import is_reset, open_fds, receive_all, receive_exactly, serving
from trioserve import Connection, Limits, Listener, echo, open_listeners, serve


async def _is_echoed(listener: Listener) -> bool:
    name = listener.socket.getsockname()
    stream = await trio.open_tcp_stream(name[0], name[1])
    async with stream:
        await stream.send_all(b"x")
        await stream.send_eof()
        return await receive_all(stream) == b"x"


async def test_a_listener_is_added_while_others_serve(autojump_clock: object) -> None:
    """Laws 3 and 13: it belongs to the server, and is closed with it."""
    before = open_fds()
    (late,) = await open_listeners("127.0.0.1:0")
    seen: list[str] = []

    def on_start(conn: Connection) -> None:
        seen.append(str(conn.listener))

    async with serving(echo, on_start=on_start) as running:
        assert await _is_echoed(running.server[0])
        running.server.add_listener(late)
        assert running.server[1] is late
        assert len(running.server.addresses) == 2
        assert await _is_echoed(late)
        assert await _is_echoed(running.server[0])
        with pytest.raises(ValueError, match="already"):
            running.server.add_listener(late)
    assert late.socket.fileno() < 0
    listeners = {report.listener for report in running.reports}
    assert listeners == set(seen) == set(map(str, running.server.addresses))
    assert open_fds() == before


async def test_a_listener_is_closed_while_others_serve(autojump_clock: object) -> None:
    """Laws 1 and 6: its connections go on, and those in its queue are served."""
    async with serving(echo, addresses=("127.0.0.1:0",) * 2) as running:
        gone, stays = running.server
        inside = await running.connect(0)
        await inside.send_all(b"1")
        assert await receive_exactly(inside, 1) == b"1"
        # In the kernel's queue: the accept loop has not run.
        queued = trio.socket.socket()
        await queued.connect(gone.socket.getsockname())
        await running.server.close_listener(gone)
        assert list(running.server) == [stays]
        assert gone.socket.fileno() < 0
        await queued.send(b"2")
        assert await queued.recv(1) == b"2"
        queued.close()
        await inside.send_all(b"3")
        assert await receive_exactly(inside, 1) == b"3"
        assert await _is_echoed(stays)
        with pytest.raises(ValueError, match="does not have this listener"):
            await running.server.close_listener(gone)
        await inside.aclose()
        summary = await running.server.drain(within=1)
    assert summary.cut == 0


async def test_at_the_limit_the_queue_of_a_closed_listener_is_refused(
    autojump_clock: object,
) -> None:
    """Law 6: without a free token, clients are refused and not reset."""
    limits = Limits(max_connections=1, refusal=b"full")
    addresses = ("127.0.0.1:0",) * 2
    async with serving(echo, addresses=addresses, limits=limits) as running:
        inside = await running.connect(1)
        await inside.send_all(b"1")
        assert await receive_exactly(inside, 1) == b"1"
        queued = await running.connect(0)
        await trio.testing.wait_all_tasks_blocked()
        await running.server.close_listener(running.server[0])
        assert await receive_all(queued) == b"full"
        await inside.aclose()


async def test_a_server_without_a_listener_waits_for_the_next(
    autojump_clock: object,
) -> None:
    async with serving(echo) as running:
        (only,) = running.server
        await running.server.close_listener(only)
        assert running.server.addresses == ()
        await trio.sleep(10)
        assert not running.server.draining.is_set()
        (late,) = await open_listeners("127.0.0.1:0")
        running.server.add_listener(late)
        assert await _is_echoed(late)


async def test_a_cancelled_close_of_a_listener_goes_on(autojump_clock: object) -> None:
    async with serving(echo, addresses=("127.0.0.1:0",) * 2) as running:
        gone = running.server[0]
        with trio.CancelScope() as scope:
            scope.cancel()
            await running.server.close_listener(gone)
        await trio.testing.wait_all_tasks_blocked()
        assert gone not in running.server


async def test_a_dead_listener_that_is_closed_no_longer_counts(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A server ends only if all its listeners are dead."""
    async with serving(echo, addresses=("127.0.0.1:0",) * 2) as running:
        dead, lives = running.server
        dead.socket.close()
        await trio.testing.wait_all_tasks_blocked()
        assert re.search(r"stopped accepting on \S+: \[Errno 9\]", caplog.text)
        await running.server.close_listener(dead)
        assert await _is_echoed(lives)
        assert not running.server.draining.is_set()


async def test_no_listener_is_added_during_a_drain(autojump_clock: object) -> None:
    (late,) = await open_listeners("127.0.0.1:0")
    async with serving(echo) as running:
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.start_draining(within=5)
        with pytest.raises(RuntimeError, match="does not accept"):
            running.server.add_listener(late)
    with pytest.raises(RuntimeError, match="does not accept"):
        running.server.add_listener(late)
    await late.aclose()


async def test_an_added_listener_shares_the_limit(autojump_clock: object) -> None:
    """Law 2: there is one limit over all listeners."""
    limits = Limits(max_connections=1, when_full="refuse", refusal=None)
    async with serving(echo, limits=limits) as running:
        inside = await running.connect()
        await inside.send_all(b"1")
        assert await receive_exactly(inside, 1) == b"1"
        (late,) = await open_listeners("127.0.0.1:0")
        running.server.add_listener(late)
        assert await is_reset(await running.connect(1))
        await inside.aclose()


async def test_no_listener_is_added_after_a_cancellation(
    autojump_clock: object,
) -> None:
    """Law 13: and none stays half added."""
    before = open_fds()
    async with serving(echo) as running:
        await running.connect()
        running.scope.cancel()
        await running.ended.wait()
        (late,) = await open_listeners("127.0.0.1:0")
        count = len(running.server)
        with pytest.raises(RuntimeError, match="does not accept"):
            running.server.add_listener(late)
        with pytest.raises(ValueError, match="does not have this listener"):
            await running.server.close_listener(late)
        assert len(running.server) == count
        await late.aclose()
    assert open_fds() == before


async def test_a_listener_on_the_same_socket_is_not_added(
    autojump_clock: object,
) -> None:
    async with serving(echo) as running:
        again = trio.SocketListener(running.server[0].socket)
        with pytest.raises(ValueError, match="already"):
            running.server.add_listener(again)
        assert await _is_echoed(running.server[0])


async def test_closing_the_last_live_listener_ends_a_server_with_dead_ones(
    autojump_clock: object,
) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with serving(echo, addresses=("127.0.0.1:0",) * 2) as running:
            dead, lives = running.server
            dead.socket.close()
            await trio.testing.wait_all_tasks_blocked()
            await running.server.close_listener(lives)
            with trio.fail_after(1):
                await running.server.draining.wait()


class _NoSocket(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose ``socket`` is None, as in some wrappers."""

    socket = None

    async def accept(self) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_listeners_without_a_socket_differ(
    autojump_clock: object,
) -> None:
    async with serving(echo, listeners=[_NoSocket(), _NoSocket()]) as running:
        running.server.add_listener(_NoSocket())
        assert len(running.server) == 3


async def test_a_socket_is_accepted_from_once(autojump_clock: object) -> None:
    """With two listeners on it, two tasks would wait for one descriptor."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    twice = [listener, trio.SocketListener(listener.socket)]
    with pytest.raises(ValueError, match="listeners must not contain"):
        await serve(echo, twice)
    await listener.aclose()

"""Acceptors: errors of accept(2), limits per peer, foreign listeners, Trio's API."""

from __future__ import annotations

import collections
import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import (
    is_reset,
    no_free_fd,
    open_fds,
    receive_all,
    receive_exactly,
    reset,
    run,
    serving,
)
from trioserve import (
    Address,
    Connection,
    Layers,
    Limits,
    Outcome,
    Reason,
    Server,
    TcpAddress,
    Timeouts,
    echo,
    open_listeners,
    serve,
    serve_tcp,
)
from trioserve._admission import peer_key


async def test_a_server_needs_a_listener() -> None:
    with pytest.raises(ValueError, match="listeners must not be empty"):
        await serve(echo, [])


async def test_a_bad_listener_leaves_the_good_ones_usable() -> None:
    """A listener that can't be used raises, and the others stay open."""
    (good,) = await open_listeners("127.0.0.1:0")
    (closed,) = await open_listeners("127.0.0.1:0")
    await closed.aclose()
    before = open_fds()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await serve(echo, [good, closed])
    assert open_fds() == before
    assert good.socket.getsockname()
    await good.aclose()


@pytest.mark.parametrize("whose", ["ours", "Trio's"])
async def test_accepted_sockets_have_nodelay_and_a_low_notsent_lowat(
    whose: str, autojump_clock: object
) -> None:
    """Whether or not they inherit the options from the listener."""
    listeners: Sequence[trio.abc.Listener[trio.SocketStream]]
    if whose == "ours":
        listeners = await open_listeners("127.0.0.1:0")
    else:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    limit = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        seen.append(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        seen.append(conn.getsockopt(socket.IPPROTO_TCP, limit))

    async with serving(handler, listeners=listeners) as running:
        client = await running.connect()
        assert await receive_all(client) == b""
        await client.aclose()
    assert seen == [1, 16384]


# -- a limit for each peer


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["come", "go"]),
            st.integers(1, 3),
            st.sampled_from([None, 1, 2, 3]),
        ),
        max_size=30,
    ),
    refusal=st.sampled_from([b"", b"no\n", None]),
    kind=st.sampled_from(["socket", "foreign"]),
    schedule=st.random_module(),
)
@settings(deadline=None)
def test_the_limit_per_peer_is_exact(
    steps: list[tuple[str, int, int | None]],
    refusal: bytes | None,
    kind: str,
    schedule: object,
) -> None:
    """Law 2: a peer is refused exactly if it has reached the limit; no other is."""

    async def main() -> None:
        listeners: list[Any] = list(await open_listeners("127.0.0.1:0"))
        if kind == "foreign":
            listeners = [_Foreign(listeners[0])]
        limits = Limits(max_connections=50, refusal=refusal)
        served: dict[str, list[trio.SocketStream]] = collections.defaultdict(list)
        expected = 0
        async with serving(echo, listeners=listeners, limits=limits) as running:
            for what, number, most in steps:
                host = f"127.0.0.{number}"
                running.server.limits = replace(limits, max_per_peer=most)
                if what == "go":
                    if served[host]:
                        await served[host].pop(0).aclose()
                        await trio.testing.wait_all_tasks_blocked(0.001)
                    continue
                enough = most is not None and len(served[host]) >= most
                expected += enough
                try:
                    client = await running.connect(source=host)
                except ConnectionResetError:
                    # Reset before connect() returned.
                    assert enough
                    assert refusal is None
                    continue
                if enough and refusal is None:
                    assert await is_reset(client)
                elif enough:
                    assert await receive_all(client) == refusal
                else:
                    await client.send_all(b"?")
                    assert await receive_exactly(client, 1) == b"?"
                    served[host].append(client)
                stats = running.server.statistics()
                assert stats.tokens_used == sum(map(len, served.values()))
                peers = [str(c.peer) for c in running.server.connections]
                open_now = {peer.partition(":")[0] for peer in peers}
                assert {h for h in served if served[h]} <= open_now
        refused = [r for r in running.reports if r.outcome is Outcome.REFUSED]
        assert {report.reason for report in refused} <= {Reason.PEER_LIMIT}
        assert len(refused) == expected
        assert all(report.limit is not None for report in refused)
        assert running.server._serving.admission.peers == {}

    run(main)


async def test_a_peer_at_its_limit_takes_no_token_from_others(
    autojump_clock: object,
) -> None:
    """Law 2: a refused client that reconnects again and again is not served next."""
    limits = Limits(max_connections=2, max_per_peer=1)
    async with serving(echo, limits=limits) as running:
        first = await running.connect(source="127.0.0.2")
        await first.send_all(b"?")
        assert await receive_exactly(first, 1) == b"?"
        for _ in range(150):
            await running.connect(source="127.0.0.2")
        other = await running.connect(source="127.0.0.3")
        await other.send_all(b"?")
        assert await receive_exactly(other, 1) == b"?"
    reasons = collections.Counter(report.reason for report in running.reports)
    assert reasons[Reason.PEER_LIMIT] == 150


@pytest.mark.parametrize("kind", ["socket", "foreign"])
@pytest.mark.parametrize("refusal", [b"", b"no\n"])
async def test_a_refused_client_keeps_no_token(
    kind: str, refusal: bytes, autojump_clock: object
) -> None:
    """Law 2: the token taken for it goes to the next client, and is counted."""
    listeners: list[Any] = list(await open_listeners("127.0.0.1:0"))
    if kind == "foreign":
        listeners = [_Foreign(listeners[0])]
    limits = Limits(max_connections=3, max_per_peer=1, refusal=refusal)
    async with serving(echo, listeners=listeners, limits=limits) as running:
        listener = running.server[0].socket
        assert listener is not None
        with contextlib.ExitStack() as stack:
            # All of them are in the kernel's queue before the accept loop runs.
            for source in ("127.0.0.2", "127.0.0.2", "127.0.0.3"):
                sock = stack.enter_context(socket.socket())
                sock.bind((source, 0))
                sock.connect(listener.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.01)
            stats = running.server.statistics()
            assert (stats.tokens_used, stats.refused) == (2, 1)


async def test_a_crowd_of_one_peer_does_not_delay_others(
    autojump_clock: object,
) -> None:
    """Law 1: others are served, however many of its connections are refused at once."""
    limits = Limits(max_connections=2, max_per_peer=1)
    async with serving(echo, limits=limits) as running:
        listener = running.server[0].socket
        assert listener is not None
        with contextlib.ExitStack() as stack:
            # More than a batch is in the kernel's queue before the accept loop runs.
            for _ in range(150):
                sock = stack.enter_context(socket.socket())
                sock.bind(("127.0.0.2", 0))
                sock.connect(listener.getsockname())
            other = await running.connect(source="127.0.0.3")
            await other.send_all(b"?")
            assert await receive_exactly(other, 1) == b"?"
        await other.aclose()
    reasons = collections.Counter(report.reason for report in running.reports)
    assert reasons[Reason.PEER_LIMIT] == 149


async def test_a_crowd_ahead_in_the_queue_does_not_hide_others_at_a_drain(
    autojump_clock: object,
) -> None:
    """Law 6: a client behind refused ones in the queue is served, too."""
    limits = Limits(max_connections=0, max_per_peer=1)
    async with serving(echo, limits=limits) as running:
        listener = running.server[0].socket
        assert listener is not None
        with contextlib.ExitStack() as stack:
            *_, last = [
                stack.enter_context(
                    socket.create_connection(
                        listener.getsockname(), source_address=(source, 0)
                    )
                )
                for source in [*140 * ["127.0.0.2"], "127.0.0.3"]
            ]
            last.sendall(b"?")
            last.shutdown(socket.SHUT_WR)
            running.server.limits = replace(limits, max_connections=10)
            running.server.start_draining(5)
            await running.server.drain()
            assert last.recv(10) == b"?"
    reasons = collections.Counter(report.reason for report in running.reports)
    assert reasons[Reason.PEER_LIMIT] == 139
    assert Reason.STOPPING not in reasons


async def test_clients_in_the_queue_at_the_end_are_counted(
    autojump_clock: object,
) -> None:
    """Law 6: both those served and those refused."""
    async with serving(echo, limits=Limits(max_connections=2)) as running:
        listener = running.server[0].socket
        assert listener is not None
        await trio.testing.wait_all_tasks_blocked()
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                sock = socket.create_connection(listener.getsockname())
                stack.enter_context(sock)
            summary = await running.server.drain()
    assert (summary.backlog_drained, summary.finished, summary.refused) == (5, 2, 3)


async def test_a_refused_client_that_lingers_does_not_count_for_its_peer(
    autojump_clock: object,
) -> None:
    """Law 2: the next one need not wait until it has read the refusal."""
    limits = Limits(max_per_peer=1, refusal=b"no\n")
    async with serving(echo, limits=limits) as running:
        first, second = await running.connect(), await running.connect()
        assert await receive_exactly(second, 3) == b"no\n"
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        third = await running.connect()
        await third.send_all(b"?")
        assert await receive_exactly(third, 1) == b"?"
        assert running.server.statistics().open == 2


async def test_peers_without_an_ip_address_are_not_counted(
    tmp_path: Path, autojump_clock: object
) -> None:
    """They can't be distinguished."""
    limits = Limits(max_per_peer=1)
    address = f"unix:{tmp_path}/socket"
    async with serving(echo, addresses=(address,), limits=limits) as running:
        for _ in range(3):
            client = await running.connect()
            await client.send_all(b"?")
            assert await receive_exactly(client, 1) == b"?"


@pytest.mark.parametrize("kind", ["socket", "foreign"])
async def test_addresses_of_one_ipv6_network_are_one_peer(
    kind: str, autojump_clock: object
) -> None:
    """Law 2: a host with a network may use any of its addresses."""
    listeners: list[Any] = list(await open_listeners("[::1]:0"))
    if kind == "foreign":
        listeners = [_Foreign(listeners[0])]
    limits = Limits(max_per_peer=2, per_peer_ipv6_prefix=64)
    async with serving(echo, listeners=listeners, limits=limits) as running:
        for refused in (False, False, True):
            client = await running.connect()
            await client.send_all(b"?")
            if refused:
                assert await receive_all(client) == b""
            else:
                assert await receive_exactly(client, 1) == b"?"
        assert list(running.server._serving.admission.peers.values()) == [2]
    assert running.server._serving.admission.peers == {}


async def test_a_peer_is_the_same_over_both_families(autojump_clock: object) -> None:
    """Law 2: an IPv4 client is the same peer through an IPv6 listener."""
    both = trio.socket.socket(socket.AF_INET6)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    await both.bind(("::", 0))
    both.listen()
    listeners = [trio.SocketListener(both), *await open_listeners("127.0.0.1:0")]
    limits = Limits(max_per_peer=1)
    async with serving(echo, listeners=listeners, limits=limits) as running:
        port = both.getsockname()[1]
        first = await trio.open_tcp_stream("127.0.0.1", port)
        running.clients.append(first)
        await first.send_all(b"?")
        assert await receive_exactly(first, 1) == b"?"
        (connection,) = running.server.connections
        assert connection.peer == TcpAddress(*first.socket.getsockname())
        assert connection.local == TcpAddress("127.0.0.1", port)
        assert connection.listener == TcpAddress("::", port)
        assert await receive_all(await running.connect(1)) == b""


_IPV6 = st.ip_addresses(v=6).map(str)


@given(_IPV6, _IPV6 | st.none(), st.integers(1, 128), st.integers(0, 3))
def test_a_peer_is_a_network_of_ipv6_addresses(
    host: str, other: str | None, prefix: int, zone: int
) -> None:
    """Law 2: addresses with the same prefix, on one interface."""
    network = ipaddress.IPv6Network((host, prefix), strict=False)
    if other is None:  # the last one of the same network
        other = str(network[-1])
    peer = peer_key((host, 1, 0, zone), prefix)
    is_mapped = [bool(ipaddress.IPv6Address(h).ipv4_mapped) for h in (host, other)]
    if not any(is_mapped):
        same = ipaddress.IPv6Address(other) in network
        assert (peer_key((other, 2, 0, zone), prefix) == peer) is same
        assert peer_key((host, 3, 0, zone + 1), prefix) != peer


@given(st.ip_addresses(v=4).map(str), st.integers(1, 128))
def test_an_ipv4_address_is_a_peer(host: str, prefix: int) -> None:
    """Law 2: also as an IPv4-mapped address."""
    assert peer_key((host, 1), prefix) == host
    assert peer_key((f"::ffff:{host}", 2, 0, 0), prefix) == host


class _Foreign(trio.abc.Listener[trio.SocketStream]):
    """A listener that is not Trio's; its streams are sockets."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.socket = listener.socket
        self._listener = listener

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


# -- accept errors


class _Flaky:
    """A listening socket whose accept(2) fails as scripted, then works."""

    def __init__(self, sock: Any, errnos: list[str]) -> None:
        self._sock = sock
        self.errnos = errnos

    def accept(self) -> Any:
        if self.errnos:
            name = self.errnos.pop(0)
            if name != "fine":
                raise OSError(getattr(errno, name), name)
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize(
    ("name", "pause"),
    [
        ("ECONNABORTED", 0),
        ("EPROTO", 0),
        ("EPERM", 0),
        ("EAGAIN", 0),
        ("ENOBUFS", 0.005 + 0.01 + 0.02),
        ("ENOMEM", 0.005 + 0.01 + 0.02),
        ("ENFILE", 0.005 + 0.01 + 0.02),
        ("EINVAL", 0.005 + 0.01 + 0.02),
    ],
)
async def test_accept_errors_do_not_end_a_listener(
    name: str, pause: float, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 1: three errors of accept(2) in a row cost a few milliseconds at most."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        acceptor._sock = _Flaky(acceptor._sock, [name] * 3)
        acceptor._give_up_reserve()  # else ENFILE would use the reserved descriptor
        acceptor._reserve = lambda: None
        stream = await running.connect()
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        assert trio.current_time() == pytest.approx(pause)
        errors = running.server.statistics().accept_errors
        assert errors == ({} if name == "EAGAIN" else {name: 3})
    assert len(caplog.records) == (1 if pause else 0)


async def test_a_pause_is_a_second_at_most_and_the_next_one_is_short_again(
    autojump_clock: object,
) -> None:
    """Law 1: the back-off starts from the beginning after a success."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        for errors, seconds in ((12, 0.005 * (2**8 - 1) + 4), (1, 0.005)):
            acceptor._sock = _Flaky(acceptor._sock, ["ENOBUFS"] * errors)
            began = trio.current_time()
            stream = await running.connect()
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"
            assert trio.current_time() - began == pytest.approx(seconds)


async def test_an_error_in_a_batch_keeps_the_connections_before_it(
    autojump_clock: object,
) -> None:
    """Law 6: connections accepted before an error are served."""
    async with serving(echo, limits=Limits(max_connections=0)) as running:
        streams = [await running.connect() for _ in range(3)]
        acceptor: Any = running.acceptor
        acceptor._sock = _Flaky(acceptor._sock, ["fine", "ENOBUFS", "fine", "ENOBUFS"])
        running.server.limits = Limits(max_connections=9)
        for stream in streams:
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"


async def test_more_than_a_batch_is_served(autojump_clock: object) -> None:
    """More connections in the kernel's queue than fit into a batch."""
    async with serving(echo, limits=Limits(max_connections=0)) as running:
        streams = [await running.connect() for _ in range(150)]
        running.server.limits = Limits(max_connections=200)
        for stream in streams:
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"


class _LargestStep(trio.abc.Instrument):
    """The most connections that were accepted in one step of a task."""

    def __init__(self, server: Server) -> None:
        self.accepted = 0
        self._server = server
        self._before = server.statistics().accepted

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        accepted = self._server.statistics().accepted
        self.accepted = max(self.accepted, accepted - self._before)
        self._before = accepted


@pytest.mark.parametrize(
    ("limits", "layers", "most"),
    [
        # A connection that is served may come before a batch of refused ones.
        (Limits(max_connections=200), Layers(), 65),
        (Limits(max_connections=200, max_per_peer=1), Layers(), 65),
        (Limits(max_connections=0, when_full="refuse"), Layers(), 65),
        (Limits(max_connections=200), Layers(access=["allow all"]), 8),
    ],
    ids=["served", "one served", "refused", "served after layers"],
)
async def test_a_crowd_is_accepted_in_batches(
    limits: Limits, layers: Layers, most: int, autojump_clock: object
) -> None:
    """Law 1: other tasks run between two batches, which are small if tasks begin."""
    none = Limits(max_connections=0)
    async with serving(echo, limits=none, layers=layers) as running:
        for _ in range(150):
            await running.connect()
        steps = _LargestStep(running.server)
        trio.lowlevel.add_instrument(steps)
        running.server.limits = limits
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
        assert running.server.statistics().accepted == 150
    assert 0 < steps.accepted <= most


async def test_new_limits_hold_for_waiting_clients(
    autojump_clock: object,
) -> None:
    """Law 2: clients in the kernel's queue are refused under the new rule."""
    async with serving(echo, limits=Limits(max_connections=0)) as running:
        streams = [await running.connect() for _ in range(150)]
        for stream in streams:
            await stream.send_all(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        running.server.limits = Limits(max_connections=0, when_full="refuse")
        for stream in streams:
            assert await receive_all(stream) == b""
            await stream.send_all(b"is it")  # and not after a RST
        assert trio.current_time() == 0
    assert [r.reason for r in running.reports] == [Reason.LIMIT] * 150


async def test_a_listener_closed_while_it_waits_for_a_token_is_dead(
    autojump_clock: object,
) -> None:
    """It does not accept from another file that has its descriptor."""
    async with serving(
        echo, addresses=("127.0.0.1:0",) * 2, limits=Limits(max_connections=1)
    ) as running:
        first = await running.connect(1)
        await first.send_all(b"x")
        await receive_exactly(first, 1)
        await running.connect(0)
        await trio.testing.wait_all_tasks_blocked()
        socket_ = running.server[0].socket
        assert socket_ is not None
        number = socket_.fileno()
        with (
            socket.create_server(("127.0.0.1", 0)) as stranger,
            socket.create_connection(stranger.getsockname()),
        ):
            stranger.setblocking(False)
            socket_.close()
            os.dup2(stranger.fileno(), number)
            await first.aclose()
            await trio.testing.wait_all_tasks_blocked()
            os.close(number)
            assert running.server.statistics().accept_errors == {"EBADF": 1}
            stranger.accept()[0].close()


async def test_a_short_lack_of_descriptors_refuses_nobody(
    autojump_clock: object,
) -> None:
    """If it is shorter than a pause, clients are served."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        for _ in range(3):
            acceptor._sock = _Flaky(acceptor._sock, ["EMFILE"])
            stream = await running.connect()
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"


async def test_a_refusal_without_descriptors_may_fail(autojump_clock: object) -> None:
    """Law 1: if the reserved descriptor does not help, it backs off and goes on."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        acceptor._sock = _Flaky(acceptor._sock, ["EMFILE"] * 3)
        stream = await running.connect()
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        assert trio.current_time() == pytest.approx(0.005 + 0.01)


async def test_a_lost_reserved_descriptor_is_replaced(autojump_clock: object) -> None:
    """As soon as there is a free one."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        acceptor._give_up_reserve()
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor._spare is not None


@pytest.mark.parametrize("name", ["ECONNABORTED", "EMFILE", "EINVAL"])
async def test_errors_do_not_stop_the_emptying_of_the_queue(
    name: str, autojump_clock: object
) -> None:
    """Law 6: the rest of the queue is served or refused."""
    async with serving(echo, limits=Limits(max_connections=0)) as running:
        streams = [await running.connect() for _ in range(3)]
        acceptor: Any = running.acceptor
        acceptor._sock = _Flaky(acceptor._sock, [name, "fine", name])
        running.server.start_draining()
        for stream in streams:
            assert await receive_all(stream) == b""
    assert [r.reason for r in running.reports] == [Reason.STOPPING] * 3


async def test_accept_errors_are_logged_once_a_second(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """One line a second, with the count of suppressed ones."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        acceptor._sock = flaky = _Flaky(acceptor._sock, ["ENOBUFS"] * 12)
        await running.connect()
        while flaky.errnos:
            await trio.sleep(0.1)
        seconds = trio.current_time()
    assert 1 < len(caplog.records) <= seconds + 1
    assert "more)" in caplog.text


@pytest.mark.parametrize("dead", [1, 2])
async def test_a_dead_listener_does_not_end_the_others(
    dead: int, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 1: EBADF ends a listener and is logged; serving ends without any left."""
    caught: list[OSError] = []
    try:
        async with serving(echo, addresses=("127.0.0.1:0",) * 2) as running:
            inside = await running.connect(0)
            await inside.send_all(b"x")
            await receive_exactly(inside, 1)
            survivor = await running.connect(1)
            for listener in list(running.server)[:dead]:
                listener.socket.close()
            await trio.testing.wait_all_tasks_blocked()
            if dead == 1:
                await survivor.send_all(b"y")
                assert await receive_exactly(survivor, 1) == b"y"
            await inside.send_all(b"z")
            assert await receive_exactly(inside, 1) == b"z"
    except* OSError as group:
        caught += [e for e in group.exceptions if isinstance(e, OSError)]
    assert len(caught) == (1 if dead == 2 else 0)
    stopped = re.findall(r"stopped accepting on \S+: \[Errno 9\]", caplog.text)
    assert len(stopped) == dead


@pytest.mark.parametrize("ending", ["serve on", "drain"])
async def test_out_of_descriptors_clients_are_refused(
    ending: str, autojump_clock: object
) -> None:
    """Law 1: without a free descriptor clients are refused; open connections go on."""
    async with serving(echo) as running:
        inside = await running.connect()
        await inside.send_all(b"x")
        await receive_exactly(inside, 1)
        outside = [trio.socket.socket() for _ in range(70)]
        with no_free_fd():
            if ending == "drain":
                running.server.limits = Limits(max_connections=0)
                await trio.testing.wait_all_tasks_blocked()
            for sock in outside:
                await sock.connect(running.server[0].socket.getsockname())
            if ending == "drain":
                running.server.start_draining()
            for sock in outside:
                assert await sock.recv(1) == b""
            await inside.send_all(b"y")
            assert await receive_exactly(inside, 1) == b"y"
            await inside.aclose()
        for sock in outside:
            sock.close()
    reason = Reason.STOPPING if ending == "drain" else Reason.NO_FDS
    reasons = [report.reason for report in running.reports]
    assert reasons.count(reason) == 70
    assert len(reasons) == 71


async def test_out_of_descriptors_each_client_is_refused_soon(
    autojump_clock: object,
) -> None:
    """Law 15: within 20 ms, and not one client per second."""
    async with serving(echo) as running:
        listener = running.server[0].socket
        assert listener is not None
        outside = [trio.socket.socket() for _ in range(20)]
        with no_free_fd():
            for sock in outside:
                began = trio.current_time()
                await sock.connect(listener.getsockname())
                assert await sock.recv(1) == b""
                assert trio.current_time() - began <= 0.02
                await trio.sleep(0.1)
        for sock in outside:
            sock.close()


async def test_a_free_descriptor_is_used_at_once(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 2: a connection that closes ends the pause after EMFILE."""
    async with serving(echo) as running:
        acceptor: Any = running.acceptor
        acceptor._give_up_reserve()
        acceptor._reserve = lambda: None
        inside = await running.connect()
        await inside.send_all(b"x")
        await receive_exactly(inside, 1)
        late = trio.SocketStream(trio.socket.socket())
        running.clients.append(late)
        with no_free_fd():
            await late.socket.connect(acceptor.listener.socket.getsockname())
            await late.send_all(b"z")
            await trio.sleep(60.1)
            await inside.aclose()
            assert await receive_exactly(late, 1) == b"z"
            assert trio.current_time() == 60.1
    assert len(caplog.records) <= 61


# -- foreign listeners


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts what is put into it."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[Any](100)

    async def accept(self) -> trio.abc.Stream:
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None
        if isinstance(item, Exception):
            raise item
        stream: trio.abc.Stream = item
        return stream

    def connect(self) -> trio.StapledStream[Any, Any]:
        ours, theirs = trio.testing.memory_stream_pair()
        self.send.send_nowait(theirs)
        return ours

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()


async def test_any_listener_can_be_served(autojump_clock: object) -> None:
    """A stream that is not a socket is served, counted and reported like one."""
    listener = MemoryListener()
    async with serving(echo, listeners=[listener]) as running:
        assert running.server.addresses == ()
        assert "MemoryListener" in repr(running.server)
        assert running.server[0] is listener  # type: ignore[comparison-overlap]
        stream = listener.connect()
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
    (report,) = running.reports
    assert (report.bytes_received, report.bytes_sent) == (5, 5)
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.peer == "MemoryListener"


async def test_sockets_from_a_foreign_listener_are_sockets(
    autojump_clock: object,
) -> None:
    async with trio.open_nursery() as nursery:
        (inner,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        class Wrapped(MemoryListener):
            async def accept(self) -> trio.SocketStream:
                return await inner.accept()

            async def aclose(self) -> None:
                await inner.aclose()

        async def handler(conn: Connection) -> None:
            assert TcpAddress(*conn.socket.getpeername()) == conn.peer
            await echo(conn)

        async with serving(handler, listeners=[Wrapped()]) as running:
            stream = await trio.testing.open_stream_to_socket_listener(inner)
            await stream.send_all(b"x")
            assert await receive_exactly(stream, 1) == b"x"
            await stream.aclose()
        assert running.reports[0].outcome is Outcome.OK
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", ["drain", "cancel"])
async def test_a_foreign_listener_holds_one_connection_at_the_limit(
    ending: str, autojump_clock: object
) -> None:
    """Law 2: one accepted stream per listener waits for a token."""
    listener = MemoryListener()
    limits = Limits(max_connections=1)
    async with serving(echo, listeners=[listener], limits=limits) as running:
        first, second, third = (listener.connect() for _ in range(3))
        await trio.testing.wait_all_tasks_blocked()
        stats = running.server.statistics()
        assert (stats.accepted, stats.tokens_used) == (2, 1)
        await trio.sleep(3)
        await first.send_eof()
        await second.send_all(b"x")
        assert await second.receive_some() == b"x"
        await trio.testing.wait_all_tasks_blocked()
        assert running.server.statistics().accepted == 3
        if ending == "drain":
            running.server.start_draining()
        else:
            running.scope.cancel()
        assert await third.receive_some() == b""
    by_id = {report.id: report for report in running.reports}
    assert by_id[2].queued == 3
    assert by_id[3].reason is Reason.STOPPING


async def test_a_foreign_listener_refuses_at_the_limit(autojump_clock: object) -> None:
    listener = MemoryListener()
    limits = Limits(max_connections=0, when_full="refuse")
    async with serving(echo, listeners=[listener], limits=limits) as running:
        for refusal in (b"", None):
            running.server.limits = Limits(
                max_connections=0, when_full="refuse", refusal=refusal
            )
            assert await listener.connect().receive_some() == b""
    assert [r.reason for r in running.reports] == [Reason.LIMIT] * 2


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "no"), trio.BrokenResourceError("tls"), OSError("strange")],
    ids=repr,
)
async def test_errors_of_a_foreign_listener(
    error: Exception, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 1: it backs off after an error, and goes on."""
    listener = MemoryListener()
    async with serving(echo, listeners=[listener]) as running:
        listener.send.send_nowait(error)
        stream = listener.connect()
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.aclose()
        assert sum(running.server.statistics().accept_errors.values()) == 1


async def test_a_foreign_listener_that_was_closed_is_dead(
    autojump_clock: object,
) -> None:
    listener = MemoryListener()
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.send.close()
        await serve(echo, [listener])


# -- a drop-in for trio.serve_tcp


async def test_it_replaces_trios_serve_tcp_in_one_line() -> None:
    """A program on ``trio.serve_tcp`` runs on ours."""

    async def handler(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        for serve_it in (trio.serve_tcp, serve_tcp):
            listeners = await nursery.start(
                partial(serve_it, handler, 0, host="127.0.0.1")
            )
            stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
            async with stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
        assert listeners[:] == list(listeners)
        assert len(listeners) == 1
        assert repr(listeners).startswith("<Server on 127.0.0.1:")
        assert isinstance(listeners[0], trio.SocketListener)
        assert listeners.timeouts == Timeouts()
        nursery.cancel_scope.cancel()


async def test_every_interface_by_default() -> None:
    """``host=None`` means all interfaces, as in Trio; ``local`` says which one."""
    async with trio.open_nursery() as nursery:
        seen: list[Address | None] = []

        async def handler(conn: Connection) -> None:
            seen.append(conn.local)

        server = await nursery.start(serve_tcp, handler, 0)
        port = server[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b""
        assert seen == [TcpAddress("127.0.0.1", port)]
        server.start_draining()


async def test_a_lent_nursery_that_is_closed_ends_serving(
    autojump_clock: object,
) -> None:
    """As in Trio; accepted connections are refused and reported."""
    reports: list[Any] = []

    class Closed:
        def __init__(self, nursery: trio.Nursery) -> None:
            self.nursery = nursery

        def start_soon(self, *args: Any, **options: Any) -> None:
            raise RuntimeError("Nursery is closed to new arrivals")

    async def collector(channel: trio.MemoryReceiveChannel[Any]) -> None:
        reports.extend([report async for report in channel])

    (listener,) = await open_listeners("127.0.0.1:0")
    assert isinstance(listener, trio.SocketListener)
    async with trio.open_nursery() as nursery:
        streams = [
            await trio.testing.open_stream_to_socket_listener(listener)
            for _ in range(3)
        ]
        with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
            await serve(
                echo,
                [listener],
                handler_nursery=Closed(nursery),
                collector=collector,
            )
        for stream in streams:
            await stream.aclose()
    assert len(reports) == 3


async def test_a_client_that_resets_before_accept_is_reported(
    autojump_clock: object,
) -> None:
    """Law 3: reset in the kernel's queue, it is still accepted and reported."""
    async with serving(echo, limits=Limits(max_connections=0)) as running:
        for _ in range(3):
            reset(await running.connect())
        running.server.limits = Limits(max_connections=5)
        await trio.testing.wait_all_tasks_blocked()
    assert [r.reason for r in running.reports] == [Reason.CLIENT_RESET] * 3

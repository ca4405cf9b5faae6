"""TLS handshakes at the engine: the same as in a task, for whatever may happen."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import datetime as dt
import errno
import math
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from links import shake_hands_but_for_the_last_flight, tls_contexts
from support import Running, is_reset, reset, run, serving
from sweep import Begin, sweep
from test_tls import ask, ask_until_stopped, client_over, secure
from trioserve import (
    Connection,
    Layers,
    Limits,
    Outcome,
    Reason,
    Timeouts,
    TlsOptions,
    _handshake,
    current_connection,
    echo,
    proxy,
)
from trioserve._engine import Engine
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession

WAYS = ("engine", "task")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def before_an_echo(
    tls: TlsOptions | ssl.SSLContext, **options: Any
) -> AsyncGenerator[Running]:
    """A proxy with TLS, and an echo as its target."""
    async with serving(echo) as behind:
        handler, layers = proxy(behind.address), Layers(tls=tls)
        async with serving(handler, layers=layers, **options) as running:
            yield running


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_handshake, "HAS_ENGINE", request.param == "engine")
    return str(request.param)


# -- Clients; each returns how it has ended


async def _talks(running: Running, authority: Authority) -> str:
    client = await secure(running, authority.client_context())
    assert await ask(client, b"hello") == b"hello"
    client.close()
    return "ok"


async def _sends_all_at_once(running: Running, authority: Authority) -> str:
    """Its message comes with its Finished."""
    client = client_over(await running.connect(), authority.client_context())
    await shake_hands_but_for_the_last_flight(client)
    client.session.write(b"hello")
    client.session.close()
    await client.below.send(client.session.output())
    received = b""
    while more := await client.receive():
        received += more
    client.close()
    return received.decode()


async def _is_too_old(running: Running, authority: Authority) -> str:
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return await _fails(running, context)


async def _does_not_trust(running: Running, authority: Authority) -> str:
    return await _fails(running, ssl.create_default_context())


async def _fails(running: Running, context: ssl.SSLContext) -> str:
    client = client_over(await running.connect(), context)
    with pytest.raises(TlsError) as failed:
        await client.handshake()
    client.below.close()
    return str(failed.value)


async def _speaks_http(running: Running, authority: Authority) -> str:
    client = await running.connect()
    await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
    return "reset" if await is_reset(client) else "eof"


async def _only_connects(running: Running, authority: Authority) -> str:
    await (await running.connect()).aclose()
    return ""


async def _ends_halfway(running: Running, authority: Authority) -> str:
    client = client_over(await running.connect(), authority.client_context())
    client.session.handshake()
    await client.below.send(client.session.output()[:50])
    client.below.close()
    return ""


async def _resets_halfway(running: Running, authority: Authority) -> str:
    client = await running.connect()
    await client.send_all(b"\x16\x03\x01")
    await trio.testing.wait_all_tasks_blocked()
    reset(client)
    return ""


async def _is_silent(running: Running, authority: Authority) -> str:
    """It is reset when ``Timeouts.handshake`` is over, and not before or after."""
    client, began = await running.connect(), trio.current_time()
    assert await is_reset(client)
    return f"{trio.current_time() - began:.1f}"


async def _is_slow(running: Running, authority: Authority) -> str:
    """No byte extends the time."""
    client, began = await running.connect(), trio.current_time()
    for byte in b"\x16\x03\x01":
        await client.send_all(bytes([byte]))
        await trio.sleep(2)
    assert await is_reset(client)
    return f"{trio.current_time() - began:.1f}"


async def _has_to_go(running: Running, authority: Authority) -> str:
    """Others begin their handshakes, and there are too many."""
    client = await running.connect()
    await trio.testing.wait_all_tasks_blocked()
    others = [await running.connect() for _ in range(3)]
    assert await is_reset(client)
    for other in others:
        await other.aclose()
    return ""


async def _is_cut(running: Running, authority: Authority) -> str:
    client = await running.connect()
    await client.send_all(b"\x16\x03\x01")
    await trio.testing.wait_all_tasks_blocked()
    running.server.start_draining(within=1)
    assert await is_reset(client)
    return ""


async def _is_cancelled(running: Running, authority: Authority) -> str:
    client = await running.connect()
    await client.send_all(b"\x16\x03\x01")
    await trio.testing.wait_all_tasks_blocked()
    running.scope.cancel()
    assert await is_reset(client)
    return ""


async def _reads_nothing(running: Running, authority: Authority) -> str:
    """The server's flight is longer than what the kernel takes."""
    stream = await running.connect()
    client = client_over(stream, authority.client_context())
    client.session.handshake()
    await client.below.send(client.session.output())
    await trio.sleep(3)
    while not client.session.handshake():
        client.session.feed(await client.below.receive())
    await client.below.send(client.session.output())
    assert await ask(client, b"hello") == b"hello"
    client.close()
    return "ok"


_NOT_TRUSTED = (
    "its certificate is not accepted: unable to get local issuer certificate"
    " (alert sent: unknown_ca)"
)

Client = Callable[[Running, Authority], Awaitable[str]]

#: What a client does; how it ends, and the reason and the error in the report.
CLIENTS: dict[Client, tuple[str, Reason, str | None]] = {
    _talks: ("ok", Reason.CLIENT_CLOSED, None),
    _sends_all_at_once: ("hello", Reason.CLIENT_CLOSED, None),
    _is_too_old: (
        "it sent the alert protocol_version",
        Reason.TLS_FAILED,
        "it offers no version of TLS that is allowed (alert sent: protocol_version)",
    ),
    _does_not_trust: (
        _NOT_TRUSTED,
        Reason.TLS_FAILED,
        "it sent the alert unknown_ca",
    ),
    _speaks_http: ("eof", Reason.TLS_FAILED, "it sent plain HTTP, without TLS"),
    _only_connects: ("", Reason.CLIENT_CLOSED, None),
    _ends_halfway: (
        "",
        Reason.TLS_FAILED,
        "it closed the connection within the TLS handshake",
    ),
    _resets_halfway: (
        "",
        Reason.CLIENT_RESET,
        "ConnectionResetError: [Errno 104] Connection reset by peer",
    ),
    _is_silent: ("7.0", Reason.HANDSHAKE, None),
    _is_slow: ("7.0", Reason.HANDSHAKE, None),
    _has_to_go: ("", Reason.HANDSHAKE, "more than 3 handshakes at a time"),
    _is_cut: ("", Reason.CUT, None),
    _is_cancelled: ("", Reason.CANCELLED, None),
    _reads_nothing: ("ok", Reason.CLIENT_CLOSED, None),
}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__[1:])
async def test_each_client_gets_the_same_and_so_does_its_report(
    client: Client, way: str, authority: Authority, autojump_clock: object
) -> None:
    """Laws 1, 2, 3, 12 and 16."""
    names = ["localhost"]
    if client is _reads_nothing:
        names += [f"{number}.example.org" for number in range(5000)]
    tls = TlsOptions(cert=authority.issue(*names), min_version="1.3")
    limits = Limits(max_handshakes=3)
    timeouts = Timeouts(handshake=7)
    async with before_an_echo(tls, limits=limits, timeouts=timeouts) as running:
        running.server[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ended = await client(running, authority)
        if client is _has_to_go:
            await running.closed(4)
    report = running.reports[0]
    assert (ended, report.reason, report.error) == CLIENTS[client]
    ran_out: dict[Client, float] = {_is_silent: 7, _is_slow: 7, _is_cut: 1}
    assert report.limit == ran_out.get(client)
    assert not any(Engine.of_this_run()._polled)


async def test_a_name_that_is_not_allowed(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """The handshake is over, and the client gets an end that it can read."""
    clients = Authority(authority.folder)
    cert = authority.issue("localhost")
    tls = TlsOptions(cert=cert, client_ca=clients.path, allow_cn=["other"])
    async with before_an_echo(tls) as running:
        cert = clients.issue("localhost", common_name="web")
        client = await secure(running, authority.client_context(cert))
        with pytest.raises(trio.BrokenResourceError):
            await ask(client, b"hello")
        client.close()
    (report,) = running.reports
    assert report.reason is Reason.TLS_FAILED
    assert str(report.error).startswith("its certificate has no name that is allowed")
    assert report.target is None


async def test_a_lower_limit_applies_when_the_next_one_begins(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 15: not when a task goes on with one that has begun."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls, limits=Limits(max_handshakes=3)) as running:
        first, second = await running.connect(), await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        running.server.limits = Limits(max_handshakes=1)
        await first.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert not await is_reset(first)
        await first.aclose()
        await running.closed(1)
        third = await running.connect()
        assert await is_reset(second)
        await third.aclose()
    said = {report.id: (report.reason, report.error) for report in running.reports}
    assert said[1] == (Reason.TLS_FAILED, "it sent plain HTTP, without TLS")
    assert said[2] == (Reason.HANDSHAKE, "more than 1 handshakes at a time")


async def test_it_has_the_context_of_its_caller(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """What OpenSSL calls, and what a proxy calls, know the connection."""
    variable = contextvars.ContextVar[str]("variable")
    seen: list[tuple[int, str]] = []

    def look(*_: object) -> None:
        seen.append((current_connection().id, variable.get()))

    class Context(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            look()
            return super().wrap_bio(*args, **kwargs)

    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("localhost"))
    context.sni_callback = look
    variable.set("caller")
    async with serving(echo) as behind:
        handler = proxy(behind.address, on_attempt=look)
        async with serving(handler, layers=Layers(tls=context)) as running:
            assert await _talks(running, authority) == "ok"
    assert seen == [(1, "caller")] * 3


async def test_other_tasks_of_the_connection_are_told_that_it_is_busy(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """The bytes of a handshake are nobody else's; a close ends it at once."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls) as running:
        client = client_over(await running.connect(), authority.client_context())
        await trio.testing.wait_all_tasks_blocked()
        (conn,) = running.server.connections
        with pytest.raises(trio.BusyResourceError):
            await conn.receive_some()
        await client.handshake()
        assert await ask(client, b"hello") == b"hello"
        client.close()
        await running.closed(1)
        silent, began = await running.connect(), trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        (conn,) = running.server.connections
        await conn.aclose()
        await is_reset(silent)
        assert trio.current_time() - began < 1


@asynccontextmanager
async def one_in_the_queue(
    tls: TlsOptions,
) -> AsyncGenerator[tuple[Running, trio.SocketStream, trio.SocketStream]]:
    """A client that has a token, and a second one that waits for that."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with before_an_echo(
        tls,
        listeners=[_Streams(listeners[0])],
        limits=Limits(max_connections=1),
    ) as running:
        first = await trio.open_tcp_stream("127.0.0.1", port)
        await trio.testing.wait_all_tasks_blocked()
        second = await trio.open_tcp_stream("127.0.0.1", port)
        await trio.testing.wait_all_tasks_blocked()
        yield running, first, second
        await second.aclose()


async def test_a_connection_that_is_aborted_in_the_queue(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 15: before it has its token."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with one_in_the_queue(tls) as (running, first, second):
        running.server.connections[1].abort("admin")
        await first.aclose()
        assert await is_reset(second)
    said = {report.id: (report.reason, report.error) for report in running.reports}
    assert said[2] == (Reason.ABORTED, "admin")


async def test_a_task_that_receives_since_the_queue(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 1: the bytes of a handshake are not for two."""
    tls = TlsOptions(cert=authority.issue("localhost"))

    async def receive(conn: Connection) -> None:
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await conn.receive_some()

    async with (
        trio.open_nursery() as nursery,
        one_in_the_queue(tls) as (running, first, second),
    ):
        nursery.start_soon(receive, running.server.connections[1])
        await first.aclose()
        assert await is_reset(second)
    said = {report.id: (report.reason, report.error) for report in running.reports}
    busy = "BusyResourceError: another task is receiving"
    assert said[2] == (Reason.HANDLER_ERROR, busy)


class _Streams(trio.abc.Listener[trio.SocketStream]):
    """A listener of a caller's own: its streams wait for their tokens."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


async def test_its_time_is_from_when_it_waits_for_the_client(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls) as running:
        client = client_over(await running.connect(), authority.client_context())
        await trio.sleep(3)
        await client.handshake()
        client.close()
    (report,) = running.reports
    assert report.tls is not None
    assert report.tls.handshake == pytest.approx(3, abs=0.1)


def _send_now(stream: trio.SocketStream, data: bytes) -> None:
    """Send without a checkpoint, so that the server runs later."""
    assert os.write(stream.socket.fileno(), data) == len(data)


@pytest.mark.parametrize("kind", ["http", "damaged", "name"])
async def test_what_has_failed_when_its_time_is_over_too_is_not_late(
    kind: str, way: str, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 14: the process was stopped meanwhile."""
    clients = Authority(authority.folder)
    cert = clients.issue("localhost", common_name="web")
    options: dict[str, Any] = {"client_ca": clients.path, "allow_cn": ["other"]}
    tls = TlsOptions(
        cert=authority.issue("localhost"), **(options if kind == "name" else {})
    )
    said = {
        "http": "it sent plain HTTP, without TLS",
        "damaged": "(alert sent: ",
        "name": "its certificate has no name that is allowed",
    }
    async with before_an_echo(tls, timeouts=Timeouts(handshake=7)) as running:
        stream = await running.connect()
        client = client_over(stream, authority.client_context(cert))
        data = b"GET / HTTP/1.1\r\n\r\n"
        if kind == "name":
            await shake_hands_but_for_the_last_flight(client)
            data = client.session.output()
        elif kind == "damaged":
            client.session.handshake()
            hello = client.session.output()
            data = hello[:43] + b"\xff" + hello[44:]
        await trio.testing.wait_all_tasks_blocked()
        _send_now(stream, data)
        autojump_clock.jump(8)
        # Nothing is sent after a handshake that is over.
        assert await is_reset(stream) == (kind == "name")
        await stream.aclose()
    (report,) = running.reports
    assert report.reason is Reason.TLS_FAILED
    assert said[kind] in str(report.error)


@pytest.mark.parametrize("reason", [Reason.CLIENT_CLOSED, Reason.CLIENT_RESET])
async def test_a_client_that_is_gone_when_its_time_is_over_is_not_late(
    reason: Reason,
    way: str,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 14: nor is one that has only connected, for a check."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls, timeouts=Timeouts(handshake=7)) as running:
        client = await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        if reason is Reason.CLIENT_RESET:
            reset(client)
        else:
            client.socket.close()
        autojump_clock.jump(8)
    (report,) = running.reports
    assert report.reason is reason


async def test_a_close_by_other_code_is_not_the_clients_or_the_handlers(
    way: str, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 2: if its time is over, too, when that is found."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls, timeouts=Timeouts(handshake=7)) as running:
        for jumps in (False, True):
            client = await running.connect()
            await trio.testing.wait_all_tasks_blocked()
            (conn,) = running.server.connections
            if jumps:
                autojump_clock.jump(8)
            conn.socket.close()
            assert not await is_reset(client)
            await trio.sleep(8)
            await client.aclose()
    assert {report.reason for report in running.reports} == {Reason.ABORTED}
    assert all("ClosedResourceError" in str(each.error) for each in running.reports)


async def test_a_session_that_ends_the_program(
    way: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 1: it is raised as it is."""

    def ends(*_: object, **__: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("trioserve._tls_layer.TlsSession", ends)
    tls = TlsOptions(cert=authority.issue("localhost"))
    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        async with before_an_echo(tls) as running:
            client = await running.connect()
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send_all(b"?")
            await trio.sleep_forever()


class _Spawned(trio.abc.Instrument):
    """The names of the tasks that connections have had."""

    def __init__(self) -> None:
        self.names = list[str]()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith("conn-"):
            self.names.append(task.name.partition(" ")[0])


async def test_a_silent_client_costs_no_session_and_no_task(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Whatever ends it; if that is not its own time, it has a task in the end."""
    made = list[TlsSession]()

    def make(*args: Any, **kwargs: Any) -> TlsSession:
        made.append(TlsSession(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("trioserve._tls_layer.TlsSession", make)
    tls = TlsOptions(cert=authority.issue("localhost"))
    limits, timeouts = Limits(max_handshakes=4), Timeouts(handshake=7)
    async with before_an_echo(tls, limits=limits, timeouts=timeouts) as running:
        assert await _talks(running, authority) == "ok"
        await running.closed(1)
        trio.lowlevel.add_instrument(spawned := _Spawned())
        silent = [await running.connect() for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        running.server.connections[1].abort("admin")
        silent += [await running.connect() for _ in range(2)]  # one too many
        for each in silent:
            assert await is_reset(each)
    ended = collections.Counter(report.reason for report in running.reports)
    assert ended == {Reason.CLIENT_CLOSED: 1, Reason.ABORTED: 1, Reason.HANDSHAKE: 5}
    assert [report.limit for report in running.reports].count(7) == 4
    assert len(made) == 1
    assert sorted(spawned.names) == ["conn-2", "conn-3"]


async def test_its_timer_ends_with_it(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 13: the relay has one of its own; with a lifetime, that goes on."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    for lifetime, expected in ((math.inf, 1), (100, 2)):
        timeouts = Timeouts(lifetime=lifetime, handshake=7)
        async with before_an_echo(tls, timeouts=timeouts) as running:
            client = await secure(running, authority.client_context())
            await client.send(b"hello")
            assert await client.receive() == b"hello"
            holders = running.server._serving._timers._holders
            assert sum(map(len, holders.values())) == expected
            client.close()


def _with_a_name_that_is_not_text(authority: Authority) -> str:
    """A certificate that signs itself, for localhost and for two bytes more."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    names = x509.UnrecognizedExtension(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        b"\x30\x0f\x82\x09localhost\x82\x02\xff\xfe",
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    path = authority.folder / "odd.pem"
    path.write_bytes(
        certificate
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(path)


async def test_a_certificate_with_a_name_that_is_not_text(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 15: the client is to blame."""
    path = _with_a_name_that_is_not_text(authority)
    tls = TlsOptions(cert=authority.issue("localhost"), client_ca=path)
    async with before_an_echo(tls) as running:
        client = await secure(running, authority.client_context(path))
        with pytest.raises(trio.BrokenResourceError):
            await ask(client, b"hello")
        client.close()
    (report,) = running.reports
    assert report.reason is Reason.TLS_FAILED
    assert report.error == "its certificate has a name that is not valid UTF-8"


async def test_so_is_that_of_a_target(
    authority: Authority, autojump_clock: object
) -> None:
    """Law 15: it is a failed attempt, with its reason."""
    path = _with_a_name_that_is_not_text(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    async with before_an_echo(context) as behind:
        target = f"tls://{behind.address}?ca={path}&sni=localhost"
        async with serving(proxy(target)) as running:
            assert await is_reset(await running.connect())
    (report,) = running.reports
    assert report.outcome is Outcome.TARGET_ERROR
    assert "a name that is not valid UTF-8" in str(report.attempts[0].error)


async def test_a_client_past_it_does_not_count(
    way: str, authority: Authority, autojump_clock: object
) -> None:
    """Law 2: ``max_handshakes`` is about those that are under way."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls, limits=Limits(max_handshakes=2)) as running:
        context = authority.client_context()
        clients = [await secure(running, context) for _ in range(5)]
        for client in clients:
            assert await ask(client, b"hello") == b"hello"
            client.close()
    assert {report.reason for report in running.reports} == {Reason.CLIENT_CLOSED}


@given(
    sizes=st.lists(st.integers(1, 700), max_size=8),
    version=st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
    schedule=st.random_module(),
)
@settings(deadline=None, max_examples=30)
def test_the_handshake_comes_in_pieces_of_any_size(
    sizes: list[int], version: ssl.TLSVersion, schedule: object
) -> None:
    """Law 10."""
    ours, theirs = tls_contexts(version)

    async def main() -> None:
        async with before_an_echo(ours) as running:
            client = client_over(await running.connect(), theirs)
            pieces = iter(sizes)
            is_over = False
            while not is_over:
                is_over = client.session.handshake()
                flight = client.session.output()
                while flight:
                    size = next(pieces, len(flight))
                    await client.below.send(flight[:size])
                    flight = flight[size:]
                    await trio.testing.wait_all_tasks_blocked()
                if not is_over:
                    client.session.feed(await client.below.receive())
            assert await ask(client, b"hello") == b"hello"
            client.close()
        (report,) = running.reports
        assert report.reason is Reason.CLIENT_CLOSED
        assert report.tls is not None
        assert (report.bytes_received, report.bytes_sent) == (5, 5)

    run(main)


# -- What may be missing here


def _no_room(engine: Engine, pump: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_without_room_in_the_epoll_a_task_does_it(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Law 1: epoll_ctl(2), ENOSPC and ENOMEM."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls) as running:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "add", _no_room)
            client = await secure(running, authority.client_context())
        assert await ask(client, b"hello") == b"hello"
        client.close()
    assert running.reports[0].reason is Reason.CLIENT_CLOSED


async def test_an_epoll_that_is_lost_leaves_it_to_a_task(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Law 1: nothing waits for an event that can't come."""
    tls = TlsOptions(cert=authority.issue("localhost"))
    async with before_an_echo(tls) as running:
        clients = []
        for case in range(3):
            client = client_over(await running.connect(), authority.client_context())
            clients.append(client)
            await trio.testing.wait_all_tasks_blocked()
            engine = Engine.of_this_run()
            assert engine._epoll is not None
            if case == 0:
                trio.lowlevel.notify_closing(engine._epoll)
            else:  # as if another one was made, which had no room
                pump = next(filter(None, engine._polled))
                engine._epoll.unregister(pump.fd)
                engine._lose(pump, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
                if case == 2:
                    pump.relay.on_failure(OSError())  # told twice
            await trio.testing.wait_all_tasks_blocked()
        for client in clients:
            await client.handshake()
            assert await ask(client, b"hello") == b"hello"
            client.close()
    assert {report.reason for report in running.reports} == {Reason.CLIENT_CLOSED}


async def test_a_bug_ends_one_connection_and_is_reported(
    way: str,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: object,
) -> None:
    """Law 1: at the beginning, and in the middle."""
    tls = TlsOptions(cert=authority.issue("localhost"))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    async with before_an_echo(tls) as running:
        with monkeypatch.context() as patch:
            patch.setattr("trioserve._tls_layer.TlsSession", fails)
            first = await running.connect()
            with contextlib.suppress(trio.BrokenResourceError):  # in a task it is early
                await first.send_all(b"?")
            assert await is_reset(first)
        other = await secure(running, authority.client_context())
        with monkeypatch.context() as patch:
            client = await running.connect()
            await trio.testing.wait_all_tasks_blocked()
            patch.setattr(TlsSession, "feed", fails)
            await client.send_all(b"?")
            assert await is_reset(client)
        with monkeypatch.context() as patch:
            patch.setattr("trioserve._tls_layer._check_names", fails)
            last = await secure(running, authority.client_context())
            with pytest.raises(trio.BrokenResourceError):
                await last.receive()
            last.below.close()
        assert await ask(other, b"hello") == b"hello"
        other.close()
    *failed, good = sorted(running.reports, key=lambda each: each.outcome == "ok")
    assert [report.reason for report in failed] == [Reason.HANDLER_ERROR] * 3
    assert {report.error for report in failed} == {"RuntimeError: a bug"}
    assert good.reason is Reason.CLIENT_CLOSED


def test_stopped_at_any_step_nothing_is_left() -> None:
    """Laws 2, 3, 5 and 13: by a cancel."""
    ours, theirs = tls_contexts(ssl.TLSVersion.TLSv1_3)

    async def scenario(begin: Begin) -> None:
        async with before_an_echo(ours, limits=Limits(max_connections=1)) as running:
            begin(running.scope.cancel)
            await ask_until_stopped(running, theirs)
        assert len(running.reports) <= 1
        assert not any(Engine.of_this_run()._polled)

    assert sweep(scenario) >= 10

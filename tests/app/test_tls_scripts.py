"""TLS through the command: whatever is sent, in whatever order, arrives or is cut off.

One process has many conversations; their ends are here, on real sockets.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from app.process import PATIENCE, Start
from certificates import Authority
from links import Peer, TlsPeer, some_bytes, trio_stream
from test_tls_targets import VERSIONS, server_context
from trioserve.wire._tls_session import TlsSession

CLIENT, TARGET = 0, 1

_End = trio.SocketStream | TlsPeer


class Proxy:
    """``trioserve proxy`` between ends that speak TLS or plain text.

    Args:
      secure: the ends that speak TLS.
    """

    def __init__(self, start: Start, folder: Path, secure: tuple[int, ...]) -> None:
        authority = Authority(folder)
        cert, ca = authority.issue("localhost"), authority.path
        self._secure = secure
        self._servers = {each: server_context(cert, each) for each in VERSIONS}
        self._clients = {each: authority.client_context() for each in VERSIONS}
        for version, context in self._clients.items():
            context.minimum_version = context.maximum_version = version
        self._listener = socket.create_server(("127.0.0.1", 0))
        target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        if TARGET in secure:
            target = f"tls://{target}?ca={ca}&sni=localhost"
        options = ["--tls-cert", cert] if CLIENT in secure else []
        self._reports = folder / "reports.jsonl"
        self._command = start(
            *("proxy", "127.0.0.1:0", target, *options),
            *("--log", "logfmt", "--reports", str(self._reports)),
        )
        self._port = self._command.port()

    @asynccontextmanager
    async def conversation(
        self, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
    ) -> AsyncGenerator[tuple[Peer, Peer]]:
        """Both ends of a connection through it, after their handshakes."""
        client, target = (self._clients[versions[0]], self._servers[versions[1]])
        with trio.fail_after(PATIENCE):
            sock = socket.create_connection(("127.0.0.1", self._port))
            hello = TlsSession(client, server_side=False, server_hostname="localhost")
            one = await self._end(CLIENT, sock, hello)
            await trio.lowlevel.wait_readable(self._listener)
            sock, _ = self._listener.accept()
            other = await self._end(TARGET, sock, TlsSession(target, server_side=True))
            try:
                yield Peer(one), Peer(other)
            finally:
                await one.aclose()
                await other.aclose()

    async def _end(self, who: int, sock: socket.socket, session: TlsSession) -> _End:
        if who not in self._secure:
            return trio_stream(sock)
        peer = TlsPeer(sock, session)
        await peer.transport.handshake()
        return peer

    def stop(self) -> list[dict[str, Any]]:
        """Drain it; its reports, in the order in which the connections began."""
        self._listener.close()
        self._command.signal(signal.SIGTERM)
        assert self._command.code() == 0
        reports = map(json.loads, self._reports.read_text().splitlines())
        return sorted(reports, key=lambda report: int(report["id"]))


def through_each(examples: int, long: int) -> pytest.MarkDecorator:
    """The ends that speak TLS, and how many examples: few of one kind, many of all."""
    many = pytest.mark.nightly("more examples, and other ends")
    return pytest.mark.parametrize(
        ("secure", "examples"),
        [
            pytest.param((CLIENT, TARGET), examples, id="both"),
            pytest.param((CLIENT, TARGET), long, marks=many, id="both-long"),
            pytest.param((CLIENT,), long, marks=many, id="client-long"),
            pytest.param((TARGET,), long, marks=many, id="target-long"),
        ],
    )


_versions = st.tuples(st.sampled_from(VERSIONS), st.sampled_from(VERSIONS))
_sends = st.lists(st.integers(1, 60_000), max_size=8)


class Script(NamedTuple):
    """What both ends do at the same time.

    Attributes:
      sends: the sizes of what each end sends before its end, or before it waits.
      first: the one that sends EOF; the other waits for that, and sends more. None if
        both end on their own.
      more: the sizes of what the one sends that has waited.
      slow: the one that does not read before all that is sent.
    """

    versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
    sends: tuple[list[int], list[int]]
    first: int | None
    more: list[int]
    slow: int | None


_either = st.sampled_from([CLIENT, TARGET, None])
_scripts = st.builds(
    Script, _versions, st.tuples(_sends, _sends), _either, _sends, _either
)


async def _play(proxy: Proxy, script: Script) -> tuple[int, int]:
    """Play it, and check that each end has got every byte; their numbers."""

    async def act(who: int, peer: Peer, has_read: trio.Event) -> None:
        for size in script.sends[who]:
            await peer.send(size)
        peer.read_on()
        if script.first == 1 - who:
            await has_read.wait()
            for size in script.more:
                await peer.send(size)
        await peer.send_eof()

    async def read(peer: Peer, has_read: trio.Event) -> None:
        await peer.read()
        has_read.set()

    async with proxy.conversation(script.versions) as peers:
        async with trio.open_nursery() as nursery:
            for who, peer in enumerate(peers):
                if script.slow == who:
                    peer.stop_reading()
                has_read = trio.Event()
                nursery.start_soon(act, who, peer, has_read)
                nursery.start_soon(read, peer, has_read)
        for one, other in (peers, peers[::-1]):
            assert one.received == other.sent
            assert one.tail == "eof"
    return len(peers[CLIENT].sent), len(peers[TARGET].sent)


@through_each(15, 350)
def test_each_end_ends_its_own_direction(
    secure: tuple[int, ...], examples: int, start: Start, tmp_path: Path
) -> None:
    """Law 7: every byte arrives, in both orders, with each version at each end."""
    proxy = Proxy(start, tmp_path, secure)
    played: list[tuple[int, int]] = []

    @given(_scripts)
    @settings(max_examples=examples)
    def play(script: Script) -> None:
        played.append(trio.run(_play, proxy, script))

    play()
    reports = proxy.stop()
    assert [(each["bytes_received"], each["bytes_sent"]) for each in reports] == played
    assert {each["outcome"] for each in reports} == {"ok"}
    assert len(played) >= examples


class Cut(NamedTuple):
    """A transfer that is cut.

    Attributes:
      who: the end that sends.
      sizes: of its records, a close_notify comes after them.
      place: after how many encrypted bytes nothing more comes: by this modulo of all.
      by: what comes instead.
    """

    versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
    who: int
    sizes: list[int]
    place: int
    by: str


async def _cut(proxy: Proxy, cut: Cut) -> None:
    async with proxy.conversation(cut.versions) as peers:
        sender, receiver = peers[cut.who], peers[1 - cut.who]
        assert isinstance(sender.stream, TlsPeer)
        transport = sender.stream.transport
        written = 0
        for size in cut.sizes:
            transport.session.write(some_bytes(written, size))
            written += size
        transport.session.close()
        whole = transport.session.output()
        place = cut.place % (len(whole) + 1)
        await transport.below.send(whole[:place])
        if cut.by == "FIN":
            await transport.below.send_eof()
        else:
            sender.reset()
        await receiver.read()
        assert receiver.received == some_bytes(0, len(receiver.received))
        if place < len(whole):
            assert receiver.tail == "reset"
        elif cut.by == "FIN":
            assert (len(receiver.received), receiver.tail) == (written, "eof")


@through_each(25, 300)
def test_a_transfer_that_is_cut_is_not_a_clean_end(
    secure: tuple[int, ...], examples: int, start: Start, tmp_path: Path
) -> None:
    """Law 8: at any byte of it, by FIN or RST; what has arrived is as it was sent."""
    proxy = Proxy(start, tmp_path, secure)
    cuts = st.builds(
        Cut,
        _versions,
        st.sampled_from(secure),
        st.lists(st.integers(1, 2_000), min_size=1, max_size=4),
        st.integers(0, 10_000),
        st.sampled_from(["FIN", "RST"]),
    )

    @given(cuts)
    @settings(max_examples=examples)
    def play(cut: Cut) -> None:
        trio.run(_cut, proxy, cut)

    play()
    assert len(proxy.stop()) >= examples

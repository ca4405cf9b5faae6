"""Link-local addresses on real interfaces, in a network namespace for this test."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import trio

from real.tools import needs, needs_linux, needs_namespace
from trioserve import (
    ConnectionReport,
    Limits,
    Reason,
    echo,
    open_listeners,
    proxy,
    serve,
)

_NAMESPACE = ("unshare", "--map-root-user", "--net")


@needs_linux
@needs("ip", "unshare")
@needs_namespace(*_NAMESPACE)
def test_zones_of_interfaces() -> None:
    """In another process, which has only the interfaces that it makes."""
    tests = str(Path(__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {tests!r}); from real import test_zones as t"
    )
    code += "; t.inside()"
    subprocess.run([*_NAMESPACE, sys.executable, "-c", code], check=True, timeout=120)


def inside() -> None:
    """What runs in that process."""
    _ip("link set lo up")
    _make_interface("d0")
    _make_interface("e0")
    trio.run(_the_zone_is_looked_up_again)
    trio.run(_the_zone_tells_peers_apart)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _make_interface(name: str) -> None:
    """An interface with the address fe80::1."""
    _ip(f"link add {name} type veth peer name {name}peer")
    for end in (name, f"{name}peer"):
        _ip(f"link set {end} up")
    _ip(f"-6 addr add fe80::1/64 dev {name} nodad")


async def _is_echoed(port: int) -> bool:
    with trio.fail_after(20):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"?")
            return await stream.receive_some() == b"?"


async def _the_zone_is_looked_up_again() -> None:
    """The target's interface is created again, with another number."""
    async with trio.open_nursery() as nursery:
        (listener,) = await open_listeners("[fe80::1%d0]:0")
        target = await nursery.start(serve, echo, [listener])
        port = listener.socket.getsockname()[1]
        address = f"[fe80::1%d0]:{port}"
        assert [str(each) for each in target.addresses] == [address]
        places = await open_listeners("127.0.0.1:0")
        front = await nursery.start(serve, proxy(address), places)
        _, _, front_port = str(front.addresses[0]).rpartition(":")
        assert await _is_echoed(int(front_port))
        await target.drain(within=5)

        _ip("link del d0")
        _make_interface("d0")
        (listener,) = await open_listeners(address)
        target = await nursery.start(serve, echo, [listener])
        assert await _is_echoed(int(front_port))
        await front.drain(within=5)
        await target.drain(within=5)


async def _the_zone_tells_peers_apart() -> None:
    """One address on two interfaces is two peers; reports name the interfaces."""
    reports: list[ConnectionReport] = []

    async def collect(taken: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        reports.extend([report async for report in taken])

    async with trio.open_nursery() as nursery:
        places = await open_listeners("[::]:0")
        limits = Limits(max_per_peer=1)
        running = await nursery.start(
            functools.partial(serve, echo, places, limits=limits, collector=collect)
        )
        port = running[0].socket.getsockname()[1]
        streams = [
            await trio.open_tcp_stream(f"fe80::1%{zone}", port)
            for zone in ("d0", "e0", "d0")
        ]
        for stream in streams[:2]:
            await stream.send_all(b"?")
            assert await stream.receive_some() == b"?"
        with trio.fail_after(20):
            assert await streams[2].receive_some() == b""
        for stream in streams:
            await stream.aclose()
        await running.drain(within=5)
    reports.sort(key=lambda report: report.id)
    zones = [str(report.peer).partition("%")[2].partition("]")[0] for report in reports]
    assert zones == ["d0", "e0", "d0"]
    for zone, report in zip(zones, reports, strict=True):
        assert str(report.local) == f"[fe80::1%{zone}]:{port}"
    refused = [report.reason is Reason.PEER_LIMIT for report in reports]
    assert refused == [False, False, True]

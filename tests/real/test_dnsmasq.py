"""A real name server whose answers change, vanish and stay away, and a proxy's clients.

In another process, with a network and an ``/etc/resolv.conf`` of its own.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio

from real.tools import needs, needs_linux, needs_namespace, program
from support import Running, serving
from trioserve import Proxy, echo, proxy

_NAMESPACE: Final = ("unshare", "--map-root-user", "--net", "--mount")

#: Addresses of servers; their names are a.test to d.test.
_HOSTS: Final = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"]

#: An answer has to be followed within this many seconds: it is used for 10, and a busy
#: machine takes its time.
_PATIENCE: Final = 60.0


@needs_linux
@needs("dnsmasq", "ip", "mount", "unshare")
@needs_namespace(*_NAMESPACE)
@pytest.mark.long("answers age")
def test_no_client_fails_whatever_a_name_server_does(tmp_path: Path) -> None:
    """Law 1: A, AAAA and SRV records change, the name is gone, the server is silent."""
    tests = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {tests!r})"
    code += f"; from real import test_dnsmasq as t; t.inside({str(tmp_path)!r})"
    subprocess.run([*_NAMESPACE, sys.executable, "-c", code], check=True, timeout=500)


def inside(folder: str) -> None:
    """What runs in that process."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = Path(folder, "resolv.conf")
    resolv.write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
    with contextlib.closing(Dnsmasq(Path(folder))) as names:
        trio.run(_scenes, names)


class Dnsmasq:
    """The name server."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "dnsmasq.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self.tell([])

    def tell(self, records: list[str]) -> None:
        """Start it with these records, in its own words, in place of the old one."""
        self.close()
        options = ["no-resolv", "no-hosts", "local=/test/", "local-ttl=1"]
        options += ["listen-address=127.0.0.1", "bind-interfaces"]
        self._config.write_text("".join(f"{line}\n" for line in options + records))
        words = ["--no-daemon", f"--conf-file={self._config}"]
        self._process = subprocess.Popen([program("dnsmasq"), *words])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Clients:
    """Clients that come all the time, and what became of them."""

    def __init__(self, handler: Proxy, running: Running) -> None:
        self.handler = handler
        self._running = running
        self.count = 0
        self.failed = 0
        self.slowest = 0.0

    async def run(self) -> None:
        while True:
            await self._one()
            await trio.sleep(0.02)

    async def _one(self) -> None:
        began = trio.current_time()
        self.count += 1
        try:
            async with await self._running.connect() as stream:
                await stream.send_all(b"x")
                self.failed += await stream.receive_some() != b"x"
        except (OSError, trio.BrokenResourceError):
            self.failed += 1
        self.slowest = max(self.slowest, trio.current_time() - began)

    async def until(self, *hosts: str) -> None:
        """Wait until the targets are at these hosts."""
        with trio.fail_after(_PATIENCE):
            while self.hosts() != set(hosts):
                await trio.sleep(0.05)

    async def are_served(self) -> None:
        """Wait until some were served: then the names of the targets are known."""
        most = self.count + 10
        with trio.fail_after(_PATIENCE):
            while self.count < most:
                await trio.sleep(0.05)

    def check(self) -> None:
        """None has failed, or has waited for a name server."""
        assert self.failed == 0
        assert self.count > 100
        assert self.slowest < 5

    def hosts(self) -> set[str]:
        states = [each for each in self.handler.targets() if not each.gone]
        return {str(each.target).rpartition(":")[0].strip("[]") for each in states}


async def _scenes(names: Dnsmasq) -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for host in _HOSTS:
            where = f"[{host}]" if ":" in host else host
            server = serving(echo, addresses=(f"{where}:{port}",))
            port = (await stack.enter_async_context(server)).port
        addresses = [
            f"address=/{name}.test/{host}"
            for name, host in zip("abcd", _HOSTS, strict=True)
        ]

        def srv(priority: int, name: str) -> str:
            return f"srv-host=_x._tcp.test,{name}.test,{port},{priority},1"

        await _of_a_name(names, port)
        await _of_a_service(names, addresses, srv)


async def _of_a_name(names: Dnsmasq, port: int) -> None:
    """Asked of the system, and of the name server."""
    names.tell(_addresses("127.0.0.1"))
    async with contextlib.AsyncExitStack() as stack:
        everyone = list[Clients]()
        for text in (f"db.test:{port}?each-address", f"dns://db.test:{port}"):
            handler = proxy(text, balance="round-robin")
            running = await stack.enter_async_context(serving(handler))
            everyone.append(Clients(handler, running))
        nursery = await stack.enter_async_context(trio.open_nursery())
        await _until(everyone, "127.0.0.1")
        for clients in everyone:
            nursery.start_soon(clients.run)
        for hosts in (["127.0.0.2", "127.0.0.3"], ["127.0.0.2", "::1"]):
            names.tell(_addresses(*hosts))
            await _until(everyone, *hosts)
        names.tell([])  # NXDOMAIN
        await trio.sleep(15)
        assert all(each.hosts() == {"127.0.0.2", "::1"} for each in everyone)
        names.tell(_addresses("127.0.0.1"))
        await _until(everyone, "127.0.0.1")
        names.signal(signal.SIGSTOP)
        await trio.sleep(15)
        assert all(each.hosts() == {"127.0.0.1"} for each in everyone)
        names.tell(_addresses("127.0.0.2"))
        await _until(everyone, "127.0.0.2")
        nursery.cancel_scope.cancel()
    for clients in everyone:
        clients.check()


def _addresses(*hosts: str) -> list[str]:
    return [f"address=/db.test/{host}" for host in hosts]


async def _until(everyone: list[Clients], *hosts: str) -> None:
    for clients in everyone:
        await clients.until(*hosts)


async def _of_a_service(
    names: Dnsmasq, addresses: list[str], srv: Callable[[int, str], str]
) -> None:
    names.tell([*addresses, srv(1, "a")])
    handler = proxy("srv://_x._tcp.test", balance="round-robin")
    async with serving(handler) as running, trio.open_nursery() as nursery:
        clients = Clients(handler, running)
        await clients.until("a.test")
        nursery.start_soon(clients.run)
        await clients.are_served()
        names.tell([*addresses, srv(1, "b"), srv(2, "c")])
        await clients.until("b.test", "c.test")
        ranks = {str(s.target)[0]: s.target.priority for s in handler.targets()}
        assert ranks["b"] == 0
        assert ranks["c"] == 1
        await clients.are_served()
        names.tell(addresses)
        await trio.sleep(5)
        assert clients.hosts() == {"b.test", "c.test"}
        names.tell([*addresses, *(srv(1, name) for name in "abcd")])
        await clients.until("a.test", "b.test", "c.test", "d.test")
        await clients.are_served()
        names.signal(signal.SIGSTOP)
        await trio.sleep(15)
        assert len(clients.hosts()) == 4
        names.tell([*addresses, srv(1, "d")])
        await clients.until("d.test")
        nursery.cancel_scope.cancel()
    clients.check()

"""The command, when system calls fail: one kind after the other.

tests/test_errnos.py has the whole table, on a mock clock. Here a real process,
between a real kernel and real peers, survives, and stops when it is told to.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from real.tools import (
    PATIENCE,
    Serve,
    Target,
    Trioserve,
    connect,
    needs_linux,
    random_bytes,
    receive_exactly,
    sha256,
)

pytestmark = [
    pytest.mark.long,
    needs_linux,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler: cc"),
]

#: In the order of the enum in failing.c.
_CALLS = (
    "accept4", "connect", "recv", "send", "splice", "epoll_ctl(ADD)",
    "epoll_ctl(MOD)", "epoll_ctl(DEL)", "epoll_wait", "epoll_create1", "shutdown",
    "getsockopt", "setsockopt", "getsockname", "pipe2", "fcntl", "ioctl", "socket",
)  # fmt: skip
_RULE = struct.Struct("4i")
_ALWAYS = -1
_ANY_PORT = -1

#: At most this many calls fail during 50 other round trips: nothing spins.
_MOST_HITS = 1500


class Faults:
    """The calls that fail in programs that are started ``under`` it."""

    def __init__(self, library: Path, control: Path) -> None:
        control.write_bytes(bytes(_RULE.size * len(_CALLS)))
        with control.open("r+b") as file:
            self._rules = mmap.mmap(file.fileno(), 0)
        self.under = ("env", f"LD_PRELOAD={library}", f"FAILING={control}")

    @contextlib.contextmanager
    def fail(
        self, call: str, name: str, times: int = _ALWAYS, port: int = 0
    ) -> Generator[Callable[[], int]]:
        """Fail a call for the block; yields a function that counts its failures."""
        where = _RULE.size * _CALLS.index(call)

        def hits() -> int:
            count: int = _RULE.unpack_from(self._rules, where)[3]
            return count

        _RULE.pack_into(self._rules, where, getattr(errno, name), times, port, 0)
        yield hits
        _RULE.pack_into(self._rules, where, 0, 0, 0, 0)

    def close(self) -> None:
        self._rules.close()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload, compiled."""
    made = tmp_path_factory.mktemp("failing") / "failing.so"
    source = Path(__file__).with_name("failing.c")
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return made


@pytest.fixture
def faults(library: Path, tmp_path: Path) -> Iterator[Faults]:
    with contextlib.closing(Faults(library, tmp_path / "failing")) as faults:
        yield faults


class Pair:
    """A connection through a proxy that works: the client's end, and the target's."""

    def __init__(self, target: Target, proxy: Trioserve) -> None:
        self.client = connect(proxy.port)
        self.client.sendall(b"first")
        # Clients that failed before may have reached the target.
        while self._says(server := target.accept()) != b"first":
            server.close()
        self.server = server

    def _says(self, server: socket.socket) -> bytes:
        with contextlib.suppress(ConnectionError):
            return server.recv(5)
        return b""

    @property
    def port(self) -> int:
        port: int = self.client.getsockname()[1]
        return port

    def talk(self) -> None:
        self.client.sendall(b"there")
        assert receive_exactly(self.server, 5) == b"there"
        self.server.sendall(b"back")
        assert receive_exactly(self.client, 4) == b"back"

    def ends(self) -> None:
        """Wait until both ends see the end of the connection."""
        for sock in (self.client, self.server):
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextlib.contextmanager
def _tried(proxy: Trioserve) -> Generator[None]:
    """A client for the block, which may be reset before it is connected."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ConnectionError):
            stack.enter_context(contextlib.closing(connect(proxy.port)))
        yield


_SOCKET_CALLS = [
    *(("recv", name) for name in ("ENOMEM", "ENOBUFS", "EIO", "EPERM", "EBADF",
                                  "ETIMEDOUT", "ECONNRESET", "EINVAL", "EFAULT")),
    *(("send", name) for name in ("ENOMEM", "ENOBUFS", "EIO", "EPERM", "EBADF",
                                  "ETIMEDOUT", "EPIPE", "EACCES", "ENETDOWN",
                                  "EMSGSIZE", "EDESTADDRREQ", "EOPNOTSUPP")),
    *(("shutdown", name) for name in ("ENOTCONN", "ENOBUFS", "EINVAL", "ENOTSOCK")),
    *(("epoll_ctl(MOD)", name) for name in ("ENOMEM", "ENOENT", "EBADF", "EPERM")),
]  # fmt: skip


@pytest.mark.parametrize("times", [1, _ALWAYS], ids=["once", "always"])
def test_a_call_that_fails_for_one_connection_ends_that_one(
    times: int, serve: Serve, target: Target, faults: Faults
) -> None:
    """Laws 1, 4 and 15: both ends see it, and all other connections go on."""
    proxy = serve("proxy", target.address, under=faults.under)
    beside = Pair(target, proxy)
    for call, name in _SOCKET_CALLS:
        victim = Pair(target, proxy)
        victim.talk()
        with faults.fail(call, name, times, victim.port) as hits:
            match call:
                case "recv":
                    victim.client.sendall(b"more")
                case "send":
                    victim.server.sendall(b"more")
                case "shutdown":
                    victim.server.shutdown(socket.SHUT_WR)
                case _:
                    victim.client.shutdown(socket.SHUT_WR)
            victim.ends()
            for _ in range(50):
                beside.talk()
            assert 0 < hits() < _MOST_HITS, (call, name)
        victim.close()
        after = Pair(target, proxy)
        after.talk()
        after.close()
    beside.close()
    reports = {report["id"]: report for report in proxy.stop()}
    for number, (call, name) in enumerate(_SOCKET_CALLS):
        report = reports[2 + 2 * number]
        told = (call, name, report["outcome"], report["error"])
        if name in ("ENOMEM", "ENOBUFS", "EIO", "EPERM", "EINVAL"):
            assert report["reason"] == "resource", told
        elif name in ("EBADF", "ENOTSOCK", "ENOENT"):
            assert report["reason"] == "aborted", told
        else:
            assert report["reason"] == "client_reset", told


_ANY_CALLS = [
    *(("accept4", name) for name in (
        "EPERM", "ENOMEM", "ENOBUFS", "EMFILE", "ENFILE", "EINVAL", "EBADF",
        "ENOTSOCK", "EOPNOTSUPP", "EPROTO", "ECONNABORTED", "ENOSYS", "EFAULT")),
    *(("socket", name) for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM",
                                    "EACCES", "EAFNOSUPPORT", "EPERM")),
    *(("connect", name) for name in (
        "ECONNREFUSED", "EADDRNOTAVAIL", "EADDRINUSE", "ENETUNREACH", "EACCES",
        "EPERM", "EAGAIN", "ENOBUFS", "ENOMEM", "EBADF", "ETIMEDOUT", "EINTR")),
    *(("epoll_ctl(ADD)", name) for name in ("ENOMEM", "ENOSPC", "EPERM", "ELOOP")),
    *(("epoll_ctl(DEL)", name) for name in ("ENOMEM", "ENOENT", "EPERM")),
    *(("setsockopt", name) for name in ("EPERM", "ENOMEM", "EINVAL")),
    *(("getsockopt", name) for name in ("EPERM", "ENOMEM", "ENOBUFS")),
    *(("getsockname", name) for name in ("ENOBUFS", "EPERM")),
    *(("ioctl", name) for name in ("EPERM", "ENOTTY")),
]  # fmt: skip
#: Calls that are made only when something goes wrong.
_RARE = ("getsockopt",)


@pytest.mark.parametrize("times", [1, _ALWAYS], ids=["once", "always"])
def test_a_call_that_fails_for_all_new_connections_does_not_affect_the_others(
    times: int, serve: Serve, target: Target, faults: Faults
) -> None:
    """Laws 1 and 2: when the call works again, new ones are served again."""
    proxy = serve("proxy", target.address, under=faults.under)
    beside = Pair(target, proxy)
    for call, name in _ANY_CALLS:
        with faults.fail(call, name, times) as hits:
            if call == "epoll_ctl(DEL)":
                Pair(target, proxy).close()
            with _tried(proxy):
                for _ in range(50):
                    beside.talk()
            for _ in range(50):
                beside.talk()
            assert hits() < _MOST_HITS, (call, name)
            if call not in _RARE:
                assert hits() > 0, (call, name)
        after = Pair(target, proxy)
        after.talk()
        after.close()
        beside.talk()
    beside.close()
    proxy.stop()


_BULK_CALLS = [
    *(("splice", name) for name in ("EINVAL", "ENOMEM", "EIO", "EBADF")),
    *(("pipe2", name) for name in ("EMFILE", "ENFILE", "ENOSYS")),
    *(("fcntl", name) for name in ("EPERM", "EBUSY")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("calls", "times", "forbidden"),
    [
        (_BULK_CALLS, 1, 0),
        (_BULK_CALLS, _ALWAYS, 0),
        ([("splice", "ENOSYS")], 1, 1),
        ([("splice", "EPERM")], _ALWAYS, 1),
    ],
    ids=["some, once", "some, always", "no such call", "not allowed"],
)
def test_bulk_is_copied_if_splice_fails(
    calls: list[tuple[str, str]],
    times: int,
    forbidden: int,
    serve: Serve,
    target: Target,
    faults: Faults,
    threads: ThreadPoolExecutor,
) -> None:
    """Law 4: no byte is lost, and it is logged once if the system forbids splice."""
    proxy = serve("proxy", target.address, under=faults.under)
    data = random_bytes(4_000_000)
    for call, name in calls:
        with faults.fail(call, name, times) as hits:
            for _ in range(2):
                with contextlib.closing(Pair(target, proxy)) as pair:
                    sent = threads.submit(pair.client.sendall, data)
                    received = receive_exactly(pair.server, len(data))
                    assert sha256(received) == sha256(data), (call, name)
                    sent.result(PATIENCE)
            # A pipe that was made before is reused.
            assert call in ("pipe2", "fcntl") or hits() > 0, (call, name)
    proxy.stop()
    said = [e for e in proxy.events() if "splice(2)" in e.get("message", "")]
    assert len(said) == forbidden


@pytest.mark.parametrize(
    ("call", "name"),
    [("accept4", "EPERM"), ("accept4", "ENOMEM"), ("accept4", "EMFILE"),
     ("send", "ENOBUFS"), ("epoll_ctl(ADD)", "ENOSPC"), ("setsockopt", "EPERM")],
)  # fmt: skip
def test_it_can_be_stopped_whatever_fails(
    call: str, name: str, serve: Serve, target: Target, faults: Faults
) -> None:
    """Law 5: it drains, and does not wait for clients that can't be accepted."""
    proxy = serve("proxy", target.address, under=faults.under)
    beside = Pair(target, proxy)
    beside.talk()
    # Trio wakes itself up through a socket that has no port.
    port = _ANY_PORT if call == "send" else 0
    with faults.fail(call, name, port=port):
        with _tried(proxy):
            proxy.terminate()
            proxy.event("draining")
            beside.close()
        target.close()  # and with it the connections in its backlog
        assert proxy.wait() == 0

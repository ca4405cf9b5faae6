"""Targets: addresses to dial that accept, refuse or don't answer."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator, Sequence
from typing import Any

import trio

from trioserve import Address, Target, TcpAddress
from trioserve._dial import Dialer, Dialing, OnAttempt
from trioserve._endpoints import Endpoints
from trioserve._origins import Origin
from trioserve._socket_transport import SocketTransport


def dialer_of(
    addresses: Sequence[Address],
    origin: Origin = (),
    on_attempt: OnAttempt | None = None,
) -> Dialer:
    """A dialer of targets that are tried in order."""
    endpoints = Endpoints([Target(address) for address in addresses])
    return Dialer(Dialing(endpoints, on_attempt=on_attempt), origin)


async def dial(address: Address, seconds: float) -> SocketTransport:
    transport = await dialer_of([address]).dial(seconds)
    assert isinstance(transport, SocketTransport)
    return transport


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Generator[TcpAddress]:
    """An address with a listener; the kernel completes connects."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield TcpAddress(host, listener.getsockname()[1])


@contextlib.contextmanager
def refusing() -> Generator[TcpAddress]:
    """An address without a listener; it is bound, so no other program can listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield TcpAddress("127.0.0.1", bound.getsockname()[1])


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Generator[TcpAddress]:
    """An address whose accept queue is full, so that the kernel does not answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield TcpAddress(host, listener.getsockname()[1])


@contextlib.contextmanager
def full_queue(path: str) -> Generator[socket.socket]:
    """A Unix listener with a full queue; accepting one client makes room for one."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as one,
    ):
        listener.bind(path)
        listener.listen(0)
        one.connect(path)
        yield listener


@contextlib.contextmanager
def at(kind: str, host: str, port: int) -> Generator[None]:
    if kind == "drops":
        with black_hole(host, port):
            yield
    else:
        with socket.create_server((host, port)):
            yield


class Resolver(trio.abc.HostnameResolver):
    """A resolver with a fixed answer, after a delay."""

    def __init__(self, answer: list[str] | OSError, seconds: float = 0) -> None:
        self.answer = answer
        self.seconds = seconds

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, *_: int, **__: int
    ) -> list[Any]:
        await trio.sleep(self.seconds)
        if isinstance(self.answer, OSError):
            raise self.answer
        return [
            answer
            for number in self.answer
            for answer in socket.getaddrinfo(number, port, type=socket.SOCK_STREAM)
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError

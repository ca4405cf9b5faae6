"""Dialing: every address of a name, one deadline, and no socket left behind."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from support import open_fds, run
from sweep import Begin, sweep
from trioserve import Address
from trioserve._dial import dial


@contextlib.contextmanager
def _listening(host: str = "127.0.0.1") -> Generator[Address]:
    """An address where the kernel accepts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield Address(host, listener.getsockname()[1])


@contextlib.contextmanager
def _refusing() -> Generator[Address]:
    """An address where nobody listens, and nobody will meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Address("127.0.0.1", bound.getsockname()[1])


@contextlib.contextmanager
def _black_hole() -> Generator[Address]:
    """An address whose accept queue is full, so that the kernel does not answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield Address("127.0.0.1", listener.getsockname()[1])


class _Names(trio.abc.HostnameResolver):
    """A resolver that answers what it is told, after a while."""

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


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Law 13, for every test here."""
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_connects(host: str) -> None:
    """To a number, of either family."""
    with _listening(host) as address:
        transport = await dial(address, 5)
        assert transport.sock.getpeername()[:2] == (host, address.port)
        transport.close()


async def test_nobody_listens() -> None:
    """Said as the system says it."""
    with _refusing() as address, pytest.raises(ConnectionRefusedError):
        await dial(address, 5)


async def test_it_cannot_even_try() -> None:
    """The error of a connect that fails at once."""
    with pytest.raises(OSError, match="unreachable") as raised:
        await dial(Address("127.255.255.255", 9), 5)
    assert raised.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("seconds", [0.25, 5, 1000])
async def test_nobody_answers(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: for exactly so long."""
    with _black_hole() as address, pytest.raises(TimeoutError, match=f"{seconds:g} s"):
        await dial(address, seconds)
    assert trio.current_time() == seconds


def test_the_look_up_is_within_the_deadline() -> None:
    """Law 12: connect is a total, over the name and all of its addresses."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(
            _Names(["127.0.0.1", "127.0.0.1"], seconds=3)
        )
        with _black_hole() as hole, pytest.raises(TimeoutError):
            await dial(Address("target.test", hole.port), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_name_that_does_not_answer() -> None:
    """Law 12: is given up like an address that does not."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(_Names([], seconds=30))
        with pytest.raises(TimeoutError):
            await dial(Address("target.test", 80), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_name_that_does_not_exist() -> None:
    """An OSError as any other."""

    async def main() -> None:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        trio.socket.set_custom_hostname_resolver(_Names(error))
        with pytest.raises(socket.gaierror):
            await dial(Address("target.test", 80), 5)

    run(main)


async def test_a_number_needs_no_thread() -> None:
    """It must not wait for other people's names."""
    trio.socket.set_custom_hostname_resolver(_Names(OSError("not asked for this")))
    with _listening() as address:
        (await dial(address, 5)).close()


def test_the_next_address_is_tried() -> None:
    """Like localhost, which is ::1 first, where often nobody listens."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(_Names(["::1", "127.0.0.1"]))
        with _listening() as address:
            transport = await dial(Address("localhost.test", address.port), 5)
            assert transport.sock.getpeername() == ("127.0.0.1", address.port)
            transport.close()

    run(main)


def test_the_last_error_is_the_one_that_is_told() -> None:
    """When all addresses failed."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(
            _Names(["127.255.255.255", "127.0.0.1"])
        )
        with _refusing() as address, pytest.raises(ConnectionRefusedError):
            await dial(Address("target.test", address.port), 5)

    run(main)


async def test_a_name_of_this_machine() -> None:
    """With the system's own resolver, in a thread."""
    with _listening() as address:
        transport = await dial(Address("localhost", address.port), 5)
        assert transport.sock.getpeername() == ("127.0.0.1", address.port)
        transport.close()


async def test_a_socket_that_reaches_itself_has_reached_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target on a free port of this machine: the kernel may pick the same one."""

    class Unlucky(socket.socket):
        def connect_ex(self, address: Any) -> int:
            self.bind(address)
            return super().connect_ex(address)

    with _refusing() as address:
        pass
    monkeypatch.setattr(socket, "socket", Unlucky)
    with pytest.raises(ConnectionRefusedError):
        await dial(address, 5)


@pytest.mark.parametrize("call", ["connect_ex", "getsockopt"])
@pytest.mark.parametrize("closes_first", [False, True])
async def test_a_target_that_resets_before_we_look_was_reached(
    call: str, closes_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 8: what it sent is received, and then comes the reset."""

    def send_and_reset() -> None:
        target, _ = listener.accept()
        target.send(b"hello")
        if closes_first:
            target.shutdown(socket.SHUT_WR)
        linger = struct.pack("ii", 1, 0)
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        target.close()

    class Slow(socket.socket):
        """A socket whose peer is done before its owner gets a result."""

        def connect_ex(self, address: Any) -> int:
            code = super().connect_ex(address)
            if call == "connect_ex":
                send_and_reset()
            return code

        def getsockopt(self, level: int, option: int) -> int:  # type: ignore[override]
            code = super().getsockopt(level, option)
            if call == "getsockopt":
                send_and_reset()
            return code

    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as m:
        address = Address("127.0.0.1", listener.getsockname()[1])
        m.setattr(socket, "socket", Slow)
        transport = await dial(address, 5)
        assert await transport.receive() == b"hello"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                # Only if it closed first, EOF is not wrong.
                assert await transport.receive() == b""
                assert closes_first
                await transport.send(b"anybody there?")
        transport.close()


def test_cancelled_at_any_step_it_leaves_no_socket() -> None:
    """Law 13: whether it looks up, waits, or has connected at that moment."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        trio.socket.set_custom_hostname_resolver(
            _Names(["127.255.255.255", "::1", "127.0.0.1"])
        )
        with _listening() as address, trio.CancelScope() as scope:
            begin(scope.cancel)
            transport = await dial(Address("target.test", address.port), 5)
            transport.close()
        assert open_fds() == before

    assert sweep(scenario) >= 4

"""Connect: one socket to one address, closed if it fails."""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from support import open_fds, run
from targets import black_hole, dial, dialer_of, full_queue, listening, refusing
from trioserve import TcpAddress, UnixAddress, _connect
from trioserve._connect import is_local_shortage
from trioserve._origins import DialedSocket

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@given(
    st.lists(
        st.sampled_from(["comes", "gives up", "room", "room", "time"]), max_size=30
    )
)
@settings(deadline=None)
def test_waiters_for_a_full_unix_socket_connect_in_order(
    steps: list[str],
) -> None:
    """Law 12: none starves, and a later one does not overtake."""

    async def main() -> None:
        scopes: dict[int, trio.CancelScope] = {}
        reached: list[int] = []
        taken: list[socket.socket] = []

        async def client(number: int) -> None:
            with scopes[number]:
                transport = await dial(UnixAddress(path), math.inf)
                reached.append(number)
                transport.sock.send(bytes([number]))
                transport.close()

        def take_one() -> None:
            with contextlib.suppress(BlockingIOError):
                taken.append(listener.accept()[0])

        with (
            tempfile.TemporaryDirectory() as folder,
            full_queue(path := f"{folder}/socket") as listener,
        ):
            listener.setblocking(False)
            async with trio.open_nursery() as nursery:
                for number, step in enumerate(steps):
                    match step:
                        case "comes":
                            scopes[number] = trio.CancelScope()
                            nursery.start_soon(client, number)
                        case "gives up":
                            if waiting := scopes.keys() - reached:
                                scopes.pop(min(waiting)).cancel()
                        case "room":
                            take_one()
                        case _:
                            await trio.sleep(0.3)
                    await trio.testing.wait_all_tasks_blocked()
                while set(scopes) - set(reached):
                    take_one()
                    # The longest pause between two attempts.
                    await trio.sleep(0.25)
            assert reached == sorted(reached)
            for sock in taken:
                sock.close()

    run(main)


def test_only_one_waiter_polls_a_full_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At growing intervals."""
    looks = 0

    class Counted(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            nonlocal looks
            looks += 1
            return super().connect_ex(address)

    async def main() -> None:
        path = str(tmp_path / "socket")
        with full_queue(path):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(given_up, path)
            assert trio.current_time() == 10

    async def given_up(path: str) -> None:
        with pytest.raises(TimeoutError):
            await dial(UnixAddress(path), 10)

    monkeypatch.setattr(_connect, "DialedSocket", Counted)
    run(main)
    # The first attempt fails; the waiter that polls tries at once, then after 10, 20,
    # 40, ... ms, then four times a second. At the deadline the next ones may try once.
    assert looks <= 1 + 6 + 10 * 4 + 50


def test_a_full_unix_socket_is_waited_for(tmp_path: Path) -> None:
    """Law 12: until the deadline, by polling, because there is no event."""

    async def main() -> None:
        path = str(tmp_path / "socket")
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen(0)
            first = stack.enter_context(socket.socket(socket.AF_UNIX))
            first.connect(path)
            with pytest.raises(TimeoutError):
                await dial(UnixAddress(path), 3)
            assert trio.current_time() == 3
            async with trio.open_nursery() as nursery:

                async def take_one_later() -> None:
                    await trio.sleep(1)
                    stack.enter_context(listener.accept()[0])

                nursery.start_soon(take_one_later)
                transport = await dial(UnixAddress(path), 3)
            assert 4 <= trio.current_time() < 4.1
            transport.close()

    run(main)


@pytest.mark.parametrize(
    ("left_over", "error"),
    [(False, FileNotFoundError), (True, ConnectionRefusedError)],
)
async def test_a_unix_socket_without_a_listener(
    left_over: bool, error: type[OSError], tmp_path: Path
) -> None:
    """The error is the system's."""
    path = str(tmp_path / "socket")
    if left_over:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    with pytest.raises(error):
        await dial(UnixAddress(path), 5)


@pytest.mark.parametrize("late", [False, True])
async def test_a_socket_that_connects_to_itself_is_refused(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the target's port is free, the kernel may pick it for the client."""

    class Unlucky(DialedSocket):
        asked = not late

        def connect_ex(self, address: Any) -> int:
            self.bind(address)
            return super().connect_ex(address)

        def getpeername(self) -> Any:
            if not self.asked:
                self.asked = True
                raise OSError(errno.ENOTCONN, "not connected yet")
            return super().getpeername()

    with refusing() as address:
        pass
    monkeypatch.setattr(_connect, "DialedSocket", Unlucky)
    with pytest.raises(ConnectionRefusedError):
        await dial(address, 5)


async def test_an_exception_in_connect_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 13: also if it is a bug."""

    class Broken(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            raise OverflowError("port must be 0-65535")

    before = open_fds()
    with listening() as address, monkeypatch.context() as m:
        m.setattr(_connect, "DialedSocket", Broken)
        with pytest.raises(OverflowError):
            await dial(address, 5)
    assert open_fds() == before


@pytest.mark.parametrize("call", ["connect_ex", "getsockopt"])
@pytest.mark.parametrize("closes_first", [False, True])
async def test_a_target_that_resets_at_once_was_reached(
    call: str, closes_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 8: its bytes are received, and then comes the reset."""

    def send_and_reset() -> None:
        target, _ = listener.accept()
        target.send(b"hello")
        if closes_first:
            target.shutdown(socket.SHUT_WR)
        linger = struct.pack("ii", 1, 0)
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        target.close()

    class Slow(DialedSocket):
        """A socket whose peer has finished before connect returns."""

        waited_for = False

        def connect_ex(self, address: Any) -> int:
            code = super().connect_ex(address)
            if call == "connect_ex":
                send_and_reset()
            return code

        def getpeername(self) -> Any:
            if call == "getsockopt" and not self.waited_for:
                self.waited_for = True
                raise OSError(errno.ENOTCONN, "not connected yet")
            return super().getpeername()

        def getsockopt(self, level: int, option: int) -> int:  # type: ignore[override]
            code = super().getsockopt(level, option)
            if call == "getsockopt":
                send_and_reset()
            return code

    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as m:
        address = TcpAddress("127.0.0.1", listener.getsockname()[1])
        m.setattr(_connect, "DialedSocket", Slow)
        transport = await dial(address, 5)
        assert await transport.receive() == b"hello"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                # EOF is right only if the peer has closed first.
                assert await transport.receive() == b""
                assert closes_first
                await transport.send(b"anybody there?")
        transport.close()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (OSError(errno.EMFILE, ""), True),
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EADDRNOTAVAIL, ""), True),
        (socket.gaierror(socket.EAI_MEMORY, ""), True),
        (socket.gaierror(socket.EAI_NONAME, ""), False),
        (socket.gaierror(socket.EAI_AGAIN, ""), False),
        (OSError(errno.ECONNREFUSED, ""), False),
        (OSError(errno.EHOSTUNREACH, ""), False),
        (OSError(errno.ENETUNREACH, ""), False),
        (OSError(errno.EAFNOSUPPORT, ""), False),
        # A firewall of this machine; HAProxy also blames the server.
        (OSError(errno.EPERM, ""), False),
        (OSError(errno.EACCES, ""), False),
        (TimeoutError(errno.ETIMEDOUT, ""), False),
    ],
)
def test_which_errors_are_a_local_shortage(error: OSError, ours: bool) -> None:
    """Law 15: shortages of this machine, and no others."""
    assert is_local_shortage(error) is ours


async def test_a_full_epoll_is_a_local_shortage() -> None:
    """Law 15: epoll(7) has a limit; the next socket works again."""

    class Full:
        """An epoll that takes no more sockets."""

        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

        def modify(self, *_: object) -> None:
            raise OSError(errno.ENOENT, "not there yet")

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    from trio._core._run import GLOBAL_RUN_CONTEXT

    manager: Any = GLOBAL_RUN_CONTEXT.runner.io_manager
    epoll = manager._epoll
    with black_hole() as silent:
        dialer = dialer_of([silent])
        manager._epoll = Full()
        try:
            with pytest.raises(OSError, match="No space left") as caught:
                await dialer.dial(5)
        finally:
            manager._epoll = epoll
        assert is_local_shortage(caught.value)
        assert dialer.attempts[0].ours
        with trio.move_on_after(0), pytest.raises(TimeoutError):
            await dial(silent, 5)

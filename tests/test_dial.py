"""Dial: every address of a name, one deadline, and no socket left behind."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import socket
import struct
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support import no_free_fd, open_fds, run
from sweep import Begin, sweep
from trioserve import Address, Attempt, TcpAddress, UnixAddress, _connect, _dial
from trioserve._connect import is_local_shortage
from trioserve._dial import Dialer
from trioserve._origins import DialedSocket, origin_of
from trioserve._socket_transport import SocketTransport


async def dial(address: Address, seconds: float) -> SocketTransport:
    return await Dialer([address]).dial(seconds)


@contextlib.contextmanager
def _listening(host: str = "127.0.0.1") -> Generator[TcpAddress]:
    """An address where the kernel accepts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield TcpAddress(host, listener.getsockname()[1])


@contextlib.contextmanager
def _refusing() -> Generator[TcpAddress]:
    """An address where nobody listens, and nobody will meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield TcpAddress("127.0.0.1", bound.getsockname()[1])


@contextlib.contextmanager
def _black_hole(host: str = "127.0.0.1", port: int = 0) -> Generator[TcpAddress]:
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
        await dial(TcpAddress("127.255.255.255", 9), 5)
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
            await dial(TcpAddress("target.test", hole.port), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_name_that_does_not_answer() -> None:
    """Law 12: is given up like an address that does not."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(_Names([], seconds=30))
        with pytest.raises(TimeoutError):
            await dial(TcpAddress("target.test", 80), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_name_that_does_not_exist() -> None:
    """An OSError as any other."""

    async def main() -> None:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        trio.socket.set_custom_hostname_resolver(_Names(error))
        with pytest.raises(socket.gaierror):
            await dial(TcpAddress("target.test", 80), 5)

    run(main)


async def test_a_link_local_address_is_told_with_its_zone() -> None:
    """By the name of the interface, which is looked up each time."""
    dialer = Dialer([TcpAddress("fe80::1:2:3%lo", 9)])
    with pytest.raises(OSError, match=r"unreachable|no local port or address"):
        await dialer.dial(5)
    assert dialer.attempts[0].address == "[fe80::1:2:3%lo]:9"


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
            transport = await dial(TcpAddress("localhost.test", address.port), 5)
            assert transport.sock.getpeername() == ("127.0.0.1", address.port)
            transport.close()

    run(main)


def test_addresses_of_a_name_race_with_a_head_start_each() -> None:
    """RFC 8305: one that does not answer costs the next one a quarter of a second."""

    async def main() -> None:
        with _listening() as address, _black_hole("127.0.0.2", address.port) as hole:
            trio.socket.set_custom_hostname_resolver(_Names([hole.host, address.host]))
            target = TcpAddress("target.test", address.port)
            dialer = Dialer([target])
            transport = await dialer.dial(5)
            assert transport.sock.getpeername() == (address.host, address.port)
            transport.close()
            assert trio.current_time() == 0.25
            assert list(dialer.attempts) == [
                Attempt(address=str(address), seconds=0),
                Attempt(
                    address=str(hole),
                    seconds=0.25,
                    error="another address was faster",
                ),
            ]

    run(main)


def test_of_two_that_get_through_at_once_one_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 13: the one that nobody needs leaves no socket."""

    async def connect_together(begun: Any, *options: Any) -> SocketTransport:
        transport = await connect(begun, *options)
        connected.append(transport)
        if len(connected) < 2:
            await both.wait()
        # Woken before it is cancelled: nothing takes its success back.
        both.set()
        return transport

    connect, both = _connect.finish_connect, trio.Event()
    connected: list[SocketTransport] = []

    async def main() -> None:
        monkeypatch.setattr(_dial, "finish_connect", connect_together)
        with _listening("0.0.0.0") as address:
            names = _Names(["127.0.0.1", "127.0.0.2"])
            trio.socket.set_custom_hostname_resolver(names)
            dialer = Dialer([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
            assert [attempt.error for attempt in dialer.attempts] == [None, None]

    run(main)


@given(
    st.lists(st.sampled_from(["answers", "refuses", "drops"]), min_size=2, max_size=12)
)
@example([*9 * ["drops"], "answers"])
@example([*3 * ["drops"], "refuses", *7 * ["drops"]])
@settings(deadline=None, max_examples=60)
def test_an_address_of_a_name_that_answers_is_reached(kinds: list[str]) -> None:
    """Law 12: however many others are silent or refuse; six are tried at a time."""

    async def main() -> None:
        hosts = [f"127.0.1.{number}" for number in range(1, len(kinds) + 1)]
        told: list[tuple[float, Attempt]] = []

        def on_attempt(_: Address, attempt: Attempt) -> None:
            told.append((trio.current_time(), attempt))

        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_refusing()).port
            for host, kind in zip(hosts, kinds, strict=True):
                if kind != "refuses":
                    stack.enter_context(_at(kind, host, port))
            trio.socket.set_custom_hostname_resolver(_Names(hosts))
            dialer = Dialer([TcpAddress("target.test", port)], (), on_attempt)
            if "answers" in kinds:
                first = kinds.index("answers")
                transport = await dialer.dial(60)
                assert transport.sock.getpeername() == (hosts[first], port)
                transport.close()
                assert trio.current_time() == 0.25 * kinds[:first].count("drops")
                tried = hosts[: first + 1]
            else:
                with pytest.raises(OSError, match=r"refused|no answer within"):
                    await dialer.dial(60)
                tried = hosts
        assert sorted(a.address for a in dialer.attempts) == sorted(
            f"{host}:{port}" for host in tried
        )
        # Those that were outrun were not told; they ended now.
        over = [
            *told,
            *(
                (trio.current_time(), a)
                for a in dialer.attempts
                if a.error and not a.failed
            ),
        ]
        begun = [end - attempt.seconds for end, attempt in over]
        for now in begun:
            at_once = [
                1
                for (end, _), begin in zip(over, begun, strict=True)
                if begin <= now < end
            ]
            assert len(at_once) <= 6
        # Whoever made way for another one has had its time.
        assert all(a.seconds >= 1.5 for _, a in told if a.error == "no answer")

    run(main)


@contextlib.contextmanager
def _at(kind: str, host: str, port: int) -> Generator[None]:
    if kind == "drops":
        with _black_hole(host, port):
            yield
    else:
        with socket.create_server((host, port)):
            yield


def test_an_address_that_a_name_has_twice_is_tried_once() -> None:
    """It would only race with itself."""

    async def main() -> None:
        with _refusing() as address:
            trio.socket.set_custom_hostname_resolver(
                _Names([address.host, address.host, f"::ffff:{address.host}"])
            )
            dialer = Dialer([TcpAddress("target.test", address.port)])
            with pytest.raises(ConnectionRefusedError):
                await dialer.dial(5)
            assert [attempt.address for attempt in dialer.attempts] == [str(address)]

    run(main)


def test_each_address_of_a_name_has_its_own_failure() -> None:
    """One that refused has not been given up."""

    async def main() -> None:
        with _black_hole("127.0.0.2") as hole:
            trio.socket.set_custom_hostname_resolver(_Names(["127.0.0.3", hole.host]))
            dialer = Dialer([TcpAddress("target.test", hole.port)])
            with pytest.raises(TimeoutError):
                await dialer.dial(2)
            assert trio.current_time() == 2
            refused, silent = [attempt.error for attempt in dialer.attempts]
            assert refused is not None
            assert refused.startswith("ConnectionRefusedError")
            assert silent == "no answer"

    run(main)


def test_an_address_that_refuses_makes_way_at_once() -> None:
    """RFC 8305: nobody waits for the head start of one that is out."""

    async def main() -> None:
        with _listening() as address:
            trio.socket.set_custom_hostname_resolver(
                _Names(["127.0.0.2", "127.0.0.3", address.host])
            )
            dialer = Dialer([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
            assert trio.current_time() == 0
            errors = [attempt.error for attempt in dialer.attempts]
            assert [error is None for error in errors] == [False, False, True]

    run(main)


@pytest.mark.parametrize(
    "kinds", list(itertools.product(("refuses", "drops", "answers"), repeat=3))
)
def test_targets_are_tried_in_their_order(kinds: tuple[str, ...]) -> None:
    """Law 12: within one deadline, of which each has its share."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            make = {"refuses": _refusing, "drops": _black_hole, "answers": _listening}
            targets = [stack.enter_context(make[kind]()) for kind in kinds]
            dialer = Dialer(targets)
            answers = "answers" in kinds
            tried = kinds[: kinds.index("answers") + 1] if answers else kinds
            if answers:
                (await dialer.dial(6)).close()
            else:
                with pytest.raises(
                    OSError, match=r"refused|no answer within"
                ) as caught:
                    await dialer.dial(6)
                late = kinds[-1] == "drops"
                assert isinstance(caught.value, TimeoutError) is late
            assert dialer.target == targets[len(tried) - 1]
            assert [a.address for a in dialer.attempts] == [
                str(target) for target in targets[: len(tried)]
            ]
            left = 6.0
            for turn, (kind, attempt) in enumerate(
                zip(tried, dialer.attempts, strict=True)
            ):
                share = left / (len(kinds) - turn) if kind == "drops" else 0
                left -= share
                assert attempt.seconds == share
                assert (attempt.error is None) is (kind == "answers")
                assert (attempt.error == "no answer") is (kind == "drops")

    run(main)


def test_a_deadline_that_was_missed_by_far_is_a_timeout() -> None:
    """Law 12: also when the whole program stood still meanwhile."""

    async def main() -> None:
        with _black_hole() as first, _refusing() as second:
            dialer = Dialer([first, second])
            async with trio.open_nursery() as nursery:

                async def stand_still() -> None:
                    clock = trio.lowlevel.current_clock()
                    assert isinstance(clock, trio.testing.MockClock)
                    await trio.testing.wait_all_tasks_blocked()
                    clock.jump(30)

                nursery.start_soon(stand_still)
                with pytest.raises(TimeoutError):
                    await dialer.dial(5)
            assert dialer.attempts[0].error == "no answer"

    run(main)


def test_a_name_that_cannot_be_looked_up_is_an_attempt() -> None:
    """By its name; the next target is tried."""

    async def main() -> None:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        trio.socket.set_custom_hostname_resolver(_Names(error))
        with _listening() as address:
            dialer = Dialer([TcpAddress("target.test", 80), address])
            (await dialer.dial(5)).close()
        failed, connected = dialer.attempts
        assert failed.address == "target.test:80"
        assert failed.error == "gaierror: [Errno -2] Name or service not known"
        assert connected.address == str(address)

    run(main)


@contextlib.contextmanager
def _full_queue(path: str) -> Generator[socket.socket]:
    """A Unix socket that is listened on, with room for one more when one is taken."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as one,
    ):
        listener.bind(path)
        listener.listen(0)
        one.connect(path)
        yield listener


@given(
    st.lists(
        st.sampled_from(["comes", "gives up", "room", "room", "time"]), max_size=30
    )
)
@settings(deadline=None)
def test_those_that_wait_for_a_full_unix_socket_get_in_in_their_order(
    steps: list[str],
) -> None:
    """Law 12: nobody starves, and nobody who comes later gets in before."""

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
            _full_queue(path := f"{folder}/socket") as listener,
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
                    # The longest that one may sleep between two looks.
                    await trio.sleep(0.25)
            assert reached == sorted(reached)
            for sock in taken:
                sock.close()

    run(main)


def test_a_full_unix_socket_costs_the_same_however_many_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them looks, and ever more seldom."""
    looks = 0

    class Counted(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            nonlocal looks
            looks += 1
            return super().connect_ex(address)

    async def main() -> None:
        path = str(tmp_path / "socket")
        with _full_queue(path):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(given_up, path)
            assert trio.current_time() == 10

    async def given_up(path: str) -> None:
        with pytest.raises(TimeoutError):
            await dial(UnixAddress(path), 10)

    monkeypatch.setattr(_connect, "DialedSocket", Counted)
    run(main)
    # The first one fails; the one that looks tries at once, after 10, 20, 40, ... ms,
    # and then four times a second. Whoever is next when time is over may try once.
    assert looks <= 1 + 6 + 10 * 4 + 50


def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    """Law 12: for the time there is; there the system does not say when."""

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
async def test_a_unix_socket_that_nobody_listens_on(
    left_over: bool, error: type[OSError], tmp_path: Path
) -> None:
    """Said as the system says it."""
    path = str(tmp_path / "socket")
    if left_over:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    with pytest.raises(error):
        await dial(UnixAddress(path), 5)


def test_our_own_ends_are_known_as_long_as_they_are_open() -> None:
    """And not when the system may give the port to somebody else."""

    async def main() -> None:
        with _listening() as address:
            transport = await Dialer([address], ("a proxy",)).dial(5)
            name = "{}:{}".format(*transport.sock.getsockname())
            assert origin_of(name, str(address)) == ("a proxy",)
            # The same port may go somewhere else at the same time.
            assert origin_of(name, "127.0.0.1:1") == ()
            assert origin_of(str(address), name) == ()
            transport.close()
            assert origin_of(name, str(address)) == ()

    run(main)


def test_the_last_error_is_the_one_that_is_told() -> None:
    """When all addresses failed."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(
            _Names(["127.255.255.255", "127.0.0.1"])
        )
        with _refusing() as address, pytest.raises(ConnectionRefusedError):
            await dial(TcpAddress("target.test", address.port), 5)

    run(main)


async def test_a_name_of_this_machine() -> None:
    """With the system's own resolver, in a thread."""
    with _listening() as address:
        transport = await dial(TcpAddress("localhost", address.port), 5)
        assert transport.sock.getpeername() == ("127.0.0.1", address.port)
        transport.close()


@pytest.mark.parametrize("late", [False, True])
async def test_a_socket_that_reaches_itself_has_reached_nobody(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target on a free port of this machine: the kernel may pick the same one."""

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

    with _refusing() as address:
        pass
    monkeypatch.setattr(_connect, "DialedSocket", Unlucky)
    with pytest.raises(ConnectionRefusedError):
        await dial(address, 5)


async def test_what_connect_raises_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 13: be it a mistake of ours."""

    class Broken(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            raise OverflowError("port must be 0-65535")

    before = open_fds()
    with _listening() as address, monkeypatch.context() as m:
        m.setattr(_connect, "DialedSocket", Broken)
        with pytest.raises(OverflowError):
            await dial(address, 5)
    assert open_fds() == before


async def test_what_connect_raises_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            raise OverflowError("no such number")

    monkeypatch.setattr(_connect, "DialedSocket", Broken)
    dialer = Dialer([UnixAddress("/nowhere")])
    with pytest.raises(OverflowError):
        await dialer.dial(5)
    (attempt,) = dialer.attempts
    assert attempt.error == "OverflowError: no such number"
    assert attempt.failed


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

    class Slow(DialedSocket):
        """A socket whose peer is done before its owner gets a result."""

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
            transport = await dial(TcpAddress("target.test", address.port), 5)
            transport.close()
        assert open_fds() == before

    assert sweep(scenario) >= 4


async def test_a_target_that_this_machine_cannot_even_try_is_tried_and_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No IPv6 here, or an interface that isn't there: an attempt that failed."""

    class OldSocket(DialedSocket):
        def __init__(self, family: int = -1, *options: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6 on this machine")
            super().__init__(family, *options, **more)

    with _listening() as address, monkeypatch.context() as m:
        m.setattr(_connect, "DialedSocket", OldSocket)
        targets = [TcpAddress("::1", 1), TcpAddress("fe80::1%nosuch0", 1), address]
        dialer = Dialer(targets)
        (await dialer.dial(5)).close()
    first, second, third = dialer.attempts
    assert "no IPv6" in (first.error or "")
    assert (first.address, second.address) == ("[::1]:1", "[fe80::1%nosuch0]:1")
    assert second.error is not None
    assert third.error is None


def test_an_address_of_a_name_that_this_machine_cannot_even_try_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And another one of them answers."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(_Names(["::1", "127.0.0.1"]))
        with _listening() as address, monkeypatch.context() as m:
            m.setattr(_connect, "DialedSocket", OldSocket)
            dialer = Dialer([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
        assert [a.error is None for a in dialer.attempts] == [False, True]

    class OldSocket(DialedSocket):
        def __init__(self, family: int = -1, *options: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6 on this machine")
            super().__init__(family, *options, **more)

    run(main)


@pytest.mark.parametrize(
    "name",
    ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EADDRNOTAVAIL", "EAGAIN", "EADDRINUSE"],
)
async def test_what_this_machine_lacks_is_no_failure_of_the_target(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 15: the attempt says so, and so does its error; HAProxy: "R"."""

    class Short(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            return int(getattr(errno, name))

    with _listening() as address:
        monkeypatch.setattr(_connect, "DialedSocket", Short)
        dialer = Dialer([address])
        with pytest.raises(OSError, match=os.strerror(getattr(errno, name))) as caught:
            await dialer.dial(5)
    assert is_local_shortage(caught.value)
    (attempt,) = dialer.attempts
    assert (attempt.ours, attempt.failed) == (True, False)
    assert os.strerror(getattr(errno, name)) in (attempt.error or "")


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
        # A firewall of this machine; HAProxy blames the server, too.
        (OSError(errno.EPERM, ""), False),
        (OSError(errno.EACCES, ""), False),
        (TimeoutError(errno.ETIMEDOUT, ""), False),
    ],
)
def test_whose_fault_it_is(error: OSError, ours: bool) -> None:
    """Law 15: what this machine lacks, and nothing else."""
    assert is_local_shortage(error) is ours


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "many.test"])
async def test_out_of_descriptors_it_is_ours(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: to a number, for the look-up of a name, and to several addresses."""
    if host == "many.test":
        names = _Names(["127.0.0.1", "127.0.0.2"])
        trio.socket.set_custom_hostname_resolver(names)
    with _listening() as address:
        dialer = Dialer([TcpAddress(host, address.port)])
        with pytest.raises(OSError, match="Too many open files"), no_free_fd():
            await dialer.dial(5)
    assert dialer.attempts
    for attempt in dialer.attempts:
        assert attempt.ours
        assert "Too many open files" in (attempt.error or "")


@pytest.mark.parametrize("kind", ["refuses", "drops"])
@pytest.mark.parametrize("way", ["another target", "another address"])
def test_an_address_that_could_not_be_tried_might_have_answered(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 15: so the others' silence is not the reason, but what one has said is.

    This machine has no IPv6, maybe, and the other address refuses.
    """

    class Short(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            if address[0] == "127.0.0.9":
                return errno.EADDRNOTAVAIL
            return super().connect_ex(address)

    async def main() -> None:
        monkeypatch.setattr(_connect, "DialedSocket", Short)
        with _refusing() if kind == "refuses" else _black_hole() as other:
            if way == "another target":
                targets = [TcpAddress("127.0.0.9", 80), other]
            else:
                names = _Names(["127.0.0.9", other.host])
                trio.socket.set_custom_hostname_resolver(names)
                targets = [TcpAddress("target.test", other.port)]
            dialer = Dialer(targets)
            said = "refused" if kind == "refuses" else "no local port or address"
            with pytest.raises(OSError, match=said):
                await dialer.dial(5)
        ours, others = dialer.attempts
        assert (ours.ours, others.ours) == (True, False)
        assert others.failed

    run(main)


async def test_a_socket_that_cannot_be_waited_for_is_ours() -> None:
    """Law 15: epoll(7) has a limit too; the next one is waited for all the same."""

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
    with _black_hole() as silent:
        dialer = Dialer([silent])
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


async def test_each_attempt_is_told_the_moment_it_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: what a target did is said when it is seen, not when all is over."""
    told: list[tuple[float, str, str, str | None]] = []

    def on_attempt(target: Address, attempt: Attempt) -> None:
        now = trio.current_time()
        told.append((now, str(target), attempt.address, attempt.error))

    with _refusing() as refuses, _black_hole() as silent, _listening() as answers:
        dialer = Dialer([refuses, silent, answers], (), on_attempt)
        (await dialer.dial(8)).close()
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    assert told == [
        (0, str(refuses), str(refuses), refused),
        (4, str(silent), str(silent), "no answer"),
        (4, str(answers), str(answers), None),
    ]


async def test_an_attempt_that_was_given_up_is_not_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: nobody knows what the target would have done."""
    told: list[object] = []
    with _black_hole() as silent:
        dialer = Dialer([silent], (), lambda _, attempt: told.append(attempt))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.dial, 8)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert not told
    assert [attempt.error for attempt in dialer.attempts] == ["given up"]


@pytest.mark.parametrize(
    ("room", "kinds", "tried"),
    [
        (0, ["drops", "answers"], []),
        (1, ["drops", "answers"], [1]),
        (1, ["refuses", "drops", "answers"], [1, 2]),
        (2, ["drops", "drops", "answers", "answers"], [1, 2]),
        (1, [*7 * ["drops"], "answers"], [1]),
        (2, [*5 * ["drops"], "answers", "drops"], [1, 2]),
    ],
)
def test_out_of_descriptors_a_further_address_waits_for_those_that_are_tried(
    room: int, kinds: list[str], tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 15: it is no lack as long as one is tried; what could not be is no failure.

    With no descriptor at all, it is.
    """
    open_ends = set[DialedSocket]()

    class Scarce(DialedSocket):
        def __init__(self, *options: int) -> None:
            if len(open_ends) == room:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(*options)
            open_ends.add(self)

        def close(self) -> None:
            open_ends.discard(self)
            super().close()

    async def main() -> None:
        monkeypatch.setattr(_connect, "DialedSocket", Scarce)
        hosts = [f"127.0.1.{number}" for number in range(1, len(kinds) + 1)]
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_refusing()).port
            for host, kind in zip(hosts, kinds, strict=True):
                if kind != "refuses":
                    stack.enter_context(_at(kind, host, port))
            trio.socket.set_custom_hostname_resolver(_Names(hosts))
            dialer = Dialer([TcpAddress("target.test", port)])
            said = "no answer within" if room else "Too many open files"
            with pytest.raises(OSError, match=said):
                await dialer.dial(5)
        if room:
            assert not any(attempt.ours for attempt in dialer.attempts)
            assert sorted(attempt.address for attempt in dialer.attempts) == [
                f"127.0.1.{number}:{port}" for number in tried
            ]
        else:
            assert [attempt.ours for attempt in dialer.attempts] == [True, True]

    run(main)

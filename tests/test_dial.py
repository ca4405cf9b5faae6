"""Dial: targets in turn, one deadline, and no socket left open."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from typing import Any

import pytest
import trio
import trio.testing

from support import no_free_fd, open_fds, run
from sweep import Begin, sweep
from targets import Resolver, black_hole, dial, dialer_of, listening, refusing
from trioserve import Address, Attempt, TcpAddress, UnixAddress, _connect
from trioserve._connect import is_local_shortage
from trioserve._origins import DialedSocket

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_connects(host: str) -> None:
    """To a number, of either family."""
    with listening(host) as address:
        transport = await dial(address, 5)
        assert transport.sock.getpeername()[:2] == (host, address.port)
        transport.close()


async def test_a_refused_connection() -> None:
    """The error is the system's."""
    with refusing() as address, pytest.raises(ConnectionRefusedError):
        await dial(address, 5)


async def test_a_connect_that_fails_at_once() -> None:
    """The error of a connect that fails at once."""
    with pytest.raises(OSError, match="unreachable") as raised:
        await dial(TcpAddress("127.255.255.255", 9), 5)
    assert raised.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("seconds", [0.25, 5, 1000])
async def test_a_target_that_does_not_answer_times_out(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 12: exactly at the deadline."""
    with black_hole() as address, pytest.raises(TimeoutError, match=f"{seconds:g} s"):
        await dial(address, seconds)
    assert trio.current_time() == seconds


def test_the_look_up_is_within_the_deadline() -> None:
    """Law 12: connect is a total over the name and all its addresses."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(
            Resolver(["127.0.0.1", "127.0.0.1"], seconds=3)
        )
        with black_hole() as hole, pytest.raises(TimeoutError):
            await dial(TcpAddress("target.test", hole.port), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_look_up_that_takes_too_long() -> None:
    """Law 12: it is given up like an address that does not answer."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver([], seconds=30))
        with pytest.raises(TimeoutError):
            await dial(TcpAddress("target.test", 80), 5)
        assert trio.current_time() == 5

    run(main)


def test_a_name_that_does_not_exist() -> None:
    """It is an OSError."""

    async def main() -> None:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        trio.socket.set_custom_hostname_resolver(Resolver(error))
        with pytest.raises(socket.gaierror):
            await dial(TcpAddress("target.test", 80), 5)

    run(main)


async def test_a_link_local_address_is_reported_with_its_zone() -> None:
    """By the name of the interface, which is looked up each time."""
    dialer = dialer_of([TcpAddress("fe80::1:2:3%lo", 9)])
    with pytest.raises(OSError, match=r"unreachable|no local port or address"):
        await dialer.dial(5)
    assert dialer.attempts[0].address == "[fe80::1:2:3%lo]:9"


async def test_a_number_needs_no_thread() -> None:
    """It must not wait for the look-ups of others."""
    trio.socket.set_custom_hostname_resolver(Resolver(OSError("not asked for this")))
    with listening() as address:
        (await dial(address, 5)).close()


@pytest.mark.parametrize(
    "kinds", list(itertools.product(("refuses", "drops", "answers"), repeat=3))
)
def test_targets_are_tried_in_order(kinds: tuple[str, ...]) -> None:
    """Law 12: within one deadline. The last one has all that is left of it.

    Those before it have a second, because nothing is known of them.
    """

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            make = {"refuses": refusing, "drops": black_hole, "answers": listening}
            targets = [stack.enter_context(make[kind]()) for kind in kinds]
            dialer = dialer_of(targets)
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
                is_last = turn == len(kinds) - 1
                share = 0.0 if kind != "drops" else left if is_last else 1
                left -= share
                assert attempt.seconds == share
                assert (attempt.error is None) is (kind == "answers")
                assert (attempt.error == "no answer") is (kind == "drops")

    run(main)


def test_a_deadline_that_was_missed_by_far_is_a_timeout() -> None:
    """Law 12: also if the whole process was stopped meanwhile."""

    async def main() -> None:
        with black_hole() as first, refusing() as second:
            dialer = dialer_of([first, second])
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
    """The attempt has the name; the next target is tried."""

    async def main() -> None:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        trio.socket.set_custom_hostname_resolver(Resolver(error))
        with listening() as address:
            dialer = dialer_of([TcpAddress("target.test", 80), address])
            (await dialer.dial(5)).close()
        failed, connected = dialer.attempts
        assert failed.address == "target.test:80"
        assert failed.error == "gaierror: [Errno -2] Name or service not known"
        assert connected.address == str(address)

    run(main)


async def test_a_name_from_the_systems_resolver() -> None:
    """In a thread."""
    with listening() as address:
        transport = await dial(TcpAddress("localhost", address.port), 5)
        assert transport.sock.getpeername() == ("127.0.0.1", address.port)
        transport.close()


async def test_an_exception_in_connect_is_not_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            raise OverflowError("no such number")

    monkeypatch.setattr(_connect, "DialedSocket", Broken)
    dialer = dialer_of([UnixAddress("/nowhere")])
    with pytest.raises(OverflowError):
        await dialer.dial(5)
    (attempt,) = dialer.attempts
    assert attempt.error == "OverflowError: no such number"
    assert attempt.failed


def test_cancelled_at_any_step_it_leaves_no_socket() -> None:
    """Law 13: in a look-up, in a wait, or when it has just connected."""

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        trio.socket.set_custom_hostname_resolver(
            Resolver(["127.255.255.255", "::1", "127.0.0.1"])
        )
        with listening() as address, trio.CancelScope() as scope:
            begin(scope.cancel)
            transport = await dial(TcpAddress("target.test", address.port), 5)
            transport.close()
        assert open_fds() == before

    assert sweep(scenario) >= 4


async def test_a_target_without_a_route_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without IPv6 or the interface; the next target is tried."""

    class OldSocket(DialedSocket):
        def __init__(self, family: int = -1, *options: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6 on this machine")
            super().__init__(family, *options, **more)

    with listening() as address, monkeypatch.context() as m:
        m.setattr(_connect, "DialedSocket", OldSocket)
        targets = [TcpAddress("::1", 1), TcpAddress("fe80::1%nosuch0", 1), address]
        dialer = dialer_of(targets)
        (await dialer.dial(5)).close()
    first, second, third = dialer.attempts
    assert "no IPv6" in (first.error or "")
    assert (first.address, second.address) == ("[::1]:1", "[fe80::1%nosuch0]:1")
    assert second.error is not None
    assert third.error is None


@pytest.mark.parametrize(
    "name",
    ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EADDRNOTAVAIL", "EAGAIN", "EADDRINUSE"],
)
async def test_a_local_shortage_is_not_the_targets_failure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 15: the attempt says so, and so does its error; HAProxy: "R"."""

    class Short(DialedSocket):
        def connect_ex(self, address: Any) -> int:
            return int(getattr(errno, name))

    with listening() as address:
        monkeypatch.setattr(_connect, "DialedSocket", Short)
        dialer = dialer_of([address])
        with pytest.raises(OSError, match=os.strerror(getattr(errno, name))) as caught:
            await dialer.dial(5)
    assert is_local_shortage(caught.value)
    (attempt,) = dialer.attempts
    assert (attempt.ours, attempt.failed) == (True, False)
    assert os.strerror(getattr(errno, name)) in (attempt.error or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "many.test"])
async def test_out_of_descriptors_the_target_is_not_blamed(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 15: for a number, for a look-up, and for several addresses."""
    if host == "many.test":
        names = Resolver(["127.0.0.1", "127.0.0.2"])
        trio.socket.set_custom_hostname_resolver(names)
    with listening() as address:
        dialer = dialer_of([TcpAddress(host, address.port)])
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
        with refusing() if kind == "refuses" else black_hole() as other:
            if way == "another target":
                targets = [TcpAddress("127.0.0.9", 80), other]
            else:
                names = Resolver(["127.0.0.9", other.host])
                trio.socket.set_custom_hostname_resolver(names)
                targets = [TcpAddress("target.test", other.port)]
            dialer = dialer_of(targets)
            said = "refused" if kind == "refuses" else "no local port or address"
            with pytest.raises(OSError, match=said):
                await dialer.dial(5)
        ours, others = dialer.attempts
        assert (ours.ours, others.ours) == (True, False)
        assert others.failed

    run(main)


async def test_on_attempt_is_called_when_an_attempt_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: and not at the end of the dialing."""
    told: list[tuple[float, str, str, str | None]] = []

    def on_attempt(target: Address, attempt: Attempt) -> None:
        now = trio.current_time()
        told.append((now, str(target), attempt.address, attempt.error))

    with refusing() as refuses, black_hole() as silent, listening() as answers:
        dialer = dialer_of([refuses, silent, answers], on_attempt=on_attempt)
        (await dialer.dial(8)).close()
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    assert told == [
        (0, str(refuses), str(refuses), refused),
        (1, str(silent), str(silent), "no answer"),
        (1, str(answers), str(answers), None),
    ]


async def test_on_attempt_is_not_called_for_cancelled_attempts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: nobody knows what the target would have done."""
    told: list[object] = []
    with black_hole() as silent:
        dialer = dialer_of([silent], on_attempt=lambda _, attempt: told.append(attempt))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.dial, 8)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert not told
    assert [attempt.error for attempt in dialer.attempts] == ["given up"]

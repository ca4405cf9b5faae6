"""Race: the addresses of one name are dialed side by side."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support import run
from targets import Resolver, at, black_hole, dial, dialer_of, listening, refusing
from trioserve import Address, Attempt, TcpAddress, _connect, _dial
from trioserve._origins import DialedSocket
from trioserve._socket_transport import SocketTransport

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_the_next_address_is_tried() -> None:
    """Like localhost: ::1 first, on which often nobody listens."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver(["::1", "127.0.0.1"]))
        with listening() as address:
            transport = await dial(TcpAddress("localhost.test", address.port), 5)
            assert transport.sock.getpeername() == ("127.0.0.1", address.port)
            transport.close()

    run(main)


def test_each_address_has_a_head_start() -> None:
    """RFC 8305: one that does not answer delays the next by a quarter of a second."""

    async def main() -> None:
        with listening() as address, black_hole("127.0.0.2", address.port) as hole:
            trio.socket.set_custom_hostname_resolver(
                Resolver([hole.host, address.host])
            )
            target = TcpAddress("target.test", address.port)
            dialer = dialer_of([target])
            transport = await dialer.dial(5)
            assert isinstance(transport, SocketTransport)
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


def test_two_that_connect_at_once_leave_one_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 13: the other one is closed."""

    async def connect_together(begun: Any, *options: Any) -> SocketTransport:
        transport = await connect(begun, *options)
        connected.append(transport)
        if len(connected) < 2:
            await both.wait()
        # Woken before the cancellation, so that it succeeds.
        both.set()
        return transport

    connect, both = _connect.finish_connect, trio.Event()
    connected: list[SocketTransport] = []

    async def main() -> None:
        monkeypatch.setattr(_dial, "finish_connect", connect_together)
        with listening("0.0.0.0") as address:
            names = Resolver(["127.0.0.1", "127.0.0.2"])
            trio.socket.set_custom_hostname_resolver(names)
            dialer = dialer_of([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
            assert [attempt.error for attempt in dialer.attempts] == [None, None]

    run(main)


def test_the_oldest_of_six_makes_way_for_the_next_address() -> None:
    """It has had its time."""

    async def main() -> None:
        silent = [f"127.0.1.{number}" for number in range(1, 8)]
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(listening("127.0.1.8")).port
            for host in silent:
                stack.enter_context(black_hole(host, port))
            trio.socket.set_custom_hostname_resolver(Resolver([*silent, "127.0.1.8"]))
            dialer = dialer_of([TcpAddress("target.test", port)])
            (await dialer.dial(60)).close()
        assert trio.current_time() == 7 * 0.25
        assert dialer.attempts[0] == Attempt(
            address=f"127.0.1.1:{port}", seconds=1.5, error="no answer"
        )

    run(main)


@given(
    st.lists(st.sampled_from(["answers", "refuses", "drops"]), min_size=2, max_size=12)
)
@example([*9 * ["drops"], "answers"])
@example([*3 * ["drops"], "refuses", *7 * ["drops"]])
@settings(deadline=None, max_examples=60)
def test_an_address_of_a_name_that_answers_is_reached(kinds: list[str]) -> None:
    """Law 12: however many others are silent or refuse; six run at a time."""

    async def main() -> None:
        hosts = [f"127.0.1.{number}" for number in range(1, len(kinds) + 1)]
        told: list[tuple[float, Attempt]] = []

        def on_attempt(_: Address, attempt: Attempt) -> None:
            told.append((trio.current_time(), attempt))

        with contextlib.ExitStack() as stack:
            port = stack.enter_context(refusing()).port
            for host, kind in zip(hosts, kinds, strict=True):
                if kind != "refuses":
                    stack.enter_context(at(kind, host, port))
            trio.socket.set_custom_hostname_resolver(Resolver(hosts))
            dialer = dialer_of([TcpAddress("target.test", port)], on_attempt=on_attempt)
            if "answers" in kinds:
                first = kinds.index("answers")
                transport = await dialer.dial(60)
                assert isinstance(transport, SocketTransport)
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
        # on_attempt was not called for lost races; they ended now.
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
        # An attempt that made way for another has had its time.
        assert all(a.seconds >= 1.5 for _, a in told if a.error == "no answer")

    run(main)


def test_an_address_that_a_name_has_twice_is_tried_once() -> None:
    """It would only race with itself."""

    async def main() -> None:
        with refusing() as address:
            trio.socket.set_custom_hostname_resolver(
                Resolver([address.host, address.host, f"::ffff:{address.host}"])
            )
            dialer = dialer_of([TcpAddress("target.test", address.port)])
            with pytest.raises(ConnectionRefusedError):
                await dialer.dial(5)
            assert [attempt.address for attempt in dialer.attempts] == [str(address)]

    run(main)


def test_each_address_of_a_name_has_its_own_failure() -> None:
    """One that refused was not cancelled."""

    async def main() -> None:
        with black_hole("127.0.0.2") as hole:
            trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.3", hole.host]))
            dialer = dialer_of([TcpAddress("target.test", hole.port)])
            with pytest.raises(TimeoutError):
                await dialer.dial(2)
            assert trio.current_time() == 2
            refused, silent = [attempt.error for attempt in dialer.attempts]
            assert refused is not None
            assert refused.startswith("ConnectionRefusedError")
            assert silent == "no answer"

    run(main)


def test_the_next_address_follows_a_refusal_at_once() -> None:
    """RFC 8305: the head start ends with a failure."""

    async def main() -> None:
        with listening() as address:
            trio.socket.set_custom_hostname_resolver(
                Resolver(["127.0.0.2", "127.0.0.3", address.host])
            )
            dialer = dialer_of([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
            assert trio.current_time() == 0
            errors = [attempt.error for attempt in dialer.attempts]
            assert [error is None for error in errors] == [False, False, True]

    run(main)


def test_the_last_error_is_raised() -> None:
    """When all addresses have failed."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(
            Resolver(["127.255.255.255", "127.0.0.1"])
        )
        with refusing() as address, pytest.raises(ConnectionRefusedError):
            await dial(TcpAddress("target.test", address.port), 5)

    run(main)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_address_without_a_route_is_recorded(
    is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another one answers; with no other under way, and beside one."""

    async def main() -> None:
        with (
            listening() as address,
            black_hole("127.0.0.2", address.port) as silent,
            monkeypatch.context() as m,
        ):
            hosts = ["::1", address.host]
            if not is_first:
                hosts.insert(0, silent.host)
            trio.socket.set_custom_hostname_resolver(Resolver(hosts))
            m.setattr(_connect, "DialedSocket", OldSocket)
            dialer = dialer_of([TcpAddress("target.test", address.port)])
            (await dialer.dial(5)).close()
        errors = {a.address: a.error for a in dialer.attempts}
        assert len(errors) == len(hosts)
        assert "no IPv6" in (errors[f"[::1]:{address.port}"] or "")
        assert errors[str(address)] is None

    class OldSocket(DialedSocket):
        def __init__(self, family: int = -1, *options: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6 on this machine")
            super().__init__(family, *options, **more)

    run(main)


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
            port = stack.enter_context(refusing()).port
            for host, kind in zip(hosts, kinds, strict=True):
                if kind != "refuses":
                    stack.enter_context(at(kind, host, port))
            trio.socket.set_custom_hostname_resolver(Resolver(hosts))
            dialer = dialer_of([TcpAddress("target.test", port)])
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

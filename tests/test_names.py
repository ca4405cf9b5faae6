"""Names: one look-up per name at a time, and the last good answer is kept."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nasty
from nasty import Recipe
from support import PanicError, no_free_fd, run
from trioserve import TcpAddress
from trioserve._errors import is_a
from trioserve._names import (
    _AHEAD,
    _FRESH,
    _MAX_NAMES,
    _RENEWAL,
    look_up,
    numeric_addrinfo,
)


class Resolver(trio.abc.HostnameResolver):
    """A resolver that is asked, and answers when it is told to.

    Attributes:
      asked: the names that it was asked for, in order.
      answer: what it answers, or raises.
      seconds: how long it takes.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: list[str] | BaseException = ["127.0.0.1"]
        self.seconds = 0.0
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *_: int, **__: int) -> list[Any]:
        self.asked.append(host.decode() if isinstance(host, bytes) else host)
        answer: Any = self.answer
        seconds = self.seconds
        await trio.sleep(seconds)
        if is_a(answer, BaseException):
            raise answer
        return [
            found
            for number in answer
            for found in socket.getaddrinfo(number, port, type=socket.SOCK_STREAM)
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def hosts(name: str = "db.test", port: int = 80) -> list[str]:
    places = await look_up(TcpAddress(name, port))
    assert all(place.sockaddr[1] == port for place in places)
    return [place.sockaddr[0] for place in places]


def test_clients_of_one_name_share_a_look_up() -> None:
    """Law 1: a dead name costs one look-up, however many clients need it."""

    async def main() -> None:
        resolver = Resolver()
        resolver.seconds = 30
        gave_up = 0

        async def client() -> None:
            nonlocal gave_up
            with trio.move_on_after(5) as patience:
                await hosts()
            gave_up += patience.cancelled_caught

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(client)
        assert gave_up == 600
        assert trio.current_time() == 15
        assert resolver.asked == ["db.test"]
        # The look-up goes on for the next callers.
        assert await hosts() == ["127.0.0.1"]
        assert trio.current_time() == 30
        assert resolver.asked == ["db.test"]

    run(main)


def test_other_names_are_not_delayed() -> None:
    """Law 1: each name waits for its own answer only."""

    async def main() -> None:
        resolver = Resolver()
        resolver.seconds = 30
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hosts, "dead.test")
            await trio.testing.wait_all_tasks_blocked()
            resolver.seconds = 0
            assert await hosts("live.test") == ["127.0.0.1"]
            assert trio.current_time() == 0

    run(main)


def test_numbers_wait_for_no_thread() -> None:
    """Law 1: not even when all threads wait for names."""
    release = threading.Event()

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        async with trio.open_nursery() as nursery:
            for _ in range(int(limiter.total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, lambda: release.wait())  # noqa: PLW0108
            await trio.testing.wait_all_tasks_blocked()
            assert limiter.available_tokens == 0
            assert await hosts("127.0.0.1") == ["127.0.0.1"]
            assert await hosts("::1") == ["::1"]
            release.set()

    trio.run(main)


def test_an_answer_is_used_again_while_it_is_fresh() -> None:
    """And not longer, if there is a new one."""

    async def main() -> None:
        resolver = Resolver()
        assert await hosts(port=80) == await hosts(port=81) == ["127.0.0.1"]
        assert resolver.asked == ["db.test"]
        await trio.sleep(_FRESH)
        resolver.answer = ["127.0.0.2"]
        assert await hosts() == ["127.0.0.2"]
        assert resolver.asked == 2 * ["db.test"]

    run(main)


@settings(deadline=None, max_examples=30)
@given(nasty.errors(OSError, socket.gaierror, ValueError))
@example(Recipe(OSError, {"args": "raises ValueError", "errno": "returns None"}))
@example(Recipe(ValueError, {"__str__": "raises KeyboardInterrupt"}))
def test_whatever_a_resolver_raises_the_name_has_no_address(recipe: Recipe) -> None:
    """Law 1: and the run goes on, although the look-up is a system task."""

    async def main() -> None:
        resolver = Resolver()
        resolver.answer = cast(Exception, recipe.make())
        for _ in range(2):
            with pytest.raises(OSError, match=r"|") as caught:
                await look_up(TcpAddress("a.test", 80))
            assert type(caught.value).__module__ in ("builtins", "socket")

    run(main)


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), UnicodeError(), [], 60.0],
    ids=["failure", "no name", "nothing", "no answer"],
)
def test_the_last_good_answer_is_kept(failure: Any) -> None:
    """However old; while it is renewed, callers wait a second at most."""

    async def main() -> None:
        resolver = Resolver()
        await hosts()
        await trio.sleep(86400)
        if isinstance(failure, float):
            resolver.seconds = failure
        else:
            resolver.answer = failure
        for later in (0.0, 0.25):
            await trio.sleep(later)
            began = trio.current_time()
            assert await hosts() == ["127.0.0.1"]
            assert trio.current_time() - began <= _RENEWAL

    run(main)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.9, 20.0])
def test_nobody_waits_for_a_name_that_is_used_often(seconds: float) -> None:
    """It is looked up while its answer is still used."""

    async def main() -> None:
        resolver = Resolver()
        await hosts()
        resolver.seconds = seconds
        resolver.answer = ["127.0.0.2"]
        for _ in range(400):
            began = trio.current_time()
            answer = await hosts()
            assert trio.current_time() == began
            changes_at = _AHEAD + seconds
            if abs(began - changes_at) > 0.3:
                assert answer == ["127.0.0.1" if began < changes_at else "127.0.0.2"]
            await trio.sleep(0.1)
        assert len(resolver.asked) <= 1 + 1 + 40 / _AHEAD

    run(main)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 20.0, 1e6])
def test_a_name_server_that_fails_costs_one_wait(seconds: float) -> None:
    """Law 1: the last good answer is used at once from then on, until a new one.

    However long it fails, or takes to fail; it is asked once a second at most.
    """

    async def main() -> None:
        resolver = Resolver()
        await hosts()
        await trio.sleep(_FRESH)
        resolver.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        resolver.seconds = seconds
        waits = []
        for _ in range(600):
            began = trio.current_time()
            assert await hosts() == ["127.0.0.1"]
            waits.append(trio.current_time() - began)
            await trio.sleep(0.1)
        assert waits[0] <= _RENEWAL
        assert max(waits[1:]) == 0
        asked = len(resolver.asked)
        assert asked <= 2 + 62 / max(seconds, _RENEWAL)
        if seconds > 60:
            return
        resolver.answer, resolver.seconds = ["127.0.0.2"], 0
        await trio.sleep(max(seconds, _RENEWAL) + 0.1)
        await hosts()
        await trio.testing.wait_all_tasks_blocked()
        assert await hosts() == ["127.0.0.2"]
        assert len(resolver.asked) == asked + 1
        # The next renewal may cost a wait again.
        resolver.seconds = 0.5
        await trio.sleep(_FRESH)
        began = trio.current_time()
        await hosts()
        assert trio.current_time() - began == 0.5

    run(main)


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary"), socket.EAI_AGAIN, "Temporary"),
        (UnicodeError("a bug"), socket.EAI_FAIL, "a bug"),
        ([], socket.EAI_NONAME, "no address"),
        (RuntimeError("a resolver's bug"), socket.EAI_FAIL, "a resolver's bug"),
        (PanicError("no Exception"), socket.EAI_FAIL, "no Exception"),
    ],
)
def test_a_name_without_an_address_raises(failure: Any, code: int, text: str) -> None:
    """Each waiter gets its own error, and the run goes on."""

    async def main() -> None:
        resolver = Resolver()
        resolver.answer, resolver.seconds = failure, 1
        errors: list[socket.gaierror] = []

        async def client() -> None:
            with pytest.raises(socket.gaierror) as caught:
                await hosts()
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(client)
        assert errors[0] is not errors[1]
        assert [error.errno for error in errors] == 2 * [code]
        assert text in str(errors[0])
        # The next caller starts another look-up.
        resolver.answer = ["127.0.0.1"]
        assert await hosts() == ["127.0.0.1"]

    run(main)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("can't start new thread"),
    ],
    ids=["descriptors", "threads"],
)
def test_a_local_shortage_is_not_a_failed_look_up(failure: Exception) -> None:
    """Law 15: the error names the shortage."""

    async def main() -> None:
        resolver = Resolver()
        resolver.answer = failure
        for _ in range(2):
            with pytest.raises(OSError, match=r"open files|no thread") as caught:
                await hosts()
            assert not isinstance(caught.value, socket.gaierror)
            assert caught.value.errno in (errno.EMFILE, errno.EAGAIN)

    run(main)


@pytest.mark.parametrize("known", [False, True])
async def test_out_of_descriptors_no_name_is_unknown(known: bool) -> None:
    """Law 15: although the C library says so if it can't open a file or a socket."""
    if known:  # the C library may have cached the hosts file
        await hosts("localhost")
    with pytest.raises(OSError, match="Too many open files"), no_free_fd():
        await hosts("ip6-localhost")


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "no"), OSError(16, "busy")])
def test_out_of_descriptors_whatever_error_the_c_library_has(answer: OSError) -> None:
    """Law 15: with libnss-mdns it is EBUSY."""

    async def main() -> None:
        resolver = Resolver()
        resolver.answer = answer
        with pytest.raises(type(answer), match=str(answer.strerror)):
            await hosts()
        with pytest.raises(OSError, match="Too many open files"), no_free_fd():
            await hosts()

    run(main)


def test_a_name_of_a_link_local_address_follows_its_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interface that is made anew has the same name and another number."""

    now: int | OSError

    def number_of(name: str) -> int:
        assert name == "lo"
        if isinstance(now, OSError):
            raise now
        return now

    async def main() -> None:
        nonlocal now
        Resolver().answer = ["fe80::1%lo", "127.0.0.1"]
        gone = OSError("no such interface")
        for now, zone in ((7, 7), (9, 9), (gone, lo)):  # noqa: B007 - it is looked at
            first, second = await look_up(TcpAddress("db.test", 80))
            assert first.sockaddr == ("fe80::1", 80, 0, zone)
            assert second.sockaddr == ("127.0.0.1", 80)

    lo = now = socket.if_nametoindex("lo")
    monkeypatch.setattr(socket, "if_nametoindex", number_of)
    run(main)


def test_the_number_of_a_zone_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses with a zone are looked up each time; others once."""
    asked: list[bytes] = []
    getaddrinfo = socket.getaddrinfo

    def ask(host: Any, *args: Any, **options: Any) -> Any:
        asked.append(host)
        return getaddrinfo(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    for _ in range(3):
        for host in ("127.9.9.9", "fe80::9:9%lo"):
            assert numeric_addrinfo(TcpAddress(host, 80)) is not None
    assert asked == [b"127.9.9.9", *3 * [b"fe80::9:9%lo"]]


async def test_an_ipv4_mapped_address_is_ipv4() -> None:
    """It needs no IPv6 on this machine."""
    for host in ("::ffff:127.0.0.1", "::FFFF:7f00:1"):
        (place,) = await look_up(TcpAddress(host, 80))
        assert (place.family, place.sockaddr) == (socket.AF_INET, ("127.0.0.1", 80))


def test_the_cache_of_names_is_bounded() -> None:
    """Law 13: the oldest name is dropped first."""

    async def main() -> None:
        resolver = Resolver()
        for number in range(_MAX_NAMES + 1):
            await hosts(f"{number}.test")
        await hosts("1.test")
        assert len(resolver.asked) == _MAX_NAMES + 1
        await hosts("0.test")
        assert resolver.asked[-1] == "0.test"

    run(main)


@given(st.lists(st.sampled_from(["127.0.0.1", "127.0.0.2", "::1"]), min_size=1))
@settings(deadline=None)
def test_families_take_turns(answer: list[str]) -> None:
    """RFC 8305, section 4: beginning with that of the first result."""

    async def main() -> None:
        Resolver().answer = answer
        found = await hosts()
        once = list(dict.fromkeys(answer))
        for is_ipv6 in (True, False):
            of_family = [host for host in once if (":" in host) is is_ipv6]
            assert [host for host in found if (":" in host) is is_ipv6] == of_family
        like_the_first = [(":" in host) == (":" in answer[0]) for host in found]
        both = 2 * min(like_the_first.count(True), like_the_first.count(False))
        assert like_the_first[:both] == both // 2 * [True, False]

    run(main)

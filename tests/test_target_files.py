"""A file that lists the targets of a proxy, and is replaced while it serves."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support import Running, open_fds, receive_exactly, reset, serving
from sweep import Begin, sweep
from targets import refusing
from test_balancing import echoes, talk
from test_draining_targets import holds
from trioserve import (
    Connection,
    Health,
    Reason,
    Target,
    TargetFile,
    TcpAddress,
    Timeouts,
    UnixAddress,
    by_server_name,
    echo,
    parse_target,
    proxy,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "targets"


def write(path: Path, *lines: object) -> None:
    """Replace the file at once, as a program should."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)


def remove(path: Path) -> None:
    path.unlink()


# -- what is in a file


def test_a_file_has_the_same_syntax_and_comments(path: Path) -> None:
    write(
        path,
        "# Databases",
        "10.0.0.1:5432?weight=3   # the big one",
        "",
        "  db2:5432?backup\t#",
        "unix:/run/a#b",
    )
    assert TargetFile(str(path)).read() == (
        Target(TcpAddress("10.0.0.1", 5432), weight=3),
        Target(TcpAddress("db2", 5432), backup=True),
        Target(UnixAddress("/run/a#b")),
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:targets", "targets"),
        (" file:/etc/targets ", "/etc/targets"),
        ("FILE:///etc/targets", "/etc/targets"),
    ],
)
def test_a_file_is_a_text(text: str, path: str) -> None:
    assert parse_target(text) == TargetFile(path)
    assert parse_target(str(TargetFile(path))) == TargetFile(path)


def test_what_windows_writes_is_read(path: Path) -> None:
    path.write_bytes("﻿db:1\r\ndb:2\r\n".encode())
    assert list(map(str, TargetFile(str(path)).read())) == ["db:1", "db:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no target in it; write one per line"),
        ("# nothing\n", "it has no target in it"),
        ("db:1\n\ndb\n", "line 3: 'db'"),
        ("db:1?heavy", "line 1: 'heavy' in 'db:1.heavy' is not an option of a target"),
        ("file:other", "line 1: "),
        ("x" * 2**20 + "y", "can't read it: it has more than 1 MiB"),
        ("folder", "can't read it: Is a directory"),
        ("pipe", "can't read it: it is not a file"),
        (None, "can't read it: No such file or directory"),
    ],
)
def test_a_file_that_can_t_be_used_is_one_line(
    content: str | None, message: str, path: Path
) -> None:
    """Which names the file, and the line."""
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"^file:{path}: {message}") as caught:
        proxy(f"file:{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "a\nb", "a?weight=2"])
def test_a_path_that_is_none_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="file:"):
        TargetFile(path)


# -- a file that changes


async def test_a_replaced_file_is_followed(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """New clients go to the new target, the old one keeps those that it has.

    One that stays has its state, and those that are gone are shown until the end.
    """
    caplog.set_level(logging.INFO, "trioserve.targets")
    async with echoes(3) as (one, two, three):
        write(path, one.address, two.address)
        handler = proxy(TargetFile(str(path)), balance="round-robin")
        async with serving(handler) as running:
            client = await holds(running)
            assert await talk(running) == two.address
            await trio.sleep(5)
            assert caplog.messages == []
            write(path, f"{two.address}?weight=2", three.address)
            await trio.sleep(1.5)
            text = f"file:{path} has 2 targets now: 1 new, 1 gone"
            assert caplog.messages == [text]
            turns = [await talk(running) for _ in range(3)]
            assert turns == [two.address, three.address, two.address]
            await client.send_all(b"y")
            assert await receive_exactly(client, 1) == b"y"
            states = handler.targets()
            assert [state.gone for state in states] == [False, False, True]
            assert [state.connected for state in states] == [3, 1, 1]
            assert [state.open for state in states] == [0, 0, 1]
            assert [state.target.weight for state in states] == [2, 1, 1]
            since = states[1].seconds
            assert since is not None
            assert since <= 1.5
            assert states[0].seconds is None
            await client.aclose()
            await running.closed(5)
            assert len(handler.targets()) == 2


async def test_a_target_that_comes_back_is_the_same(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 2: its connections of before count, too."""
    async with echoes(2) as (one, two):
        write(path, one.address)
        handler = proxy(f"file:{path}", max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=3)) as running:
            await holds(running)
            write(path, two.address)
            await trio.sleep(1.5)
            assert await talk(running) == two.address
            write(path, one.address)
            await trio.sleep(1.5)
            assert await talk(running) is None
            (state,) = handler.targets()
            assert (state.open, state.gone) == (1, False)
            await running.closed(2)
            assert running.reports[-1].reason is Reason.TARGET_FULL


async def test_a_bad_file_changes_nothing(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Law 15: the log says why, once; and again when it is good."""
    caplog.set_level(logging.INFO, "trioserve.targets")
    async with echoes(2) as (one, two):
        write(path, one.address)
        handler = proxy(f"file:{path}")
        async with serving(handler) as running:
            write(path, two.address, "nonsense")
            await trio.sleep(10)
            assert await talk(running) == one.address
            (message,) = caplog.messages
            assert message.startswith(f"file:{path}: line 2: 'nonsense'")
            assert message.endswith(
                "; the targets of before stay in use until that is mended"
            )
            remove(path)
            await trio.sleep(10)
            assert len(caplog.messages) == 2
            assert "No such file" in caplog.messages[1]
            assert handler.reload_targets()
            assert caplog.messages[2] == caplog.messages[1]
            write(path, two.address)
            await trio.sleep(1.5)
            assert caplog.messages[3].endswith("has 1 target now: 1 new, 1 gone")
            assert await talk(running) == two.address


async def test_a_certificate_that_can_t_be_used_changes_nothing(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also one that can't be used any more when its target is made."""

    def fails(*_: object) -> None:
        raise ValueError("ca: can't read 'ca.pem': Permission denied")

    async with echoes(2) as (one, two):
        write(path, one.address)
        handler = proxy(f"file:{path}")
        async with serving(handler) as running:
            monkeypatch.setattr("trioserve._endpoint.TlsClient", fails)
            write(path, one.address, f"tls://{two.address}?verify=no")
            await trio.sleep(5)
            assert len(handler.targets()) == 1
            assert await talk(running) == one.address
    (message,) = caplog.messages
    assert message.startswith(
        "ca: can't read 'ca.pem': Permission denied; the targets of"
    )


async def test_files_are_read_when_a_program_says_so(path: Path) -> None:
    write(path, "127.0.0.1:1")
    handler = proxy("127.0.0.1:9", f"file:{path}", "127.0.0.1:8?backup")
    write(path, "127.0.0.1:2", "127.0.0.1:1")
    await trio.lowlevel.checkpoint()
    assert handler.reload_targets()
    ports = [str(state.target)[10:] for state in handler.targets()]
    assert ports == ["9", "2", "1", "8?backup"]
    assert not proxy("127.0.0.1:9").reload_targets()


async def test_a_drained_file_is_drained_with_the_targets_that_come(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """But a new target in place of one that was drained by itself is not."""
    async with echoes(3) as (one, two, three):
        write(path, one.address)
        handler = proxy(f"file:{path}", f"{three.address}?backup")
        async with serving(handler) as running:
            handler.drain(f"file:{path}")
            write(path, one.address, two.address)
            await trio.sleep(1.5)
            assert [each.drained for each in handler.targets()] == [True, True, False]
            assert await talk(running) == three.address
            handler.revive(TargetFile(str(path)))
            assert await talk(running) == one.address
            handler.drain(one.address)
            write(path, two.address)
            await trio.sleep(1.5)
            assert await talk(running) == two.address
            write(path, one.address)
            await trio.sleep(1.5)
            assert await talk(running) == one.address


@pytest.mark.parametrize("way", ["by name", "by itself", "twice"])
async def test_files_are_followed_whatever_calls_the_proxy(
    way: str, path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def wraps(conn: Connection) -> None:
        await (await made(conn))

    write(path, "127.0.0.1:1")
    made = proxy(f"file:{path}")
    handlers: dict[str, list[Any]] = {
        "by name": [by_server_name({"a.test": made})],
        "by itself": [wraps],
        "twice": [made, made],
    }
    async with trio.open_nursery() as nursery:
        if way == "by itself":
            nursery.start_soon(made.run_beside)
        async with contextlib.AsyncExitStack() as stack:
            for each in handlers[way]:
                await stack.enter_async_context(serving(each))
            await trio.sleep(2)
            write(path, "127.0.0.1:2")
            await trio.sleep(2)
            (state,) = made.targets()
            assert str(state.target) == "127.0.0.1:2"
        nursery.cancel_scope.cancel()


async def test_checks_follow_the_file(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A new target is checked, and its first check may take it down; a gone one not."""
    told: list[tuple[str, bool]] = []
    async with echoes(1) as (good,):
        with refusing() as bad:
            write(path, good.address)
            handler = proxy(
                f"file:{path}",
                health=Health(check=1),
                on_target=lambda state: told.append((str(state.target), state.up)),
            )
            async with serving(handler):
                await trio.sleep(5)
                write(path, good.address, bad)
                await trio.sleep(5)
                assert told == [(str(bad), False)]
                assert handler.targets()[0].checks >= 8
                accepted = good.server.statistics().accepted
                write(path, bad)
                await trio.sleep(10)
                assert good.server.statistics().accepted <= accepted + 2
                assert handler.targets()[0].checks >= 10
    assert told == [(str(bad), False)]


async def test_those_that_wait_for_room_get_a_new_target(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with echoes(2) as (one, two):
        write(path, one.address)
        handler = proxy(f"file:{path}", max_per_target=1)
        async with serving(handler, timeouts=Timeouts(connect=60)) as running:
            await holds(running)
            client = await running.connect()
            await client.send_all(b"x")
            await trio.sleep(5)
            write(path, one.address, two.address)
            assert await receive_exactly(client, 1) == b"x"
            assert trio.current_time() <= 6


async def test_no_client_fails_while_the_file_is_replaced(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: 150 clients, and a file that lists another choice of targets each time."""
    drawn = random.Random(7)
    failed = 0

    async def client(running: Running) -> None:
        nonlocal failed
        await trio.sleep(drawn.uniform(0, 60))
        stream = await running.connect()
        for _ in range(3):
            try:
                await stream.send_all(b"x")
                failed += await stream.receive_some() != b"x"
            except trio.BrokenResourceError:
                failed += 1
            await trio.sleep(drawn.uniform(0, 5))
        await stream.aclose()

    async with echoes(4) as there:
        addresses = [each.address for each in there]
        write(path, *addresses)
        handler = proxy(f"file:{path}", balance="least-connections")
        async with serving(handler) as running, trio.open_nursery() as clients:
            for _ in range(150):
                clients.start_soon(client, running)
            for _ in range(40):
                write(path, *drawn.sample(addresses, drawn.randint(1, 4)))
                await trio.sleep(1.5)
        assert failed == 0
        assert {report.reason for report in running.reports} == {Reason.CLIENT_CLOSED}
        assert not any(state.open or state.failed for state in handler.targets())
        used = [each.server.statistics().accepted for each in there]
        assert min(used) > 10


@pytest.mark.untraced
def test_replaced_at_every_step(path: Path) -> None:
    """Law 2: whoever waits, dials or relays then, every place is given back."""

    async def client(running: Running) -> None:
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            stream = await running.connect()
            try:
                await stream.send_all(b"hello")
                await stream.receive_some()
            finally:
                reset(stream)

    async def scenario(begin: Begin) -> None:
        before = open_fds()
        async with serving(echo) as one, serving(echo) as two:
            write(path, one.address)
            handler = proxy(f"file:{path}", max_per_target=1)
            write(path, two.address)
            async with serving(handler, timeouts=Timeouts(connect=2)) as running:
                begin(handler.reload_targets)
                async with trio.open_nursery() as clients:
                    for _ in range(3):
                        clients.start_soon(client, running)
                # It may be read once more from here on.
                assert await talk(running) in (one.address, two.address)
                assert not any(state.open for state in handler.targets())
        assert {report.reason for report in running.reports} <= {
            Reason.CLIENT_RESET,
            Reason.CLIENT_CLOSED,
        }
        assert open_fds() == before

    assert sweep(scenario) > 20

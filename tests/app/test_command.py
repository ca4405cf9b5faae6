"""The command as a process: signals, exit codes, where output goes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from app.process import HELD, PATIENCE, Command, Start, say_hello
from trioserve.app import _stop


def _is_reset(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_echo_drains_on_a_signal_and_exits_with_0(
    start: Start, number: signal.Signals
) -> None:
    command = start("echo", "127.0.0.1:0")
    with command.connect(command.port()) as client:
        say_hello(client)
    command.err.until("event=connection")
    command.signal(number)
    assert f"reason={number.name} " in command.err.until("event=draining")
    assert "accepted=1 " in command.err.until("event=drained")
    assert command.code() == 0
    assert command.out.rest() == []


def test_log_connections_none_logs_none_and_still_reports_them(
    start: Start,
) -> None:
    quiet = ("--log-connections", "none")
    command = start("echo", "127.0.0.1:0", *quiet, "--reports", "-")
    with command.connect(command.port()) as client:
        say_hello(client)
    assert json.loads(command.out.until("{"))["bytes_received"] == 5
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    events = [line for line in command.err.rest() if "event=connection" in line]
    assert events == []


def test_proxy_relays_and_reports_on_stdout(start: Start) -> None:
    echo = start("echo", "127.0.0.1:0")
    target = f"127.0.0.1:{echo.port()}"
    proxy = start("proxy", "127.0.0.1:0", target, "--reports", "-", "--log", "json")
    ready = json.loads(proxy.err.until('"event":"listening"'))
    assert ready["target"] == target
    with proxy.connect(int(ready["addresses"].split(":")[1])) as client:
        say_hello(client)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    report = json.loads(proxy.out.until("{"))
    assert (report["bytes_received"], report["bytes_sent"]) == (5, 5)
    assert report["target"] == target
    proxy.signal(signal.SIGTERM)
    assert proxy.code() == 0


def test_a_target_that_refuses_is_in_the_report(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        proxy = start("proxy", "127.0.0.1:0", target)
        # It may be reset before it knows that it is connected.
        with (
            contextlib.suppress(ConnectionResetError),
            proxy.connect(proxy.port()) as client,
        ):
            client.recv(1)
        ended = proxy.err.until("event=connection")
        assert " reason=connect_refused " in ended
        assert " level=warning " in ended
        (down,) = [line for line in proxy.err.seen if "event=target-down" in line]
        assert f"address={target} " in down
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0


def test_a_target_that_fails_is_logged_at_once_and_not_when_the_connection_ends(
    start: Start,
) -> None:
    """Law 15: the connection goes on, to the next target."""
    echo = start("echo", "127.0.0.1:0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = f"127.0.0.1:{unused.getsockname()[1]}"
        up = f"127.0.0.1:{echo.port()}"
        proxy = start("proxy", "127.0.0.1:0", down, up)
        port = proxy.port()
        with proxy.connect(port) as client:
            assert f"address={down} " in proxy.err.until("event=target-down")
            say_hello(client)
            unused.listen()
            with proxy.connect(port):
                assert f"address={down}" in proxy.err.until("event=target-up")


def test_a_target_that_refuses_does_not_fill_the_log(
    start: Start, tmp_path: Path
) -> None:
    """Law 15: logged and counted events add up to all of them."""
    path = tmp_path / "reports"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        options = ("--log", "json", "--reports", str(path))
        proxy = start("proxy", "127.0.0.1:0", target, *options)
        ready = json.loads(proxy.err.until('"event":"listening"'))
        address = ("127.0.0.1", int(ready["addresses"].split(":")[1]))
        for _ in range(300):
            with (
                contextlib.suppress(ConnectionResetError),
                socket.create_connection(address) as client,
            ):
                client.recv(1)
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0
    events = [json.loads(line) for line in proxy.err.rest()]
    logged = [e for e in events if e["event"] == "connection"]
    suppressed = [e for e in events if e["event"] == "suppressed"]
    assert len(logged) + sum(e["count"] for e in suppressed) == 300
    assert {e["reason"] for e in logged + suppressed} == {"connect_refused"}
    assert len(path.read_text().splitlines()) == 300


def test_connections_open_at_the_deadline_are_cut_and_the_exit_code_is_3(
    start: Start,
) -> None:
    echo = start("echo", "127.0.0.1:0")
    target = f"127.0.0.1:{echo.port()}"
    proxy = start("proxy", "127.0.0.1:0", target, "--drain", "0")
    with proxy.connect(proxy.port()) as client:
        say_hello(client)
        proxy.signal(signal.SIGTERM)
        assert _is_reset(client)
    assert "cut=1 " in proxy.err.until("event=drained")
    assert proxy.code() == 3


def _held_proxy(start: Start) -> tuple[Command, socket.socket]:
    # A proxy that would drain for an hour, with a client.
    echo = start("echo", "127.0.0.1:0")
    proxy = start("proxy", "127.0.0.1:0", f"127.0.0.1:{echo.port()}", *HELD)
    client = proxy.connect(proxy.port())
    say_hello(client)
    return proxy, client


def _wait_until_another_signal_counts(client: socket.socket) -> None:
    # Meanwhile its connection stays open.
    client.settimeout(2 * _stop._DUPLICATE)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(PATIENCE)


def test_signals_from_terminal_and_supervisor_at_once_count_as_one(
    start: Start,
) -> None:
    proxy, client = _held_proxy(start)
    with client:
        proxy.signal(signal.SIGSTOP)  # so that they come at once
        proxy.signal(signal.SIGTERM)
        proxy.signal(signal.SIGINT)
        proxy.signal(signal.SIGCONT)
        proxy.err.until("event=draining")
        _wait_until_another_signal_counts(client)
    assert proxy.code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_second_signal_cuts_at_once(start: Start, number: signal.Signals) -> None:
    proxy, client = _held_proxy(start)
    first = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
    with client:
        proxy.signal(first)
        assert "open=1 seconds=3600.0" in proxy.err.until("event=draining")
        _wait_until_another_signal_counts(client)
        proxy.signal(number)
        proxy.err.until("event=cutting")
        assert _is_reset(client)
    assert proxy.code() == 3


@pytest.mark.usefixtures("traced")
def test_many_signals_do_not_change_the_exit_code(start: Start) -> None:
    command = start("echo", "127.0.0.1:0")
    command.port()
    # One a millisecond: without any pause Python's own signal handlers, which
    # interrupt each other, run out of stack.
    ended = False
    while not ended:
        command.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(0.001)
            ended = True
    assert command.code() in (0, 3)


def test_sighup_stays_ignored_if_it_was(start: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = start("echo", "127.0.0.1:0")
    finally:
        signal.signal(signal.SIGHUP, before)
    port = command.port()
    command.signal(signal.SIGHUP)
    with command.connect(port) as client:
        say_hello(client)
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    assert not any("SIGHUP" in line for line in command.err.seen)


def test_it_listens_on_several_addresses_and_leaves_no_file(
    start: Start, tmp_path: Path
) -> None:
    path, port_file = tmp_path / "socket", tmp_path / "port"
    command = start(
        *("echo", "127.0.0.1:0", "--port-file", str(port_file)),
        TRIOSERVE_LISTEN=f"127.0.0.2:0 unix:{path}?mode=0600",
    )
    listening = command.err.until("event=listening")
    ports = port_file.read_text().split()
    assert f"addresses=127.0.0.1:{ports[0]},127.0.0.2:{ports[1]},unix:{path} " in (
        listening
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        say_hello(client)
    for host, port in (("127.0.0.1", ports[0]), ("127.0.0.2", ports[1])):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            say_hello(client)
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_drain_removes_the_port_file_and_refuses_clients(
    start: Start, tmp_path: Path
) -> None:
    port_file = tmp_path / "port"
    command = start("echo", "127.0.0.1:0", "--port-file", str(port_file), *HELD)
    port = command.port()
    assert port_file.read_text() == f"{port}\n"
    with command.connect(port) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        command.signal(signal.SIGTERM)
        command.err.until("event=draining")
        _wait_until_gone(port_file)
        with pytest.raises(ConnectionRefusedError):
            command.connect(port)
        client.sendall(b"y")
        assert client.recv(1) == b"y"


def _wait_until_gone(path: Path) -> None:
    # There is no event for it.
    deadline = time.monotonic() + 30
    while path.exists():
        assert time.monotonic() < deadline


@pytest.mark.usefixtures("traced")
def test_a_lame_duck_keeps_its_port_file_while_it_accepts(
    start: Start, tmp_path: Path
) -> None:
    port_file = tmp_path / "port"
    words = ["127.0.0.1:0", "--port-file", str(port_file), "--lame-duck", "1h"]
    command = start("echo", *words, *HELD)
    port = command.port()
    command.signal(signal.SIGTERM)
    command.err.until("event=draining")
    assert port_file.read_text() == f"{port}\n"
    with command.connect(port) as client:
        say_hello(client)
        _wait_until_another_signal_counts(client)
    assert port_file.exists()
    command.signal(signal.SIGINT)
    assert command.code() == 3
    assert not port_file.exists()


def test_after_a_crash_nothing_has_to_be_removed_by_hand(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    for number in (signal.SIGKILL, signal.SIGTERM):
        command = start("echo", f"unix:{path}")
        command.err.until("event=listening")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            say_hello(client)
        command.signal(number)
        assert command.code() == (-9 if number == signal.SIGKILL else 0)
    assert not path.exists()


def test_text_on_a_pipe_has_no_colours(start: Start) -> None:
    command = start("echo", "127.0.0.1:0", "--log", "text", FORCE_COLOR="")
    port = int(command.err.until("nc 127.0.0.1 ").split()[-1])
    with command.connect(port) as client:
        say_hello(client)
        client.shutdown(socket.SHUT_WR)
    assert " ok/client_closed 5 B in, 5 B out, " in command.err.until(" ok")
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    assert not any("\x1b" in line for line in command.err.seen)


def test_options_come_from_the_environment(start: Start) -> None:
    command = start("echo", "127.0.0.1:0", TRIOSERVE_MAX_CONNECTIONS="7")
    assert " max_connections=7 " in command.err.until("event=listening")


@pytest.mark.usefixtures("traced")
def test_a_misspelt_variable_is_a_warning(start: Start) -> None:
    command = start("echo", "127.0.0.1:0", TRIOSERVE_IDEL="5")
    assert "did you mean TRIOSERVE_IDLE?" in command.err.until("event=unknown-setting")
    command.port()
    command.signal(signal.SIGTERM)
    assert command.code() == 0


def test_a_target_that_answers_again_is_logged(start: Start) -> None:
    with socket.socket() as target:
        target.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{target.getsockname()[1]}"
        proxy = start("proxy", "127.0.0.1:0", address)
        port = proxy.port()
        with (
            contextlib.suppress(ConnectionResetError),
            proxy.connect(port) as client,
        ):
            client.recv(1)
        assert "Connection refused" in proxy.err.until("event=target-down")
        target.listen()
        with proxy.connect(port), target.accept()[0]:
            pass
        assert f"address={address}" in proxy.err.until("event=target-up")
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0


def test_the_demo_adds_up(start: Start) -> None:
    demo = start("demo", "--seconds", "0.5", "--clients", "40")
    assert demo.out.rest()[-1] == "Everything adds up."
    assert demo.code() == 0

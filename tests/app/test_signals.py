"""Signals, sent to the command at any time, whatever its parent has set."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

from app.process import Lines, Start, spawned
from shell import free_port
from trioserve.app import _signals
from trioserve.app._signals import Signals, end_when_stopped
from trioserve.app._topics import TOPICS

#: Those of signal(7) whose default is "Term" or "Core".
ENDING = {
    *("ABRT", "ALRM", "BUS", "FPE", "HUP", "ILL", "INT", "IO", "KILL", "PIPE", "PROF"),
    *("PWR", "QUIT", "SEGV", "STKFLT", "SYS", "TERM", "TRAP", "USR1", "USR2"),
    *("VTALRM", "XCPU", "XFSZ"),
}

#: A program whose look-ups of names never end, and which prints when one begins.
SLOW_NAMES = """
import os, socket, threading
real = socket.getaddrinfo
def look_up(host, port, family=0, type=0, proto=0, flags=0):
    if host != b"slow.test" or flags & socket.AI_NUMERICHOST:
        return real(host, port, family, type, proto, flags)
    # A thread in the midst of a print() would make the interpreter abort at its end.
    os.write(1, b"looking up\\n")
    threading.Event().wait()
socket.getaddrinfo = look_up
from trioserve.app import main
main()
"""


@contextlib.contextmanager
def blocked(*numbers: int) -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGQUIT, 3)],
    ids=str,
)
def test_it_can_be_stopped_if_its_parent_has_blocked_signals(
    start: Start, number: signal.Signals, code: int
) -> None:
    with blocked(*_signals.STOPS, *_signals.REQUESTS):
        command = start("echo", "127.0.0.1:0")
    command.port()
    command.signal(signal.SIGUSR1)
    command.err.until("event=status")
    command.signal(signal.SIGHUP)
    command.err.until("event=sighup")
    command.signal(number)
    assert command.code() == code


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("number", sorted(_signals.STOPS), ids=str)
def test_a_pending_stop_signal_ends_it(
    number: signal.Signals,
) -> None:
    with blocked(number):
        # The signal is pending for the shell, and then for the program that it runs.
        script = f'kill -{number.value} $$; exec "$0" -m trioserve echo 127.0.0.1:0'
        process = subprocess.Popen(
            ["sh", "-c", script, sys.executable],
            stderr=subprocess.PIPE,
            text=True,
        )
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == ""


def test_a_pending_sighup_ends_nothing() -> None:
    with blocked(signal.SIGHUP):
        script = 'kill -1 $$; exec "$0" -m trioserve echo 127.0.0.1:0'
        with spawned(["sh", "-c", script, sys.executable]) as process:
            assert process.stderr
            lines = Lines(process.stderr)
            lines.until("event=listening")
            lines.until("event=sighup")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_it_can_be_stopped_if_its_parent_has_ignored_signals(
    start: Start,
) -> None:
    for number in _signals.STOPS:
        signal.signal(number, signal.SIG_IGN)
    command = start("echo", "127.0.0.1:0")
    command.port()
    command.signal(signal.SIGTERM)
    assert command.code() == 0


def test_unused_signals_end_nothing(start: Start) -> None:
    command = start("echo", "127.0.0.1:0")
    with command.connect(command.port()) as client:
        for number in sorted(_signals.IGNORED):
            os.kill(command.process.pid, number)
        client.sendall(b"still there?")
        assert client.recv(12) == b"still there?"
    command.signal(signal.SIGTERM)
    assert command.code() == 0


def test_help_names_every_signal_that_could_end_it() -> None:
    told = set(re.findall(r"\b[A-Z]{2,}[12]?\b", TOPICS["signals"]))
    assert ENDING - told == set()
    ignored = TOPICS["signals"].split("Ignored:")[1].split(".")[0]
    assert ignored.split()[-3:] == ["RTMIN", "to", "RTMAX"]
    names = ENDING.intersection(re.findall(r"[A-Z\d]+", ignored))
    numbers = {getattr(signal, f"SIG{name}") for name in names}
    realtime = set(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    assert numbers | realtime == _signals.IGNORED


def test_a_crash_is_still_a_crash(start: Start) -> None:
    command = start("echo", "127.0.0.1:0")
    command.port()
    command.signal(signal.SIGABRT)
    assert command.code() == -signal.SIGABRT


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("number", sorted(_signals.STOPS), ids=str)
@pytest.mark.parametrize("command", ["echo", "proxy"])
def test_a_signal_while_names_are_looked_up_ends_it_and_leaves_nothing_behind(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    # A proxy looks up a target that might be itself.
    port = free_port()
    words = ["127.0.0.1:0", f"unix:{tmp_path}/socket", "slow.test:0"]
    if command == "proxy":
        words = [f"127.0.0.1:{port}", f"unix:{tmp_path}/socket"]
    first, *others = words
    targets = [f"slow.test:{port}"] if command == "proxy" else []
    listen = [word for other in others for word in ("--listen", other)]
    files = ["--port-file", f"{tmp_path}/port"]
    argv = [sys.executable, "-c", SLOW_NAMES, command, first, *targets, *listen, *files]
    with spawned(argv) as process:
        assert process.stdout
        assert process.stderr
        Lines(process.stdout).until("looking up")
        assert (tmp_path / "socket").exists()
        process.send_signal(signal.SIGHUP)  # does not stop it
        process.send_signal(signal.SIGUSR1)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert Lines(process.stderr).rest() == []
    assert list(tmp_path.iterdir()) == []


def _can_be_process_1() -> bool:
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


needs_process_1 = pytest.mark.skipif(
    not _can_be_process_1(), reason="makes a process 1 with unshare(1), as root"
)


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@needs_process_1
@pytest.mark.parametrize("number", sorted(_signals.STOPS), ids=str)
def test_process_1_is_ended_while_names_are_looked_up(number: signal.Signals) -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    argv = [*inside, sys.executable, "-c", SLOW_NAMES, "echo", "slow.test:0"]
    with spawned(argv) as process:
        assert process.stdout
        Lines(process.stdout).until("looking up")
        os.kill(_child_of(process.pid), number)
        assert process.wait(30) == 128 + number


@needs_process_1
def test_process_1_drains(tmp_path: Path) -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = [sys.executable, "-m", "trioserve", "echo", "127.0.0.1:0"]
    with spawned([*inside, *words]) as process:
        assert process.stderr
        lines = Lines(process.stderr)
        lines.until("event=listening")
        os.kill(_child_of(process.pid), signal.SIGUSR2)
        os.kill(_child_of(process.pid), signal.SIGTERM)
        lines.until("event=drained")
        assert process.wait(30) == 0


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("number", sorted(_signals.STOPS), ids=str)
def test_a_signal_ends_the_demo(start: Start, number: signal.Signals) -> None:
    demo = start("demo", "--seconds", "1000", "--clients", "10")
    demo.out.until("clients in 1000 s")
    demo.signal(number)
    assert demo.code() == 128 + number
    assert demo.err.rest() == []


def test_a_signal_ends_a_command_that_waits_for_input(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [sys.executable, "-m", "trioserve", "explain", str(fifo)]
    with spawned(words) as process:
        # Opening it to write waits until it is opened to read.
        with fifo.open("wb"):
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert process.stderr
        assert process.stderr.read() == ""


def test_before_it_runs_a_stop_signal_ends_it() -> None:
    end_when_stopped()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)  # is queued
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGQUIT)
    assert caught.value.code == 131

    async def main() -> int:
        signal.raise_signal(signal.SIGUSR1)
        return 10 * await anext(signals) + await anext(signals)

    assert signals.run(main) == 10 * signal.SIGHUP + signal.SIGUSR1


def test_a_signal_before_the_first_step_of_trio_is_not_lost() -> None:
    signals = Signals()
    signals._queues_stops = True
    signal.raise_signal(signal.SIGTERM)

    async def never() -> int:
        raise AssertionError  # pragma: no cover - it is cancelled at its first step

    async def attempt() -> int:
        await trio.lowlevel.checkpoint()
        return await never()

    with pytest.raises(SystemExit) as caught:
        signals.run(signals.unless_stopped, attempt)
    assert caught.value.code == 143


def test_a_result_from_before_the_signal_is_returned() -> None:
    signals = Signals()

    async def main() -> int:
        async def attempt() -> int:
            signal.raise_signal(signal.SIGTERM)
            return 7

        done = await signals.unless_stopped(attempt)
        # The signal is still in the queue.
        return done * 100 + await anext(signals)

    assert signals.run(main) == 700 + signal.SIGTERM


def test_a_signal_after_the_end_does_not_change_the_exit_code() -> None:
    signals = Signals()

    async def main() -> int:
        return 3

    assert signals.run(main) == 3
    for number in _signals.STOPS | _signals.REQUESTS:
        signal.raise_signal(number)
    signals._arrive(signal.SIGTERM, None)  # arrived before it was ignored

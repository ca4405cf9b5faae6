"""What the command writes to readers that are slow, gone, or missing."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from app.process import HELD, PATIENCE, Command, Start, fill, say_hello, spawned


def test_reports_are_appended_to_a_file(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "reports"
    path.write_text("before\n")
    command = start("echo", "127.0.0.1:0", "--reports", str(path))
    port = command.port()
    for _ in range(3):
        with command.connect(port) as client:
            say_hello(client)
        command.err.until("event=connection")
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    before, *reports = path.read_text().splitlines()
    assert before == "before"
    assert [json.loads(report)["id"] for report in reports] == [1, 2, 3]


@pytest.mark.usefixtures("traced")
def test_a_pipe_without_a_reader_does_not_block_serving(
    start: Start, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = start("echo", "127.0.0.1:0", "--reports", str(fifo))
    port = command.port()
    with command.connect(port) as client:
        say_hello(client)
    command.err.until("event=connection")
    # A reader that opens it for both waits for bytes, and not for a writer.
    with os.fdopen(os.open(fifo, os.O_RDWR)) as reports:
        with command.connect(port) as client:
            say_hello(client)
        # The reader may have come early enough for the first one, too.
        first = json.loads(reports.readline())["id"]
        assert first == 2 or json.loads(reports.readline())["id"] == 2
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    command.err.rest()
    (said,) = [line for line in command.err.seen if "event=reports-failed" in line]
    assert "level=warning" in said
    assert f"nobody reads {fifo}; reports are lost until somebody does" in said
    assert first == 1 or any("event=reports-lost" in x for x in command.err.seen)


def test_a_full_pipe_does_not_block_the_exit(start: Start, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    fill(writer)
    command = start("echo", "127.0.0.1:0", "--reports", str(fifo))
    with command.connect(command.port()) as client:
        say_hello(client)
    command.err.until("event=connection")
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("traced")
def test_a_file_that_can_never_take_reports_is_refused(
    start: Start, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        path = tmp_path / "socket"
        listening.bind(str(path))
        on_socket = start("echo", "127.0.0.1:0", "--reports", str(path))
        (said,) = on_socket.err.rest()
        assert said == (
            f"trioserve: error: can't write reports to {path}: it is neither a file"
            " nor a pipe; use one, or '-' for stdout"
        )
        assert on_socket.code() == 1
    on_folder = start("echo", "127.0.0.1:0", "--reports", str(tmp_path))
    assert on_folder.err.rest() == [
        f"trioserve: error: can't write reports to {tmp_path}: Is a directory"
    ]


@pytest.mark.usefixtures("traced")
def test_sighup_reopens_the_reports_and_ends_nothing(
    start: Start, tmp_path: Path
) -> None:
    path, old = tmp_path / "reports", tmp_path / "reports.1"
    command = start("echo", "127.0.0.1:0", "--reports", str(path), *HELD)
    port = command.port()
    path.rename(old)
    command.signal(signal.SIGHUP)
    assert f"SIGHUP: reopened {path}" in command.err.until("event=sighup")
    assert path.read_bytes() == b""
    with command.connect(port) as client:
        say_hello(client)
        command.signal(signal.SIGTERM)
        command.err.until("event=draining")
        path.rename(old)
        path.mkdir()
        command.signal(signal.SIGHUP)
        said = command.err.until("event=sighup")
        assert f"SIGHUP: can't reopen {path}: Is a directory" in said
        assert "level=error" in said
        client.sendall(b"still there?")
        assert client.recv(12) == b"still there?"
    assert command.code() == 0
    assert json.loads(old.read_text())["id"] == 1


def test_a_full_disk_is_logged_and_serving_goes_on(start: Start) -> None:
    command = start("echo", "127.0.0.1:0", "--reports", "/dev/full")
    port = command.port()
    for _ in range(2):
        with command.connect(port) as client:
            say_hello(client)
        command.err.until("event=connection")
    said_lost = 0
    while said_lost < 2:
        said_lost += int(command.err.until("event=reports-lost ").split(" lost=")[1])
    command.signal(signal.SIGUSR1)
    assert " reports_lost=2 " in command.err.until("event=status")
    assert _lost_reports(command) == 2
    said = [line for line in command.err.seen if "reports-failed" in line]
    assert len(said) == 1
    assert "can't write to /dev/full: No space left on device" in said[0]


def _lost_reports(command: Command) -> int:
    # End it; each loss was logged once, and the total at the end.
    command.signal(signal.SIGTERM)
    assert command.code() == 0
    command.err.rest()
    lost = [
        int(line.split(" lost=")[1])
        for line in command.err.seen
        if "event=reports-lost " in line
    ]
    (drained,) = [line for line in command.err.seen if "event=drained " in line]
    assert drained.endswith(f" reports_lost={sum(lost)}")
    return sum(lost)


def test_reports_over_the_file_size_limit_are_counted_as_lost(
    start: Start, tmp_path: Path
) -> None:
    """Law 15: and no signal (SIGXFSZ) ends the command."""
    path = tmp_path / "reports"
    command = start("echo", "127.0.0.1:0", "--reports", str(path))
    port = command.port()
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    for _ in range(3):
        with command.connect(port) as client:
            say_hello(client)
        command.err.until("event=connection")
    # Half a line does not count.
    assert _lost_reports(command) == 3 - path.read_text().count("\n") >= 2
    (said,) = [line for line in command.err.seen if "reports-failed" in line]
    assert "File too large" in said


def test_an_error_of_stdout_names_stdout() -> None:
    reader, writer = os.pipe()
    argv = [sys.executable, "-m", "trioserve", "echo", "127.0.0.1:0", "--reports", "-"]
    with spawned(argv, stderr=writer) as process, os.fdopen(reader) as stderr:
        os.close(writer)
        assert process.stdout
        process.stdout.close()
        port = int(stderr.readline().split("addresses=127.0.0.1:")[1].split()[0])
        with socket.create_connection(("127.0.0.1", port)) as client:
            say_hello(client)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert "can't write to stdout: Broken pipe" in stderr.read()


def test_a_full_stderr_does_not_block_connections() -> None:
    # The log goes to a full pipe that nobody reads.
    reader, writer = os.pipe()
    with spawned(
        [sys.executable, "-m", "trioserve", "echo", "127.0.0.1:0", "--reports", "-"],
        stderr=writer,
    ) as process:
        port = _port_in(reader)
        fill(writer)
        assert process.stdout
        for number in range(1, 20):
            _meet(port, number, process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    os.close(reader)
    os.close(writer)


def test_a_closed_stderr_does_not_end_it() -> None:
    reader, writer = os.pipe()
    with spawned(
        [sys.executable, "-m", "trioserve", "echo", "127.0.0.1:0", "--reports", "-"],
        stderr=writer,
    ) as process:
        os.close(writer)
        port = _port_in(reader)
        os.close(reader)
        assert process.stdout
        for number in range(1, 4):
            _meet(port, number, process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_reader_of_reports_may_leave_and_come_back(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "reports"
    os.mkfifo(path)
    command = start("echo", "127.0.0.1:0", "--reports", str(path))
    with path.open() as reports:
        port = command.port()
        _meet(port, 1, reports)
    with command.connect(port) as client:
        say_hello(client)
    assert "Broken pipe" in command.err.until("event=reports-failed")
    with path.open() as reports:
        _meet(port, 3, reports)
        assert _lost_reports(command) == 1


def _meet(port: int, number: int, reports: IO[str]) -> None:
    # Connect as the client with this number, and wait for its report.
    with socket.create_connection(("127.0.0.1", port)) as client:
        say_hello(client)
    assert json.loads(reports.readline())["id"] == number


def _port_in(fd: int) -> int:
    text = b""
    while b"\n" not in text:
        text += os.read(fd, 4096)
    return int(text.decode().split("addresses=127.0.0.1:")[1].split()[0])


def test_closed_standard_files_are_replaced() -> None:
    code = (
        "import os, trioserve.app._standard_files as files;"
        "files.fill_standard_files();"
        "same = [os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)];"
        "os._exit(same != [True] * 3 or os.dup(0) != 3 or files.is_writable(1))"
    )
    closed = 'exec "$0" -c "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", closed, sys.executable, code], check=True)


@pytest.mark.usefixtures("traced")
def test_reports_for_a_closed_stdout_are_refused() -> None:
    words = f"{sys.executable} -m trioserve echo 127.0.0.1:0 --reports - >&-"
    done = subprocess.run(
        ["sh", "-c", words], stderr=subprocess.PIPE, text=True, timeout=30
    )
    assert done.stderr == (
        "trioserve: error: can't write reports to stdout: it is closed\n"
    )
    assert done.returncode == 1

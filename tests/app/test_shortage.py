"""Too few threads or open files: an error of one line, and what goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.invoked import invoke
from app.process import Command, Lines, Start, spawned

#: A user that runs nothing else, so that the limit counts only our threads.
USER = str(61_000 + os.getpid() % 4000)
#: Without coverage, which would need files and permissions of its own.
NO_THREAD = (
    "trioserve: error: can't start a thread: the limit of threads is reached"
    " (ulimit -u, TasksMax= in systemd, the pids limit of a container)\n"
)


def limited(threads: int, *words: str) -> list[str]:
    """A command line that runs Python with a limit of threads."""
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    limit = ["prlimit", f"--nproc={threads}"]
    return [*limit, *user, sys.executable, *words]


def _can_be_limited() -> bool:
    if os.geteuid() != 0 or not (shutil.which("setpriv") and shutil.which("prlimit")):
        return False
    argv = limited(1, "-c", "import trioserve")
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


needs_limits = pytest.mark.skipif(
    not _can_be_limited(),
    reason="runs this Python as another user, with setpriv(1) and prlimit(1), as root",
)


@needs_limits
@pytest.mark.parametrize(
    ("threads", "words"),
    [
        (1, "echo 127.0.0.1:0"),
        (2, "echo 127.0.0.1:0 --reports /dev/null"),
        (1, "demo"),
    ],
)
def test_without_a_thread_it_does_not_start(threads: int, words: str) -> None:
    done = subprocess.run(
        limited(threads, "-m", "trioserve", *words.split()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == NO_THREAD
    assert done.returncode == 1


@needs_limits
def test_without_a_thread_a_name_to_listen_on_is_not_looked_up() -> None:
    done = subprocess.run(
        limited(2, "-m", "trioserve", "echo", "localhost:0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    why = NO_THREAD.removeprefix("trioserve: error: can't start a thread: ")
    assert done.stderr == (
        f"trioserve: error: can't look up the host of localhost:0: {why}"
    )
    assert done.returncode == 1


@needs_limits
def test_without_a_thread_a_name_is_not_found_and_serving_goes_on() -> None:
    words = ["proxy", "127.0.0.1:0", "localhost:1", "--log", "logfmt"]
    with spawned(limited(2, "-m", "trioserve", *words)) as process:
        assert process.stdout
        assert process.stderr
        proxy = Command(process, Lines(process.stdout), Lines(process.stderr))
        port = proxy.port()
        proxy.err.until("event=unknown-name name=localhost")
        for _ in range(2):
            with (
                contextlib.suppress(ConnectionResetError),
                proxy.connect(port) as client,
            ):
                client.recv(1)
            said = proxy.err.until("event=connection")
            assert "outcome=resource" in said
            assert "no thread was free for a look-up" in said
        proxy.signal(signal.SIGTERM)
        assert proxy.code() == 0


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("command", ["echo", "demo"])
def test_a_thread_that_cannot_be_started_is_an_error_of_one_line(command: str) -> None:
    result = invoke(command)
    assert result.stderr == NO_THREAD
    assert result.exit_code == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_too_few_open_files_to_start_a_thread_are_an_error_of_one_line(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise OSError(code, "Too many")

    monkeypatch.setattr(threading.Thread, "start", start)
    result = invoke("echo")
    assert result.stderr == "trioserve: error: can't start: Too many (ulimit -n)\n"
    assert result.exit_code == 1


def test_any_other_exception_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", start)
    for error in (RuntimeError("a bug"), OSError("a bug")):
        assert invoke("echo").exception is error


@pytest.fixture
def few_files() -> Iterator[Any]:
    """Start the command with a limit of open files."""
    with contextlib.ExitStack() as stack:

        def start(count: int, *words: str) -> Command:
            argv = [
                "sh",
                "-c",
                f'ulimit -n {count}; exec "$0" -m trioserve "$@"',
            ]
            process = stack.enter_context(spawned([*argv, sys.executable, *words]))
            assert process.stdout
            assert process.stderr
            return Command(process, Lines(process.stdout), Lines(process.stderr))

        yield start


@pytest.mark.parametrize("count", [6, 8, 9, 10])
def test_too_few_open_files_are_an_error_of_one_line(
    count: int, few_files: Any
) -> None:
    command = few_files(count, "echo", "127.0.0.1:0", "--log", "logfmt")
    try:
        command.port()
    except AssertionError:  # it has ended without listening
        assert "Too many open files" in command.err.seen[-1]
        assert not any("Traceback" in line for line in command.err.seen)
        assert command.code() == 1
    else:
        command.signal(signal.SIGTERM)
        assert command.code() == 0


def test_a_default_limit_that_is_low_is_a_warning(few_files: Any) -> None:
    command = few_files(64, "echo", "127.0.0.1:0")
    said = command.err.until("event=open-files")
    assert "level=warning" in said
    assert "max_connections=1 allowed=64" in said
    command.port()
    asked_for = few_files(64, "echo", "127.0.0.1:0", "--max-connections", "1")
    asked_for.port()
    assert not any("event=open-files" in line for line in asked_for.err.seen)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "huge", "stdin"])
def test_faults_are_read_from_regular_files_of_limited_size_only(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "case"
    said = "it is not a regular file"
    match kind:
        case "device":
            path = Path("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path, said = tmp_path, "Is a directory"
        case "huge":
            path.write_bytes(b"{" + b" " * 1_000_000)
            said = "it has more than 1.0 MB"
        case _:
            path = Path("/dev/stdin")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trioserve",
            "proxy",
            ":0",
            "a:1",
            "--fault",
            f"@{path}",
        ],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == f"trioserve: error: --fault: can't read {path}: {said}\n"
    assert done.returncode == 2


@pytest.mark.parametrize("command", ["explain", "reports"])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_an_endless_file_is_not_read_forever(command: str, device: str) -> None:
    result = invoke(command, device)
    assert result.stderr == (
        f"trioserve: error: there is no report in {device}; give a file that"
        " --reports wrote\n"
    )
    assert result.exit_code == 1


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link"])
def test_a_port_file_replaces_only_regular_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "port"
    match kind:
        case "device":
            path = Path("/dev/null")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/stdout")
    before = path.lstat()
    result = invoke("echo", "127.0.0.1:0", "--port-file", str(path))
    assert result.stderr == (
        f"trioserve: error: can't write the port to {path}: it exists, and is not"
        " a regular file\n"
    )
    assert result.exit_code == 1
    assert os.path.samestat(path.lstat(), before)


def test_a_port_file_on_a_full_disk_is_an_error_of_one_line(
    start: Start, tmp_path: Path
) -> None:
    # A limit of the file size stands in for a full disk.
    script = 'ulimit -f 0; exec "$0" -m trioserve echo 127.0.0.1:0 --port-file "$1"'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, str(tmp_path / "port")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "can't write the port to" in done.stderr
    assert done.stderr.endswith(": File too large\n")
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []

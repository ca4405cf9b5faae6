"""Output that can't be written: an error of one line, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

REPORT = '{"id": 1, "reason": "idle"}\n'
PRINTING = [
    *("", "--help", "--version", "proxy -h", "completion bash"),
    *("help", "help proxy", "help logs", "help settings"),
    *("explain -", "reports -", "reports - --json"),
    "demo --clients 1 --seconds 0.01",
]


def printed(words: str, to: str, *, buffered: bool = False) -> tuple[int, str]:
    """The exit code and stderr of a command whose output goes to ``to``."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m trioserve {words} {to}"],
        input=REPORT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("words", PRINTING)
def test_a_full_stdout_is_an_error_of_one_line(words: str) -> None:
    code, said = printed(words, "> /dev/full", buffered=len(words) % 2 == 0)
    assert said == "trioserve: error: can't write to stdout: No space left on device\n"
    assert code == 1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("words", ["--version", "help logs", "reports -"])
def test_a_closed_stdout_is_an_error_of_one_line(words: str) -> None:
    code, said = printed(words, ">&-")
    assert said == "trioserve: error: can't write to stdout: Bad file descriptor\n"
    assert code == 1


def test_a_demo_without_stdout_is_an_error() -> None:
    code, said = printed("demo --clients 1 --seconds 0.01", ">&-")
    assert said == "trioserve: error: can't write to stdout: Bad file descriptor\n"
    assert code == 1


@pytest.mark.parametrize("words", ["--help", "demo --clients 1 --seconds 0.01"])
def test_a_reader_may_close_the_pipe_early(words: str) -> None:
    _, said = printed(words, "| head -c 1 > /dev/null")
    assert said == ""


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("to", ["2> /dev/full", "2>&-"])
@pytest.mark.parametrize(("words", "code"), [("ecoh", 2), ("explain /no", 1)])
def test_without_stderr_the_exit_code_is_right(words: str, code: int, to: str) -> None:
    assert printed(words, to, buffered=True)[0] == code

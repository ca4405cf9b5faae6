"""Completion, in the shells that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shell import PATIENCE
from support import one_of_each

#: A line to complete, and what the proposals must include.
LINES = [
    ("trioserve help ad", "addresses"),
    ("trioserve pr", "proxy"),
    ("trioserve echo --when-f", "--when-full"),
    ("trioserve echo --log ", "haproxy"),
    ("trioserve completion ", "zsh"),
]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(shell) is None, reason=f"not installed: {shell}"
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with the command ``trioserve`` of this Python."""
    command = tmp_path / "trioserve"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trioserve "$@"\n')
    command.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def run(path: str, *argv: str, **env: str) -> str:
    done = subprocess.run(
        argv,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.usefixtures("traced")
@needs("bash")
@pytest.mark.parametrize(("line", "proposal"), one_of_each(LINES))
def test_bash_completes(path: str, line: str, proposal: str) -> None:
    script = """
        eval "$(trioserve completion bash)"
        IFS=" " read -ra COMP_WORDS <<< "$LINE"
        [[ $LINE == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _trioserve_completion trioserve
        printf '%s\\n' "${COMPREPLY[@]}"
        complete -p trioserve
    """
    *proposals, registered = run(path, "bash", "-c", script, LINE=line).splitlines()
    assert proposal in proposals
    assert registered.endswith("-F _trioserve_completion trioserve")


@needs("fish")
@pytest.mark.parametrize(("line", "proposal"), one_of_each(LINES))
def test_fish_completes(path: str, tmp_path: Path, line: str, proposal: str) -> None:
    script = 'trioserve completion fish | source; complete -C "$LINE"'
    out = run(path, "fish", "-c", script, LINE=line, HOME=str(tmp_path))
    assert proposal in [proposed.split("\t")[0] for proposed in out.splitlines()]


@needs("zsh")
@pytest.mark.parametrize(("line", "proposal"), one_of_each(LINES))
def test_zsh_completes(path: str, tmp_path: Path, line: str, proposal: str) -> None:
    # zsh's own functions need a terminal; this calls what they would call.
    script = """
        compdef() { print -r -- "$@" }
        eval "$(trioserve completion zsh)"
        words=("${(@s: :)LINE}")
        env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words} - 1)) \\
            _TRIOSERVE_COMPLETE=zsh_complete trioserve
    """
    out = run(path, "zsh", "-fc", script, LINE=line, HOME=str(tmp_path))
    registered, *proposals = out.splitlines()
    assert registered == "_trioserve_completion trioserve"
    assert proposal in proposals

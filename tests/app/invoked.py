"""The command, invoked in this process."""

from __future__ import annotations

import inspect
from typing import Any

from click.testing import CliRunner, Result

from trioserve.app._cli import cli

# Before 8.2, click mixed the two streams unless it was asked not to.
_MIXES = "mix_stderr" in inspect.signature(CliRunner).parameters
_APART: dict[str, Any] = {"mix_stderr": False} if _MIXES else {}


def invoke(*args: str, **env: str) -> Result:
    return CliRunner(**_APART).invoke(cli, args, env=env)


def error_of(result: Result) -> str:
    """The one line of an error."""
    assert result.stdout == ""
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    start, error = result.stderr.rstrip("\n").split("trioserve: error: ")
    assert start == ""
    return error

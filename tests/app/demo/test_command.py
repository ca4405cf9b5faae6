from __future__ import annotations

import os

import click
import pytest

from trioserve.app.demo import _command
from trioserve.app.demo._command import run_demo


def test_a_reader_that_has_left_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(_command, "STDOUT", writer)
    assert run_demo(0.01, 1, 1) == 0
    os.close(writer)


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(_command, "STDOUT", full)
    with pytest.raises(click.ClickException, match="stdout: No space left on device"):
        run_demo(0.01, 1, 1)
    os.close(full)

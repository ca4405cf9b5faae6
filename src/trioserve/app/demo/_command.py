"""The command ``demo``: run it until it ends or a signal stops it.

Sizes in, an exit code out. Nothing here knows what the demo does.
"""

from __future__ import annotations

import errno

import click

from trioserve.app._open_files import raise_open_files_limit
from trioserve.app._signals import Signals
from trioserve.app._standard_files import STDOUT
from trioserve.app.output._screen import open_screen
from trioserve.app.output._writer import LineWriter

from . import _demo


def run_demo(seconds: float, clients: int, seed: int) -> int:
    """Run the demo on stdout; return its exit code.

    Raises:
      click.ClickException: stdout can't be written. It is not an error if its
        reader has left.
      SystemExit: a signal stopped it.
    """
    signals = Signals()
    raise_open_files_limit()
    errors: list[OSError] = []
    writer = LineWriter(STDOUT, on_error=errors.append)
    screen = open_screen(STDOUT, writer.write)
    write = writer.write if screen is None else screen.line

    async def main() -> int:
        return await signals.unless_stopped(
            _demo.main, seconds, clients, seed, write, screen
        )

    try:
        code = signals.run(main)
    finally:
        writer.close(2.0)
    for error in errors:
        if error.errno != errno.EPIPE:
            raise click.ClickException(f"can't write to stdout: {error.strerror}")
    return code

"""The command ``trioserve``: configuration, output, signals and the terminal.

The library never imports this, and this uses the library's public names only.
The map, from the bottom up; the folders have maps of their own:

    _job   _loops   _port_file   _signals   _standard_files   _topics   _values
    monitor
    output
    _program   reports   demo
    _options   _run
    _faults
    _cli
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command with the arguments of this process."""
    # Before what is slow to import: it may be told to stop meanwhile.
    from ._signals import end_when_stopped

    end_when_stopped()

    from ._cli import cli
    from ._standard_files import fill_standard_files

    fill_standard_files()
    cli.main()

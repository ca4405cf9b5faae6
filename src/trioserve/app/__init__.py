"""The command ``trioserve``: configuration, output, signals and the terminal.

The library never imports this package, which uses only the library's public names.
The map, from the bottom up; the folders have maps of their own:

    _listen_errors   _lookup   _open_files   _port_file   _service
    _signals   _standard_files   _topics   _values
    _loops   monitor
    output
    _program   _stop   demo   reports
    _environment   _listening
    _access_options   _fault_options   _run   _tls_options
    _network_options
    _options
    _target_options
    _sni_options
    _serve_command
    _cli
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command with the arguments of this process."""
    # First, because the imports below are slow, and a signal may come meanwhile.
    from ._signals import end_when_stopped

    end_when_stopped()

    from ._cli import cli
    from ._standard_files import fill_standard_files

    fill_standard_files()
    cli.main()

"""The command ``trioserve``: configuration, output, signals and the terminal.

The library never imports this, and this uses the library's public names only.
"""

from ._cli import main

__all__ = ["main"]

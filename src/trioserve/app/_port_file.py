"""The port file: where a script reads which port a server got.

A path and ports in, a file out. It appears whole, and nothing here knows why it
is wanted.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


class PortFile:
    """A file with port numbers, a line each, as long as they are listened on.

    Raises:
      OSError: it can't be written.
    """

    def __init__(self, path: str, ports: Iterable[int]) -> None:
        self._path = Path(path)
        text = "".join(f"{port}\n" for port in dict.fromkeys(ports))
        # Renamed, so that whoever waits for it never reads half of it.
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".port-")
        made = Path(name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            made.chmod(0o644)
            self._made = made.stat()
            made.replace(self._path)
        except BaseException:
            made.unlink()
            raise

    def remove(self) -> None:
        """Remove it, unless it is another one's by now. Twice is once."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._made, self._path.stat()):
                self._path.unlink()

"""The port file: where a script reads which port a server got.

A path and ports in, a file out. It appears whole, and nothing here knows why it
is wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path


class PortFile:
    """A file with port numbers, a line each, as long as they are listened on.

    It takes the place of a file that is there; of nothing else: not of a device, a
    named pipe or a link.

    Raises:
      OSError: it can't be written.
    """

    def __init__(self, path: str, ports: Iterable[int]) -> None:
        self._path = Path(path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._path.lstat().st_mode):
                raise OSError(errno.EEXIST, "it is there, and no regular file", path)
        text = "".join(f"{port}\n" for port in dict.fromkeys(ports))
        # Renamed, so that whoever waits for it never reads half of it.
        # Kept open: the number of a file that is gone may be another one's.
        self._handle: int | None
        self._handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".port-")
        made = Path(name)
        try:
            os.write(self._handle, text.encode())
            made.chmod(0o644)
            made.replace(self._path)
        except BaseException:
            os.close(self._handle)
            made.unlink()
            raise

    def remove(self) -> None:
        """Remove it, unless it is another one's by now. Twice is once."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._handle), self._path.stat()):
                self._path.unlink()
        os.close(self._handle)
        self._handle = None
